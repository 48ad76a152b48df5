#include "train/trainer.h"

#include "autograd/base/clock.h"
#include "train/answer.h"
#include "train/describe.h"
#include "train/environment.h"
#include "train/generate.h"
#include "train/media.h"
#include "train/metrics.h"
#include "train/resume.h"
#include "train/state.h"
#include "train/status.h"
#include "train/tokens.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

volatile sig_atomic_t train_stop_signal;
volatile sig_atomic_t train_save_signal;

typedef struct run {
    train_session *s;
    train_rundir   dir;
    train_status   status;
    train_eval     val;
    double began, shown;             /* seconds: of this process, of the last line of metrics */
    int64_t shown_step, saved_step;
    int32_t *prompt;                 /* what samples begin with */
    int64_t  n_prompt;
} run;

int train_ask_to_stop(void *arg, int32_t token)
{
    (void)arg;
    (void)token;
    return train_stop_signal != 0;
}

void train_run_dir(const train_config *c, char *buf, size_t size)
{
    if (c->run.dir[0]) snprintf(buf, size, "%s", c->run.dir);
    else snprintf(buf, size, "runs/%s", c->run.name);
}

/* --- saving ----------------------------------------------------------------------------------- */

static int save_last(void *arg, const train_ckpt *c, ag_err *err)
{
    return train_rundir_save_last(arg, c, err);
}

static int save_best(void *arg, const train_ckpt *c, ag_err *err)
{
    return train_rundir_save_best(arg, c, err);
}

static int save(run *r, const char *why, ag_err *err)
{
    if (!r->s->config.checkpoint.keep_last || r->saved_step == r->s->step) return AG_OK;
    const int code = train_state_save(r->s, save_last, &r->dir, err);
    if (code < 0) return code;
    r->saved_step = r->s->step;
    train_status_line(&r->status, "saved %s/last.h5 at step %lld (%s)", r->dir.dir,
                      (long long)r->s->step, why);
    return AG_OK;
}

/* --- what happens every so many steps --------------------------------------------------------- */

static bool due(int64_t step, int64_t every, int64_t last)
{
    return (every && step % every == 0) || step == last;
}

static double per_second(const run *r, double now)
{
    const train_session *s = r->s;
    const double steps = (double)(s->step - r->shown_step);
    return steps * (double)(s->config.train.batch * (s->source + s->context)) /
           fmax(now - r->shown, 1e-9);
}

static int log_step(run *r, double loss, double lr, double norm, ag_err *err)
{
    const double now = ag_seconds(), rate = per_second(r, now);
    const bool log = due(r->s->step, r->s->config.train.log_every, r->s->config.train.steps);
    const train_progress p = { .step = r->s->step, .loss = loss, .lr = lr, .per_second = rate,
                               .val_loss = r->val.count ? r->val.loss : (double)NAN,
                               .memory = log ? train_resident_bytes() : 0,
                               .skipped = r->s->scaler.skipped,
                               .bytes = train_session_of_bytes(r->s) };
    if (log || r->status.tty) {
        train_progress shown = p;
        if (!shown.memory) shown.memory = train_resident_bytes();
        train_status_step(&r->status, &shown, log);
    }
    if (!log) return AG_OK;
    char line[TRAIN_METRICS_MAX];
    const train_step_metrics m = { .loss = loss, .lr = lr, .norm = norm, .seconds = now - r->began,
                                   .unit = r->status.unit, .per_second = rate,
                                   .memory = p.memory };
    train_metrics_step(r->s, &m, line);
    r->shown = now;
    r->shown_step = r->s->step;
    return train_rundir_metrics_line(&r->dir, line, err);
}

