/* cmd_run.c -- tulle train, resume, sample, eval. */
#include "train/answer.h"
#include "train/command.h"
#include "train/generate.h"
#include "train/media.h"
#include "train/metrics.h"
#include "train/tokens.h"
#include "train/trainer.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int train_cmd_train(int argc, char **argv, ag_err *err)
{
    bool quiet = false;
    const train_flag flags[] = { { "quiet", TRAIN_FLAG_ON, &quiet, 'q', 0, 0 }, { 0 } };
    train_config c;
    train_result result = { 0 };
    int r = train_flags_read(flags, &argc, argv, err);
    if (r < 0) return r;
    if (argc < 2) return AG_ECONFIG;
    r = train_config_args(argc, argv, &c, err);
    return r < 0 ? r : train_run(&c, quiet ? NULL : stdout, &result, err);
}

int train_cmd_resume(int argc, char **argv, ag_err *err)
{
    bool quiet = false;
    const train_flag flags[] = { { "quiet", TRAIN_FLAG_ON, &quiet, 'q', 0, 0 }, { 0 } };
    train_result result = { 0 };
    const int r = train_flags_read(flags, &argc, argv, err);
    if (r < 0) return r;
    if (argc < 2) return AG_ECONFIG;
    return train_resume(argv[1], argv + 2, argc - 2, quiet ? NULL : stdout, &result, err);
}

typedef struct printer {
    const train_session *s;
    int64_t n;                       /* tokens so far */
} printer;

/* Prints each token as it comes; no more once nobody reads them. */
static int print_token(void *arg, int32_t token)
{
    printer *p = arg;
    char *text;
    size_t size;
    if (train_stop_signal) return 1;
    if (train_tokens_write(p->s, &token, 1, &text, &size, NULL) < 0) return 1;
    if (p->n++ && train_tokens_are_numbers(p->s)) putchar(' ');
    fwrite(text, 1, size, stdout);
    free(text);
    return fflush(stdout) || ferror(stdout);
}

/* The tokens of a prompt, NULL: that of the run's samples, token 0 where it has no tokens. */
static int read_prompt(const train_session *s, const char *prompt, int32_t **ret_ids,
                       int64_t *ret_n, ag_err *err)
{
    if (prompt) return train_tokens_read(s, prompt, "--prompt", ret_ids, ret_n, err);
    prompt = s->config.sample.prompt;
    if (train_tokens_read(s, prompt, "", ret_ids, ret_n, NULL) == AG_OK &&
        (*ret_n > 0 || s->model->start))
        return AG_OK;
    free(*ret_ids);
    if (!(*ret_ids = calloc(1, sizeof **ret_ids)))
        return ag_err_set(err, AG_ENOMEM, "out of memory for the prompt");
    *ret_n = 1;
    return AG_OK;
}

static int sample(train_session *s, const char *prompt, train_draw *d, ag_err *err)
{
    int32_t *ids = NULL, *out = NULL;
    int64_t n = 0;
    printer p = { .s = s };
    int r = read_prompt(s, prompt, &ids, &n, err);
    if (r == AG_OK && !(out = malloc((size_t)d->length * sizeof *out)))
        r = ag_err_set(err, AG_ENOMEM, "out of memory for %" PRId64 " tokens", d->length);
    if (r == AG_OK) {
        for (int64_t i = 0; i < n; i++) print_token(&p, ids[i]);
        const int64_t drawn = train_generate(s->model, s->decoder, s->context, d, ids, n, out,
                                             print_token, &p, err);
        putchar('\n');
        r = drawn < 0 ? (int)drawn : train_stop_signal ? ag_err_set(err, AG_EINTR, "interrupted")
                                                       : AG_OK;
    }
    free(ids);
    free(out);
    return r;
}

/* What no flag says is as in the samples of the run. */
static void fill_draw(train_draw *d, int64_t seed, const train_config *c)
{
    d->eager = c->train.cuda_graph == TRAIN_CUDA_GRAPH_OFF;
    if (d->length == 0) d->length = c->sample.length;
    if (d->temperature < 0) d->temperature = c->sample.temperature;
    if (d->top_k < 0) d->top_k = c->sample.top_k;
    if (d->top_p <= 0) d->top_p = c->sample.top_p;
    d->seed = (uint64_t)(seed < 0 ? c->sample.seed : seed);
}

/* A picture or a sound, in a file. */
static int sample_media(train_session *s, const char *path, int64_t count, const train_draw *d,
                        ag_err *err)
{
    char name[16], about[80];
    uint8_t *file = NULL;
    size_t size;
    snprintf(name, sizeof name, "sample.%s", train_media_suffix(s));
    path = path ? path : name;
    int r = train_media_draw(s, d, count ? count : s->config.sample.count, train_ask_to_stop,
                             &file, &size, about, err);
    if (r == AG_OK) r = ag_file_replace(path, file, size, err);
    if (r == AG_OK) printf("wrote %s: %s\n", path, about);
    free(file);
    return r;
}

