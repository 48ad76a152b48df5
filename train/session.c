#include "train/session.h"

#include "autograd/base/hash.h"
#include "train/batch.h"
#include "train/build.h"
#include "train/recompute.h"
#include "train/optimizer.h"
#include "train/tapes.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --- from the configuration ------------------------------------------------------------------- */

/* What the keys say of the data, now that these are known. */
static int check_sequences(const train_config *c, const data_set *d, ag_err *err)
{
    if (c->train.eval_last)
        return ag_err_set(err, AG_ECONFIG, "train.eval_last is for one long text, but %s is made "
                          "of sequences, each scored whole: set train.eval_last=0", d->name);
    if (d->h && c->model.position.type == TRAIN_POSITION_IMAGE &&
        (c->model.position.width != d->w || c->model.position.channels != d->c))
        return ag_err_set(err, AG_ECONFIG, "the images of %s are %" PRId64 " x %" PRId64 " x %"
                          PRId64 ": set model.position.width=%" PRId64 " and model.position."
                          "channels=%" PRId64, d->name, d->h, d->w, d->c, d->w, d->c);
    return AG_OK;
}

static int open_data(train_session *s, const train_open *what, ag_err *err)
{
    const train_config *c = &s->config;
    const bool images = c->model.type == TRAIN_MODEL_MLP;
    data_options o = data_options_default();
    o.source = train_choice_word(c->data.source);
    o.path = c->data.path;
    o.tokenizer = c->data.tokenizer == TRAIN_TOKENIZER_AUTO ? ""
                                                            : train_choice_word(c->data.tokenizer);
    o.token_order = train_choice_word(c->data.token_order);
    o.known = what->tokenizer;
    o.val_fraction = c->data.val_fraction;
    o.test_fraction = c->data.test_fraction;
    o.sequences = !images;
    o.image_size = c->data.image_size;
    o.levels = c->data.levels;
    o.width = c->data.width;
    o.vocab = c->data.vocab;
    o.apart = train_config_has_source(c);
    o.source_length = c->data.source_length;
    o.target_length = c->data.target_length;
    o.digits = c->data.digits;
    o.test_digits = c->data.test_digits;
    o.test_least = c->data.test_least;
    o.context = images ? 1 : c->model.context;
    o.start = !images && c->model.start_vector;
    o.size = c->data.size;
    o.seed = (uint64_t)c->run.seed;
    o.mean = c->data.mean;
    o.std = c->data.std;
    const bool pixels = images || (c->data.images[0] && !c->data.tokens[0]);
    o.h5_train = pixels ? c->data.images : c->data.tokens;
    o.h5_val = pixels ? c->data.val_images : c->data.val_tokens;
    o.h5_train_labels = c->data.labels;
    o.h5_val_labels = c->data.val_labels;
    o.download = c->data.download;
    o.progress = what->progress;
    o.progress_arg = what->progress_arg;
    int r = data_open(&o, &s->data, err);
    if (r == AG_OK && what->optimizer && s->data->sequence)
        r = check_sequences(c, s->data, err);
    if (r < 0) return r;
    if (images != (s->data->kind == DATA_IMAGES))
        return ag_err_set(err, AG_ECONFIG, "model.type is %s, but data.source %s holds %s",
                          train_choice_word(c->model.type), o.source, images ? "tokens" : "images");
    if (what->optimizer && data_samples(s->data, DATA_VAL) < 1)
        return ag_err_set(err, AG_EINPUT, "%s: nothing is left for validation", s->data->about);
    const data_set *d = s->data;
    s->tokenizer = d->tokenizer;
    s->form = (train_form){ d->h, d->w, d->c, d->rate };
    return AG_OK;
}

static int build_model(train_session *s, const train_open *what, ag_err *err)
{
    const data_set *d = s->data;
    if (!train_config_has_images(&s->config)) {
        const int64_t vocab = d ? d->vocab : what->classes;
        if (what->classes && vocab != what->classes)
            return ag_err_set(err, AG_EINPUT, "the data have %" PRId64 " tokens, the checkpoint %"
                              PRId64 ": other data than it was trained on?", vocab, what->classes);
        s->context = train_config_context(&s->config);
        s->source = train_config_has_source(&s->config) ? s->config.data.source_length : 0;
        return (what->plan ? train_plan_tokens : train_build_tokens)
            (&s->config, vocab, &s->patterns, &s->model, err);
    }
    const int64_t d_in = d ? d->h * d->w * d->c : what->d_in,
        classes = d ? d->n_classes : what->classes;
    if (what->classes && (classes != what->classes || d_in != what->d_in))
        return ag_err_set(err, AG_EINPUT, "the data have %" PRId64 " features and %" PRId64
                          " classes, the checkpoint %" PRId64 " and %" PRId64 ": other data than "
                          "it was trained on?", d_in, classes, what->d_in, what->classes);
    s->context = 1;
    s->d_in = d_in;
    return train_build_mlp(&s->config, d_in, classes, &s->model, err);
}