static int evaluate(run *r, ag_err *err)
{
    train_session *s = r->s;
    const double before = ag_seconds();
    int code = train_session_eval(s, DATA_VAL, s->config.train.eval_batches, &r->val, err);
    char *sparse = NULL;
    if (code == AG_OK && s->probe) code = train_probe_look(s->probe, s, &sparse, err);
    if (code < 0) return code;
    const bool best = isnan(s->best_loss) || r->val.loss < s->best_loss;
    if (best) {
        s->best_loss = r->val.loss;
        s->best_step = s->step;
    }
    char *line = NULL, text[160], bits[64], seq[64];
    const int n = asprintf(&line, "{\"step\":%lld,\"val_loss\":%.9g,%s\"val_accuracy\":%.9g,%s"
                           "\"val_count\":%lld,\"best\":%s,\"eval_seconds\":%.3f%s%s}",
                           (long long)s->step, r->val.loss,
                           train_bits_json(s, "val_", r->val.loss, bits), r->val.accuracy,
                           train_seq_json(&r->val, "val_", seq), (long long)r->val.count,
                           best ? "true" : "false", ag_seconds() - before,
                           sparse ? ",\"sparse\":" : "", sparse ? sparse : "");
    free(sparse);
    if (n < 0) return ag_err_set(err, AG_ENOMEM, "out of memory for a line of metrics");
    code = train_rundir_metrics_line(&r->dir, line, err);
    free(line);
    if (code < 0) return code;
    train_status_line(&r->status, "step %lld: val %s%s", (long long)s->step,
                      train_eval_text(s, &r->val, text, sizeof text),
                      best ? ", the best so far" : "");
    if (best && s->config.checkpoint.keep_best) code = train_state_save(s, save_best, &r->dir, err);
    r->shown += ag_seconds() - before;           /* speed is that of training alone */
    return code;
}

/* A sample may be of any bytes; those that a terminal would obey are not shown to it. */
static void make_printable(char *text, size_t size)
{
    for (size_t i = 0; i < size; i++)
        if (((unsigned char)text[i] < ' ' && text[i] != '\n' && text[i] != '\t') || text[i] == 127)
            text[i] = '?';
}

static train_draw draw_of(const train_config *c)
{
    return (train_draw){ .length = c->sample.length, .temperature = c->sample.temperature,
                         .top_k = c->sample.top_k, .top_p = c->sample.top_p,
                         .seed = (uint64_t)c->sample.seed,
                         .eager = c->train.cuda_graph == TRAIN_CUDA_GRAPH_OFF };
}

/* A picture or a sound. */
static int draw_media(run *r, ag_err *err)
{
    train_session *s = r->s;
    const double before = ag_seconds();
    const train_draw d = draw_of(&s->config);
    const char *suffix = train_media_suffix(s);
    uint8_t *file = NULL;
    size_t size;
    char about[80];
    train_session_swap_ema(s);
    int code = train_media_draw(s, &d, s->config.sample.count, train_ask_to_stop, &file, &size,
                                about, err);
    train_session_swap_ema(s);
    if (code == AG_OK) code = train_rundir_sample(&r->dir, s->step, suffix, file, size, err);
    if (code == AG_OK)
        train_status_line(&r->status, "sample at step %lld: %s/samples/step-%08lld.%s, %s",
                          (long long)s->step, r->dir.dir, (long long)s->step, suffix, about);
    free(file);
    r->shown += ag_seconds() - before;
    return code;
}

static int draw_text(run *r, ag_err *err)
{
    train_session *s = r->s;
    const double before = ag_seconds();
    const train_draw d = draw_of(&s->config);
    const size_t all = (size_t)(r->n_prompt + d.length);
    int32_t *tokens = malloc(all * sizeof *tokens);
    char *text = NULL;
    size_t size;
    if (!tokens) return ag_err_set(err, AG_ENOMEM, "out of memory for a sample");
    memcpy(tokens, r->prompt, (size_t)r->n_prompt * sizeof *tokens);
    train_session_swap_ema(s);
    int64_t n = train_generate(s->model, s->decoder, s->context, &d, r->prompt, r->n_prompt,
                               tokens + r->n_prompt, train_ask_to_stop, NULL, err);
    train_session_swap_ema(s);
    if (n >= 0 && n < d.length) n = ag_err_set(err, AG_EINTR, "interrupted in a sample");
    int code = n < 0 ? (int)n
                     : train_tokens_write(s, tokens, r->n_prompt + n, &text, &size, err);
    if (code == AG_OK) code = train_rundir_sample(&r->dir, s->step, "txt", text, size, err);
    if (code == AG_OK) {
        make_printable(text, size);
        train_status_line(&r->status, "sample at step %lld:\n%s", (long long)s->step, text);
    }
    free(text);
    free(tokens);
    r->shown += ag_seconds() - before;
    return code;
}

