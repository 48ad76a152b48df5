/* cmd_show.c -- tulle show ops, show memory: a step's calls as the tape recorded them, and its
 * bytes. */
#include "train/command.h"
#include "train/recompute.h"
#include "train/session.h"

#include "autograd/op.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Every op there is. */
static void list_ops(void)
{
    for (int i = 0; i < ag_op_count; i++) {
        const ag_op *op = ag_op_table[i];
        printf("%-14s %s%s%s%s\n", op->name, op->doc, op->nondiff ? "  (no gradient: " : "",
               op->nondiff ? op->nondiff : "", op->nondiff ? ")" : "");
    }
}

/* One micro-batch on the tape; its numbers do not matter. */
static void fetch(train_session *s, ag_tensor **ret_x, ag_tensor **ret_y)
{
    const int64_t n = s->config.train.micro_batch, columns = s->source + s->context;
    ag_tape *t = s->tape;
    const data_draw w = { .split = DATA_TRAIN, .order = s->d_in ? DATA_SHUFFLED : DATA_RANDOM,
                          .seed = 1, .batch = n };
    if (s->d_in) {
        data_batch_images(s->data, &w, 0, n, s->pixels, s->targets);
        *ret_x = ag_input(t, AG_SHAPE(n, s->d_in), s->pixels, false);
        *ret_y = ag_input_i32(t, AG_SHAPE(n), s->targets);
        return;
    }
    if (s->data) {
        data_batch_tokens(s->data, &w, 0, n, s->ids, s->targets);
    } else {
        memset(s->ids, 0, (size_t)(n * columns) * sizeof *s->ids);
        memset(s->targets, 0, (size_t)(n * s->context) * sizeof *s->targets);
    }
    *ret_x = ag_input_i32(t, AG_SHAPE(n, columns), s->ids);
    *ret_y = ag_input_i32(t, AG_SHAPE(n, s->context), s->targets);
}

/* The calls of one micro-batch's forward, recorded on the session's tape; *ret_loss may be used for
 * its backward. */
static int record_step(train_session *s, ag_tensor **ret_loss, ag_err *err)
{
    ag_tensor *x, *y;
    fetch(s, &x, &y);
    ag_tape_noise(s->tape, &(ag_noise_key){ 1, 0, 0, s->config.train.micro_batch });
    *ret_loss = nn_model_loss(s->model, s->tape, x, y, NN_TRAIN);
    return ag_tape_status(s->tape, err);
}

static double megabytes(double bytes) { return 1e-6 * bytes; }

static size_t call_bytes(const ag_call *c)
{
    size_t n = c->op->saved_bytes ? c->op->saved_bytes(c) : 0;
    for (int i = 0; i < c->op->n_out && !c->op->alias && !c->out[0]->maker; i++)
        n += (size_t)c->out[i]->size * ag_dtype_size(c->out[i]->dtype);
    return n;
}

static int show_ops(train_session *s, ag_err *err)
{
    ag_tensor *loss;
    const int r = record_step(s, &loss, err);
    if (r < 0) return r;
    double flops = 0, bytes = 0;
    printf("%4s  %-14s %-22s %-18s %10s %9s\n", "call", "op", "where", "output", "MFLOP",
           "MB kept");
    for (int i = 0; i < ag_tape_calls(s->tape); i++) {
        const ag_call *c = ag_tape_call(s->tape, i);
        char where[128], shape[96];
        const double f = (double)ag_call_flops(c);
        printf("%4d  %-14s %-22s %-18s %10.2f %9.2f\n", i, c->op->name,
               ag_call_scope(c, where, sizeof where),
               ag_shape_text(&c->out[0]->shape, shape), 1e-6 * f, megabytes((double)call_bytes(c)));
        flops += f;
        bytes += (double)call_bytes(c);
    }
    printf("forward of a micro-batch of %" PRId64 ": %.2f GFLOP, %.2f MB kept for backward\n",
           s->config.train.micro_batch, 1e-9 * flops, megabytes(bytes));
    return AG_OK;
}

