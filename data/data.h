/*
 * data.h -- what a network is trained on: one interface for text, sound, images, HDF5 files and
 * generated sets.
 *
 * A data_set is opened once and is read-only from then on: tokens and pixels lie in memory or in a
 * mapped file, so that a batch is an index computation and a copy.  Which samples a batch holds is
 * a function of (seed, step, index in the batch) and of nothing else: there is no cursor to store,
 * a resumed run sees the same batches, and a batch that is fetched in pieces (micro-batches) is the
 * same batch.
 *
 * A set of tokens is one long text, whose samples are windows of it, or it is made of sequences
 * that stand alone (images as bytes, the generated tasks): then a sample is one whole sequence r of
 * T tokens, y is r and x is r one place later, behind the start or a 0 that tells nothing.  Where y
 * is -1 the prediction does not count.
 *
 * A set of pairs (pairs, copy_pairs, addition, long_recall) has a source and a target in each
 * sample, in the tokens of one tokenizer, with the conventions of trax: token 0 is padding, token 1
 * ends a target.  It comes in two forms.
 *   apart  (data_options.apart, for a model that reads a source): x [S + T] holds S columns of
 *          source, padded with 0 behind it, then T of the target one place later, behind a 0; y [T]
 *          is the target with its end, -1 behind that.  data_set.source is S, the context is T.
 *   a row  (for a language model): source, 1, target, 1, padding, in T tokens all together; x is
 *          the row one place later, y counts from the target's first token to its end.
 * A target that is cut, as it is longer than data_options.target_length, has no end.
 *
 * Legend: T context length, S columns of the source, B samples in a batch, h w c height, width,
 * channels of an image.
 */
#ifndef DATA_DATA_H
#define DATA_DATA_H

#include "autograd/base/error.h"
#include "autograd/base/io.h"
#include "data/tokenizer.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum data_kind { DATA_TOKENS, DATA_IMAGES } data_kind;

/* The test part of MNIST and its like is DATA_VAL; a DATA_TEST have cifar10, enwik8, and what is
 * cut with a test_fraction. */
enum { DATA_TRAIN, DATA_VAL, DATA_TEST, DATA_SPLITS };

typedef struct data_tokens {
    const void *at;                  /* [n] of u8, u16 or u32, little-endian */
    int64_t     n;
    int         bytes;               /* of one token: 1, 2 or 4 */
    const uint8_t *scored;           /* [n], 0: it cannot be known, its prediction does not count;
                                      * NULL: all count; sequences only */
} data_tokens;

typedef struct data_images {
    const uint8_t *at;               /* [n, h, w, c] */
    const int32_t *label;            /* [n], 0 .. n_classes - 1 */
    int64_t        n;
} data_images;

/* Told while a file is fetched; a return value other than 0 stops the transfer.  total is -1 if
 * unknown. */
typedef int data_progress(void *arg, const char *file, int64_t done, int64_t total);

typedef struct data_options {
    const char *source;              /* one of data_sources() */
    const char *path;                /* file or folder; NULL or "": searched for, see data_find() */
    const char *tokenizer;           /* "char", "byte", for pairs "word"; NULL or "": byte for
                                      * enwik8, else char */
    const char *token_order;         /* of a text's characters: "code_point", "frequency" or
                                      * "shuffled"; NULL: the first */
    int64_t     vocab;               /* word: tokens at most; 0: no limit */
    const data_tokenizer *known;     /* NULL, or the tokenizer of a checkpoint, used instead */
    double      val_fraction;        /* of a text or of images without a test part, 0 <= f < 1 */
    double      test_fraction;       /* the same, behind it; both together below 1 */
    int64_t     context;             /* T, tokens that a sample shows; token sets only */
    bool        start;               /* a sample begins with the start, token vocab, and so scores
                                      * T tokens of T, not of T + 1 */
    int64_t     size;                /* generated sets: tokens, images or sequences in all; 0: the
                                      * default */
    bool        sequences;           /* images become tokens, one sequence each */
    int64_t     image_size;          /* their height and width: zeros around, or means of blocks; 0:
                                      * as they are */
    int64_t     levels;              /* of a pixel, 2 .. 256; 0: 256 */
    int64_t     width;               /* grid: tokens of a row; 0: the square root of T */
    bool        apart;               /* pairs: source and target are columns of their own */
    int64_t     source_length;       /* pairs: most tokens of a source, and of a target with its */
    int64_t     target_length;       /* end; 0: of a file the longest, else what the task asks */
    int64_t     digits;              /* addition: of both numbers together, 2 .. digits */
    int64_t     test_digits;         /* and in the test part test_least .. test_digits; 0: as in */
    int64_t     test_least;          /* training; least 0: digits + 1 */
    uint64_t    seed;                /* generated sets, shuffled tokens */
    double      mean, std;           /* images: x = (pixel / 255 - mean) / std */
    const char *h5_train, *h5_val;   /* names in an HDF5 file; NULL or "": /tokens/train and */
    const char *h5_train_labels;     /* /tokens/val, or /train/images, /train/labels, */
    const char *h5_val_labels;       /* /test/images and /test/labels */
    bool        download;            /* fetch a named set that is not found */
    data_progress *progress;
    void       *progress_arg;
} data_options;

