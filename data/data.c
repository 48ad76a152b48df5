/*
 * data.c -- opens a data set by the name of its source, and what all sources share.
 */
#include "autograd/base/hash.h"
#include "data/internal.h"
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const sources[] = {"shakespeare", "enwik8", "mnist",    "fashion-mnist",
                                      "cifar10",     "text",   "idx",      "hdf5",
                                      "wav",         "pairs",  "grid",     "recall",
                                      "copy",        "copy_pairs", "addition", "long_recall",
                                      "language",    "digits", NULL};

const char *const *data_sources(void) { return sources; }

static bool given(const char *s) { return s && *s; }

int data_own(data_set *d, void *p, size_t size, ag_err *err)
{
    size_t i = 0;
    if (!p)
        return ag_err_set(err, AG_ENOMEM, "no memory for %zu bytes of data", size);
    while (d->owned[i])
        i++;                                             /* no source needs all eight */
    d->owned[i] = p;
    return AG_OK;
}

int data_add_file(data_set *d, const char *path, ag_err *err)
{
    size_t i = 0;
    while (d->file[i])
        i++;
    if (!(d->file[i] = strdup(path)))
        return ag_err_set(err, AG_ENOMEM, "no memory for the name '%s'", path);
    return AG_OK;
}

void data_split_tokens(data_set *d, const void *at, int64_t n, int bytes, double val, double test)
{
    const int64_t a = (int64_t)((double)n * (1 - (val + test)));
    const int64_t b = (int64_t)((double)n * (1 - test));
    const int64_t end[DATA_SPLITS] = {a, b, n};
    for (int s = 0; s < DATA_SPLITS; s++) {
        const int64_t begin = s ? end[s - 1] : 0;
        d->tokens[s] = (data_tokens){.at = (const uint8_t *)at + begin * bytes,
                                     .n = end[s] - begin, .bytes = bytes};
    }
}

void data_split_sequences(data_set *d, const data_options *o, const void *at, int bytes,
                          const uint8_t *scored, int64_t count)
{
    data_split_tokens(d, at, count, 1, o->val_fraction, o->test_fraction);
    for (int s = 0; s < DATA_SPLITS; s++) {
        const int64_t first = ((const uint8_t *)d->tokens[s].at - (const uint8_t *)at)
                              * d->sequence;
        d->tokens[s] = (data_tokens){.at = (const uint8_t *)at + first * bytes, .bytes = bytes,
                                     .n = d->tokens[s].n * d->sequence,
                                     .scored = scored ? scored + first : NULL};
    }
}

void data_split_images(data_set *d, double val, double test)
{
    data_images *im = d->images;
    const int64_t n = im[DATA_TRAIN].n, size = d->h * d->w * d->c;
    if (im[DATA_VAL].n)
        return;
    const int64_t a = (int64_t)((double)n * (1 - (val + test)));
    const int64_t b = (int64_t)((double)n * (1 - test));
    const uint8_t *at = im[DATA_TRAIN].at;
    const int32_t *label = im[DATA_TRAIN].label;
    im[DATA_TRAIN].n = a;
    im[DATA_VAL] = (data_images){at + a * size, label ? label + a : NULL, b - a};
    im[DATA_TEST] = (data_images){at + b * size, label ? label + b : NULL, n - b};
}

int data_check_labels(data_set *d, int64_t n_classes, const char *name, ag_err *err)
{
    d->n_classes = n_classes;
    static const char *const part[DATA_SPLITS] = {"training", "validation", "test"};
    for (int s = 0; s < DATA_SPLITS; s++) {
        for (int64_t i = 0; i < d->images[s].n; i++) {
            const int32_t y = d->images[s].label[i];
            if (n_classes > 0 && y >= n_classes)
                return ag_err_set(err, AG_EINPUT,
                                  "'%s': label %d of %s image %" PRId64
                                  " is out of range 0..%" PRId64,
                                  name, y, part[s], i, n_classes - 1);
            if (y >= d->n_classes)
                d->n_classes = y + 1;
        }
        if (n_classes == 0 && s == DATA_TRAIN)
            n_classes = d->n_classes;                    /* validation may not bring new classes */
    }
    return AG_OK;
}

