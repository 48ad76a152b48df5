/* cmd_answer.c -- tulle sample --source and tulle eval --decode. */
#include "train/answer.h"
#include "train/command.h"
#include "train/rouge.h"
#include "train/trainer.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int train_print_answer(train_session *s, const char *source, const train_beam *b, ag_err *err)
{
    train_beam beam = *b;
    int32_t *ids = NULL, *answer = NULL;
    int64_t n, n_answer;
    double score;
    char *text = NULL;
    size_t size;
    beam.stop = &train_stop_signal;
    int r = data_encode(s->tokenizer, source, strlen(source), "--source", &ids, &n, err);
    if (r == AG_OK && n == 0) r = ag_err_set(err, AG_ECONFIG, "--source: it is empty");
    if (r == AG_OK && !(answer = malloc((size_t)s->context * sizeof *answer)))
        r = ag_err_set(err, AG_ENOMEM, "out of memory for an answer");
    if (r == AG_OK) r = train_answer(s, &beam, ids, &n, 1, answer, &n_answer, &score, err);
    if (r == AG_OK) r = data_decode(s->tokenizer, answer, n_answer, &text, &size, err);
    if (r == AG_OK) {
        fwrite(text, 1, size, stdout);
        putchar('\n');
    }
    free(ids);
    free(answer);
    free(text);
    return r;
}

/* --- a split ---------------------------------------------------------------------------------- */

typedef struct tally {
    const data_tokenizer *tok;
    int64_t exact;
    double  score;                   /* sums over the answers, rouge likewise */
    train_rouge rouge;
} tally;

static void add(train_rouge_score *sum, const train_rouge_score *x)
{
    sum->precision += x->precision;
    sum->recall += x->recall;
    sum->f1 += x->f1;
}

static int count_answer(void *arg, const train_answered *a, ag_err *err)
{
    tally *t = arg;
    char *answer = NULL, *target = NULL;
    size_t size;
    train_rouge x;
    t->exact += a->n_answer == a->n_target &&
                !memcmp(a->answer, a->target, (size_t)a->n_target * sizeof *a->target);
    t->score += a->score;
    int r = data_decode(t->tok, a->answer, a->n_answer, &answer, &size, err);
    if (r == AG_OK) r = data_decode(t->tok, a->target, a->n_target, &target, &size, err);
    if (r == AG_OK) r = train_rouge_of(answer, target, &x, err);
    if (r == AG_OK) {
        add(&t->rouge.n1, &x.n1);
        add(&t->rouge.n2, &x.n2);
        add(&t->rouge.l, &x.l);
        add(&t->rouge.lsum, &x.lsum);
    }
    free(answer);
    free(target);
    return r;
}

static const char *rouge_json(const char *name, const train_rouge_score *x, int64_t n,
                              char buf[160])
{
    snprintf(buf, 160, ",\"%s\":{\"f1\":%.9g,\"precision\":%.9g,\"recall\":%.9g}", name,
             x->f1 / (double)n, x->precision / (double)n, x->recall / (double)n);
    return buf;
}

static void print_rouge(const char *name, const train_rouge_score *x, int64_t n)
{
    printf("  ROUGE-%-5s F1 %6.2f, precision %6.2f, recall %6.2f\n", name,
           100 * x->f1 / (double)n, 100 * x->precision / (double)n, 100 * x->recall / (double)n);
}

int train_print_answers(train_session *s, const char *word, int split, int64_t count,
                        const train_beam *b, bool json, ag_err *err)
{
    train_beam beam = *b;
    tally t = { .tok = s->tokenizer };
    char n1[160], n2[160], l[160], lsum[160];
    int64_t n;
    beam.stop = &train_stop_signal;
    const int r = train_answer_split(s, &beam, split, count, count_answer, &t, &n, err);
    if (r < 0) return r;
    const double share = (double)t.exact / (double)n;
    if (json) {
        printf("{\"step\":%" PRId64 ",\"split\":\"%s\",\"count\":%" PRId64 ",\"beam\":%" PRId64
               ",\"alpha\":%g,\"exact\":%.9g,\"score\":%.9g%s%s%s%s}\n", s->step, word, n,
               b->width, b->alpha, share, t.score / (double)n,
               rouge_json("rouge1", &t.rouge.n1, n, n1), rouge_json("rouge2", &t.rouge.n2, n, n2),
               rouge_json("rougeL", &t.rouge.l, n, l),
               rouge_json("rougeLsum", &t.rouge.lsum, n, lsum));
        return AG_OK;
    }
    printf("step %" PRId64 ", split %s, %s %" PRId64 ": %" PRId64 " of %" PRId64 " answers are the "
           "target (%.2f %%)\n", s->step, word, b->width > 1 ? "beam" : "greedy, beam", b->width,
           t.exact, n, 100 * share);
    print_rouge("1", &t.rouge.n1, n);
    print_rouge("2", &t.rouge.n2, n);
    print_rouge("L", &t.rouge.l, n);
    print_rouge("Lsum", &t.rouge.lsum, n);
    return AG_OK;
}
