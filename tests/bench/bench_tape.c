/*
 * bench_tape.c -- what the tape costs: ns per ag_add of 16 numbers, forward and with backward, less
 * the kernels alone.
 *
 * Best of several turns, because other work on the machine only ever makes a turn slower.  The bar
 * is 50 ns a call.
 */
#include "autograd/autograd.h"
#include "autograd/base/clock.h"
#include "autograd/kernels.h"

#include <math.h>
#include <stdio.h>

enum { CALLS = 2000, TURNS = 200, SIZE = 16 };

static double kernels_alone(const ag_kernels *k, bool back)
{
    static float a[SIZE], b[SIZE], y[SIZE], d[SIZE];
    double best = INFINITY;
    for (int turn = 0; turn < TURNS; turn++) {
        const double start = ag_seconds();
        for (int i = 0; i < CALLS; i++) {
            k->binary_fwd[AG_BINARY_add](SIZE, a, b, y);
            if (back) k->binary_bwd[AG_BINARY_add](SIZE, a, b, y, y, d, false, NULL, false);
        }
        best = fmin(best, ag_seconds() - start);
    }
    return 1e9 * best / CALLS;
}

static double on_tape(ag_tape *t, bool back)
{
    static const float zero[SIZE];
    double best = INFINITY;
    for (int turn = 0; turn < TURNS; turn++) {
        ag_tensor *x = ag_input(t, AG_SHAPE(SIZE), zero, back),
                  *c = ag_input(t, AG_SHAPE(SIZE), zero, false);
        const double start = ag_seconds();
        for (int i = 0; i < CALLS; i++) x = ag_add(t, x, c);
        if (back) ag_backward_from(t, x, zero);
        best = fmin(best, ag_seconds() - start);
        if (ag_error(t)) printf("%s\n", ag_error_message(t));
        ag_tape_reset(t);
    }
    return 1e9 * best / CALLS;
}

int main(void)
{
    const char *why = "out of memory";
    const ag_kernels *k = ag_kernels_best(AG_F32, &why);
    ag_tape *t = k ? ag_tape_new(k) : NULL;
    if (!t) {
        printf("%s\n", why);
        return 1;
    }
    for (int back = 0; back < 2; back++) {
        const double tape = on_tape(t, back), alone = kernels_alone(k, back);
        printf("ag_add of %d numbers, %-20s %6.1f ns, kernels alone %5.1f ns, tape %6.1f ns\n",
               SIZE, back ? "forward + backward" : "forward", tape, alone, tape - alone);
    }
    ag_tape_free(t);
    return 0;
}