static inline data_options data_options_default(void)
{
    return (data_options){.val_fraction = 0.1, .context = 1, .digits = 33, .std = 1.0};
}

typedef struct data_set {
    data_kind   kind;
    char        name[32];            /* the source, as in data_options */
    char        about[384];          /* one line: what it is, how much of it */
    char       *file[8];             /* the files that it came from; NULL behind the last */
    data_tokens tokens[DATA_SPLITS];
    int64_t     context;             /* T */
    int64_t     source;              /* S, in front of x; 0: a sample has no source apart */
    bool        pairs;               /* each sample is a source and a target, apart or in a row */
    bool        start;               /* as in data_options */
    int64_t     vocab;
    data_tokenizer *tokenizer;       /* NULL: tokens without a text, as in a foreign HDF5 file */
    double      entropy_rate;        /* nats per token, the best loss there is; NAN where unknown */
    data_images images[DATA_SPLITS];
    int64_t     h, w, c, n_classes;  /* h, w, c of sequences too where they are images; else 0 */
    int64_t     sequence;            /* tokens of a sequence: the context, S + T where there is a
                                      * source; 0: one long text */
    int64_t     rate;                /* sound: samples per second; else 0 */
    float       scale, shift;        /* of a pixel: x = pixel * scale + shift */
    void       *owned[8];            /* memory and maps to release */
    ag_map      map;
    char        fingerprint[65];     /* "" until it is asked for */
} data_set;

/* Opens what o->source names.  AG_ECONFIG: an option that does not fit; AG_EINPUT: not found,
 * damaged or too short (the message says where was looked and what to do); AG_EIO, AG_ENOMEM. */
int  data_open(const data_options *o, data_set **ret_set, ag_err *err);
void data_close(data_set *d);                                      /* NULL is fine */

/* SHA-256 of the files in order; of the tokens or pixels for a generated set and for sound. */
int  data_sha256(const data_set *d, char ret_hex[65], ag_err *err);

/* Tells whether a set holds the same samples as another one: SHA-256 of its sizes and of its tokens
 * or pixels, of 64 places spread over each part where it has more than 4 MiB.  Made once, at the
 * first call, which takes some 30 ms for such a set. */
const char *data_fingerprint(data_set *d);

/* The names that data_options.source takes, NULL at the end. */
const char *const *data_sources(void);

/* ---- which samples: sample.c ---- */

typedef enum data_order {
    DATA_RANDOM,                     /* with replacement; tokens: at any offset, as nanoGPT */
    DATA_SHUFFLED,                   /* every sample once per epoch, in an order of (seed, epoch) */
    DATA_SEQUENTIAL,                 /* every sample once, in order, then no more */
} data_order;

typedef struct data_draw {
    int        split;                /* DATA_TRAIN, DATA_VAL, DATA_TEST */
    data_order order;
    uint64_t   seed;                 /* give evaluation a seed of its own */
    int64_t    step;                 /* 0, 1, ...: which batch */
    int64_t    batch;                /* B */
    int64_t    last;                 /* DATA_SEQUENTIAL, tokens: 0, or a window begins so many
                                      * tokens after the one before and scores its last ones only:
                                      * see data_windows() */
} data_draw;

/* Samples of a split: images, sequences, or windows of T + 1 tokens that overlap by one (the last,
 * short one left out); with the start, windows of T tokens that do not. */
int64_t data_samples(const data_set *d, int split);

/*
 * Windows that score every token of a split once (but for the first token where there is no start):
 * the first one scores all its targets, each further one its last `last` targets, 1 .. T, the final
 * one what is left.  Targets that a window does not score are -1.
 */
int64_t data_windows(const data_set *d, int split, int64_t last);

/* Where sample i (0 .. B-1) of the batch starts: an image index or a token offset; -1 behind the
 * end of a sequential pass. */
int64_t data_sample_at(const data_set *d, const data_draw *w, int64_t i);

/* Index s of the n samples of an epoch in its shuffled order: a bijection of 0 .. n-1. */
int64_t data_shuffle(uint64_t seed, int64_t epoch, int64_t n, int64_t s);

