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

extern const ag_kernels ag_kernels_ref_f32, ag_kernels_ref_f64, ag_kernels_ref_bf16,
    ag_kernels_ref_f16;

static bool always(void) { return true; }

#if defined(AG_HAVE_AVX2)
static bool has_avx2(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
        __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("f16c");
}
#endif

#if defined(AG_HAVE_AVX512)
static bool has_avx512(void)
{
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

#if defined(AG_HAVE_AVX512BF16)
static bool has_avx512bf16(void)
{
    return has_avx512() && __builtin_cpu_supports("avx512bf16");
}
#endif

#define TABLES(isa)                                                                        \
    extern const ag_kernels ag_kernels_##isa##_f32, ag_kernels_##isa##_bf16, ag_kernels_##isa##_f16;
#if defined(AG_HAVE_BASE)
TABLES(base)
#endif
#if defined(AG_HAVE_AVX2)
TABLES(avx2)
#endif
#if defined(AG_HAVE_AVX512)
TABLES(avx512)
#endif
#if defined(AG_HAVE_AVX512BF16)
extern const ag_kernels ag_kernels_avx512bf16_bf16;
#endif

/* From the slowest to the fastest. */
static const struct isa {
    const char *name;
    bool (*here)(void);
    const ag_kernels *table[AG_F16 + 1];         /* by number type; NULL: none */
} isas[] = {
    { "ref", always, { [AG_F32] = &ag_kernels_ref_f32, [AG_F64] = &ag_kernels_ref_f64,
                       [AG_BF16] = &ag_kernels_ref_bf16, [AG_F16] = &ag_kernels_ref_f16 } },
#define ISA(isa, test)                                                              \
    { #isa, test, { [AG_F32] = &ag_kernels_##isa##_f32,                             \
                    [AG_BF16] = &ag_kernels_##isa##_bf16,                           \
                    [AG_F16] = &ag_kernels_##isa##_f16 } },
#if defined(AG_HAVE_BASE)
    ISA(base, always)
#endif
#if defined(AG_HAVE_AVX2)
    ISA(avx2, has_avx2)
#endif
#if defined(AG_HAVE_AVX512)
    ISA(avx512, has_avx512)
#endif
#if defined(AG_HAVE_AVX512BF16)
    { "avx512bf16", has_avx512bf16, { [AG_BF16] = &ag_kernels_avx512bf16_bf16 } },
#endif
};
enum { ISAS = sizeof isas / sizeof *isas };

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

const ag_kernels *ag_kernels_ref(ag_dtype dtype) { return isas[0].table[dtype]; }

int ag_kernels_all(ag_dtype dtype, const ag_kernels **ret, int max)
{
    int n = 0;
    for (int i = 0; i < ISAS && n < max; i++)
        if (isas[i].table[dtype] && isas[i].here())
            ret[n++] = isas[i].table[dtype];
    return n;
}

/* The table of the best instruction set up to the last-th that has one. */
static const ag_kernels *best_of(ag_dtype dtype, int last)
{
    while (!isas[last].table[dtype] || !isas[last].here())
        last--;
    return isas[last].table[dtype];
}

const ag_kernels *ag_kernels_best(ag_dtype dtype, const char **ret_why)
{
    static const char *const names[] = { "ref", "base", "avx2", "avx512", "avx512bf16" };
    const char *want = getenv("TULLE_ISA");
    if (!want || !*want)
        return best_of(dtype, ISAS - 1);
    for (int i = 0; i < ISAS; i++)
        if (!strcmp(want, isas[i].name) && isas[i].here())
            return best_of(dtype, i);
    bool known = false;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        known |= !strcmp(want, names[i]);
    *ret_why = known ? "TULLE_ISA names an instruction set that this machine or build does not have"
        : "TULLE_ISA must be ref, base, avx2, avx512 or avx512bf16";
    return NULL;
}
