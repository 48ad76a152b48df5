/*
 * wav.c -- sound: WAV files (RIFF, PCM of 8 to 32 bits or 32-bit float) as 8-bit mu-law tokens.
 *
 * Channels are averaged.  The files of a folder, by name, are one long text of one rate; nothing is
 * resampled: that is the work of a sound editor.  Sparse Transformers (arXiv 1904.10509, section
 * 7.4) has piano music in 8-bit mu-law at 12 kHz.
 */
#include "data/internal.h"
#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { PCM = 1, FLOAT = 3, EXTENSIBLE = 0xFFFE, MU = 255, WAV_HEAD = 44 };

uint8_t data_mulaw_encode(double x)
{
    const double a = fabs(x) < 1 ? fabs(x) : 1;
    const double f = copysign(log1p(MU * a) / log1p(MU), x);
    return (uint8_t)((f + 1) / 2 * MU + 0.5);
}

double data_mulaw_decode(uint8_t token)
{
    const double f = 2.0 * token / MU - 1;
    return copysign(expm1(fabs(f) * log1p(MU)) / MU, f);
}

/* ---- writing ---- */

static void put(uint8_t *p, int n, uint32_t v)
{
    for (int i = 0; i < n; i++)
        p[i] = (uint8_t)(v >> 8 * i);
}

int data_wav(const int32_t *token, int64_t n, int64_t rate, uint8_t **ret_file, size_t *ret_size,
             ag_err *err)
{
    if (n > INT32_MAX / 2 - WAV_HEAD || rate < 1 || rate > INT32_MAX / 2)
        return ag_err_set(err, AG_ECONFIG, "a WAV file cannot hold %" PRId64 " samples at %" PRId64
                          " a second", n, rate);
    const size_t size = WAV_HEAD + 2 * (size_t)n;
    uint8_t *p = malloc(size);
    if (!p)
        return ag_err_set(err, AG_ENOMEM, "no memory for %zu bytes of sound", size);
    memcpy(p, "RIFF....WAVEfmt ", 16);
    put(p + 4, 4, (uint32_t)(size - 8));
    put(p + 16, 4, 16);
    put(p + 20, 2, PCM);
    put(p + 22, 2, 1);
    put(p + 24, 4, (uint32_t)rate);
    put(p + 28, 4, (uint32_t)(2 * rate));
    put(p + 32, 2, 2);
    put(p + 34, 2, 16);
    memcpy(p + 36, "data", 4);
    put(p + 40, 4, (uint32_t)(2 * n));
    for (int64_t i = 0; i < n; i++) {
        const double x = data_mulaw_decode((uint8_t)token[i]);
        put(p + WAV_HEAD + 2 * i, 2, (uint32_t)(int32_t)lrint(x * INT16_MAX));
    }
    *ret_file = p;
    *ret_size = size;
    return AG_OK;
}

/* ---- reading ---- */

typedef struct wav {
    uint32_t coding, channels, rate, bits;
    const unsigned char *at;         /* samples */
    int64_t n;                       /* of one channel */
} wav;

static uint32_t le(const unsigned char *p, int n)
{
    uint32_t v = 0;
    for (int i = 0; i < n; i++)
        v |= (uint32_t)p[i] << 8 * i;
    return v;
}

static int read_format(const unsigned char *p, uint32_t size, const char *path, wav *w, ag_err *err)
{
    static const unsigned char rest[14] = {0, 0, 0, 0, 0x10, 0, 0x80, 0, 0, 0xAA, 0, 0x38, 0x9B,
                                           0x71};        /* of every format's GUID */
    if (size < 16)
        return ag_err_set(err, AG_EINPUT, "'%s' is damaged: its format takes %u bytes", path, size);
    w->coding = le(p, 2);
    w->channels = le(p + 2, 2);
    w->rate = le(p + 4, 4);
    w->bits = le(p + 14, 2);
    if (w->coding == EXTENSIBLE && size >= 40 && !memcmp(p + 26, rest, sizeof rest))
        w->coding = le(p + 24, 2);
    const bool known = (w->coding == PCM && w->bits >= 8 && w->bits <= 32 && w->bits % 8 == 0)
                       || (w->coding == FLOAT && w->bits == 32);
    if (!known)
        return ag_err_set(err, AG_EINPUT,
                          "'%s' is of coding 0x%04x with %u bits, which is not read (PCM of 8, 16,"
                          " 24 or 32 bits and 32-bit float are); convert it: sox IN -e signed -b 16"
                          " OUT.wav", path, w->coding, w->bits);
    if (w->channels < 1 || w->rate < 1 || le(p + 12, 2) != w->channels * w->bits / 8)
        return ag_err_set(err, AG_EINPUT, "'%s' is damaged: %u channels of %u bits at %u a second"
                          " in blocks of %u bytes", path, w->channels, w->bits, w->rate,
                          le(p + 12, 2));
    return AG_OK;
}

