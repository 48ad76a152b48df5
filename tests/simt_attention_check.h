/*
 * simt_attention_check.h -- runs attention problems on the tables of the GPU and compares them with
 * an oracle in f64.
 *
 * Every case runs with the threads in two orders, which must give the same bits, and may write
 * nothing but the rows of its results.
 */
#ifndef SIMT_ATTENTION_CHECK_H
#define SIMT_ATTENTION_CHECK_H

#include "attention_oracle.h"

#include "autograd/base/half.h"
#include "autograd/cuda/cuda.h"
#include "gpu.h"

#include <stdio.h>

typedef struct format { ag_dtype dtype; double bound, tiny; } format;

/* Bounds are of the scale that the oracle gives.  16 bits: weights, ds and outputs are rounded, in
 * f16 to multiples of 2^-24 where they are small. */
static const format formats[] = {
    { AG_F32, 8 * 0x1p-24, 0 }, { AG_BF16, 0x1p-8, 0 }, { AG_F16, 0x1p-11, 0x1p-22 },
};
enum { FORMATS = sizeof formats / sizeof *formats };

static const ag_device *gpu;
static const format *form;               /* that is tested now */
static const ag_pattern *shown;          /* the pattern of keys; NULL: none */
static void (*prepare)(problem *p);      /* what is done to inputs before a run, or NULL */

/* --- numbers of a format ---------------------------------------------------------------------- */

static void narrow(size_t n, const float *x, void *y)
{
    uint16_t *h = y;
    for (size_t i = 0; i < n; i++)
        if (form->dtype == AG_F32) ((float *)y)[i] = x[i];
        else h[i] = form->dtype == AG_BF16 ? ag_bf16_of(x[i]) : ag_f16_of(x[i]);
}

static void widen(size_t n, const void *x, float *y)
{
    const uint16_t *h = x;
    for (size_t i = 0; i < n; i++)
        if (form->dtype == AG_F32) y[i] = ((const float *)x)[i];
        else y[i] = form->dtype == AG_BF16 ? ag_bf16_float(h[i]) : ag_f16_float(h[i]);
}

/* --- problems on the device ------------------------------------------------------------------- */

typedef struct image {                   /* a buffer of the host's problem, on the device */
    float *host;
    size_t n;
    char  *device, *before, *after;      /* bytes: at first, and when read back */
} image;

typedef struct run_of {
    image at[2][N_BUFFERS];
    image lse, delta;                    /* f32 always */
    int32_t *lengths;                    /* on the device */
    ag_attention a;
    ag_attention_grad g;
} run_of;

static size_t bytes_of(const image *x, bool f32)
{
    return x->n * (f32 ? sizeof(float) : ag_dtype_size(form->dtype));
}

static void image_init(image *x, float *host, size_t n, bool f32)
{
    *x = (image){ .host = host, .n = n };
    if (!host) return;
    const size_t bytes = bytes_of(x, f32);
    x->device = ag_device_alloc(gpu, bytes + 1);
    x->before = get(bytes);
    x->after = get(bytes);
    assert_non_null(x->device);
    if (f32) memcpy(x->before, host, bytes);
    else narrow(n, host, x->before);
}

static void image_release(image *x, bool f32)
{
    if (!x->host) return;
    ag_device_free(gpu, x->device, bytes_of(x, f32) + 1);
    free(x->before);
    free(x->after);
}

/* Where a pointer into the host's problem lies on the device. */
static void *place(const run_of *r, const void *p)
{
    const float *x = p;
    for (int grad = 0; grad < 2; grad++)
        for (int i = 0; i < N_BUFFERS; i++) {
            const image *m = &r->at[grad][i];
            if (m->host && x >= m->host && x < m->host + m->n)
                return m->device + (size_t)(x - m->host) * ag_dtype_size(form->dtype);
        }
    fail_msg("a pointer to nowhere");
    return NULL;
}