static bool batch_new(const train_session *s, int32_t **ret_ids, int32_t **ret_targets,
                      float **ret_pixels)
{
    const size_t n = (size_t)s->config.train.micro_batch;
    *ret_ids = malloc(n * (size_t)(s->source + s->context) * sizeof **ret_ids);
    *ret_targets = malloc(n * (size_t)s->context * sizeof **ret_targets);
    if (s->d_in) *ret_pixels = malloc(n * (size_t)s->d_in * sizeof **ret_pixels);
    return *ret_ids && *ret_targets && (!s->d_in || *ret_pixels);
}

static int build_buffers(train_session *s, ag_err *err)
{
    train_ahead *a = &s->ahead;
    if (!s->config.train.micro_batch) s->config.train.micro_batch = train_micro_batch(s);
    if (!batch_new(s, &s->ids, &s->targets, &s->pixels) ||
        (s->device && s->opt && !batch_new(s, &a->ids, &a->targets, &a->pixels)))
        return ag_err_set(err, AG_ENOMEM, "out of memory for the batches");
    return AG_OK;
}

int train_session_new(const train_config *c, const train_open *what, train_session **ret_s,
                      ag_err *err)
{
    train_session *s = calloc(1, sizeof *s);
    if (!s) return ag_err_set(err, AG_ENOMEM, "out of memory for the run");
    s->config = *c;
    s->best_loss = (double)NAN;
    s->best_step = -1;
    s->form = what->form;
    if (what->patterns) {
        s->patterns = *what->patterns;
        *what->patterns = (nn_pattern_files){ 0 };
    }
    int r = what->data ? open_data(s, what, err) : AG_OK;
    if (r == AG_OK) r = build_model(s, what, err);
    if (r == AG_OK) r = train_tapes_new(s, what->plan, err);
    if (r == AG_OK && what->optimizer) r = nn_params_grads(s->model->params, err);
    if (r == AG_OK && what->optimizer) r = train_optimizer_new(s, what->plan, err);
    if (r == AG_OK) r = build_buffers(s, err);
    if (r == AG_OK && s->opt && train_may_recompute(s)) r = train_recompute_apply(s, err);
    if (r == AG_OK && s->opt && s->data) r = train_probe_new(s, &s->probe, err);
    if (r == AG_OK && s->opt && c->train.cuda_graph == TRAIN_CUDA_GRAPH_AUTO)
        s->replay = ag_replay_new(s->tape);
    if (r < 0) {
        train_session_free(s);
        return r;
    }
    *ret_s = s;
    return AG_OK;
}

void train_session_free(train_session *s)
{
    if (!s) return;
    if (!s->data || s->tokenizer != s->data->tokenizer) data_tokenizer_free(s->tokenizer);
    data_close(s->data);
    train_probe_free(s->probe);
    nn_model_free(s->model);
    nn_pattern_files_release(&s->patterns);
    opt_free(s->opt);
    ag_replay_free(s->replay);
    if (s->decoder != s->tape) ag_tape_free(s->decoder);
    ag_tape_free(s->tape);
    free(s->ids);
    free(s->targets);
    free(s->pixels);
    free(s->ahead.ids);
    free(s->ahead.targets);
    free(s->ahead.pixels);
    free(s);
}

/* --- a step ----------------------------------------------------------------------------------- */

/* What the stacks of a part of the batch did joins what those before it did. */
static void see_inverse(train_session *s)
{
    const ag_inverse v = ag_tape_inverse(s->tape);
    ag_inverse *all = &s->inverse;
    all->error = fmax(all->error, v.error);
    all->scale = fmax(all->scale, v.scale);
    if (!(all->headroom > 0) || v.headroom < all->headroom) all->headroom = v.headroom;
    all->stacks += v.stacks;
}

