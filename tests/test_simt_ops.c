/*
 * test_simt_ops.c -- every op's samples on the tables of the GPU against the f64 reference; the
 * same program runs on the CPU, where the kernels' threads are fibers (tests/simt), and on a real
 * GPU.
 *
 * On the CPU each case also runs with the threads in other orders, which must give the same bits.
 * What a table has no kernel for must be known here (is_missing) and must say so.
 *
 *   test_simt_ops [OP]      TULLE_SIMT_SEED=n: the order to begin with; TULLE_SIMT_PART: see gpu.h
 */
#include "gpu_check.h"

#include "autograd/cuda/cuda.h"
#include "big_cases.h"
#include "gpu.h"

#include <stdlib.h>
#include <string.h>

/* The large cases are for real GPUs: fibers take too long. */
static void check_large(const ag_op *op, ag_tape *ref, ag_tape *t, const op_format *f)
{
    for (int i = 0; i < N_BIG && gpu_is_real(); i++) {
        if (big[i].op != op) continue;
        op_case c = { .op = op, .index = 1000 + i, .s = big[i].s };
        for (int j = 0; j < op->n_in; j++)
            if (!((c.s.absent | op->integer_in) >> j & 1)) c.real |= 1u << j;
        gpu_check_case(ref, t, &c, f);
    }
}

static void agrees_with_the_reference(void **state)
{
    const ag_op *op = *state;
    ag_tape *ref = tape_new(ag_kernels_ref(AG_F64));
    for (int k = 0; k < GPU_FORMATS; k++) {
        ag_tape *t = poisoned_tape(ag_kernels_cuda(gpu_formats[k].dtype));
        case_round_to(gpu_formats[k].dtype);
        op_case c;
        for (int64_t i = 0; case_at(op, i, &c); i++) {
            if (c.s.bad || !gpu_takes(i + k)) continue;
            gpu_check_case(ref, t, &c, &gpu_formats[k]);
        }
        check_large(op, ref, t, &gpu_formats[k]);
        ag_tape_free(t);
    }
    case_round_to(AG_F32);
    ag_tape_free(ref);
}

int main(int argc, char **argv)
{
    if (!gpu_open()) return 1;
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    const int failed = run_per_op("the GPU", agrees_with_the_reference);
    ag_cuda_close();
    return failed;
}