static void run_init(run_of *r, problem *p, const int32_t *lengths)
{
    const size_t rows = (size_t)(p->a.batch * p->a.heads * p->a.tq) + 2 * MARGIN;
    for (int grad = 0; grad < 2; grad++)
        for (int i = 0; i < N_BUFFERS; i++)
            image_init(&r->at[grad][i], p->buffer[grad][i], p->size[i], false);
    image_init(&r->lse, p->lse, rows, true);
    image_init(&r->delta, p->delta, rows, true);
    r->a = p->a;
    r->g = p->g;
    r->a.q = place(r, p->a.q), r->a.k = place(r, p->a.k), r->a.v = place(r, p->a.v);
    r->a.o = place(r, p->a.o);
    r->g.do_ = place(r, p->g.do_), r->g.dq = place(r, p->g.dq);
    r->g.dk = place(r, p->g.dk), r->g.dv = place(r, p->g.dv);
    r->a.lse = r->lse.device + MARGIN * sizeof(float);
    r->g.delta = r->delta.device + MARGIN * sizeof(float);
    r->lengths = NULL;
    if (lengths) {
        const size_t bytes = (size_t)p->a.batch * sizeof *lengths;
        r->lengths = ag_device_alloc(gpu, bytes);
        gpu->write(r->lengths, lengths, bytes);
        r->a.lengths = r->lengths;
    }
}

static void run_release(run_of *r, int64_t batch)
{
    for (int grad = 0; grad < 2; grad++)
        for (int i = 0; i < N_BUFFERS; i++) image_release(&r->at[grad][i], false);
    image_release(&r->lse, true);
    image_release(&r->delta, true);
    if (r->lengths) ag_device_free(gpu, r->lengths, (size_t)batch * sizeof *r->lengths);
}

static void each_image(run_of *r, void (*what)(image *x, bool f32))
{
    for (int grad = 0; grad < 2; grad++)
        for (int i = 0; i < N_BUFFERS; i++)
            if (r->at[grad][i].host) what(&r->at[grad][i], false);
    what(&r->lse, true);
    what(&r->delta, true);
}

static void send(image *x, bool f32) { gpu->write(x->device, x->before, bytes_of(x, f32)); }
static void fetch(image *x, bool f32)
{
    gpu->read(x->after, x->device, bytes_of(x, f32));
    if (f32) memcpy(x->host, x->after, bytes_of(x, f32));
    else widen(x->n, x->after, x->host);
}
static void fetch_again(image *x, bool f32)
{
    char *again = get(bytes_of(x, f32));
    gpu->read(again, x->device, bytes_of(x, f32));
    assert_memory_equal(again, x->after, bytes_of(x, f32));
    free(again);
}

static void works(void)
{
    const char *error = gpu->check();
    if (error) fail_msg("%s", error);
}

static void forward(run_of *r)
{
    each_image(r, send);
    ag_kernels_cuda(form->dtype)->attention_fwd(&r->a);
}

static void backward(run_of *r, bool acc)
{
    r->g.acc = acc;
    ag_kernels_cuda(form->dtype)->attention_bwd(&r->a, &r->g);
}

/* --- comparison ------------------------------------------------------------------------------- */

static void check_rows(const problem *p, const char *name, int which, int grad, const double *want,
                       double times)
{
    const int64_t t_end = length_of(p, which), d = width_of(p, which) / p->a.heads;
    const double *scale = want + p->a.batch * p->a.heads * t_end * d;
    for (int64_t b = 0; b < p->a.batch; b++)
        for (int64_t h = 0; h < p->a.heads; h++)
            for (int64_t t = 0; t < t_end; t++)
                for (int64_t c = 0; c < d; c++, want++, scale++) {
                    const double got = (double)row_of(p, which, grad, b, t)[h * d + c];
                    const double error = fabs(got - *want * times),
                        bound = (form->bound * (*scale + fabs(*want)) + form->tiny) * times;
                    if (!(error <= bound))
                        fail_msg("%s %s: tq %d tk %d d %d %d causal %d pos %d drop %g: "
                                 "[%d,%d,%d,%d] is %.9g, not %.9g, off by %.2f of the bound",
                                 ag_dtype_name(form->dtype), name, (int)p->a.tq, (int)p->a.tk,
                                 (int)p->a.d_qk, (int)p->a.d_v, p->a.causal, (int)p->a.q_pos0,
                                 p->a.drop, (int)b, (int)h, (int)t, (int)c, got, *want * times,
                                 error / bound);
                }
}

static void check_lse(const problem *p, const oracle *r)
{
    const int64_t rows = p->a.batch * p->a.heads * p->a.tq;
    for (int64_t i = 0; i < rows; i++) {
        const double got = (double)((float *)p->a.lse)[i], want = r->lse[i];
        if (isinf(want) ? got != want
                        : !(fabs(got - want) <= 8 * 0x1p-24 * (fabs(want) + r->lse[rows + i])))
            fail_msg("%s: lse[%d] is %.9g, not %.9g", ag_dtype_name(form->dtype), (int)i, got,
                     want);
    }
}