/* What the model answers to the first sources that it is validated on. */
static int draw_answers(run *r, ag_err *err)
{
    train_session *s = r->s;
    const double before = ag_seconds();
    const train_beam b = { .width = 1, .stop = &train_stop_signal };
    char *text = NULL;
    train_session_swap_ema(s);
    int code = train_answer_some(s, &b, DATA_VAL, &text, err);
    train_session_swap_ema(s);
    if (code == AG_OK)
        code = train_rundir_sample(&r->dir, s->step, "txt", text, strlen(text), err);
    if (code == AG_OK) {
        make_printable(text, strlen(text));
        train_status_line(&r->status, "sample at step %lld: source, answer, target\n%s",
                          (long long)s->step, text);
    }
    free(text);
    r->shown += ag_seconds() - before;
    return code;
}

static int draw_sample(run *r, ag_err *err)
{
    const bool wanted = r->s->config.sample.every && !r->s->d_in;
    if (wanted && train_session_of_pairs(r->s)) return draw_answers(r, err);
    if (r->prompt) return draw_text(r, err);
    return wanted && train_media_suffix(r->s) ? draw_media(r, err) : AG_OK;
}

/* The prompt of samples; the default one gives way to a token of the data where the data do not
 * know it. */
static int read_prompt(run *r, ag_err *err)
{
    const train_session *s = r->s;
    if (!s->config.sample.every || (!s->tokenizer && !train_tokens_are_numbers(s))) return AG_OK;
    if (train_session_of_pairs(s)) return AG_OK;
    ag_err why = { 0 };
    const char *prompt = s->config.sample.prompt;
    const int code = train_tokens_read(s, prompt, "sample.prompt", &r->prompt, &r->n_prompt, &why);
    if (code == AG_OK && (r->n_prompt > 0 || s->model->start)) return AG_OK;
    train_config plain;
    train_config_init(&plain);
    if (strcmp(prompt, plain.sample.prompt))
        return ag_err_set(err, AG_ECONFIG, "sample.prompt: %s", code < 0 ? why.msg : "it is empty");
    free(r->prompt);
    r->prompt = calloc(1, sizeof *r->prompt);
    r->n_prompt = 1;
    return r->prompt ? AG_OK : ag_err_set(err, AG_ENOMEM, "out of memory for the prompt");
}

/* --- the loop --------------------------------------------------------------------------------- */

static int stop(run *r, ag_err *err)
{
    const int signal = train_stop_signal;
    const int code = save(r, signal == SIGINT ? "interrupted" : "stopped", err);
    if (code < 0) return code;
    const int why = signal == SIGINT ? AG_EINTR : AG_ESTOPPED;
    if (!r->s->config.checkpoint.keep_last)
        return ag_err_set(err, why, "stopped by signal %d at step %lld; nothing was saved, as "
                          "checkpoint.keep_last is false", signal, (long long)r->s->step);
    return ag_err_set(err, why, "stopped by signal %d at step %lld; `tulle resume %s` goes on",
                      signal, (long long)r->s->step, r->dir.dir);
}

