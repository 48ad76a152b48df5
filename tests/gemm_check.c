/* gemm_check.c -- see gemm_check.h. */
#include "gemm_check.h"

#include "autograd/base/half.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

const ag_device *device;

/* --- numbers of a type ------------------------------------------------------------------------ */

size_t size_of(ag_dtype t) { return t == AG_F32 ? 4 : 2; }

static double load(ag_dtype t, const void *p, int64_t i)
{
    if (t == AG_F32) return (double)((const float *)p)[i];
    const uint16_t bits = ((const uint16_t *)p)[i];
    return (double)(t == AG_F16 ? ag_f16_float(bits) : ag_bf16_float(bits));
}

static void store(ag_dtype t, void *p, int64_t i, float x)
{
    if (t == AG_F32) ((float *)p)[i] = x;
    else ((uint16_t *)p)[i] = t == AG_F16 ? ag_f16_of(x) : ag_bf16_of(x);
}

static double roundoff(ag_dtype t)
{
    return t == AG_F32 ? 0x1p-24 : t == AG_F16 ? 0x1p-11 : 0x1p-8;
}

static double least(ag_dtype t)
{
    return t == AG_F32 ? 0x1p-149 : t == AG_F16 ? 0x1p-24 : 0x1p-133;
}

static const float guard_word = -12345.0f;

static void *at(const array *a)
{
    return a->block + (GUARD + a->shift) * (int64_t)size_of(a->type);
}

int64_t extent(const array *a) { return a->n + 2 * GUARD + a->shift; }

void array_write(array *a)
{
    char *buf = malloc((size_t)extent(a) * 4);
    assert_non_null(buf);
    for (int64_t i = 0; i < extent(a); i++) {
        const int64_t j = i - GUARD - a->shift;
        const bool inside = j >= 0 && j < a->n;
        store(a->type, buf, i, inside ? (float)a->host[j] : guard_word);
    }
    device->write(a->block, buf, (size_t)extent(a) * size_of(a->type));
    free(buf);
}

static array array_new(ag_dtype type, int64_t n, int64_t shift, uint32_t site)
{
    array a = { .n = n, .type = type, .shift = shift };
    a.host = malloc((size_t)(n + 1) * sizeof(double));
    a.size = malloc((size_t)(n + 1) * sizeof(double));
    a.block = ag_device_alloc(device, (size_t)extent(&a) * size_of(type));
    assert_true(a.host && a.size && a.block);
    for (int64_t i = 0; i < n; i++) {
        float x;
        store(type, &x, 0, 2 * ag_uniform(ag_noise_bits(9, 0, site, (uint64_t)i)) - 1);
        a.host[i] = load(type, &x, 0);
        a.size[i] = fabs(a.host[i]);
    }
    array_write(&a);
    return a;
}

static void array_free(array *a)
{
    ag_device_free(device, a->block, (size_t)extent(a) * size_of(a->type));
    free(a->host);
    free(a->size);
}

void *array_read(const array *a, int64_t n, int64_t ld)
{
    char *buf = malloc((size_t)extent(a) * 4), want[4];
    assert_non_null(buf);
    device->read(buf, a->block, (size_t)extent(a) * size_of(a->type));
    store(a->type, want, 0, guard_word);
    for (int64_t i = 0; i < extent(a); i++) {
        const int64_t j = i - GUARD - a->shift;
        if (j >= 0 && j < a->n && (ld == 0 || j % ld < n)) continue;
        if (j >= 0 && j < a->n) store(a->type, want, 0, (float)a->host[j]);
        else store(a->type, want, 0, guard_word);
        if (load(a->type, buf, i) != load(a->type, want, 0))
            fail_msg("word %lld is overwritten", (long long)j);
    }
    return buf;
}

/* --- a product -------------------------------------------------------------------------------- */

static int64_t matrix(int64_t rows, int64_t cols, int64_t ld)
{
    return rows > 0 && cols > 0 ? (rows - 1) * ld + cols : 0;
}

/* The reference on the values, then on their sizes. */
static void reference(operands *o, const problem *p, bool size)
{
    const size_t bytes = (size_t)(o->c.n + 1) * sizeof(double);
    double *c = malloc(bytes), *pre = malloc(bytes);
    assert_true(c && pre);
    memcpy(c, size ? o->c.size : o->c.host, bytes);
    memcpy(pre, o->pre.host, bytes);
    ag_gemm g = o->g;
    g.c_f32 = false;
    g.a = size ? o->a.size : o->a.host;
    g.b = size ? o->b.size : o->b.host;
    g.c = c;
    g.bias = p->bias ? (size ? o->bias.size : o->bias.host) : NULL;
    g.residual = p->residual ? (size ? o->residual.size : o->residual.host) : NULL;
    g.pre = pre;
    if (size) g.act = AG_ACT_NONE;
    ag_kernels_ref(AG_F64)->gemm(&g);
    if (size) {
        o->sum = c;
        free(pre);
    } else {
        o->want = c;
        o->want_pre = pre;
    }
}