/* ---- opening ---- */

static int check_options(const data_options *o, ag_err *err)
{
    if (!(o->val_fraction >= 0 && o->val_fraction < 1))
        return ag_err_set(err, AG_ECONFIG, "data: val_fraction is %g, not in 0 <= f < 1",
                          o->val_fraction);
    if (!(o->test_fraction >= 0 && o->val_fraction + o->test_fraction < 1))
        return ag_err_set(err, AG_ECONFIG,
                          "data: val_fraction %g and test_fraction %g leave nothing to train on",
                          o->val_fraction, o->test_fraction);
    if (o->context < 1)
        return ag_err_set(err, AG_ECONFIG, "data: the context is %" PRId64 " tokens, below 1",
                          o->context);
    if (!(o->std > 0) || !isfinite(o->mean) || !isfinite(o->std))
        return ag_err_set(err, AG_ECONFIG, "data: mean %g and std %g cannot scale images", o->mean,
                          o->std);
    if (o->size < 0)
        return ag_err_set(err, AG_ECONFIG, "data: size is %" PRId64 ", below 0", o->size);
    if (!given(o->tokenizer) || !strcmp(o->tokenizer, "char") || !strcmp(o->tokenizer, "byte"))
        return AG_OK;
    if (strcmp(o->tokenizer, "word"))
        return ag_err_set(err, AG_ECONFIG,
                          "data: there is no tokenizer '%s' (there are: char, byte, word)",
                          o->tokenizer);
    if (strcmp(o->source, "pairs"))
        return ag_err_set(err, AG_ECONFIG, "data: the word tokenizer is for source pairs, not %s",
                          o->source);
    return AG_OK;
}

static int check_lengths(const data_set *d, ag_err *err)
{
    static const char *const part[DATA_SPLITS] = {"training", "validation", "test"};
    if (d->pairs && !d->tokens[DATA_TRAIN].n)
        return ag_err_set(err, AG_EINPUT, "%s: no pair is left to train on: take another"
                          " val_fraction or more data", d->file[0] ? d->file[0] : d->name);
    for (int s = 0; s < DATA_SPLITS && !d->sequence; s++) {
        const int64_t n = d->tokens[s].n;
        const int64_t need = d->context + (d->start ? 0 : 1);
        if ((n > 0 || s == DATA_TRAIN) && n < need)
            return ag_err_set(
                err, AG_EINPUT,
                "%s: the %s part has %" PRId64 " tokens, but a context of %" PRId64
                " needs at least %" PRId64 ": take a shorter context, another val_fraction or more"
                " data",
                d->file[0] ? d->file[0] : d->name, part[s], n, d->context, need);
    }
    return AG_OK;
}

/* Finds a named set and, where that is allowed, fetches it first. */
static int find_named(const data_options *o, char **ret_path, ag_err *err)
{
    ag_err first = {0};
    int rc = data_find(o->source, o->path, ret_path, &first);
    if (rc == AG_EINPUT && o->download && !given(o->path)) {
        rc = data_get(o->source, NULL, o->progress, o->progress_arg, err);
        return rc ? rc : data_find(o->source, NULL, ret_path, err);
    }
    return rc ? ag_err_set(err, rc, "%s", first.msg) : AG_OK;
}

static int open_named(const data_options *o, data_set *d, ag_err *err)
{
    char *path;
    int rc = find_named(o, &path, err);
    if (rc)
        return rc;
    if (!strcmp(o->source, "mnist") || !strcmp(o->source, "fashion-mnist"))
        rc = data_open_idx(o, path, 10, d, err);
    else if (!strcmp(o->source, "cifar10"))
        rc = data_open_cifar(o, path, d, err);
    else
        rc = data_open_text(o, path, d, err);
    free(path);
    return rc;
}

static bool is_pair_task(const char *source)
{
    return !strcmp(source, "copy_pairs") || !strcmp(source, "addition")
           || !strcmp(source, "long_recall");
}