static ag_tensor *loss_of(const void *model, ag_tape *t, const ag_replay_in *in)
{
    return nn_model_loss(model, t, in->x, in->targets, NN_TRAIN);
}

/* Forward and backward of a part, by the host or as a graph. */
static ag_tensor *run_part(train_session *s, ag_tensor *x, ag_tensor *targets, double scale)
{
    const ag_replay_in in = { x, targets, s->model->params->weights, NULL };
    if (s->replay) return ag_replay_loss(s->replay, &in, loss_of, s->model, scale);
    ag_tensor *loss = loss_of(s->model, s->tape, &in);
    ag_backward(s->tape, loss, scale);
    return loss;
}

/* Forward and backward of the whole batch; the gradients are added up in the parameters.  A part
 * weighs as much as it has samples, of pairs as it has targets, which differ: so the loss is the
 * mean over the batch, however it is cut. */
static int run_batch(train_session *s, double *ret_loss, ag_err *err)
{
    const int64_t batch = s->config.train.batch, micro = s->config.train.micro_batch;
    const bool whole = s->d_in || s->data->sequence;     /* images or sequences, not windows */
    const data_draw w = { .split = DATA_TRAIN, .order = whole ? DATA_SHUFFLED : DATA_RANDOM,
                          .seed = (uint64_t)s->config.run.seed, .step = s->step, .batch = batch };
    const bool pairs = !s->d_in && s->data->pairs;
    const int64_t all = pairs ? train_batch_scored(s, &w) : batch;
    double loss = 0;
    nn_params_round(s->model->params, ag_tape_kernels(s->tape));
    s->inverse = (ag_inverse){ 0 };
    ag_tape_verify(s->tape, s->config.train.verify_reversible);
    for (int64_t i = 0; i < batch; i += micro) {
        const int64_t n = batch - i < micro ? batch - i : micro;
        ag_tensor *x, *targets;
        train_batch_fetch(s, &w, i, n, &x, &targets);
        const int64_t weight = pairs ? train_batch_count(s->targets, n * s->context) : n;
        const double share = (double)weight / (double)all;
        ag_tape_noise(s->tape,
                      &(ag_noise_key){ (uint64_t)s->config.run.seed, (uint32_t)s->step, i, n });
        const ag_tensor *part = run_part(s, x, targets, share * s->scaler.scale);
        if (s->device) train_batch_ahead(s, &w, i + micro);
        loss += share * ag_value(s->tape, part, 0);      /* by now a GPU has all that it needs */
        const int r = ag_tape_status(s->tape, err);
        if (r == AG_ENOMEM && s->device) train_memory_advice(s, err);
        if (r < 0) return r;
        see_inverse(s);
    }
    *ret_loss = loss;
    return AG_OK;
}

/* A loss or gradient that is not finite: the step once more, looking for the op where it began. */
static int diagnose(train_session *s, double loss, double norm, ag_err *err)
{
    ag_err first = { 0 };
    double again;
    nn_params_zero_grad(s->model->params);
    ag_tape_watch(s->tape, true);
    if (run_batch(s, &again, &first) == AG_OK)
        ag_err_set(&first, AG_EDIVERGED, "no op alone is to blame: the sum over "
                   "micro-batches overflowed");
    ag_tape_watch(s->tape, false);
    nn_params_zero_grad(s->model->params);
    if (first.code != AG_EDIVERGED) return ag_err_set(err, first.code, "%s", first.msg);
    char scaled[96] = "";
    if (s->scaler.type != OPT_SCALING_NONE)
        snprintf(scaled, sizeof scaled, ", loss scale %g, %" PRId64 " steps skipped in a row",
                 s->scaler.scale, s->scaler.skipped_in_row);
    return ag_err_set(err, AG_EDIVERGED, "step %" PRId64
                      ": loss %g, gradient norm %g%s\n  first: %s\n"
                      "  a lower optim.lr, a longer schedule.warmup_steps or optim.clip_norm "
                      "usually helps", s->step + 1, loss, norm, scaled, first.msg);
}

/* What becomes of a step whose loss or gradient is not finite: it is skipped, unless it is one too
 * many or the loss is not scaled. */
