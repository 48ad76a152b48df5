/*
 * dispatch.c -- which table serves: chosen once from what the machine can do, or named by
 * TULLE_ISA.
 *
 * AG_HAVE_<ISA> says which tables were built; the processor says which of them can run.
 */
#include <stdlib.h>
#include <string.h>

#include "autograd/cpu/choose.h"
#include "autograd/cpu/lsh.h"
#include "autograd/kernels.h"

extern const ag_kernels ag_kernels_ref_f32, ag_kernels_ref_f64;
#if defined(AG_HAVE_BASE)
extern const ag_kernels ag_kernels_base_f32;
#endif
#if defined(AG_HAVE_AVX2)
extern const ag_kernels ag_kernels_avx2_f32;
#endif
#if defined(AG_HAVE_AVX512)
extern const ag_kernels ag_kernels_avx512_f32;
#endif

size_t ag_choose_scratch(const ag_chooser *c, ag_dtype dtype)
{
    const int64_t ref = (4 + c->c.blocks) * c->c.n, fast = choose_scratch_numbers(c);
    return dtype == AG_F64 ? (size_t)ref * sizeof(double)
        : (size_t)(fast > ref ? fast : ref) * sizeof(float);
}

size_t ag_lsh_scratch(const ag_lsh *a, ag_dtype dtype)
{
    return (size_t)(a->batch * a->heads) * lsh_pair_bytes(a, ag_dtype_size(dtype));
}

size_t ag_lsh_decode_scratch(const ag_lsh_decode *a, ag_dtype dtype)
{
    return (size_t)(a->batch * a->heads) * lsh_decode_bytes(a, ag_dtype_size(dtype));
}

const ag_kernels *ag_kernels_ref(ag_dtype dtype)
{
    return dtype == AG_F64 ? &ag_kernels_ref_f64 : &ag_kernels_ref_f32;
}

int ag_kernels_all(ag_dtype dtype, const ag_kernels **ret, int max)
{
    const ag_kernels *found[4];
    int n = 0;
    found[n++] = ag_kernels_ref(dtype);
    if (dtype == AG_F32) {
#if defined(AG_HAVE_BASE)
        found[n++] = &ag_kernels_base_f32;
#endif
#if defined(AG_HAVE_AVX2)
        if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
            __builtin_cpu_supports("bmi2"))
            found[n++] = &ag_kernels_avx2_f32;
#endif
#if defined(AG_HAVE_AVX512)
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
            found[n++] = &ag_kernels_avx512_f32;
#endif
    }
    n = n < max ? n : max;
    for (int i = 0; i < n; i++)
        ret[i] = found[i];
    return n;
}

const ag_kernels *ag_kernels_best(ag_dtype dtype, const char **ret_why)
{
    static const char *const names[] = { "ref", "base", "avx2", "avx512" };
    const ag_kernels *all[4];
    const char *want = getenv("TULLE_ISA");
    const int n = ag_kernels_all(AG_F32, all, 4);
    const ag_kernels *best = all[n - 1];
    if (want && *want) {
        bool known = false;
        for (size_t i = 0; i < sizeof names / sizeof *names; i++)
            known |= !strcmp(want, names[i]);
        best = NULL;
        for (int i = 0; i < n; i++)
            best = !strcmp(want, all[i]->name) ? all[i] : best;
        if (!best) {
            *ret_why = known ? "TULLE_ISA names an instruction set that this machine or build does "
                "not have" : "TULLE_ISA must be ref, base, avx2 or avx512";
            return NULL;
        }
    }
    return dtype == AG_F64 ? ag_kernels_ref(AG_F64) : best;
}
