#include "train/tapes.h"

#include "autograd/cuda/cuda.h"

#include <stdio.h>
#include <unistd.h>

static ag_dtype precision_of(const train_config *c)
{
    static const ag_dtype types[] = { [TRAIN_PRECISION_FP32] = AG_F32,
                                      [TRAIN_PRECISION_BF16] = AG_BF16,
                                      [TRAIN_PRECISION_FP16] = AG_F16 };
    return types[c->train.precision];
}

int64_t train_micro_batch(const train_session *s)
{
    enum { LEAST_ROWS = 512 };
    const train_config *c = &s->config;
    if (c->train.device != TRAIN_DEVICE_CPU) return c->train.batch;
    const int64_t batch = c->train.batch, d_ff = train_config_d_ff(c);
    const int64_t width = s->d_in ? s->d_in + 2 * d_ff : 8 * c->model.d_model + 2 * d_ff;
    long cache = sysconf(_SC_LEVEL3_CACHE_SIZE);
    if (cache <= 0) cache = 32l << 20;
    const int64_t rows = s->source + s->context;
    const int64_t fit = cache / 2 / (width * rows * (int64_t)ag_dtype_size(precision_of(c)));
    const int64_t least = (LEAST_ROWS + rows - 1) / rows;
    int64_t want = fit > least ? fit : least;
    if (want > batch) want = batch;
    while (batch % want) want--;
    return want;
}

/* What train.device is, open; a plan needs none. */
static int open_device(train_session *s, bool plan, ag_err *err)
{
    if (s->config.train.device == TRAIN_DEVICE_CPU || plan) return AG_OK;
    return ag_cuda_open(&s->device, err);
}

static int choose_kernels(const train_session *s, ag_dtype dtype, const ag_kernels **ret,
                          ag_err *err)
{
    const char *why = NULL;
    *ret = s->device ? ag_kernels_cuda(dtype) : ag_kernels_best(dtype, &why);
    return *ret ? AG_OK : ag_err_set(err, AG_ECONFIG, "%s", why);
}

int train_tapes_new(train_session *s, bool plan, ag_err *err)
{
    const ag_dtype dtype = precision_of(&s->config);
    const ag_kernels *k, *f32;
    int r = open_device(s, plan, err);
    if (r == AG_OK) r = choose_kernels(s, dtype, &k, err);
    if (r == AG_OK) r = choose_kernels(s, AG_F32, &f32, err);
    if (r == AG_OK) r = nn_params_place(s->model->params, s->device, err);
    if (r < 0) return r;
    s->tape = ag_tape_new(k);
    s->decoder = k == f32 ? s->tape : ag_tape_new(f32);
    if (!s->tape || !s->decoder) return ag_err_set(err, AG_ENOMEM, "out of memory for the tape");
    ag_tape_plan(s->tape, plan);
    return ag_dtype_is_half(dtype) ? nn_params_narrow(s->model->params, err) : AG_OK;
}

const char *train_device_text(const train_session *s, char *buf, size_t size)
{
    size_t total, unused;
    char about[256];
    s->device->about(about, sizeof about, &total, &unused);
    snprintf(buf, size, "%s, %.2f of %.2f GB unused", about, 1e-9 * (double)unused,
             1e-9 * (double)total);
    return buf;
}