static int open_source(const data_options *o, data_set *d, ag_err *err)
{
    if (!strcmp(o->source, "language"))
        return data_open_language(o, d, err);
    if (!strcmp(o->source, "digits"))
        return data_open_digits(o, d, err);
    if (!strcmp(o->source, "grid") || !strcmp(o->source, "recall") || !strcmp(o->source, "copy"))
        return data_open_task(o, d, err);
    if (is_pair_task(o->source))
        return data_open_pair_task(o, d, err);
    if (given(o->path) && !ag_path_exists(o->path))
        return ag_err_set(err, AG_EINPUT, "'%s' (data.path) does not exist", o->path);
    if (data_catalog_find(o->source))
        return open_named(o, d, err);
    if (!given(o->path))
        return ag_err_set(err, AG_ECONFIG, "data: source %s needs data.path", o->source);
    return !strcmp(o->source, "text")  ? data_open_text(o, o->path, d, err)
           : !strcmp(o->source, "idx") ? data_open_idx(o, o->path, 0, d, err)
           : !strcmp(o->source, "wav") ? data_open_wav(o, o->path, d, err)
           : !strcmp(o->source, "pairs") ? data_open_pairs(o, o->path, d, err)
                                         : data_open_hdf5(o, d, err);
}

/* "MANY to train, MANY to validate", and the test part where there is one. */
static void describe_parts(const data_set *d, const char *unit, char *buf, size_t size)
{
    int64_t n[DATA_SPLITS];
    for (int s = 0; s < DATA_SPLITS; s++)
        n[s] = d->kind == DATA_IMAGES ? d->images[s].n
               : d->tokens[s].n / (d->sequence ? d->sequence : 1);
    int used = snprintf(buf, size, "%" PRId64 " %s to train, %" PRId64 " to validate", n[0], unit,
                        n[1]);
    if (n[DATA_TEST])
        snprintf(buf + used, size - (size_t)used, ", %" PRId64 " to test", n[2]);
}

static void describe(data_set *d)
{
    char parts[128], form[64] = "";
    const char *from = d->file[0] ? strrchr(d->file[0], '/') : NULL;
    from = from ? from + 1 : d->file[0] ? d->file[0] : "generated";
    describe_parts(d, d->h ? "images" : d->pairs ? "pairs" : d->sequence ? "sequences" : "tokens",
                   parts, sizeof parts);
    if (d->h)
        snprintf(form, sizeof form, ", %" PRId64 " x %" PRId64 " x %" PRId64, d->h, d->w, d->c);
    else if (d->source)
        snprintf(form, sizeof form, " of %" PRId64 " + %" PRId64 " tokens", d->source, d->context);
    else if (d->sequence)
        snprintf(form, sizeof form, " of %" PRId64 " tokens", d->sequence);
    else if (d->rate)
        snprintf(form, sizeof form, ", %" PRId64 " a second", d->rate);
    snprintf(d->about, sizeof d->about, "%s (%.80s): %s%s, %s%" PRId64 "%s", d->name, from, parts,
             form, d->kind == DATA_TOKENS ? "vocabulary " : "",
             d->kind == DATA_TOKENS ? d->vocab : d->n_classes,
             d->kind == DATA_TOKENS ? "" : " classes");
}

static int open_checked(const data_options *o, data_set *d, ag_err *err)
{
    d->context = o->context;
    d->start = o->start;
    d->entropy_rate = NAN;
    snprintf(d->name, sizeof d->name, "%s", o->source);
    d->scale = (float)(1 / (255 * o->std));
    d->shift = (float)(-o->mean / o->std);
    int rc = open_source(o, d, err);
    if (rc == AG_OK && d->kind == DATA_IMAGES && d->images[DATA_TRAIN].n == 0)
        rc = ag_err_set(err, AG_EINPUT, "%s: no image is left to train on", d->name);
    if (rc == AG_OK && d->kind == DATA_IMAGES && o->sequences)
        rc = data_make_sequences(o, d, err);
    if (rc == AG_OK && o->apart && !d->source)
        rc = ag_err_set(err, AG_ECONFIG, "data: source %s has no pairs of a source and a target;"
                        " pairs, copy_pairs, addition and long_recall have", d->name);
    if (rc == AG_OK && d->kind == DATA_TOKENS)
        rc = check_lengths(d, err);
    if (rc == AG_OK)
        describe(d);
    return rc;
}

