#include "train/answer.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS = 64, SOME = 4 };        /* sequences that are decoded at once; pairs of a sample */

/* Tokens between one source, or prompt, and the next. */
static int64_t room_of(const train_session *s) { return s->source + s->context; }

/* All at once: [n, S + 1], the sources and a 0. */
static int answer_apart(train_session *s, const train_beam *b, const int32_t *source,
                        const int64_t *n_source, int64_t n, int32_t *ret_tokens, int64_t *ret_n,
                        double *ret_score, ag_err *err)
{
    const int64_t k = s->source + 1;
    train_beam beam = *b;
    beam.length = s->context;
    int32_t *prompt = calloc((size_t)(n * k), sizeof *prompt);
    if (!prompt) return ag_err_set(err, AG_ENOMEM, "out of memory for %" PRId64 " sources", n);
    for (int64_t i = 0; i < n; i++)
        memcpy(prompt + i * k, source + i * room_of(s), (size_t)n_source[i] * sizeof *prompt);
    const int r = train_beam_search(s->model, s->tape, &beam, prompt, n, k, ret_tokens, ret_n,
                                    ret_score, err);
    free(prompt);
    return r;
}

/* One of a language model: what stands before a row, the source and its end. */
static int answer_row(train_session *s, const train_beam *b, const int32_t *source,
                      int64_t n_source, int32_t *ret_tokens, int64_t *ret_n, double *ret_score,
                      ag_err *err)
{
    const int64_t k = n_source + 2, left = s->context - k + 1;
    const int64_t most = s->config.data.target_length;
    train_beam beam = *b;
    beam.length = most && most < left ? most : left;
    int32_t *prompt = malloc((size_t)k * sizeof *prompt);
    if (!prompt) return ag_err_set(err, AG_ENOMEM, "out of memory for a source");
    prompt[0] = s->model->start ? (int32_t)s->model->classes : DATA_PADDING;
    memcpy(prompt + 1, source, (size_t)n_source * sizeof *prompt);
    prompt[k - 1] = DATA_END;
    const int r = train_beam_search(s->model, s->tape, &beam, prompt, 1, k, ret_tokens, ret_n,
                                    ret_score, err);
    free(prompt);
    return r;
}

int train_answer(train_session *s, const train_beam *b, const int32_t *source,
                 const int64_t *n_source, int64_t n, int32_t *ret_tokens, int64_t *ret_n,
                 double *ret_score, ag_err *err)
{
    const int64_t most = s->source ? s->source : s->context - 2;
    for (int64_t i = 0; i < n; i++)
        if (n_source[i] > most)
            return ag_err_set(err, AG_EINPUT, "the source has %" PRId64 " tokens, but the model "
                              "reads at most %" PRId64, n_source[i], most);
    if (s->source)
        return answer_apart(s, b, source, n_source, n, ret_tokens, ret_n, ret_score, err);
    int r = AG_OK;
    for (int64_t i = 0; i < n && r == AG_OK; i++)
        r = answer_row(s, b, source + i * room_of(s), n_source[i], ret_tokens + i * s->context,
                       &ret_n[i], &ret_score[i], err);
    return r;
}

/* --- a split ---------------------------------------------------------------------------------- */

typedef struct buffers {             /* of up to `rows` pairs */
    int64_t  rows;
    int32_t *source, *target, *answer;
    int64_t *n_source, *n_target, *n_answer;
    double  *score;
} buffers;

static int buffers_init(buffers *f, const train_session *s, int64_t rows, ag_err *err)
{
    const size_t n = (size_t)rows, room = n * (size_t)room_of(s);
    *f = (buffers){ .rows = rows, .source = malloc(room * sizeof *f->source),
                    .target = malloc(room * sizeof *f->target),
                    .answer = malloc(room * sizeof *f->answer),
                    .n_source = malloc(n * sizeof *f->n_source),
                    .n_target = malloc(n * sizeof *f->n_target),
                    .n_answer = malloc(n * sizeof *f->n_answer),
                    .score = malloc(n * sizeof *f->score) };
    if (f->source && f->target && f->answer && f->n_source && f->n_target && f->n_answer &&
        f->score)
        return AG_OK;
    return ag_err_set(err, AG_ENOMEM, "out of memory for %" PRId64 " pairs", rows);
}