void setup(operands *o, const problem *p)
{
    const int64_t lda = p->lda ? p->lda : (p->ta ? p->m : p->k) + p->pad,
                  ldb = p->ldb ? p->ldb : (p->tb ? p->k : p->n) + p->pad, ldc = p->n + p->pad;
    const ag_dtype c = p->c_f32 ? AG_F32 : p->type;
    const int64_t s = p->shift, out = matrix(p->m, p->n, ldc);
    *o = (operands){ .a = array_new(p->type, p->ta ? matrix(p->k, p->m, lda)
                                                   : matrix(p->m, p->k, lda), s, 1),
                     .b = array_new(p->type, p->tb ? matrix(p->n, p->k, ldb)
                                                   : matrix(p->k, p->n, ldb), s, 2),
                     .bias = array_new(p->type, p->n, s, 3),
                     .residual = array_new(p->type, out, s, 4),
                     .c = array_new(c, out, s, 5), .pre = array_new(p->type, out, s, 6) };
    o->g = (ag_gemm){ .ta = p->ta, .tb = p->tb, .acc = p->acc, .c_f32 = p->c_f32, .m = p->m,
                      .n = p->n, .k = p->k, .a = at(&o->a), .lda = lda, .b = at(&o->b),
                      .ldb = ldb, .c = at(&o->c), .ldc = ldc,
                      .bias = p->bias ? at(&o->bias) : NULL, .pre = p->pre ? at(&o->pre) : NULL,
                      .act = p->act, .residual = p->residual ? at(&o->residual) : NULL };
    reference(o, p, false);
    reference(o, p, true);
}

void release(operands *o)
{
    array *const all[] = { &o->a, &o->b, &o->bias, &o->residual, &o->c, &o->pre };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) array_free(all[i]);
    free(o->want);
    free(o->want_pre);
    free(o->sum);
}

static void check_close(const problem *p, const char *what, int64_t i, int64_t j, double got,
                        double want, double bound)
{
    if (!(fabs(got - want) <= bound))
        fail_msg("%s%s: ta %d tb %d acc %d bias %d pre %d act %d residual %d, m %lld n %lld k %lld "
                 "pad %lld shift %lld: %s[%lld,%lld] is %.9g, not %.9g (bound %.3g)",
                 ag_dtype_name(p->type), p->c_f32 ? " into f32" : "", p->ta, p->tb, p->acc, p->bias,
                 p->pre, (int)p->act, p->residual, (long long)p->m, (long long)p->n,
                 (long long)p->k, (long long)p->pad, (long long)p->shift, what, (long long)i,
                 (long long)j, got, want, bound);
}

void check_result(const operands *o, const problem *p)
{
    const int64_t ldc = o->g.ldc;
    void *c = array_read(&o->c, p->n, ldc), *pre = array_read(&o->pre, p->pre ? p->n : 0, ldc);
    const double v = roundoff(o->c.type), w = roundoff(p->type), tiny = least(p->type);
    const bool more = !p->acc && (p->pre || p->act != AG_ACT_NONE || (p->bias && p->shift));
    for (int64_t i = 0; i < p->m; i++)
        for (int64_t j = 0; j < p->n; j++) {
            const int64_t k = i * ldc + j;
            const double sum = 8 * 0x1p-24 * o->sum[k] + tiny, z = fabs(o->want_pre[k]),
                         y = fabs(o->want[k]);
            const double rounds = w * (z + (p->bias && p->shift ? z + 1 : 0));
            check_close(p, "c", i, j, load(o->c.type, c, GUARD + p->shift + k), o->want[k],
                        1.2 * (sum + (more ? rounds : 0)) + v * y + 4 * 0x1p-24 * z);
            if (p->pre && !p->acc)
                check_close(p, "pre", i, j, load(p->type, pre, GUARD + p->shift + k),
                            o->want_pre[k], sum + rounds);
        }
    free(c);
    free(pre);
}

void check_problem(const problem *p)
{
    operands o;
    setup(&o, p);
    ag_kernels_cuda(p->type)->gemm(&o.g);
    check_result(&o, p);
    const char *why = device->check();
    if (why) fail_msg("%s", why);
    release(&o);
}
