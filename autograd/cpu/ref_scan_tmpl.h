/*
 * ref_scan_tmpl.h -- the scan of a simple recurrent unit (ops/sru.c has the formulas), one channel
 * of one sequence after the other, its state in double.
 */
static const double SRU_SKIP = 1.73205080756887729353;           /* sqrt(3) */

static double sru_gate(real z) { return 1 / (1 + exp(-(double)z)); }

/* z, x, c, h: of the first position of one channel */
static void sru_channel(int64_t t, int64_t n, const real *z, const real *x, double state, real *c,
                        real *h)
{
    for (int64_t i = 0; i < t; i++, z += 3 * n, x += n, c += n, h += n) {
        const double r = sru_gate(z[0]), f = sru_gate(z[n]);
        state = f * state + (1 - f) * (double)z[2 * n];
        *c = R(state);
        *h = R(r * state + (1 - r) * SRU_SKIP * (double)*x);
    }
}

static void sru_fwd(int64_t batch, int64_t t, int64_t n, const void *z, const void *x,
                    const void *c0, void *c, void *h)
{
    for (int64_t b = 0; b < batch; b++)
        for (int64_t j = 0; j < n; j++) {
            const int64_t at = b * t * n + j;
            sru_channel(t, n, (const real *)z + 3 * b * t * n + j, (const real *)x + at,
                        c0 ? (double)((const real *)c0)[b * n + j] : 0, (real *)c + at,
                        (real *)h + at);
        }
}

static void sru_bwd(int64_t batch, int64_t t, int64_t n, const void *pz, const void *px,
                    const void *pc, const void *pdh, void *dz, bool acc_z, void *dx, bool acc_x)
{
    for (int64_t b = 0; b < batch; b++)
        for (int64_t j = 0; j < n; j++) {
            double carry = 0;                            /* f g of the position behind */
            for (int64_t i = t - 1; i >= 0; i--) {
                const int64_t at = (b * t + i) * n + j, zat = 3 * (b * t + i) * n + j;
                const real *z = (const real *)pz + zat;
                const double r = sru_gate(z[0]), f = sru_gate(z[n]), y = (double)z[2 * n];
                const double c = (double)((const real *)pc)[at];
                const double dh = (double)((const real *)pdh)[at];
                const double before = i ? (double)((const real *)pc)[at - n] : 0;
                const double x = (double)((const real *)px)[at], g = r * dh + carry;
                carry = f * g;
                if (dx)
                    put((real *)dx + at, acc_x, (1 - r) * SRU_SKIP * dh);
                if (!dz)
                    continue;
                put((real *)dz + zat, acc_z, dh * (c - SRU_SKIP * x) * r * (1 - r));
                put((real *)dz + zat + n, acc_z, g * (before - y) * f * (1 - f));
                put((real *)dz + zat + 2 * n, acc_z, g * (1 - f));
            }
        }
}
