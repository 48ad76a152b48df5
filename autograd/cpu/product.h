/*
 * product.h -- a small matrix product whose operands lie in the nearest caches.
 *
 * c[m, cols] (+)= a b with element (i, k) of a at a[i * row + k * term], b [terms, cols] and c with
 * ldb and ldc; cols is a multiple of VL.  Each number is summed in the order of k, whatever the
 * sizes: a row alone gives the same bits.
 */
#ifndef AG_CPU_PRODUCT_H
#define AG_CPU_PRODUCT_H

#include "autograd/cpu/simd.h"

typedef struct product {
    int64_t m, cols, terms;
    const float *a; int64_t row, term;
    const float *b; int64_t ldb;
    float *c;       int64_t ldc;
    bool acc;
} product;

enum { PRODUCT_ROWS = 6, PRODUCT_NV = VL == 16 ? 4 : 2 };    /* rows by vectors kept in registers */

static inline __attribute__((always_inline)) void
product_tile(int rows, int nv, const product *p, int64_t i, int64_t j)
{
    vf s[PRODUCT_ROWS][PRODUCT_NV];
    float *c = p->c + i * p->ldc + j;
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < nv; v++)
            s[r][v] = p->acc ? vload(c + r * p->ldc + v * VL) : vset(0.0f);
    const float *a = p->a + i * p->row, *b = p->b + j;
    for (int64_t k = 0; k < p->terms; k++, a += p->term, b += p->ldb) {
        vf x[PRODUCT_NV];
        for (int v = 0; v < nv; v++)
            x[v] = vload(b + v * VL);
        for (int r = 0; r < rows; r++) {
            const vf y = vset(a[r * p->row]);
            for (int v = 0; v < nv; v++)
                s[r][v] = vfma(y, x[v], s[r][v]);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < nv; v++)
            vstore(c + r * p->ldc + v * VL, s[r][v]);
}

static inline __attribute__((always_inline)) void product_columns(int nv, const product *p,
                                                                  int64_t j)
{
    int64_t i = 0;
    for (; i + PRODUCT_ROWS <= p->m; i += PRODUCT_ROWS)
        product_tile(PRODUCT_ROWS, nv, p, i, j);
    switch (p->m - i) {
    case 1: product_tile(1, nv, p, i, j); break;
    case 2: product_tile(2, nv, p, i, j); break;
    case 3: product_tile(3, nv, p, i, j); break;
    case 4: product_tile(4, nv, p, i, j); break;
    case 5: product_tile(5, nv, p, i, j); break;
    }
}

static void product_run(const product *p)
{
    int64_t j = 0;
    for (; j + PRODUCT_NV * VL <= p->cols; j += PRODUCT_NV * VL)
        product_columns(PRODUCT_NV, p, j);
    for (; PRODUCT_NV > 2 && j + 2 * VL <= p->cols; j += 2 * VL)
        product_columns(2, p, j);
    for (; j < p->cols; j += VL)
        product_columns(1, p, j);
}

#endif
