/*
 * internal.h -- what the files of data/ share and nobody else needs.
 */
#ifndef DATA_INTERNAL_H
#define DATA_INTERNAL_H

#include "data/data.h"

/* ---- the sources: each fills a zeroed set ---- */
int data_open_text(const data_options *o, const char *path, data_set *d, ag_err *err);
int data_open_idx(const data_options *o, const char *dir, int n_classes, data_set *d, ag_err *err);
int data_open_hdf5(const data_options *o, data_set *d, ag_err *err);
int data_open_language(const data_options *o, data_set *d, ag_err *err);
int data_open_digits(const data_options *o, data_set *d, ag_err *err);
/* path: the published tar.gz, or one of the files data_batch_N.bin of its folder. */
int data_open_cifar(const data_options *o, const char *path, data_set *d, ag_err *err);
/* path: a WAV file or a folder of them. */
int data_open_wav(const data_options *o, const char *path, data_set *d, ag_err *err);
/* tasks.c: d->name is grid, recall or copy. */
int data_open_task(const data_options *o, data_set *d, ag_err *err);

/* pair_tasks.c: d->name is copy_pairs, addition or long_recall. */
int data_open_pair_task(const data_options *o, data_set *d, ag_err *err);
/* pair_file.c: path is a file of lines SOURCE, tab, TARGET. */
int data_open_pairs(const data_options *o, const char *path, data_set *d, ag_err *err);

/* sequences.c: makes the tokens of a set of images, one sequence each. */
int data_make_sequences(const data_options *o, data_set *d, ag_err *err);

/* Hands p to the set, which frees it; also on failure.  p NULL: AG_ENOMEM. */
int data_own(data_set *d, void *p, size_t size, ag_err *err);
int data_add_file(data_set *d, const char *path, ag_err *err);
/* Cuts n tokens into train, val and test parts. */
void data_split_tokens(data_set *d, const void *at, int64_t n, int bytes, double val, double test);
/* The same for whole sequences of d->sequence tokens, with what of them is scored (or NULL). */
void data_split_sequences(data_set *d, const data_options *o, const void *at, int bytes,
                          const uint8_t *scored, int64_t count);
/* Largest label + 1, at least n_classes; AG_EINPUT if n_classes > 0 and a label is not below it. */
int data_check_labels(data_set *d, int64_t n_classes, const char *name, ag_err *err);
/* Moves the last of the training images into an empty DATA_VAL and DATA_TEST. */
void data_split_images(data_set *d, double val, double test);

/* ---- text.c ---- */
/* Encodes a text into tokens of 1, 2 or 4 bytes (as few as the vocabulary needs). */
int data_encode_packed(const data_tokenizer *tok, const char *text, size_t size, const char *name,
                       void **ret_at, int64_t *ret_n, int *ret_bytes, ag_err *err);

/* ---- tokenizer.c, words.c ---- */
/* Tokens of at .. end, a part of the text that begins at begin (for messages), into out, which has
 * room for end - at of them. */
int data_encode_part(const data_tokenizer *tok, const char *begin, const char *at, const char *end,
                     const char *name, int32_t *out, int64_t *ret_n, ag_err *err);
/* Room for n words, none in it. */
int data_tokenizer_new(data_tokenizer_kind kind, size_t n, data_tokenizer **ret_tok, ag_err *err);
/* The next word from *p on: its bytes, *p then stands behind it; 0 where there is none. */
size_t  data_word_next(const char **p, const char *end, const char **ret_word);
int32_t data_word_token(const data_tokenizer *tok, const char *word, size_t n);
/* What data_tokenizer_save writes behind kind and n, and data_tokenizer_load reads: the words, each
 * with a NUL behind it. */
int data_tokenizer_load_words(const uint8_t *bytes, size_t size, uint32_t n,
                              data_tokenizer **ret_tok, ag_err *err);
int data_decode_words(const data_tokenizer *tok, const int32_t *tokens, int64_t n, char **ret_text,
                      size_t *ret_size, ag_err *err);

/* ---- pairs.c: how pairs lie in memory ---- */
typedef struct data_pairs {          /* while they are made */
    void    *at;                     /* [count, d->sequence] */
    uint8_t *scored;                 /* the same; NULL: source and target apart */
    int64_t  source, target;         /* most tokens of each, DATA_END of the target included */
    int      bytes;
} data_pairs;

/* Lays out `count` pairs whose longest source and target are told, for d->vocab and d->name, and
 * cuts them into parts.  Lengths of o hold where they are given.  AG_ECONFIG: a context too short;
 * AG_ENOMEM. */
int  data_pairs_begin(const data_options *o, int64_t count, int64_t longest_source,
                      int64_t longest_target, data_set *d, data_pairs *ret_pairs, ag_err *err);
