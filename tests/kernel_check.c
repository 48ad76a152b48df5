#include "kernel_check.h"
#include "tests/threads.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { GUARD = 64 };                 /* words before and after an output */
static const uint32_t guard_word = 0xA5C3F00Du;

static void *xalloc(size_t bytes)
{
    void *p = malloc(bytes ? bytes : 1);
    if (!p)
        abort();
    return p;
}

static uint64_t next(uint64_t *s)    /* splitmix64 */
{
    uint64_t z = *s += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

float *floats(int64_t n, double lo, double hi, uint64_t seed)
{
    float *x = xalloc((size_t)n * sizeof *x);
    for (int64_t i = 0; i < n; i++)
        x[i] = (float)(lo + (hi - lo) * (double)(next(&seed) >> 11) * 0x1p-53);
    return x;
}

int32_t *ints(int64_t n, int32_t lo, int32_t hi, uint64_t seed)
{
    int32_t *x = xalloc((size_t)n * sizeof *x);
    for (int64_t i = 0; i < n; i++)
        x[i] = lo + (int32_t)(next(&seed) % (uint64_t)(hi - lo));
    return x;
}

int fast_tables(const ag_kernels *ret[MAX_TABLES])
{
    const ag_kernels *all[MAX_TABLES];
    const int n = ag_kernels_all(AG_F32, all, MAX_TABLES);
    for (int i = 1; i < n; i++)
        ret[i - 1] = all[i];
    return n - 1;
}

static uint32_t *output_new(const out *o)
{
    uint32_t *y = xalloc(((size_t)o->n + 2 * GUARD) * sizeof *y);
    float *start = floats(o->n, -1, 1, 77);
    for (int64_t i = 0; i < o->n + 2 * GUARD; i++)
        y[i] = guard_word;
    for (int64_t i = 0; i < o->n; i++)
        y[GUARD + i] = 0x7fc00000u;                       /* NaN */
    if (o->adds)
        memcpy(y + GUARD, start, (size_t)o->n * sizeof *start);
    free(start);
    return y;
}

static void check_guards(const char *what, const ag_kernels *k, const out *o, const uint32_t *y)
{
    for (int64_t i = 0; i < GUARD; i++)
        if (y[i] != guard_word || y[GUARD + o->n + i] != guard_word)
            fail_msg("%s (%s): wrote outside an output of %lld", what, k->name, (long long)o->n);
}

static void run_once(const char *what, kernel_case *run, const void *arg, const ag_kernels *k,
                     int n_out, const out *outs, uint32_t *ret_y[MAX_OUT])
{
    void *y[MAX_OUT] = { NULL };
    for (int i = 0; i < n_out; i++) {
        ret_y[i] = output_new(&outs[i]);
        y[i] = ret_y[i] + GUARD;
    }
    run(k, arg, y);
    for (int i = 0; i < n_out; i++)
        check_guards(what, k, &outs[i], ret_y[i]);
}

static void compare(const char *what, const ag_kernels *k, int index, const out *o,
                    const uint32_t *got, const uint32_t *want)
{
    for (int64_t i = GUARD; i < GUARD + o->n; i++) {
        float g, w;
        memcpy(&g, &got[i], sizeof g);
        memcpy(&w, &want[i], sizeof w);
        const double s = o->scale ? o->scale[i - GUARD] : 1, d = fabs((double)g - (double)w);
        const bool same = got[i] == want[i] || (!o->exact && isnan(g) && isnan(w));
        if (!same && (o->exact || !(d <= U32 * (o->c * s + 2 * fabs((double)w)) + 0x1p-140)))
            fail_msg("%s (%s): output %d, element %lld of %lld: %.9g, should be %.9g (%g of the "
                     "bound)", what, k->name, index, (long long)(i - GUARD), (long long)o->n,
                     (double)g, (double)w, d / (U32 * (o->c * s + 2 * fabs((double)w))));
    }
}

void check_kernel(const char *what, kernel_case *run, const void *arg, int n_out, const out *outs)
{
    static const int threads[] = { 1, 2, 3, 7 };
    const ag_kernels *table[MAX_TABLES];
    uint32_t *want[MAX_OUT], *first[MAX_OUT], *again[MAX_OUT];
    const int n_tables = fast_tables(table);
    run_once(what, run, arg, ag_kernels_ref(AG_F32), n_out, outs, want);
    for (int t = 0; t < n_tables; t++) {
        set_threads(1);
        run_once(what, run, arg, table[t], n_out, outs, first);
        for (int i = 0; i < n_out; i++)
            compare(what, table[t], i, &outs[i], first[i], want[i]);
        for (int j = 1; j < 4; j++) {
            set_threads(threads[j]);
            run_once(what, run, arg, table[t], n_out, outs, again);
            for (int i = 0; i < n_out; i++) {
                if (memcmp(again[i], first[i], ((size_t)outs[i].n + 2 * GUARD) * 4))
                    fail_msg("%s (%s): output %d has other bits with %d threads", what,
                             table[t]->name, i, threads[j]);
                free(again[i]);
            }
        }
        for (int i = 0; i < n_out; i++)
            free(first[i]);
    }
    for (int i = 0; i < n_out; i++)
        free(want[i]);
}
