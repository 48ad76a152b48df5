#include "train/generate.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Heap order: does token a go before token b?  Likelier first, then the lower number. */
static bool before(const float *logits, int32_t a, int32_t b)
{
    return logits[a] > logits[b] || (logits[a] == logits[b] && a < b);
}

static void sift(int32_t *heap, int64_t n, int64_t i, const float *logits)
{
    for (int64_t c; (c = 2 * i + 1) < n; i = c) {
        if (c + 1 < n && before(logits, heap[c + 1], heap[c])) c++;
        if (!before(logits, heap[c], heap[i])) return;
        const int32_t x = heap[i];
        heap[i] = heap[c];
        heap[c] = x;
    }
}

/* Takes the likeliest token off the heap. */
static int32_t pop(int32_t *heap, int64_t *n, const float *logits)
{
    const int32_t top = heap[0];
    heap[0] = heap[--*n];
    sift(heap, *n, 0, logits);
    return top;
}

/* What decides about token number `index`. */
static double uniform(const train_draw *d, int64_t index)
{
    return (double)ag_uniform(ag_noise_bits(d->seed, 0, AG_SITE_SAMPLE, (uint64_t)index));
}

/* The first token, from the likeliest down, at which the sum of probabilities passes u times that
 * of the kept ones: ag_draw (kernels.h). */
int32_t train_choose(const train_draw *d, const float *logits, int64_t n, int64_t index,
                     int32_t *work)
{
    int32_t best = 0;
    for (int64_t i = 0; i < n; i++) {
        if (isnan(logits[i]) || logits[i] == INFINITY) return -1;
        if (before(logits, (int32_t)i, best)) best = (int32_t)i;
    }
    if (d->temperature <= 0 || d->top_k == 1) return best;

    const double top = (double)logits[best], inv_t = 1 / d->temperature;
    double sum = 0;
    for (int64_t i = 0; i < n; i++) {
        work[i] = (int32_t)i;
        sum += exp(((double)logits[i] - top) * inv_t);
    }
    for (int64_t i = n / 2; i-- > 0;) sift(work, n, i, logits);

    const int64_t k = d->top_k > 0 && d->top_k < n ? d->top_k : n;
    double kept = sum;
    if (k < n || d->top_p < 1) {     /* how much of it the kept tokens have: a first pass down the
                                      * order */
        int64_t left = n;
        kept = 0;
        for (int64_t i = 0; i < k && (i == 0 || kept < d->top_p * sum); i++)
            kept += exp(((double)logits[pop(work, &left, logits)] - top) * inv_t);
        for (int64_t i = 0; i < n; i++) work[i] = (int32_t)i;
        for (int64_t i = n / 2; i-- > 0;) sift(work, n, i, logits);
    }
    const double u = uniform(d, index) * kept;
    int64_t left = n;
    double at = 0;
    int32_t token = best;
    while (left > 0 && at < u) {
        token = pop(work, &left, logits);
        at += exp(((double)logits[token] - top) * inv_t);
    }
    return token;
}

typedef struct decoder {
    const nn_model *m;
    ag_tape *t;
    ag_kv_cache *cache;
    ag_replay *replay;               /* NULL: the host launches each kernel */
    int64_t context;
    int32_t *text;                   /* [n_text]: start, if any, prompt and what was drawn */
    int64_t  n_text, fed;            /* tokens; how many of them the cache has seen or has
                                      * dropped */
    int32_t *work;                   /* [classes] */
} decoder;

/* Draws token number `index` from the last row of y: on the device, if that can. */
static int32_t choose(decoder *dec, const ag_tensor *y, const train_draw *d, int64_t index)
{
    if (ag_tape_kernels(dec->t)->draw)
        return ag_draw_last(dec->t, y, &(ag_draw){ d->temperature, d->top_k, d->top_p,
                                                   uniform(d, index) });
    const int64_t n = dec->m->classes;
    const float *logits = ag_floats(dec->t, y);
    return logits ? train_choose(d, logits + y->size - n, n, index, dec->work) : -1;
}

/* Feeds text[fed .. n_text) to the model; *ret_y: its logits, the last row those of the next
 * token. */
static int feed(decoder *d, const ag_tensor **ret_y, ag_err *err)
{
    if (ag_kv_cache_length(d->cache) + d->n_text - d->fed > d->context) {
        ag_kv_cache_reset(d->cache, 0);
        const int64_t keep = d->context > 1 ? d->context / 2 : 1;
        d->fed = d->n_text > keep ? d->n_text - keep : 0;
        if (d->m->start) d->text[d->fed] = (int32_t)d->m->classes;
    }
    ag_tape_reset(d->t);
    ag_tensor *ids = ag_input_i32(d->t, AG_SHAPE(1, d->n_text - d->fed), d->text + d->fed);
    *ret_y = nn_model_decode_by(d->replay, d->m, d->t, ids, d->cache);
    d->fed = d->n_text;
    return ag_tape_status(d->t, err);
}

static int64_t draw_all(decoder *dec, const train_draw *d, int32_t *ret_tokens,
                        train_token *told, void *arg, ag_err *err)
{
    for (int64_t i = 0; i < d->length; i++) {
        const ag_tensor *y;
        int r = feed(dec, &y, err);
        if (r < 0) return r;
        const int32_t token = choose(dec, y, d, i);
        if ((r = ag_tape_status(dec->t, err)) < 0) return r;
        if (token < 0)
            return ag_err_set(err, AG_EDIVERGED, "the logits of token %lld are not finite",
                              (long long)i);
        ret_tokens[i] = dec->text[dec->n_text++] = token;
        if (told && told(arg, token)) return i + 1;
    }
    return d->length;
}

int64_t train_generate(const nn_model *m, ag_tape *t, int64_t context, const train_draw *d,
                       const int32_t *prompt, int64_t n_prompt, int32_t *ret_tokens,
                       train_token *told, void *arg, ag_err *err)
{
    const int64_t n_start = m->start ? 1 : 0, n = n_start + n_prompt;
    if (n < 1)
        return ag_err_set(err, AG_ECONFIG, "an empty prompt: give at least one character");
    decoder dec = { .m = m, .t = t, .context = context, .n_text = n };
    int64_t r = nn_model_cache(m, 1, &dec.cache, err);
    if (r < 0) return r;
    dec.work = malloc((size_t)m->classes * sizeof *dec.work);
    dec.text = malloc((size_t)(n + d->length) * sizeof *dec.text);
    dec.replay = d->eager ? NULL : ag_replay_new(t);
    if (dec.work && dec.text) {
        if (n_prompt > 0) memcpy(dec.text + n_start, prompt, (size_t)n_prompt * sizeof *prompt);
        if (n > context) dec.fed = n - context;  /* the model sees the last part of a long prompt */
        if (m->start) dec.text[dec.fed] = (int32_t)m->classes;
        ag_tape_noise(t, &(ag_noise_key){ .step = UINT32_MAX, .n_samples = 1 });
        ag_tape_no_grad(t, true);
        r = draw_all(&dec, d, ret_tokens, told, arg, err);
        ag_tape_no_grad(t, false);
        ag_tape_reset(t);
    } else {
        r = ag_err_set(err, AG_ENOMEM, "out of memory for a sample of %lld tokens",
                       (long long)d->length);
    }
    ag_replay_free(dec.replay);
    free(dec.work);
    free(dec.text);
    ag_kv_cache_free(dec.cache);
    return r;
}
