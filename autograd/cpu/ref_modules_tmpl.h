/*
 * ref_modules_tmpl.h -- what modular layers (2111.12763 section 3.2) need besides products: rows
 * copied from one stride to another, and products of every pair of rows.
 */
static void copy_rows(int64_t m, int64_t n, const void *px, int64_t ldx, void *py, int64_t ldy,
                      bool acc)
{
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++)
            put((real *)py + i * ldy + j, acc, (double)((const real *)px)[i * ldx + j]);
}

static void outer_fwd(int64_t a, int64_t b, int64_t n, const void *pp, const void *pq, void *py)
{
    const real *p = pp, *q = pq;
    for (int64_t i = 0; i < a; i++)
        for (int64_t j = 0; j < b; j++)
            for (int64_t l = 0; l < n; l++)
                ((real *)py)[(i * b + j) * n + l] = p[i * n + l] * q[j * n + l];
}

static void outer_bwd(int64_t a, int64_t b, int64_t n, const void *pp, const void *pq,
                      const void *pdy, void *dp, void *dq)
{
    const real *p = pp, *q = pq, *dy = pdy;
    for (int64_t i = 0; dp && i < a; i++)
        for (int64_t l = 0; l < n; l++) {
            double s = 0;
            for (int64_t j = 0; j < b; j++)
                s += (double)q[j * n + l] * (double)dy[(i * b + j) * n + l];
            put((real *)dp + i * n + l, true, s);
        }
    for (int64_t j = 0; dq && j < b; j++)
        for (int64_t l = 0; l < n; l++) {
            double s = 0;
            for (int64_t i = 0; i < a; i++)
                s += (double)p[i * n + l] * (double)dy[(i * b + j) * n + l];
            put((real *)dq + j * n + l, true, s);
        }
}
