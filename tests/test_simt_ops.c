/*
 * test_simt_ops.c -- every op's samples on the tables of the GPU against the f64 reference; the
 * same program runs on the CPU, where the kernels' threads are fibers (tests/simt), and on a real
 * GPU.
 *
 * On the CPU each case also runs with the threads in other orders, which must give the same bits.
 * An op that a table has no kernel for must be in the list `missing` and must say so.
 *
 *   test_simt_ops [OP]      TULLE_SIMT_SEED=n: the order to begin with
 */
#include "op_check.h"

#include "autograd/cuda/cuda.h"
#include "big_cases.h"
#include "gpu.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const op_format formats[] = {
    { AG_F32, 0x1p-24, 0x1p-149, 1e-12 },
    { AG_BF16, 0x1p-8, 0x1p-133, 1e-4 },
    { AG_F16, 0x1p-11, 0x1p-24, 2e-6 },
};
enum { FORMATS = sizeof formats / sizeof *formats };

/* What the GPU does not do yet. */
static const ag_op *const missing[] = {
    &ag_op_sru, &ag_op_sru_cached, &ag_op_lsh_hash, &ag_op_lsh_attend, &ag_op_lsh_cached,
};

static bool is_missing(const ag_op *op)
{
    for (size_t i = 0; i < sizeof missing / sizeof *missing; i++)
        if (missing[i] == op) return true;
    return false;
}

/* The op says that there is no kernel. */
static void check_missing(ag_tape *t, const op_case *c)
{
    ag_tensor *in[AG_MAX_IN];
    case_inputs(t, c, 0, 0, 0, in);
    case_apply(t, c, in, NULL);
    if (!ag_error(t)) fail_msg("%s works now: take it off the list", c->op->name);
    assert_non_null(strstr(ag_error_message(t), "the GPU has no kernel"));
    ag_tape_reset(t);
}

static void check_bits(const op_case *c, const op_result *a, const op_result *b)
{
    char text[512];
    for (int i = 0; i < 2 + AG_MAX_IN; i++)
        if (a->v[i] && memcmp(a->v[i], b->v[i], (size_t)a->size[i] * sizeof *a->v[i]))
            fail_msg("%s: other bits in %s %d when run again", case_text(c, 0, text),
                     i < 2 ? "output" : "gradient", i < 2 ? i : i - 2);
}

static void check_case(ag_tape *ref, ag_tape *t, const op_case *c, const op_format *f)
{
    op_result want = op_run(ref, c), scale = op_scale(ref, c), got = op_run(t, c);
    op_compare(c, ag_dtype_name(f->dtype), &got, &want, &scale, f);
    gpu_order(1 + (unsigned)c->index);
    op_result again = op_run(t, c);
    gpu_order(0);
    check_bits(c, &got, &again);
    op_result_release(&again);
    op_result_release(&got);
    op_result_release(&want);
    op_result_release(&scale);
}

/* The large cases are for real GPUs: fibers take too long. */
static void check_large(const ag_op *op, ag_tape *ref, ag_tape *t, const op_format *f)
{
    for (int i = 0; i < N_BIG && gpu_is_real(); i++) {
        if (big[i].op != op) continue;
        op_case c = { .op = op, .index = 1000 + i, .s = big[i].s };
        for (int j = 0; j < op->n_in; j++)
            if (!((c.s.absent | op->integer_in) >> j & 1)) c.real |= 1u << j;
        check_case(ref, t, &c, f);
    }
}

static void agrees_with_the_reference(void **state)
{
    const ag_op *op = *state;
    ag_tape *ref = tape_new(ag_kernels_ref(AG_F64));
    for (int k = 0; k < FORMATS; k++) {
        ag_tape *t = poisoned_tape(ag_kernels_cuda(formats[k].dtype));
        case_round_to(formats[k].dtype);
        op_case c;
        for (int64_t i = 0; case_at(op, i, &c); i++) {
            if (c.s.bad) continue;
            if (is_missing(op)) check_missing(t, &c);
            else check_case(ref, t, &c, &formats[k]);
        }
        if (!is_missing(op)) check_large(op, ref, t, &formats[k]);
        ag_tape_free(t);
    }
    case_round_to(AG_F32);
    ag_tape_free(ref);
}

int main(int argc, char **argv)
{
    const ag_device *device;
    ag_err err = { 0 };
    size_t total, free_bytes;
    char about[256];
    if (ag_cuda_open(&device, &err) < 0) {
        fprintf(stderr, "%s\n", err.msg);
        return 1;
    }
    device->about(about, sizeof about, &total, &free_bytes);
    printf("%s, %.1f GB\n", about, 1e-9 * (double)total);
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    const int failed = run_per_op("the GPU", agrees_with_the_reference);
    ag_cuda_close();
    return failed;
}