/* --- show memory ------------------------------------------------------------------------------ */

typedef struct place { char name[128]; double bytes; } place;    /* "block 3" */
typedef struct strategy { const char *name; train_step_plan step; } strategy;
enum { STRATEGIES = 6 };

typedef struct memory {              /* bytes */
    double params, narrow, optimizer, patterns;
    double forward, backward, all;   /* of activations; beside them; of all at the peak */
    bool   plan;                     /* no step was taken */
    int    n_places, n_strategies;
    place  *place;                   /* of `forward` */
    strategy strategy[STRATEGIES];   /* none: nothing in the model can run again */
} memory;

/* Activations by the first two words of their scope, or by the op outside of all. */
static int add_places(const ag_tape *t, memory *y, ag_err *err)
{
    y->place = malloc((size_t)ag_tape_calls(t) * sizeof *y->place + 1);
    if (!y->place) return ag_err_set(err, AG_ENOMEM, "out of memory for the activations");
    for (int i = 0; i < ag_tape_calls(t); i++) {
        const ag_call *c = ag_tape_call(t, i);
        char where[128] = "";
        ag_call_scope(c, where, sizeof where);
        where[strcspn(where, ",")] = '\0';
        if (!where[0]) snprintf(where, sizeof where, "%s", c->op->name);
        if (!y->n_places || strcmp(where, y->place[y->n_places - 1].name)) {
            place *p = &y->place[y->n_places++];
            *p = (place){ .bytes = 0 };
            memcpy(p->name, where, sizeof where);
        }
        y->place[y->n_places - 1].bytes += (double)call_bytes(c);
    }
    return AG_OK;
}

/* "59,196,928" */
static const char *grouped(int64_t n, char buf[32])
{
    char digits[24];
    const int len = snprintf(digits, sizeof digits, "%" PRId64, n);
    int at = 0;
    for (int i = 0; i < len; i++) {
        if (i && (len - i) % 3 == 0) buf[at++] = ',';
        buf[at++] = digits[i];
    }
    buf[at] = '\0';
    return buf;
}

static void print_bytes(const char *what, double bytes)
{
    printf("%-30s %10.2f MB\n", what, megabytes(bytes));
}

/* What a step takes under each word of train.recompute, in groups of about sqrt(blocks) too, and
 * under the plan for train.memory_budget. */
static int add_strategies(train_session *s, memory *y, ag_err *err)
{
    static const struct { const char *name; int word; } rows[STRATEGIES] = {
        { "none", TRAIN_RECOMPUTE_NONE }, { "cheap", TRAIN_RECOMPUTE_CHEAP },
        { "attention", TRAIN_RECOMPUTE_ATTENTION }, { "block", TRAIN_RECOMPUTE_BLOCK },
        { "block, groups of sqrt", TRAIN_RECOMPUTE_BLOCK }, { "auto", TRAIN_RECOMPUTE_AUTO },
    };
    const double bytes = train_bytes(s->config.train.memory_budget),
        blocks = nn_blocks_count(s->model->stack);
    for (int i = 0; i < STRATEGIES; i++) {
        nn_recompute *plan = NULL;
        strategy *row = &y->strategy[y->n_strategies];
        const int64_t group = i == 4 ? (int64_t)ceil(sqrt(blocks)) : 1;
        if (rows[i].word == TRAIN_RECOMPUTE_AUTO && !(bytes > 0)) continue;
        int r = train_recompute_new(s, rows[i].word, group, bytes, &plan, err);
        if (r == AG_OK) r = train_plan_step(s, plan, &row->step, err);
        nn_recompute_free(plan);
        if (r < 0) return r;
        row->name = rows[i].name;
        y->n_strategies++;
    }
    return AG_OK;
}