/* Finds the format and the samples among the chunks. */
static int parse(const data_bytes *b, const char *path, wav *ret, ag_err *err)
{
    wav w = {0};
    if (b->size < 12 || memcmp(b->at, "RIFF", 4) || memcmp(b->at + 8, "WAVE", 4))
        return ag_err_set(err, AG_EINPUT, "'%s' is no WAV file: it does not begin with RIFF and"
                          " WAVE", path);
    for (size_t at = 12; at + 8 <= b->size && !w.at;) {
        const unsigned char *p = b->at + at;
        const uint32_t size = le(p + 4, 4);
        at += 8;
        if (size > b->size - at)
            return ag_err_set(err, AG_EINPUT, "'%s' is cut off: its part '%.4s' should have %u"
                              " bytes, but %zu are left", path, (const char *)p, size,
                              b->size - at);
        if (!memcmp(p, "fmt ", 4)) {
            const int rc = read_format(p + 8, size, path, &w, err);
            if (rc)
                return rc;
        } else if (!memcmp(p, "data", 4) && !w.channels) {
            return ag_err_set(err, AG_EINPUT, "'%s' is damaged: sound before its format", path);
        } else if (!memcmp(p, "data", 4)) {
            const uint32_t block = w.channels * w.bits / 8;
            if (size % block)
                return ag_err_set(err, AG_EINPUT, "'%s' is damaged: %u bytes of sound are no whole"
                                  " blocks of %u", path, size, block);
            w.at = p + 8;
            w.n = size / block;
        }
        at += size + (size & 1 && size < b->size - at);
    }
    if (w.n == 0)
        return ag_err_set(err, AG_EINPUT, "'%s' holds no sound", path);
    *ret = w;
    return AG_OK;
}

/* One sample, -1 .. 1; NaN stays NaN. */
static double sample(const unsigned char *p, const wav *w)
{
    if (w->coding == FLOAT) {
        const uint32_t bits = le(p, 4);
        float x;
        memcpy(&x, &bits, sizeof x);
        return (double)x;
    }
    if (w->bits == 8)
        return (p[0] - 128) / 128.0;
    const uint32_t high = le(p, (int)w->bits / 8) << (32 - w->bits);
    return (double)(int32_t)high / 0x1p31;
}

static int encode(const wav *w, const char *path, uint8_t *token, ag_err *err)
{
    const int64_t bytes = w->bits / 8, block = w->channels * bytes;
    for (int64_t i = 0; i < w->n; i++) {
        double sum = 0;
        for (int64_t c = 0; c < w->channels; c++)
            sum += sample(w->at + i * block + c * bytes, w);
        if (!isfinite(sum))
            return ag_err_set(err, AG_EINPUT, "'%s': sample %" PRId64 " is not finite", path, i);
        token[i] = data_mulaw_encode(sum / (double)w->channels);
    }
    return AG_OK;
}

/* ---- one file or many ---- */

typedef struct sound {               /* what has been read */
    uint8_t *token;
    int64_t n;
    char   *first;                   /* file that told the rate */
} sound;

static int add_file(sound *s, const char *path, data_set *d, ag_err *err)
{
    data_bytes b;
    wav w;
    int rc = data_bytes_load(path, &b, err);
    if (rc)
        return rc;
    rc = parse(&b, path, &w, err);
    if (rc == AG_OK && d->rate && w.rate != d->rate)
        rc = ag_err_set(err, AG_EINPUT, "'%s' has %u samples a second, but '%s' has %" PRId64
                        ": bring them to one rate first: sox IN -r %" PRId64 " OUT.wav", path,
                        w.rate, s->first, d->rate, d->rate);
    uint8_t *more = rc == AG_OK ? realloc(s->token, (size_t)(s->n + w.n)) : NULL;
    if (rc == AG_OK && (!more || (!s->first && !(s->first = strdup(path)))))
        rc = ag_err_set(err, AG_ENOMEM, "no memory for %" PRId64 " samples", s->n + w.n);
    if (more)
        s->token = more;
    if (rc == AG_OK && (rc = encode(&w, path, s->token + s->n, err)) == AG_OK) {
        s->n += w.n;
        d->rate = w.rate;
    }
    data_bytes_release(&b);
    return rc;
}

static int is_wav(const struct dirent *e)
{
    const size_t n = strlen(e->d_name);
    return n > 4 && (!strcmp(e->d_name + n - 4, ".wav") || !strcmp(e->d_name + n - 4, ".WAV"));
}

static int by_name(const struct dirent **a, const struct dirent **b)
{
    return strcmp((*a)->d_name, (*b)->d_name);
}

static int add_folder(sound *s, const char *dir, data_set *d, ag_err *err)
{
    struct dirent **entry = NULL;
    const int n = scandir(dir, &entry, is_wav, by_name);
    int rc = n < 0 ? ag_err_set(err, AG_EIO, "cannot read '%s': %s", dir, strerror(errno))
             : n == 0 ? ag_err_set(err, AG_EINPUT, "'%s' holds no .wav file", dir) : AG_OK;
    for (int i = 0; i < n; i++) {
        char *path = data_path_join(dir, entry[i]->d_name);
        if (rc == AG_OK)
            rc = path ? add_file(s, path, d, err)
                      : ag_err_set(err, AG_ENOMEM, "no memory for a file name");
        free(path);
        free(entry[i]);
    }
    free(entry);
    return rc;
}

int data_open_wav(const data_options *o, const char *path, data_set *d, ag_err *err)
{
    struct stat st;
    sound s = {0};
    const bool folder = stat(path, &st) == 0 && S_ISDIR(st.st_mode);
    int rc = folder ? add_folder(&s, path, d, err) : add_file(&s, path, d, err);
    if (rc == AG_OK)
        rc = data_add_file(d, s.first, err);
    free(s.first);
    if (!s.token)
        return rc;
    const int own = data_own(d, s.token, (size_t)s.n, err);
    if (rc || own)
        return rc ? rc : own;
    d->kind = DATA_TOKENS;
    d->vocab = MU + 1;
    data_split_tokens(d, s.token, s.n, 1, o->val_fraction, o->test_fraction);
    return AG_OK;
}
