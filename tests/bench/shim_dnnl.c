/* shim_dnnl.c -- LD_PRELOADed into PyTorch: its sgemm_ becomes oneDNN's, as in a build with a good
 * AVX-512 product. */
#include <dnnl.h>

void sgemm_(const char *ta, const char *tb, const int *m, const int *n, const int *k,
            const float *alpha, const float *a, const int *lda, const float *b, const int *ldb,
            const float *beta, float *c, const int *ldc);

void sgemm_(const char *ta, const char *tb, const int *m, const int *n, const int *k,
            const float *alpha, const float *a, const int *lda, const float *b, const int *ldb,
            const float *beta, float *c, const int *ldc)
{
    /* column-major there, row-major here: swap the operands */
    dnnl_sgemm((*tb | 32) == 'n' ? 'N' : 'T', (*ta | 32) == 'n' ? 'N' : 'T', *n, *m, *k, *alpha, b,
               *ldb, a, *lda, *beta, c, *ldc);
}
