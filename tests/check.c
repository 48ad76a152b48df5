#include "check.h"

#include "autograd/device.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool case_at(const ag_op *op, int64_t i, op_case *ret)
{
    *ret = (op_case){ .op = op, .index = i };
    if (!op->sample(i, &ret->s)) return false;
    for (int j = 0; j < op->n_in; j++)
        if (!((ret->s.absent | op->integer_in) >> j & 1)) ret->real |= 1u << j;
    return true;
}

const char *case_text(const op_case *c, unsigned subset, char buf[512])
{
    int n = snprintf(buf, 512, "%s sample %lld:", c->op->name, (long long)c->index);
    for (int i = 0; i < c->op->n_in; i++) {
        char s[96];
        n += snprintf(buf + n, 512 - (size_t)n, " %s%s",
                      c->s.absent >> i & 1 ? "-" : ag_shape_text(&c->s.in[i], s),
                      subset >> i & 1 ? "*" : "");
    }
    return buf;
}

int run_per_op(const char *group, void (*run)(void **state))
{
    struct CMUnitTest *tests = calloc((size_t)ag_op_count, sizeof *tests);
    if (!tests) return 1;
    for (int i = 0; i < ag_op_count; i++)
        tests[i] = (struct CMUnitTest){ .name = ag_op_table[i]->name, .test_func = run,
                                        .initial_state = (void *)(uintptr_t)ag_op_table[i] };
    const int failed = _cmocka_run_group_tests(group, tests, (size_t)ag_op_count, NULL, NULL);
    free(tests);
    return failed;
}

/* splitmix64 */
static uint64_t next(uint64_t *state)
{
    uint64_t z = *state += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

void uniform(double *x, int64_t n, double lo, double hi, double gap, uint64_t seed)
{
    for (int64_t i = 0; i < n; i++)
        do x[i] = (double)(float)(lo + (hi - lo) * (double)(next(&seed) >> 11) * 0x1p-53);
        while (fabs(x[i]) < gap);
}

void uniform_int(int32_t *x, int64_t n, int32_t lo, int32_t hi, uint64_t seed)
{
    for (int64_t i = 0; i < n; i++)
        x[i] = lo + (hi > lo ? (int32_t)(next(&seed) % (uint64_t)(hi - lo)) : 0);
}

double *uniform_new(int64_t n, double lo, double hi, uint64_t seed)
{
    double *x = calloc((size_t)n + 1, sizeof *x);
    assert_non_null(x);
    uniform(x, n, lo, hi, 0, seed);
    return x;
}

static ag_dtype rounding = AG_F32;

void case_round_to(ag_dtype dtype) { rounding = dtype; }

static void round_all(int64_t n, double *x)
{
    if (!ag_dtype_is_half(rounding)) return;
    const ag_kernels *k = ag_kernels_ref(rounding);
    for (int64_t i = 0; i < n; i++) {
        const float v = (float)x[i];
        uint16_t h;
        k->narrow(1, &v, &h);
        x[i] = ag_number_at(rounding, &h, 0);
    }
}

enum { SEED_INPUT = 1, SEED_DIRECTION = 2, SEED_COTANGENT = 3 };

static uint64_t seed_of(const op_case *c, int what, int i)
{
    uint64_t s = 0;
    for (const char *p = c->op->name; *p; p++) s = s * 131 + (unsigned char)*p;
    return ((s * 1000003 + (uint64_t)c->index) * 16 + (uint64_t)what) * 16 + (uint64_t)i;
}

double *case_direction(const op_case *c, int i)
{
    return uniform_new(ag_shape_size(&c->s.in[i]), -1, 1, seed_of(c, SEED_DIRECTION, i));
}

double *case_cotangent(const op_case *c, int64_t n)
{
    double *dy = uniform_new(n, -1, 1, seed_of(c, SEED_COTANGENT, 0));
    round_all(n, dy);
    return dy;
}

static ag_tensor *case_input(ag_tape *t, const op_case *c, int i, bool needs_grad, double step)
{
    const ag_shape *shape = &c->s.in[i];
    const int64_t n = ag_shape_size(shape);
    if (c->op->integer_in >> i & 1) {
        int32_t *idx = calloc((size_t)n + 1, sizeof *idx);
        assert_non_null(idx);
        uniform_int(idx, n, c->s.int_lo, c->s.int_hi, seed_of(c, SEED_INPUT, i));
        ag_tensor *x = ag_input_i32(t, *shape, idx);
        free(idx);
        return x;
    }
    double *v = uniform_new(n, 0, 0, 0), *u = case_direction(c, i);
    uniform(v, n, c->s.lo, c->s.hi, c->s.gap, seed_of(c, SEED_INPUT, i));
    round_all(n, v);
    for (int64_t j = 0; j < n; j++) v[j] += step * u[j];
    ag_tensor *x = ag_input_f64(t, *shape, v, needs_grad);
    free(u);
    free(v);
    return x;
}

void case_inputs(ag_tape *t, const op_case *c, unsigned needs_grad, double step, unsigned along,
                 ag_tensor *ret_in[AG_MAX_IN])
{
    for (int i = 0; i < AG_MAX_IN; i++)
        ret_in[i] = i >= c->op->n_in || c->s.absent >> i & 1
                        ? NULL
                        : case_input(t, c, i, needs_grad >> i & 1, along >> i & 1 ? step : 0);
}

ag_tensor *case_apply(ag_tape *t, const op_case *c, ag_tensor *const in[AG_MAX_IN],
                      ag_tensor **ret_second)
{
    return ag_apply(t, c->op, in, &c->s.attr, ret_second);
}

int case_backward(ag_tape *t, const op_case *c, ag_tensor *y)
{
    double *dy = case_cotangent(c, y->size);
    if (ag_tape_dtype(t) != AG_F64)      /* in place: an f32 is not longer than an f64 */
        for (int64_t i = 0; i < y->size; i++) {
            const float v = (float)dy[i];
            memcpy((char *)dy + (size_t)i * sizeof v, &v, sizeof v);
        }
    const int r = ag_backward_from(t, y, dy);
    free(dy);
    return r;
}

double real_at(const void *data, ag_dtype dtype, int64_t i)
{
    return ag_number_at(dtype, data, i);
}

double *copy_of(const ag_tape *t, const ag_tensor *x, bool grad)
{
    const void *data = grad ? x->grad : x->data;
    const ag_dtype dtype = grad ? ag_grad_dtype(x) : x->dtype;
    double *v = calloc((size_t)x->size + 1, sizeof *v);
    void *host = malloc((size_t)(x->size + 1) * ag_dtype_size(dtype));
    assert_non_null(v);
    assert_non_null(host);
    if (x->size) assert_non_null(data);
    ag_device_read(ag_tape_kernels(t)->device, host, data, (size_t)x->size * ag_dtype_size(dtype));
    for (int64_t i = 0; i < x->size; i++) v[i] = ag_number_at(dtype, host, i);
    free(host);
    return v;
}

ag_tape *tape_new(const ag_kernels *k)
{
    ag_tape *t = ag_tape_new(k);
    assert_non_null(t);
    ag_tape_noise(t, &(ag_noise_key){ .seed = 42, .step = 7, .n_samples = 1 });
    return t;
}