/* Of a step that is taken or, on a tape that plans, is not. */
static int measure(train_session *s, memory *y, ag_err *err)
{
    ag_tensor *part;
    double loss, norm;
    int r = record_step(s, &part, err);
    if (r == AG_OK) r = add_places(s->tape, y, err);
    if (r < 0) return r;
    y->params = (double)s->model->params->n * sizeof(float);
    y->narrow = s->model->params->narrow ? y->params / 2 : 0;
    y->optimizer = (double)opt_bytes(s->opt);
    y->patterns = (double)s->model->cost.pattern_bytes;
    y->forward = (double)ag_tape_bytes(s->tape).used;
    if (y->plan) {
        ag_backward(s->tape, part, 1);
        r = ag_tape_status(s->tape, err);
    } else {
        ag_tape_reset(s->tape);
        r = train_session_step(s, &loss, &norm, err);
    }
    if (r < 0) return r;
    const double peak = (double)ag_tape_bytes(s->tape).peak;
    y->backward = peak - y->forward;
    y->all = 2 * y->params + y->narrow + y->optimizer + y->patterns + peak;
    return train_may_recompute(s) ? add_strategies(s, y, err) : AG_OK;
}

static double more_forward(const memory *y, int i)
{
    return y->strategy[i].step.flops / y->strategy[0].step.flops - 1;
}

static void print_memory(const train_session *s, const memory *y)
{
    char count[32];
    printf("%s, %s parameters\n", s->model->kind, grouped(s->model->cost.params, count));
    print_bytes("parameters", y->params);
    if (y->narrow > 0) print_bytes("their copy in 16 bits", y->narrow);
    print_bytes("gradients", y->params);
    print_bytes("optimizer", y->optimizer);
    if (y->patterns > 0) print_bytes("attention patterns", y->patterns);
    printf("activations of a micro-batch of %" PRId64 "\n", s->config.train.micro_batch);
    for (int i = 0; i < y->n_places; i++)
        printf("  %-28s %10.2f MB\n", y->place[i].name, megabytes(y->place[i].bytes));
    print_bytes(y->plan ? "their gradients" : "their gradients, workspace", y->backward);
    print_bytes(y->plan ? "all, at the peak of a step (*)" : "all, at the peak of a step", y->all);
    if (y->plan) puts("(*) planned; --run takes a step");
    if (y->n_strategies)
        printf("\n%-24s %12s %12s %14s\n", "train.recompute", "step", "all", "more forward");
    for (int i = 0; i < y->n_strategies; i++) {
        const train_step_plan *p = &y->strategy[i].step;
        printf("%-24s %9.2f MB %9.2f MB %12.1f %%\n", y->strategy[i].name, megabytes(p->peak),
               megabytes(p->fixed + p->peak), 100 * more_forward(y, i));
    }
}

/* The same numbers, in bytes. */
static void put_memory(const train_session *s, const memory *y)
{
    printf("{\"model\": \"%s\", \"parameters\": %" PRId64 ", \"micro_batch\": %" PRId64
           ", \"planned\": %s,\n \"bytes\": {\"parameters\": %.0f, \"narrow\": %.0f, "
           "\"gradients\": %.0f, \"optimizer\": %.0f, \"patterns\": %.0f, "
           "\"activations\": %.0f, \"backward\": %.0f, \"all\": %.0f},\n \"activations\": [",
           s->model->kind, s->model->cost.params, s->config.train.micro_batch,
           y->plan ? "true" : "false", y->params, y->narrow, y->params, y->optimizer, y->patterns,
           y->forward, y->backward, y->all);
    for (int i = 0; i < y->n_places; i++) {
        printf("%s\n  {\"where\": ", i ? "," : "");
        train_put_json_text(stdout, y->place[i].name);
        printf(", \"bytes\": %.0f}", y->place[i].bytes);
    }
    printf("],\n \"recompute\": [");
    for (int i = 0; i < y->n_strategies; i++) {
        const train_step_plan *p = &y->strategy[i].step;
        printf("%s\n  {\"name\": \"%s\", \"step\": %.0f, \"all\": %.0f, "
               "\"more_forward\": %.9g}", i ? "," : "", y->strategy[i].name, p->peak,
               p->fixed + p->peak, more_forward(y, i));
    }
    printf("]}\n");
}