static int skip(train_session *s, double loss, double norm, ag_err *err)
{
    opt_scaler *scaler = &s->scaler;
    if (scaler->type == OPT_SCALING_NONE) return diagnose(s, loss, norm, err);
    if (scaler->skipped_in_row + 1 == OPT_SCALER_PATIENCE) {
        scaler->skipped_in_row++;
        return diagnose(s, loss, norm, err);
    }
    opt_scaler_update(scaler, isfinite(loss) ? OPT_BAD_GRADIENT : OPT_BAD_LOSS);
    nn_params_zero_grad(s->model->params);
    return AG_OK;
}

int train_session_step(train_session *s, double *ret_loss, double *ret_norm, ag_err *err)
{
    double loss, norm = (double)NAN;
    const int r = run_batch(s, &loss, err);
    if (r < 0) return r;
    ag_err why = { 0 };
    int done = isfinite(loss) ? AG_OK : AG_EDIVERGED;
    if (done == AG_OK)
        done = opt_step(s->opt, train_session_lr(s), opt_scaler_unscale(&s->scaler),
                        s->model->params->weights, s->model->params->grads, &norm, &why);
    if (done == AG_OK) opt_scaler_update(&s->scaler, OPT_FINITE);
    else if (done != AG_EDIVERGED) return ag_err_set(err, done, "%s", why.msg);
    else if ((done = skip(s, loss, norm, err)) < 0) return done;
    s->step++;
    s->samples_seen += s->config.train.batch;
    *ret_loss = loss;
    *ret_norm = norm;
    return AG_OK;
}

bool train_session_of_pairs(const train_session *s)
{
    return s->tokenizer && s->tokenizer->reserved > 0;
}

bool train_session_of_bytes(const train_session *s)
{
    return !s->d_in && s->model->classes == 256 &&
           (!s->tokenizer || s->tokenizer->kind == DATA_TOKENIZER_BYTE);
}

double train_session_lr(const train_session *s) { return opt_schedule_lr(&s->schedule, s->step); }

/* --- evaluation ------------------------------------------------------------------------------- */

typedef struct sums { double loss, right; int64_t count, sequences, right_sequences; } sums;

/* Adds how many of the rows of a sample have their target as likeliest token, and whether all that
 * count have. */
static void add_right(const int32_t *likeliest, const int32_t *targets, int64_t rows, sums *sum)
{
    bool all = true;
    for (int64_t r = 0; r < rows; r++) {
        sum->right += likeliest[r] == targets[r];
        all = all && (likeliest[r] == targets[r] || targets[r] < 0);
    }
    sum->right_sequences += all;
    sum->sequences++;
}

/* Adds a part of a batch to the sums; *ret_n: its samples, 0 behind the end of a sequential
 * pass.  What noise there is, of a random choice, is the same in every evaluation. */
static int eval_part(train_session *s, const data_draw *w, int64_t i0, int64_t n, nn_mode mode,
                     sums *sum, int64_t *ret_n, ag_err *err)
{
    ag_tensor *x, *targets;
    *ret_n = n = train_batch_fetch(s, w, i0, n, &x, &targets);
    if (n == 0) return AG_OK;
    ag_tape_noise(s->tape,
                  &(ag_noise_key){ (uint64_t)s->config.run.seed, UINT32_MAX, i0, n });
    ag_tensor *logits = nn_model_logits(s->model, s->tape, x, mode);
    ag_tensor *part = ag_cross_entropy(s->tape, logits, targets);
    const int32_t *likeliest = ag_ints(s->tape, ag_argmax(s->tape, logits));
    const int r = ag_tape_status(s->tape, err);
    if (r < 0) return r;
    const int64_t rows = s->context, scored = train_batch_count(s->targets, n * rows);
    sum->loss += ag_value(s->tape, part, 0) * (double)scored;
    for (int64_t i = 0; i < n; i++)
        add_right(likeliest + i * rows, s->targets + i * rows, rows, sum);
    sum->count += scored;
    if (s->stop && *s->stop) return ag_err_set(err, AG_EINTR, "interrupted in an evaluation");
    return AG_OK;
}

