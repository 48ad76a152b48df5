/* cmd_bench.c -- tulle bench: how long the steps of a configuration take. */
#include "train/command.h"
#include "train/environment.h"
#include "train/session.h"
#include "train/status.h"

#include "autograd/base/clock.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int time_steps(train_session *s, int64_t warm, int64_t n, double *seconds, double *ret_first,
                      double began, ag_err *err)
{
    for (int64_t i = 0; i < warm + n; i++) {
        double loss, norm;
        const double at = ag_seconds();
        const int r = train_session_step(s, &loss, &norm, err);
        if (r < 0) return r;
        if (i == 0) *ret_first = at - began;
        if (i >= warm) seconds[i - warm] = ag_seconds() - at;
    }
    train_sort_times(seconds, n);
    return AG_OK;
}

static void print_times(const train_session *s, const double *t, int64_t n, double first, bool json)
{
    const double median = t[n / 2], per_step = (double)(s->config.train.batch * s->context);
    const double gflops = 3 * s->model->cost.flops * per_step / median * 1e-9;
    const char *unit = s->d_in ? "images" : "tokens", *isa = ag_tape_kernels(s->tape)->name;
    if (json) {
        printf("{\"unit\":\"%s\",\"per_second\":%.1f,\"per_second_best\":%.1f,"
               "\"per_second_worst\":%.1f,\"step_ms\":%.4f,\"gflop_per_second\":%.2f,"
               "\"peak_memory\":%zu,\"start_seconds\":%.4f,\"micro_batch\":%" PRId64
               ",\"threads\":%d,\"kernels\":\"%s\"}\n", unit, per_step / median, per_step / t[0],
               per_step / t[n - 1], 1e3 * median, gflops, train_peak_bytes(), first,
               s->config.train.micro_batch, train_threads(), isa);
        return;
    }
    printf("%" PRId64 " steps of %" PRId64 " in parts of %" PRId64 ", %s, %d threads\n", n,
           s->config.train.batch, s->config.train.micro_batch, isa, train_threads());
    printf("median %.3f ms a step (%.3f to %.3f): %.0f %s/s, %.1f GFLOP/s\n", 1e3 * median,
           1e3 * t[0], 1e3 * t[n - 1], per_step / median, unit, gflops);
    printf("peak memory %.0f MB, of which the tape %.0f MB; first step after %.3f s\n",
           1e-6 * (double)train_peak_bytes(), 1e-6 * (double)ag_tape_bytes(s->tape).peak, first);
}

int train_cmd_bench(int argc, char **argv, ag_err *err)
{
    int64_t steps = 20, warm = 3;
    bool json = false;
    const double began = ag_seconds();
    const train_flag flags[] = { { "steps", TRAIN_FLAG_INT, &steps, 'n', 1, 1e6 },
                                 { "warm", TRAIN_FLAG_INT, &warm, 0, 0, 1e6 },
                                 { "json", TRAIN_FLAG_ON, &json, 0, 0, 0 }, { 0 } };
    if (argc > 1 && !strcmp(argv[1], "decode"))
        return train_cmd_bench_decode(argc - 1, argv + 1, err);
    int r = train_flags_read(flags, &argc, argv, err);
    if (r < 0) return r;
    if (argc < 2) return AG_ECONFIG;
    train_config c;
    train_session *s = NULL;
    double first = 0, *seconds = malloc((size_t)steps * sizeof *seconds);
    if (!seconds) return ag_err_set(err, AG_ENOMEM, "out of memory for %" PRId64 " times", steps);
    r = train_config_args(argc, argv, &c, err);
    if (r == AG_OK) r = train_threads_set(c.train.threads, err);
    const train_open what = { .data = true, .optimizer = true };
    if (r == AG_OK) r = train_session_new(&c, &what, &s, err);
    if (r == AG_OK) r = time_steps(s, warm, steps, seconds, &first, began, err);
    if (r == AG_OK) print_times(s, seconds, steps, first, json);
    train_session_free(s);
    free(seconds);
    return r;
}