/* Fetch samples i0 .. i0+n-1 of the batch: x [n, S + T], y [n, T], y one token ahead, -1 where it
 * does not count (x begins with the start where there is one; S is 0 but for pairs apart); or
 * x [n, h*w*c], label [n].  Return the samples written: n, or fewer at the end of a sequential
 * pass. */
int64_t data_batch_tokens(const data_set *d, const data_draw *w, int64_t i0, int64_t n,
                          int32_t *x, int32_t *y);
int64_t data_batch_images(const data_set *d, const data_draw *w, int64_t i0, int64_t n,
                          float *x, int32_t *label);

/* The source and the target of sample i of a part, without end and padding, into buffers of
 * d->sequence tokens.  For sets of pairs, in both forms. */
void data_pair_at(const data_set *d, int split, int64_t i, int32_t *source, int64_t *ret_n_source,
                  int32_t *target, int64_t *ret_n_target);

/* ---- named sets and where they are: catalog.c, download.c ---- */

typedef struct data_file {
    const char *name;                /* as published */
    const char *unpacked;            /* what is wanted, where name is an archive; else NULL */
    int64_t     size;                /* bytes as published */
    const char *sum;                 /* of the wanted file, hex: 32 digits MD5, 64 digits SHA-256 */
    const char *url[3];              /* folders that hold it, with the slash at the end */
    const char *plain;               /* MD5 of what a gzip file holds; else NULL */
} data_file;

typedef struct data_named {
    const char *name, *about;
    data_file   file[5];             /* name NULL behind the last */
} data_named;

/* All named sets, name NULL behind the last; and one of them, NULL if there is none of that
 * name. */
const data_named *data_catalog(void);
const data_named *data_catalog_find(const char *name);

/* Finds a named set: path if given, then $TULLE_DATA, $TULLE_DATA/NAME, the user cache, system
 * packages.  The answer (malloc) is a file, or the folder of an IDX set.  AG_EINPUT lists the
 * places looked at. */
int data_find(const char *name, const char *path, char **ret_path, ag_err *err);

/* The user's cache: $XDG_CACHE_HOME/tulle or ~/.cache/tulle (malloc); NULL if neither is known. */
char *data_cache_dir(void);

/* Compares the published files that lie in dir with their checksums.  seen is told of each file:
 * state > 0 good, 0 not there, < 0 wrong.  AG_EINPUT if one is wrong or none is there. */
typedef void data_seen(void *arg, const char *file, int state);
int data_verify(const data_named *set, const char *dir, data_seen *seen, void *arg, ag_err *err);

/* Fetches the files of a named set into dir (NULL: the cache), each checked before it gets its
 * name.  A broken transfer goes on where it stopped.  $TULLE_MIRROR: folders, separated by spaces,
 * used instead of the published ones, each holding NAME/FILE.  On failure the message says how to
 * place the files by hand. */
int data_get(const char *name, const char *dir, data_progress *progress, void *arg, ag_err *err);

/* ---- pictures and sound from tokens: png.c, wav.c ---- */

/* An image [h, w, c] of bytes as a PNG file (malloc): c 1 gray, 2 gray and opacity, 3 colours, 4
 * colours and opacity.  AG_ESHAPE, AG_ENOMEM. */
int data_png(const uint8_t *pixel, int64_t h, int64_t w, int64_t c, uint8_t **ret_file,
             size_t *ret_size, ag_err *err);

/* 8-bit mu-law, mu = 255 (ITU-T G.711's curve, evenly quantised as in WaveNet, arXiv 1609.03499,
 * section 2.2): token floor((F(x) + 1) / 2 * 255 + 1/2) with F(x) = sign(x) ln(1 + 255 |x|) / ln
 * 256; x beyond -1 .. 1 is cut; silence is token 128. */
enum { DATA_SILENCE = 128 };
uint8_t data_mulaw_encode(double x);
double  data_mulaw_decode(uint8_t token);
/* Tokens [n] as a WAV file (malloc), one channel of 16 bits.  AG_ENOMEM; AG_ECONFIG if it would be
 * too long for one. */
int data_wav(const int32_t *token, int64_t n, int64_t rate, uint8_t **ret_file, size_t *ret_size,
             ag_err *err);

/* ---- HDF5: hdf5.c ---- */

/* Writes a set as one HDF5 file, contiguous and aligned: /tokens/train, /tokens/val, /tokenizer, or
 * /train/images, /train/labels, /test/images, /test/labels.  AG_ECONFIG: a set of pairs. */
int data_export_hdf5(const data_set *d, const char *path, ag_err *err);

#endif
