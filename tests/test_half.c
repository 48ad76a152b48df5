/*
 * test_half.c -- every op on bf16 and f16 tapes.
 *
 * Forward: the f32 op of the same instruction set on the same numbers, rounded once, bit for bit,
 * whether the op has 16-bit kernels or runs between conversions.  Backward: against the f64
 * reference on the same numbers; a gradient may be off by a few roundings of its natural scale
 * (what backward reads of the output is rounded).  Each case runs on leaves, whose gradients are
 * f32, and on tensors computed from them, whose gradients are stored in 16 bits.  A product's
 * gradients pass through two roundings, so their mean square error may be twice that of one.
 *
 * A table whose products are of bf16 pairs (gemm_micro_tmpl.h) adds in another order than its f32
 * table, so there forward may also differ by the last bit of 16, and by the error of f32 sums.
 */
#include "check.h"

#include "big_cases.h"
#include "tests/threads.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_TABLES = 8 };

static const struct format { ag_dtype dtype; double u, tiny, nmse; } formats[] = {
    { AG_BF16, 0x1p-8, 0x1p-133, 1e-4 }, { AG_F16, 0x1p-11, 0x1p-24, 2e-6 },
};
enum { FORMATS = sizeof formats / sizeof *formats };

/* The tables of that type; the emulated one of pairs is not the last, which is the best. */
static int all_tables(ag_dtype dtype, const ag_kernels **ret)
{
    int n = 0;
#if defined(__x86_64__)
    extern const ag_kernels ag_kernels_pairs_bf16;
    if (dtype == AG_BF16 && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        ret[n++] = &ag_kernels_pairs_bf16;
#endif
    return n + ag_kernels_all(dtype, ret + n, MAX_TABLES - n);
}

static bool has_pairs(const ag_kernels *k)
{
    return !strcmp(k->name, "pairs") || !strcmp(k->name, "avx512bf16");
}

typedef struct result {
    double *out[AG_MAX_OUT], *grad[AG_MAX_IN];
    int64_t n_out[AG_MAX_OUT], n_grad[AG_MAX_IN];
    ag_dtype dtype[AG_MAX_OUT];
} result;

static void result_release(result *r)
{
    for (int i = 0; i < AG_MAX_OUT; i++) free(r->out[i]);
    for (int i = 0; i < AG_MAX_IN; i++) free(r->grad[i]);
}

/* The op and its backward; `computed`: its inputs are no leaves. */
static result run(ag_tape *t, const op_case *c, bool computed)
{
    ag_tensor *leaf[AG_MAX_IN], *in[AG_MAX_IN], *out[AG_MAX_OUT] = { NULL };
    result r = { .out = { NULL } };
    char text[512];
    case_inputs(t, c, c->op->backward ? c->real : 0, 0, 0, leaf);
    for (int i = 0; i < c->op->n_in; i++)
        in[i] = computed && c->real >> i & 1 ? ag_scale(t, leaf[i], 1) : leaf[i];
    out[0] = case_apply(t, c, in, c->op->n_out > 1 ? &out[1] : NULL);
    if (ag_error(t)) fail_msg("%s: %s", case_text(c, 0, text), ag_error_message(t));
    for (int i = 0; i < c->op->n_out; i++) {
        r.out[i] = copy_of(t, out[i], false);
        r.n_out[i] = out[i]->size;
        r.dtype[i] = out[i]->dtype;
    }
    if (c->op->backward && case_backward(t, c, out[0]))
        fail_msg("%s: %s", case_text(c, 0, text), ag_error_message(t));
    for (int i = 0; c->op->backward && i < c->op->n_in; i++)
        if (c->real >> i & 1) {
            r.grad[i] = copy_of(t, leaf[i], true);
            r.n_grad[i] = leaf[i]->size;
        }
    ag_tape_reset(t);
    return r;
}

static double largest(int64_t n, const double *x)
{
    double m = 0;
    for (int64_t i = 0; i < n; i++) m = fmax(m, fabs(x[i]));
    return m;
}

static double round_to(const ag_kernels *k, double x)
{
    const float f = (float)x;
    uint16_t h;
    k->narrow(1, &f, &h);
    return ag_number_at(k->dtype, &h, 0);
}

static void check_forward(const ag_kernels *k, const op_case *c, const result *got,
                          const result *f32)
{
    char text[512];
    for (int i = 0; i < c->op->n_out; i++) {
        const bool loss = c->op->f32_out && got->dtype[i] == AG_F32;
        if (!(c->op->integer_out >> i & 1)) assert_true(loss || got->dtype[i] == k->dtype);
        for (int64_t j = 0; j < got->n_out[i]; j++) {
            const double want = got->dtype[i] == k->dtype ? round_to(k, f32->out[i][j])
                                                          : f32->out[i][j];
            const double off = fabs(got->out[i][j] - want);
            if (has_pairs(k) && off <= 0x1p-7 * fabs(want) + 1e-5) continue;
            if (memcmp(&got->out[i][j], &want, sizeof want))
                fail_msg("%s %s: %s: output %d, element %lld: %.9g, the rounded f32 is %.9g",
                         k->name, ag_dtype_name(k->dtype), case_text(c, 0, text), i, (long long)j,
                         got->out[i][j], want);
        }
    }
}

/* What a gradient is made of is not smaller than this. */
static double least_scale(const op_case *c)
{
    const ag_op *op = c->op;
    const int64_t n = c->s.in[0].ndim ? c->s.in[0].dim[c->s.in[0].ndim - 1] : 1;
    if (op == &ag_op_layernorm) return n < 3 ? 1 / sqrt(c->s.attr.layernorm.eps) : 2;
    if (op == &ag_op_attend || op == &ag_op_attend_qkv || op == &ag_op_attend_source)
        return (double)c->s.attr.attention.d_v;
    if (op == &ag_op_lsh_attend) return (double)c->s.attr.lsh.o.d_v;
    if (op == &ag_op_control && c->s.attr.control.relaxed && c->s.attr.control.temperature > 0)
        return 8 / c->s.attr.control.temperature;
    if (op == &ag_op_cross_entropy) return 1 / (double)ag_shape_size(&c->s.in[1]);
    return 1;
}

/* The difference of larger numbers: zero for a query of one key. */
static bool cancels(const ag_op *op)
{
    return op == &ag_op_attend || op == &ag_op_attend_qkv || op == &ag_op_attend_source ||
           op == &ag_op_lsh_attend || op == &ag_op_layernorm;
}

static void check_backward(const struct format *f, const ag_kernels *k, const op_case *c,
                           const result *got, const result *want)
{
    char text[512];
    for (int i = 0; i < c->op->n_in; i++) {
        if (!want->grad[i]) continue;
        const int64_t n = want->n_grad[i];
        const double s = fmax(largest(n, want->grad[i]), least_scale(c));
        double error = 0, square = 0;
        for (int64_t j = 0; j < n; j++) {
            const double w = want->grad[i][j], e = got->grad[i][j] - w;
            if (!(fabs(e) <= 4 * f->u * s + f->tiny))
                fail_msg("%s %s: %s: gradient %d, element %lld: %.9g, wanted %.9g, off by %.3g u S",
                         k->name, ag_dtype_name(k->dtype), case_text(c, 0, text), i, (long long)j,
                         got->grad[i][j], w, fabs(e) / (f->u * s));
            error += e * e;
            square += fmax(w * w, cancels(c->op) ? s * s : s * s / 16);
        }
        if (n > 4 && error > f->nmse * square)
            fail_msg("%s %s: %s: gradient %d: mean square error %.3g of the mean square", k->name,
                     ag_dtype_name(k->dtype), case_text(c, 0, text), i, error / square);
    }
}

static void check_case(const struct format *f, int n, ag_tape *const t[], ag_tape *const wide[],
                       ag_tape *ref, const op_case *c)
{
    result want = run(ref, c, false);
    for (int k = 0; k < n; k++) {
        const ag_kernels *table = ag_tape_kernels(t[k]);
        result f32 = run(wide[k], c, false);
        for (int computed = 0; computed < 2; computed++) {
            result got = run(t[k], c, computed);
            check_forward(table, c, &got, &f32);
            check_backward(f, table, c, &got, &want);
            result_release(&got);
        }
        result_release(&f32);
    }
    result_release(&want);
}

static bool big_at(const ag_op *op, int i, op_case *ret)
{
    if (big[i].op != op) return false;
    *ret = (op_case){ .op = op, .index = 1000 + i, .s = big[i].s };
    for (int j = 0; j < op->n_in; j++)
        if (!((ret->s.absent | op->integer_in) >> j & 1)) ret->real |= 1u << j;
    return true;
}

/* Every step-th sample on n tables; on one alone the large cases too. */
static void check_op(const struct format *f, const ag_op *op, const ag_kernels *const *table, int n,
                     int step)
{
    ag_tape *t[MAX_TABLES], *wide[MAX_TABLES], *ref = tape_new(ag_kernels_ref(AG_F64));
    op_case c;
    case_round_to(f->dtype);
    for (int k = 0; k < n; k++) {
        t[k] = tape_new(table[k]);
        wide[k] = tape_new(table[k]->wide);
    }
    for (int64_t i = 0; case_at(op, i, &c); i += step)
        if (!c.s.bad) check_case(f, n, t, wide, ref, &c);
    for (size_t i = 0; n == 1 && i < sizeof big / sizeof *big; i++)
        if (big_at(op, (int)i, &c)) check_case(f, n, t, wide, ref, &c);
    for (int k = 0; k < n; k++) {
        ag_tape_free(t[k]);
        ag_tape_free(wide[k]);
    }
    ag_tape_free(ref);
    case_round_to(AG_F32);
}

static void is_the_rounded_op(void **state)
{
    set_threads(1);
    for (int i = 0; i < FORMATS; i++) {
        const ag_kernels *table[MAX_TABLES];
        const int n = all_tables(formats[i].dtype, table);
        check_op(&formats[i], *state, table, n - 1, 41);
        check_op(&formats[i], *state, table + n - 1, 1, 5);
    }
}

static void any_number_of_threads_gives_the_same_bits(void **state)
{
    for (int f = 0; f < FORMATS; f++) {
        const ag_kernels *table[MAX_TABLES];
        const int n = all_tables(formats[f].dtype, table);
        ag_tape *t = tape_new(table[n - 1]);
        op_case c;
        for (size_t i = 0; i < sizeof big / sizeof *big; i++) {
            if (!big_at(*state, (int)i, &c)) continue;
            set_threads(1);
            result one = run(t, &c, true);
            set_threads(3);
            result many = run(t, &c, true);
            for (int k = 0; k < c.op->n_out; k++)
                assert_memory_equal(one.out[k], many.out[k], (size_t)one.n_out[k] * 8);
            for (int k = 0; k < c.op->n_in; k++)
                if (one.grad[k])
                    assert_memory_equal(one.grad[k], many.grad[k], (size_t)one.n_grad[k] * 8);
            result_release(&many);
            result_release(&one);
        }
        set_threads(1);
        ag_tape_free(t);
    }
}

int main(void)
{
    return run_per_op("half", is_the_rounded_op) +
           run_per_op("threads", any_number_of_threads_gives_the_same_bits);
}