/* Only results may have changed: what is no row of them has the bytes that it had. */
static void check_rest(const run_of *r, const problem *p)
{
    const size_t one = ag_dtype_size(form->dtype);
    for (int grad = 0; grad < 2; grad++)
        for (int which = Q; which < N_BUFFERS; which++) {
            if ((which == O) == grad) continue;          /* q, k, v and do: only read */
            for (int64_t b = 0; b < p->a.batch; b++)
                for (int64_t t = 0; t < length_of(p, which); t++) {
                    const float *row = row_of(p, which, grad, b, t);
                    for (int m = Q; m < N_BUFFERS; m++) {
                        const image *x = &r->at[grad][m];
                        if (!x->host || row < x->host || row >= x->host + x->n) continue;
                        const size_t at = (size_t)(row - x->host) * one;
                        memcpy(x->before + at, x->after + at, (size_t)width_of(p, which) * one);
                    }
                }
        }
    for (int grad = 0; grad < 2; grad++)
        for (int which = Q; which < N_BUFFERS; which++)
            if (r->at[grad][which].host)
                assert_memory_equal(r->at[grad][which].before, r->at[grad][which].after,
                                    r->at[grad][which].n * one);
    const size_t rows = (size_t)(p->a.batch * p->a.heads * p->a.tq), f = sizeof(float);
    const image *const kept[] = { &r->lse, &r->delta };
    for (int i = 0; i < 2; i++) {
        assert_memory_equal(kept[i]->before, kept[i]->after, MARGIN * f);
        assert_memory_equal(kept[i]->before + (MARGIN + rows) * f,
                            kept[i]->after + (MARGIN + rows) * f, MARGIN * f);
    }
}

/* Inputs as the format has them; the gaps stay NaN. */
static void round_inputs(problem *p)
{
    for (int grad = 0; grad < 2; grad++)
        for (int i = 0; i < N_BUFFERS; i++) {
            if (!p->buffer[grad][i] || form->dtype == AG_F32) continue;
            void *h = get(p->size[i] * 2);
            narrow(p->size[i], p->buffer[grad][i], h);
            widen(p->size[i], h, p->buffer[grad][i]);
            free(h);
        }
}

static void run_format(const shape *s, const int32_t *lengths, bool back)
{
    problem p;
    oracle want;
    run_of r;
    pattern_init(&p, s, shown);
    if (prepare) prepare(&p);
    round_inputs(&p);
    p.a.lengths = lengths;
    oracle_init(&want, &p.a);
    oracle_run(&p, &want);
    run_init(&r, &p, lengths);
    forward(&r);
    for (int times = 1; times <= 2; times++) {
        if (back) backward(&r, times == 2);
        each_image(&r, fetch);
        works();
        check_rows(&p, "o", O, 0, want.o, 1);
        check_lse(&p, &want);
        if (!back) break;
        check_rows(&p, "dq", Q, 1, want.dq, times);
        check_rows(&p, "dk", K, 1, want.dk, times);
        check_rows(&p, "dv", V, 1, want.dv, times);
    }
    gpu_order((unsigned)(s->tq * 7 + s->tk));
    forward(&r);
    for (int times = 1; back && times <= 2; times++) backward(&r, times == 2);
    each_image(&r, fetch_again);
    gpu_order(0);
    works();
    check_rest(&r, &p);
    run_release(&r, s->batch);
    oracle_free(&want);
    problem_free(&p);
}

/* In f32 and one or the other of the 16-bit formats. */
static void run_all(const shape *s, const int32_t *lengths, bool back)
{
    static int turn;
    form = &formats[0];
    run_format(s, lengths, back);
    form = &formats[1 + turn++ % 2];
    run_format(s, lengths, back);
}

/* Opens the GPU, or what stands in for it.  False: there is none, and why is said. */
static bool open_gpu(void)
{
    ag_err err = { 0 };
    if (ag_cuda_open(&gpu, &err) < 0) {
        fprintf(stderr, "%s\n", err.msg);
        return false;
    }
    row_gap = 8;                         /* so heads of a multiple of 8 have aligned rows */
    return true;
}

#endif