static int show_memory(train_session *s, bool plan, bool json, ag_err *err)
{
    memory y = { .plan = plan };
    const int r = measure(s, &y, err);
    if (r == AG_OK && json) put_memory(s, &y);
    else if (r == AG_OK) print_memory(s, &y);
    free(y.place);
    return r;
}

/* --- the command ------------------------------------------------------------------------------ */

/* The vocabulary as far as the configuration tells it; 0: only the data do. */
static int64_t known_vocab(const train_config *c)
{
    const bool bytes = c->data.tokenizer == TRAIN_TOKENIZER_BYTE;
    switch (c->data.source) {
    case TRAIN_SOURCE_DIGITS:
    case TRAIN_SOURCE_MNIST:
    case TRAIN_SOURCE_FASHION_MNIST:
    case TRAIN_SOURCE_CIFAR10:
    case TRAIN_SOURCE_IDX:    return c->data.levels;
    case TRAIN_SOURCE_HDF5:
        return c->data.images[0] && !c->data.tokens[0] ? c->data.levels : 0;
    case TRAIN_SOURCE_ENWIK8:
        return bytes || c->data.tokenizer == TRAIN_TOKENIZER_AUTO ? 256 : 0;
    case TRAIN_SOURCE_TEXT:
    case TRAIN_SOURCE_SHAKESPEARE: return bytes ? 256 : 0;
    case TRAIN_SOURCE_WAV:    return 256;
    default:                  return 0;
    }
}

int train_cmd_show(int argc, char **argv, ag_err *err)
{
    if (argc > 1 && !strcmp(argv[1], "pattern")) {
        argv[1] = argv[0];           /* errors name the command */
        return train_cmd_show_pattern(argc - 1, argv + 1, err);
    }
    bool run = false, json = false;
    int64_t vocab = 0;
    const train_flag flags[] = { { "run", TRAIN_FLAG_ON, &run, 0, 0, 0 },
                                 { "json", TRAIN_FLAG_ON, &json, 0, 0, 0 },
                                 { "vocab", TRAIN_FLAG_INT, &vocab, 0, 1, 1 << 24 }, { 0 } };
    int r = train_flags_read(flags, &argc, argv, err);
    if (r < 0) return r;
    if (json && argc > 1 && !strcmp(argv[1], "ops"))
        return ag_err_set(err, AG_ECONFIG, "--json is for show memory and show pattern");
    if (argc == 2 && !strcmp(argv[1], "ops")) {
        list_ops();
        return AG_OK;
    }
    const bool ops = argc > 2 && !strcmp(argv[1], "ops"),
        bytes = argc > 2 && !strcmp(argv[1], "memory");
    if (!ops && !bytes) return AG_ECONFIG;
    train_config c;
    r = train_config_args(argc - 1, argv + 1, &c, err);
    if (r < 0) return r;
    train_session *s;
    train_open what = { .optimizer = true };
    what.plan = bytes && !run && !train_config_has_images(&c);
    if (what.plan) what.classes = vocab ? vocab : known_vocab(&c);
    what.data = !what.classes;
    r = train_session_new(&c, &what, &s, err);
    if ((r == AG_EINPUT || r == AG_EIO) && what.plan)
        ag_err_prefix(err, "the vocabulary is that of the data; --vocab N plans without them\n  ");
    if (r < 0) return r;
    r = ops ? show_ops(s, err) : show_memory(s, what.plan, json, err);
    train_session_free(s);
    return r;
}