/* What is due after a step; a stop may come between its parts, the rest is done on resuming. */
static int after_step(run *r, ag_err *err)
{
    train_session *s = r->s;
    const train_config *c = &s->config;
    int code = AG_OK;
    if (s->pending == TRAIN_EVAL_DUE && due(s->step, c->train.eval_every, c->train.steps))
        code = evaluate(r, err);
    if (code < 0) return code;
    s->pending = TRAIN_SAMPLE_DUE;
    if (due(s->step, c->sample.every, c->train.steps)) code = draw_sample(r, err);
    if (code < 0) return code;
    s->pending = TRAIN_DONE;
    if (due(s->step, c->checkpoint.every, c->train.steps)) return save(r, "as planned", err);
    if (!train_save_signal) return AG_OK;
    train_save_signal = 0;
    return save(r, "asked by a signal", err);
}

static int one_step(run *r, ag_err *err)
{
    train_session *s = r->s;
    const double lr = train_session_lr(s);
    double loss, norm;
    int code = train_session_step(s, &loss, &norm, err);
    if (code < 0) {
        if (code == AG_EDIVERGED)
            ag_err_prefix(err, "the run diverged; to see it again: tulle resume %s\n  ",
                          r->dir.dir);
        return code;
    }
    const char *note = s->replay ? ag_replay_note(s->replay) : NULL;
    if (note) train_status_line(&r->status, "note    %s", note);
    s->pending = TRAIN_EVAL_DUE;
    code = log_step(r, loss, lr, norm, err);
    return code < 0 ? code : after_step(r, err);
}

static int loop(run *r, ag_err *err)
{
    train_session *s = r->s;
    r->began = r->shown = ag_seconds();
    r->shown_step = s->step;
    r->saved_step = -1;
    s->stop = &train_stop_signal;
    int code = s->pending == TRAIN_DONE ? AG_OK : after_step(r, err);
    while (code == AG_OK && s->step < s->config.train.steps)
        code = train_stop_signal ? AG_EINTR : one_step(r, err);
    if (code != AG_EINTR) return code;
    if (err) err->code = AG_OK;      /* stop() says it better */
    return stop(r, err);
}

static int show_transfer(void *arg, const char *file, int64_t done, int64_t total)
{
    if (total > 0)
        train_status_brief(arg, "fetching %s: %.1f of %.1f MB", file, 1e-6 * (double)done,
                           1e-6 * (double)total);
    else
        train_status_brief(arg, "fetching %s: %.1f MB", file, 1e-6 * (double)done);
    return train_stop_signal != 0;
}

static train_open everything(run *r, FILE *out)
{
    train_status_init(&r->status, out, 0, 0, "");
    return (train_open){ .data = true, .optimizer = true, .progress = show_transfer,
                         .progress_arg = &r->status };
}

static int begin(run *r, FILE *out, int64_t keep_metrics, ag_err *err)
{
    train_session *s = r->s;
    train_status_end(&r->status);
    train_status_init(&r->status, out, s->step, s->config.train.steps,
                      s->d_in ? "images" : "tokens");
    train_describe(s, r->dir.dir, &r->status);
    int code = read_prompt(r, err);
    char *text = NULL;
    s->config.data.changed = false;  /* it holds once */
    if (code == AG_OK) code = train_config_dump(&s->config, TRAIN_DUMP_ANNOTATED, &text, err);
    if (code == AG_OK) code = train_rundir_write(&r->dir, "config.yaml", text, err);
    free(text), text = NULL;
    if (code == AG_OK)
        code = train_environment(s->device, ag_tape_kernels(s->tape)->name, &text, err);
    if (code == AG_OK) code = train_rundir_write(&r->dir, "env.json", text, err);
    free(text);
    if (code < 0) return code;
    return train_rundir_metrics_begin(&r->dir, keep_metrics, s->pending != TRAIN_EVAL_DUE, err);
}