int data_open(const data_options *o, data_set **ret_set, ag_err *err)
{
    size_t i = 0;
    if (!given(o->source))
        return ag_err_set(err, AG_ECONFIG, "data: no source is named");
    while (sources[i] && strcmp(sources[i], o->source))
        i++;
    if (!sources[i])
        return ag_err_set(err, AG_ECONFIG,
                          "data: there is no source '%s' (there are: shakespeare, enwik8, mnist,"
                          " fashion-mnist, cifar10, text, idx, hdf5, wav, pairs, grid, recall,"
                          " copy, copy_pairs, addition, long_recall, language, digits)",
                          o->source);
    int rc = check_options(o, err);
    if (rc)
        return rc;
    data_set *d = calloc(1, sizeof *d);
    if (!d)
        return ag_err_set(err, AG_ENOMEM, "no memory for a data set");
    if ((rc = open_checked(o, d, err))) {
        data_close(d);
        return rc;
    }
    *ret_set = d;
    return AG_OK;
}

void data_close(data_set *d)
{
    if (!d)
        return;
    for (size_t i = 0; i < sizeof d->owned / sizeof *d->owned; i++)
        free(d->owned[i]);
    for (size_t i = 0; i < sizeof d->file / sizeof *d->file; i++)
        free(d->file[i]);
    data_tokenizer_free(d->tokenizer);
    ag_map_release(&d->map);
    free(d);
}

int data_sha256(const data_set *d, char ret_hex[65], ag_err *err)
{
    uint8_t digest[32];
    ag_sha256 h;
    ag_sha256_init(&h);
    const bool files = d->file[0] && !d->rate;           /* of sound only the first is named */
    for (size_t i = 0; files && d->file[i]; i++) {
        ag_map m;
        const int rc = ag_file_map(d->file[i], &m, err);
        if (rc)
            return rc;
        ag_sha256_add(&h, m.data, m.size);
        ag_map_release(&m);
    }
    for (int s = 0; s < DATA_SPLITS && !files; s++) {
        const data_images *im = &d->images[s];
        if (d->tokens[s].n)
            ag_sha256_add(&h, d->tokens[s].at, (size_t)(d->tokens[s].n * d->tokens[s].bytes));
        if (im->n) {
            ag_sha256_add(&h, im->at, (size_t)(im->n * d->h * d->w * d->c));
            ag_sha256_add(&h, im->label, (size_t)im->n * sizeof *im->label);
        }
    }
    ag_sha256_end(&h, digest);
    ag_sha256_hex(digest, ret_hex);
    return AG_OK;
}

/* The bytes at p, or what stands for them where they are many. */
static void fingerprint_add(ag_sha256 *h, const void *p, int64_t size)
{
    enum { PLACES = 64, PLACE = 1 << 16 };
    if (size <= PLACES * PLACE) {
        ag_sha256_add(h, p, (size_t)size);
        return;
    }
    for (int64_t i = 0; i < PLACES; i++) {
        const int64_t at = (int64_t)((double)(size - PLACE) * ((double)i / (PLACES - 1)));
        ag_sha256_add(h, (const uint8_t *)p + at, PLACE);
    }
}

const char *data_fingerprint(data_set *d)
{
    if (d->fingerprint[0])
        return d->fingerprint;
    uint8_t digest[32];
    ag_sha256 h;
    ag_sha256_init(&h);
    for (int s = 0; s < DATA_SPLITS; s++) {
        const data_images *im = &d->images[s];
        const data_tokens *t = &d->tokens[s];
        const bool images = d->kind == DATA_IMAGES;
        const int64_t size = images ? im->n * d->h * d->w * d->c : t->n * t->bytes;
        const int64_t form[] = {size, images ? im->n : t->n, d->h, d->w, d->c, d->sequence};
        ag_sha256_add(&h, form, sizeof form);
        if (size)
            fingerprint_add(&h, images ? (const void *)im->at : t->at, size);
        if (images && im->label)
            fingerprint_add(&h, im->label, im->n * (int64_t)sizeof *im->label);
    }
    ag_sha256_end(&h, digest);
    ag_sha256_hex(digest, d->fingerprint);
    return d->fingerprint;
}