/* The first `samples` samples of a draw, or as many as there are. */
static int eval_samples(train_session *s, const data_draw *w, int64_t samples, nn_mode mode,
                        sums *ret_sum, ag_err *err)
{
    const int64_t micro = s->config.train.micro_batch;
    sums sum = { 0 };
    int r = AG_OK;
    train_session_swap_ema(s);
    nn_params_round(s->model->params, ag_tape_kernels(s->tape));
    ag_tape_no_grad(s->tape, true);
    for (int64_t i = 0, n = 1; i < samples && n > 0 && r == AG_OK; i += micro)
        r = eval_part(s, w, i, samples - i < micro ? samples - i : micro, mode, &sum, &n, err);
    ag_tape_no_grad(s->tape, false);
    ag_tape_reset(s->tape);
    train_session_swap_ema(s);
    if (r < 0) return r;
    if (!isfinite(sum.loss))
        return ag_err_set(err, AG_EDIVERGED, "step %" PRId64 ": the loss of the evaluation is %g, "
                          "though that of training was finite; a lower optim.lr usually helps",
                          s->step, sum.loss / (double)sum.count);
    *ret_sum = sum;
    return AG_OK;
}

int train_session_eval(train_session *s, int split, int64_t batches, train_eval *ret_eval,
                       ag_err *err)
{
    const int64_t micro = s->config.train.micro_batch;
    const int64_t last = s->d_in || batches ? 0 : s->config.train.eval_last;
    const int64_t have = last ? data_windows(s->data, split, last) : data_samples(s->data, split);
    const int64_t wanted = batches * ((s->config.train.batch + micro - 1) / micro) * micro;
    const bool drawn = batches && wanted < have;         /* else all, none of them twice */
    const data_draw w = { .split = split, .order = drawn ? DATA_RANDOM : DATA_SEQUENTIAL,
                          .seed = (uint64_t)s->config.run.seed ^ 0x6576616Cull,
                          .batch = drawn ? wanted : have, .last = last };
    sums sum;
    if (have < 1)
        return ag_err_set(err, AG_EINPUT, "nothing to evaluate on: the %s split is empty\n  the "
                          "data: %s", split == DATA_TEST ? "test" : split ? "val" : "train",
                          s->data->about);
    const int r = eval_samples(s, &w, w.batch, NN_EVAL, &sum, err);
    if (r < 0) return r;
    const bool pairs = !s->d_in && s->data->pairs;
    *ret_eval = (train_eval){ sum.loss / (double)sum.count, sum.right / (double)sum.count,
                              sum.count,
                              pairs ? (double)sum.right_sequences / (double)sum.sequences
                                    : (double)NAN,
                              pairs ? sum.sequences : 0 };
    return AG_OK;
}

int train_session_first_loss(train_session *s, int64_t samples, nn_mode mode, double *ret_loss,
                             ag_err *err)
{
    const data_draw w = { .split = DATA_VAL, .order = DATA_SEQUENTIAL, .batch = samples };
    sums sum;
    const int r = eval_samples(s, &w, samples, mode, &sum, err);
    if (r == AG_OK) *ret_loss = sum.loss / (double)sum.count;
    return r;
}

void train_session_swap_ema(train_session *s)
{
    if (!s->opt || !s->opt->ema) return;
    opt_swap_average(s->opt, nn_params_swap(s->model->params, s->opt->ema));
}

/* Numbers in the device's memory, in parts. */
static void hash_floats(const train_session *s, ag_sha256 *h, const float *x, int64_t n)
{
    enum { PART = 1 << 14 };
    float part[PART];
    if (!s->device) ag_sha256_add(h, x, (size_t)n * sizeof *x);
    for (int64_t at = 0; s->device && at < n; at += PART) {
        const size_t bytes = (size_t)(n - at < PART ? n - at : PART) * sizeof *x;
        s->device->read(part, x + at, bytes);
        ag_sha256_add(h, part, bytes);
    }
}

void train_session_hash(const train_session *s, char ret_hex[65])
{
    ag_sha256 h;
    uint8_t digest[32];
    ag_sha256_init(&h);
    hash_floats(s, &h, s->model->params->weights, s->model->params->n);
    for (int i = 0; s->opt && i < s->opt->n_slots; i++)
        hash_floats(s, &h, s->opt->slot[i].data, s->opt->slot[i].n);
    if (s->scaler.type != OPT_SCALING_NONE) {
        const opt_scaler *k = &s->scaler;
        const int64_t counted[] = { k->finite_steps, k->skipped, k->skipped_in_row };
        ag_sha256_add(&h, &k->scale, sizeof k->scale);
        ag_sha256_add(&h, counted, sizeof counted);
    }
    const int64_t counters[] = { s->step, s->samples_seen };
    ag_sha256_add(&h, counters, sizeof counters);
    ag_sha256_end(&h, digest);
    ag_sha256_hex(digest, ret_hex);
}