static void buffers_release(buffers *f)
{
    free(f->source);
    free(f->target);
    free(f->answer);
    free(f->n_source);
    free(f->n_target);
    free(f->n_answer);
    free(f->score);
}

/* Pairs i0 .. i0+n-1 of the split. */
static int answer_part(train_session *s, const train_beam *b, int split, int64_t i0, int64_t n,
                       buffers *f, train_told_answer *told, void *arg, ag_err *err)
{
    const int64_t room = room_of(s);
    for (int64_t i = 0; i < n; i++)
        data_pair_at(s->data, split, i0 + i, f->source + i * room, &f->n_source[i],
                     f->target + i * room, &f->n_target[i]);
    int r = train_answer(s, b, f->source, f->n_source, n, f->answer, f->n_answer, f->score, err);
    for (int64_t i = 0; i < n && r == AG_OK; i++)
        r = told(arg, &(train_answered){ f->source + i * room, f->target + i * room,
                                         f->answer + i * s->context, f->n_source[i],
                                         f->n_target[i], f->n_answer[i], f->score[i] }, err);
    return r;
}

int train_answer_split(train_session *s, const train_beam *b, int split, int64_t count,
                       train_told_answer *told, void *arg, int64_t *ret_count, ag_err *err)
{
    if (!train_session_of_pairs(s))
        return ag_err_set(err, AG_ECONFIG, "only a model of pairs answers sources; the data: %s",
                          s->data->about);
    const int64_t have = data_samples(s->data, split), all = count && count < have ? count : have;
    const int64_t rows = b->width < ROWS ? ROWS / b->width : 1;
    if (all < 1)
        return ag_err_set(err, AG_EINPUT, "nothing to answer: the split is empty\n  the data: %s",
                          s->data->about);
    buffers f;
    int r = buffers_init(&f, s, rows, err);
    for (int64_t i = 0; i < all && r == AG_OK; i += rows)
        r = answer_part(s, b, split, i, all - i < rows ? all - i : rows, &f, told, arg, err);
    buffers_release(&f);
    *ret_count = all;
    return r;
}

/* --- a sample --------------------------------------------------------------------------------- */

typedef struct lines { const data_tokenizer *tok; FILE *out; } lines;

static int write_tokens(const lines *l, const int32_t *token, int64_t n, char end, ag_err *err)
{
    char *text;
    size_t size;
    const int r = data_decode(l->tok, token, n, &text, &size, err);
    if (r < 0) return r;
    fwrite(text, 1, size, l->out);
    fputc(end, l->out);
    free(text);
    return AG_OK;
}

static int write_line(void *arg, const train_answered *a, ag_err *err)
{
    const lines *l = arg;
    int r = write_tokens(l, a->source, a->n_source, '\t', err);
    if (r == AG_OK) r = write_tokens(l, a->answer, a->n_answer, '\t', err);
    return r == AG_OK ? write_tokens(l, a->target, a->n_target, '\n', err) : r;
}

int train_answer_some(train_session *s, const train_beam *b, int split, char **ret_text,
                      ag_err *err)
{
    char *text = NULL;
    size_t size = 0;
    int64_t count;
    lines l = { s->tokenizer, open_memstream(&text, &size) };
    if (!l.out) return ag_err_set(err, AG_ENOMEM, "out of memory for a sample");
    int r = train_answer_split(s, b, split, SOME, write_line, &l, &count, err);
    const bool bad = ferror(l.out);
    if ((fclose(l.out) || bad) && r == AG_OK)
        r = ag_err_set(err, AG_ENOMEM, "out of memory for a sample");
    if (r < 0) {
        free(text);
        return r;
    }
    *ret_text = text;
    return AG_OK;
}