/* Whether the model can be sampled, and the flags are for what it draws. */
static int check_sample(const train_session *s, const char *run, const char *prompt,
                        int64_t length, const char *output, int64_t count, ag_err *err)
{
    const char *media = train_media_suffix(s),
        *draws = media ? "sound" : s->tokenizer ? "text" : "tokens";
    if (s->d_in)
        return ag_err_set(err, AG_ECONFIG, "'%s' tells images apart; it draws none", run);
    if (s->form.height && !media)
        return ag_err_set(err, AG_ECONFIG, "the images of '%s' have %" PRId64 " channels; a "
                          "picture has 1 to 4", run, s->form.channels);
    if (!media && output)
        return ag_err_set(err, AG_ECONFIG, "--output is for images and sound, but '%s' draws %s",
                          run, draws);
    if (!s->form.height && count)
        return ag_err_set(err, AG_ECONFIG, "--count is for images, but '%s' draws %s", run,
                          draws);
    if (media && prompt)
        return ag_err_set(err, AG_ECONFIG, "--prompt is for text, but '%s' draws images or sound",
                          run);
    if (s->form.height && length)
        return ag_err_set(err, AG_ECONFIG, "--length is for text and sound, but '%s' draws images",
                          run);
    return AG_OK;
}

/* Flags of answers, where none is asked for by `flag`. */
static int check_beam(const train_beam *b, bool answers, const char *flag, ag_err *err)
{
    const train_beam plain = train_beam_default();
    const bool wide = b->width != plain.width, alpha = b->alpha < plain.alpha ||
                                                       b->alpha > plain.alpha;
    if (answers || !(wide || alpha)) return AG_OK;
    return ag_err_set(err, AG_ECONFIG, "--%s is for answers: it goes with %s",
                      wide ? "beam" : "alpha", flag);
}

/* Whether the flags are for a model that answers a source, or for one that goes on with a text. */
static int check_source(const train_session *s, const char *run, const char *source,
                        const char *prompt, ag_err *err)
{
    if (source && !train_session_of_pairs(s))
        return ag_err_set(err, AG_ECONFIG, "--source is for models of pairs, but '%s' was not "
                          "trained on a source and a target", run);
    if (source && prompt)
        return ag_err_set(err, AG_ECONFIG, "--source and --prompt exclude each other");
    if (!source && s->model->source)
        return ag_err_set(err, AG_ECONFIG, "'%s' answers a source: give --source TEXT", run);
    return AG_OK;
}

int train_cmd_sample(int argc, char **argv, ag_err *err)
{
    const char *prompt = NULL, *output = NULL, *source = NULL;
    bool best = false;
    train_open what = { 0 };
    int64_t seed = -1, count = 0;
    train_beam beam = train_beam_default();
    train_draw d = { .temperature = -1, .top_k = -1 };
    const train_flag flags[] = {
        { "prompt", TRAIN_FLAG_TEXT, &prompt, 'p', 0, 0 },
        { "length", TRAIN_FLAG_INT, &d.length, 'n', 1, 1e9 },
        { "temperature", TRAIN_FLAG_REAL, &d.temperature, 't', 0, 100 },
        { "top-k", TRAIN_FLAG_INT, &d.top_k, 'k', 0, 1e9 },
        { "top-p", TRAIN_FLAG_REAL, &d.top_p, 0, 1e-9, 1 },
        { "seed", TRAIN_FLAG_INT, &seed, 's', 0, 9e15 },
        { "count", TRAIN_FLAG_INT, &count, 'c', 1, 1024 },
        { "output", TRAIN_FLAG_TEXT, &output, 'o', 0, 0 },
        { "source", TRAIN_FLAG_TEXT, &source, 0, 0, 0 },
        { "beam", TRAIN_FLAG_INT, &beam.width, 0, 1, TRAIN_BEAM_MOST },
        { "alpha", TRAIN_FLAG_REAL, &beam.alpha, 0, 0, 10 },
        { "no-ema", TRAIN_FLAG_ON, &what.plain_weights, 0, 0, 0 },
        { "device", TRAIN_FLAG_TEXT, &what.device, 0, 0, 0 },
        { "best", TRAIN_FLAG_ON, &best, 0, 0, 0 },
        { 0 },
    };
    int r = train_flags_read(flags, &argc, argv, err);
    if (r < 0) return r;
    if (argc != 2) return AG_ECONFIG;
    train_session *s = NULL;
    r = check_beam(&beam, source, "--source", err);
    if (r == AG_OK) r = train_open_arg(argv[1], best, &what, &s, err);
    if (r == AG_OK) r = check_sample(s, argv[1], prompt, d.length, output, count, err);
    if (r == AG_OK) r = check_source(s, argv[1], source, prompt, err);
    if (r == AG_OK && source) {
        r = train_print_answer(s, source, &beam, err);
    } else if (r == AG_OK) {
        fill_draw(&d, seed, &s->config);
        r = train_media_suffix(s) ? sample_media(s, output, count, &d, err)
                                  : sample(s, prompt, &d, err);
    }
    train_session_free(s);
    return r;
}