static int finish(run *r, int code, train_result *ret_result)
{
    if (r->s) {
        *ret_result = (train_result){ .step = r->s->step, .val = r->val,
                                      .best_loss = r->s->best_loss, .best_step = r->s->best_step };
        train_session_hash(r->s, ret_result->hash);
    }
    train_status_end(&r->status);
    if (r->s && code == AG_OK) train_status_line(&r->status, "state sha256 %s", ret_result->hash);
    free(r->prompt);
    train_session_free(r->s);
    train_rundir_release(&r->dir);
    return code;
}

int train_run(const train_config *c, FILE *out, train_result *ret_result, ag_err *err)
{
    run r = { .dir = { .lock.fd = -1, .metrics_fd = -1 } };
    char dir[PATH_MAX];
    train_run_dir(c, dir, sizeof dir);
    int code = train_threads_set(c->train.threads, err);
    const train_open what = everything(&r, out);
    /* bad input leaves no directory behind */
    if (code == AG_OK) code = train_session_new(c, &what, &r.s, err);
    if (code == AG_OK)
        code = train_rundir_open(&r.dir, dir,
                                 c->run.overwrite ? TRAIN_RUNDIR_OVERWRITE : TRAIN_RUNDIR_NEW, err);
    if (code == AG_OK) code = begin(&r, out, -1, err);
    if (code == AG_OK) code = loop(&r, err);
    return finish(&r, code, ret_result);
}

/* Where the run goes on from, what of its folder does not count, and what new settings do to its
 * learning rate. */
static void say_where(run *r, const train_resumed *x)
{
    const train_session *s = r->s;
    const train_config *was = &x->was;
    const int64_t steps = s->config.train.steps;
    if (x->warning[0]) train_status_line(&r->status, "warning: %s", x->warning);
    if (x->note[0]) train_status_line(&r->status, "note    %s", x->note);
    for (int i = 0; i < s->patterns.n; i++)
        if (nn_pattern_file_changed(&s->patterns.file[i]))
            train_status_line(&r->status, "note    '%s' has changed since the run began, which "
                              "goes on with the pattern as it was", s->patterns.file[i].path);
    train_status_line(&r->status, "resumed at step %lld", (long long)s->step);
    if (s->step >= steps)
        train_status_line(&r->status, "the run is complete; train.steps=%lld would train as long "
                          "again", (long long)(2 * s->step));
    opt_schedule before = s->schedule;
    before.decay_steps = was->train.steps;
    if (s->config.schedule.decay_steps || steps == was->train.steps) return;
    if (opt_schedule_lr(&before, s->step) == train_session_lr(s)) return;
    train_status_line(&r->status, "note    schedule.decay_steps = 0 stands for train.steps, %lld "
                      "and no longer %lld: the learning rate is now %.3g, not %.3g",
                      (long long)steps, (long long)was->train.steps, train_session_lr(s),
                      opt_schedule_lr(&before, s->step));
}

int train_resume(const char *dir, char *const *overrides, int n, FILE *out,
                 train_result *ret_result, ag_err *err)
{
    run r = { .dir = { .lock.fd = -1, .metrics_fd = -1 } };
    train_resumed x = { .file = NULL };
    const train_open what = everything(&r, out);
    int code = train_rundir_open(&r.dir, dir, TRAIN_RUNDIR_RESUME, err);
    if (code == AG_OK) code = train_resumed_read(&r.dir, overrides, n, &x, err);
    if (code == AG_OK) code = train_threads_set(x.now.train.threads, err);
    if (code == AG_OK)
        code = x.file ? train_state_load(x.file, &x.now, &what, &r.s, err)
                      : train_session_new(&x.now, &what, &r.s, err);
    if (code == AG_OK) code = begin(&r, out, r.s->step ? r.s->step : -1, err);
    const bool stored = x.file != NULL;
    train_ckpt_close(x.file);
    if (code == AG_OK) say_where(&r, &x);
    if (code == AG_OK && n && stored) code = save(&r, "with the new settings", err);
    if (code == AG_OK) code = loop(&r, err);
    return finish(&r, code, ret_result);
}