/* Pair i: what does not fit is cut off, of a target its end too.  May be called by many threads. */
void data_pairs_put(const data_set *d, const data_pairs *p, int64_t i, const int32_t *source,
                    int64_t n_source, const int32_t *target, int64_t n_target);

static inline int32_t data_token_at(const data_tokens *t, int64_t at)
{
    if (t->bytes == 1)
        return ((const uint8_t *)t->at)[at];
    return t->bytes == 2 ? ((const uint16_t *)t->at)[at] : ((const int32_t *)t->at)[at];
}

static inline void data_put_token(void *out, int bytes, int64_t i, int32_t t)
{
    if (bytes == 1)
        ((uint8_t *)out)[i] = (uint8_t)t;
    else if (bytes == 2)
        ((uint16_t *)out)[i] = (uint16_t)t;
    else
        ((int32_t *)out)[i] = t;
}
/* Bytes of a token of a vocabulary, as few as it needs. */
static inline int data_token_bytes(int64_t vocab)
{
    return vocab <= 1 << 8 ? 1 : vocab <= 1 << 16 ? 2 : 4;
}

/* ---- inflate.c: gzip and zip, with the output bounded before it is made ---- */
/* A file in memory: mapped, or unpacked where it begins as gzip does.  unpacked is malloc'ed or
 * NULL. */
typedef struct data_bytes {
    const unsigned char *at;
    size_t size;
    ag_map map;
    unsigned char *unpacked;
} data_bytes;
int  data_bytes_load(const char *path, data_bytes *ret_bytes, ag_err *err);
void data_bytes_release(data_bytes *b);
/* The same for a file that tells its own size: size_of gets its first 64 bytes (fewer in a shorter
 * file) and answers the size that the whole must have, or a negative code. */
typedef int64_t data_size_of(const unsigned char *head, size_t size, const char *path, ag_err *err);
int data_bytes_load_sized(const char *path, data_size_of *size_of, data_bytes *ret_bytes,
                          ag_err *err);
/* Unpacks the one file called member of a zip archive into path. */
int  data_unzip(const char *zip, const char *member, const char *path, ag_err *err);

/* ---- md5.c, catalog.c ---- */
void data_md5_hex(const void *data, size_t size, char hex[33]);
/* 1 if the file's checksum (MD5 or SHA-256 by its length) is sum, 0 if not, negative on error. */
int  data_sum_check(const char *path, const char *sum, ag_err *err);
/* dir/name (malloc), NULL when out of memory. */
char *data_path_join(const char *dir, const char *name);

/* ---- download.c ---- */
/* Fetches one file from the first of n URLs that has it, into path, by way of path.part.  sum NULL:
 * not checked. */
int data_fetch(const char *const *url, int n, const char *path, const char *sum, int64_t max_size,
               data_progress *progress, void *arg, ag_err *err);

/* ---- guard.c: untrusted parsers run in a child process ---- */
typedef void data_guard_work(void *arg, void *reply);
typedef struct data_guard {
    double  seconds;                 /* of wall and processor time */
    int64_t memory;                  /* bytes beyond what the process has now */
    int64_t file_size;               /* bytes up to which the child may make a file grow */
} data_guard;
/* Runs work(arg, reply) in a child and brings reply[size] back.  AG_EINPUT where the child dies or
 * does not answer in time: "'name' is damaged: ...". */
int data_guard_run(const data_guard *g, data_guard_work *work, void *arg, void *reply, size_t size,
                   const char *name, ag_err *err);

/* ---- hdf5.c, the side of the library, and hdf5_open.c, which never calls it ---- */
enum { H5_TRAIN, H5_VAL, H5_TRAIN_LABELS, H5_VAL_LABELS, H5_CODE_POINTS, H5_ARRAYS };

typedef struct h5_array {            /* an integer array in a file */
    int32_t rank;                    /* 0: the file has none of that name */
    int32_t bytes;                   /* of one element */
    int32_t mapped;                  /* it lies in the file as memory wants it */
    int32_t pad;
    int64_t dim[4], n;
    int64_t at;                      /* offset in the file, where mapped */
} h5_array;

typedef struct h5_reply {
    int32_t  code;                   /* AG_OK, or what failed: */
    char     msg[508];
    char     kind[16];               /* of the tokenizer; "" if there is none */
    h5_array array[H5_ARRAYS];
} h5_reply;

typedef struct h5_job {
    const char *path;
    int64_t     file_size;
    const char *name[H5_ARRAYS];     /* NULL: not asked for */
    int         out;                 /* file that data_h5_copy writes to */
    h5_array    array[H5_ARRAYS];    /* what data_h5_copy copies: at is the place in out */
} h5_job;

/* Both run in a guarded child: arg is an h5_job, reply an h5_reply. */
void data_h5_inspect(void *arg, void *reply);
void data_h5_copy(void *arg, void *reply);

#endif