static int split_of(const char *word, int *ret_split, ag_err *err)
{
    if (!strcmp(word, "val")) *ret_split = DATA_VAL;
    else if (!strcmp(word, "train")) *ret_split = DATA_TRAIN;
    else if (!strcmp(word, "test")) *ret_split = DATA_TEST;
    else return ag_err_set(err, AG_ECONFIG, "--split: '%s' is not train, val or test", word);
    return AG_OK;
}

/* How windows overlap; -1: as in the run. */
static int set_last(train_session *s, int64_t last, int64_t batches, ag_err *err)
{
    if (last > 0 && s->data->sequence)
        return ag_err_set(err, AG_ECONFIG, "--last is for one long text, but %s is made of "
                          "sequences, each scored whole", s->data->name);
    if (last > 0 && (s->d_in || batches))
        return ag_err_set(err, AG_ECONFIG, "--last is for the whole split of a model of tokens%s",
                          batches ? ": leave out --batches" : "");
    if (last > s->context)
        return ag_err_set(err, AG_ECONFIG, "--last: %" PRId64 " tokens are more than the context, %"
                          PRId64, last, s->context);
    if (last >= 0) s->config.train.eval_last = last;
    return AG_OK;
}

static int eval_loss(train_session *s, const char *word, int split, int64_t batches, bool json,
                     ag_err *err)
{
    train_eval e;
    char text[160], bits[64], seq[64];
    const int r = train_session_eval(s, split, batches, &e, err);
    if (r == AG_OK && json)
        printf("{\"step\":%" PRId64 ",\"split\":\"%s\",\"loss\":%.9g,%s\"accuracy\":%.9g,"
               "%s\"count\":%" PRId64 "}\n", s->step, word, e.loss,
               train_bits_json(s, "", e.loss, bits), e.accuracy, train_seq_json(&e, "", seq),
               e.count);
    else if (r == AG_OK)
        printf("step %" PRId64 ", split %s: %s, over %" PRId64 " %s\n", s->step, word,
               train_eval_text(s, &e, text, sizeof text), e.count, s->d_in ? "images" : "tokens");
    return r;
}

int train_cmd_eval(int argc, char **argv, ag_err *err)
{
    const char *word = "val";
    bool best = false, json = false, decode = false;
    train_beam beam = train_beam_default();
    train_open what = { .data = true };
    int64_t batches = 0, last = -1, count = 0;
    const train_flag flags[] = {
        { "split", TRAIN_FLAG_TEXT, &word, 0, 0, 0 },
        { "batches", TRAIN_FLAG_INT, &batches, 0, 0, 1e9 },
        { "last", TRAIN_FLAG_INT, &last, 0, 0, 1e6 },
        { "decode", TRAIN_FLAG_ON, &decode, 0, 0, 0 },
        { "beam", TRAIN_FLAG_INT, &beam.width, 0, 1, TRAIN_BEAM_MOST },
        { "alpha", TRAIN_FLAG_REAL, &beam.alpha, 0, 0, 10 },
        { "count", TRAIN_FLAG_INT, &count, 'c', 1, 1e9 },
        { "no-ema", TRAIN_FLAG_ON, &what.plain_weights, 0, 0, 0 },
        { "device", TRAIN_FLAG_TEXT, &what.device, 0, 0, 0 },
        { "best", TRAIN_FLAG_ON, &best, 0, 0, 0 },
        { "json", TRAIN_FLAG_ON, &json, 0, 0, 0 },
        { 0 },
    };
    int split, r = train_flags_read(flags, &argc, argv, err);
    if (r == AG_OK) r = split_of(word, &split, err);
    if (r == AG_OK) r = check_beam(&beam, decode, "--decode", err);
    if (r == AG_OK && count && !decode)
        r = ag_err_set(err, AG_ECONFIG, "--count is for answers: it goes with --decode");
    if (r < 0) return r;
    if (argc != 2) return AG_ECONFIG;
    train_session *s = NULL;
    r = train_open_arg(argv[1], best, &what, &s, err);
    if (r == AG_OK) r = set_last(s, last, batches, err);
    if (r == AG_OK && decode) r = train_print_answers(s, word, split, count, &beam, json, err);
    else if (r == AG_OK) r = eval_loss(s, word, split, batches, json, err);
    train_session_free(s);
    return r;
}
