/* cmd_show.c -- tulle show ops, show memory: a step's calls as the tape recorded them, and its
 * bytes. */
#include "train/command.h"
#include "train/session.h"

#include "autograd/op.h"

#include <inttypes.h>
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

/* The calls of one micro-batch's forward, recorded on the session's tape, and its backward. */
static int record_step(train_session *s, ag_err *err)
{
    const int64_t n = s->config.train.micro_batch;
    ag_tape *t = s->tape;
    const data_draw w = { .split = DATA_TRAIN, .order = s->d_in ? DATA_SHUFFLED : DATA_RANDOM,
                          .seed = 1, .batch = n };
    ag_tensor *x, *y;
    if (s->d_in) {
        data_batch_images(s->data, &w, 0, n, s->pixels, s->targets);
        x = ag_input(t, AG_SHAPE(n, s->d_in), s->pixels, false);
        y = ag_input_i32(t, AG_SHAPE(n), s->targets);
    } else {
        data_batch_tokens(s->data, &w, 0, n, s->ids, s->targets);
        x = ag_input_i32(t, AG_SHAPE(n, s->context), s->ids);
        y = ag_input_i32(t, AG_SHAPE(n, s->context), s->targets);
    }
    ag_tape_noise(t, &(ag_noise_key){ 1, 0, 0, n });
    nn_model_loss(s->model, t, x, y, NN_TRAIN);
    return ag_tape_status(t, err);
}

static double megabytes(double bytes) { return 1e-6 * bytes; }

static size_t call_bytes(const ag_call *c)
{
    size_t n = c->op->saved_bytes ? c->op->saved_bytes(c) : 0;
    for (int i = 0; i < c->op->n_out && !c->op->alias; i++)
        n += (size_t)c->out[i]->size * ag_dtype_size(c->out[i]->dtype);
    return n;
}

static int show_ops(train_session *s, ag_err *err)
{
    const int r = record_step(s, err);
    if (r < 0) return r;
    double flops = 0, bytes = 0;
    printf("%4s  %-14s %-22s %-18s %10s %9s\n", "call", "op", "where", "output", "MFLOP",
           "MB kept");
    for (int i = 0; i < ag_tape_calls(s->tape); i++) {
        const ag_call *c = ag_tape_call(s->tape, i);
        char where[128], shape[96];
        const double f = c->op->alias ? 0
                                      : (double)(c->op->flops ? c->op->flops(c) : c->out[0]->size);
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

/* Activations by the first two words of their scope: "block 3". */
static void print_activations(const ag_tape *t)
{
    char last[128] = "";
    double sum = 0;
    for (int i = 0; i <= ag_tape_calls(t); i++) {
        char where[128] = "";
        if (i < ag_tape_calls(t)) {
            ag_call_scope(ag_tape_call(t, i), where, sizeof where);
            where[strcspn(where, ",")] = '\0';
        }
        if (i == ag_tape_calls(t) || (i && strcmp(where, last))) {
            printf("  %-28s %10.2f MB\n", last[0] ? last : "loss", megabytes(sum));
            sum = 0;
        }
        if (i < ag_tape_calls(t)) sum += (double)call_bytes(ag_tape_call(t, i));
        memcpy(last, where, sizeof last);
    }
}

static int show_memory(train_session *s, ag_err *err)
{
    const double params = (double)s->model->params->n * sizeof(float);
    int r = record_step(s, err);
    if (r < 0) return r;
    printf("%-30s %10.2f MB\n%-30s %10.2f MB\n%-30s %10.2f MB\n", "parameters", megabytes(params),
           "gradients", megabytes(params), "optimizer", megabytes(params * s->opt->n_slots));
    if (s->model->cost.pattern_bytes)
        printf("%-30s %10.2f MB\n", "attention patterns",
               megabytes((double)s->model->cost.pattern_bytes));
    printf("activations of a micro-batch of %" PRId64 "\n", s->config.train.micro_batch);
    print_activations(s->tape);
    const double forward = (double)ag_tape_bytes(s->tape).used;
    ag_tape_reset(s->tape);
    double loss, norm;
    if ((r = train_session_step(s, &loss, &norm, err)) < 0) return r;
    const double peak = (double)ag_tape_bytes(s->tape).peak;
    printf("%-30s %10.2f MB\n%-30s %10.2f MB\n", "their gradients, workspace",
           megabytes(peak - forward),
           "all, at the peak of a step", megabytes(params * (2 + s->opt->n_slots) + peak +
                     (double)s->model->cost.pattern_bytes));
    return AG_OK;
}

int train_cmd_show(int argc, char **argv, ag_err *err)
{
    if (argc == 2 && !strcmp(argv[1], "ops")) {
        list_ops();
        return AG_OK;
    }
    const bool ops = argc > 2 && !strcmp(argv[1], "ops"),
        memory = argc > 2 && !strcmp(argv[1], "memory");
    if (!ops && !memory) return AG_ECONFIG;
    train_config c;
    int r = train_config_args(argc - 1, argv + 1, &c, err);
    if (r < 0) return r;
    train_session *s;
    const train_open what = { .data = true, .optimizer = true };
    r = train_session_new(&c, &what, &s, err);
    if (r < 0) return r;
    r = ops ? show_ops(s, err) : show_memory(s, err);
    train_session_free(s);
    return r;
}
