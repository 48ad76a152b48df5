/*
 * ref_live_tmpl.h -- the specification of live units: the controller with its last matrix, and
 * products with the rows of few units.  Part of ref_tmpl.c.
 */

/* z, then p and the choice, of block b of row i */
static void choose_block(const ag_chooser *c, int64_t i, int64_t b, real *z, real *mask,
                         int32_t *choice, real *p)
{
    const int64_t n = c->c.n, units = c->c.blocks * n;
    const real *low = (const real *)c->low + i * c->rank, *c2 = c->c2, *cb = c->cb;
    for (int64_t j = 0; j < n; j++) {
        double s = 0;
        for (int64_t k = 0; k < c->rank; k++)
            s += (double)low[k] * (double)c2[k * units + b * n + j];
        z[j] = R(s + (cb ? (double)cb[b * n + j] : 0));
    }
    controller_block(&c->c, i, b * n, z, mask, choice, p);
}

/* picks[1 ..]: those with the highest p but picks[0]; the lowest index of equals first */
static void list_picks(int64_t n, int64_t picks, const real *p, int32_t *pick)
{
    for (int64_t k = 1; k < picks; k++) {
        pick[k] = -1;
        for (int32_t j = 0; j < n; j++) {
            bool listed = false;
            for (int64_t l = 0; l < k; l++)
                listed = listed || pick[l] == j;
            if (!listed && (pick[k] < 0 || p[j] > p[pick[k]]))
                pick[k] = j;
        }
    }
}

static void choose_fwd(const ag_chooser *c, int32_t *choice, void *pgate, void *scratch)
{
    const int64_t n = c->c.n;
    real *z = scratch, *mask = z + n, *p = z + 2 * n, *gate = pgate;
    for (int64_t i = 0; i < c->c.rows; i++)
        for (int64_t b = 0; b < c->c.blocks; b++) {
            choose_block(c, i, b, z, mask, choice, p);
            if (!c->c.given)
                list_picks(n, c->picks, p, choice);
            const int64_t at = c->all ? *choice : 0, size = c->all ? n : c->picks;
            for (int64_t j = 0; j < size; j++)
                gate[j] = 0;
            gate[at] = c->gate == AG_GATE_ONE ? 1 : p[*choice];
            gate += size;
            choice += c->picks;
        }
}

/* dz of one block from its row of dgate */
static void choose_block_bwd(const ag_chooser *c, const int32_t *choice, const real *dgate,
                             const real *p, real *dp, real *dz)
{
    const int64_t n = c->c.n, size = c->all ? n : c->picks;
    const double f = c->gate == AG_GATE_SCALED ? (double)p[*choice] : 1;
    double s = 0;
    for (int64_t j = 0; j < n; j++)
        dp[j] = 0;
    for (int64_t j = 0; j < size; j++)
        if (c->gate != AG_GATE_P || j == (c->all ? *choice : 0))
            dp[c->all ? j : choice[j]] = R(f * (double)dgate[j]);
    for (int64_t j = 0; j < n; j++)
        s += (double)p[j] * (double)dp[j];
    for (int64_t j = 0; j < n; j++)
        dz[j] = R((double)p[j] * ((double)dp[j] - s) / controller_soft_temperature(&c->c));
}

static void choose_bwd(const ag_chooser *c, const int32_t *choice, const void *pdgate, void *pdlow,
                       bool acc, void *pdc2, void *pdcb, void *scratch)
{
    const int64_t n = c->c.n, units = c->c.blocks * n;
    const real *dgate = pdgate, *c2 = c->c2;
    real *dlow = pdlow, *dc2 = pdc2, *dcb = pdcb;
    real *z = scratch, *p = z + 2 * n, *dp = z + 3 * n, *dz = z + 4 * n;
    for (int64_t i = 0; i < c->c.rows; i++) {
        const real *low = (const real *)c->low + i * c->rank;
        for (int64_t b = 0; b < c->c.blocks; b++) {
            int32_t again = 0;
            choose_block(c, i, b, z, z + n, &again, p);
            choose_block_bwd(c, choice, dgate, p, dp, dz + b * n);
            choice += c->picks;
            dgate += c->all ? n : c->picks;
        }
        for (int64_t k = 0; k < c->rank; k++) {
            if (dlow)
                put(dlow + i * c->rank + k, acc, dot(units, dz, c2 + k * units));
            for (int64_t u = 0; dc2 && u < units; u++)
                dc2[k * units + u] += dz[u] * low[k];
        }
        for (int64_t u = 0; dcb && u < units; u++)
            dcb[u] += dz[u];
    }
}

/* The unit of listed place j of row r: j counts blocks, picks and width. */
static int64_t live_unit(const ag_live *l, int64_t r, int64_t j)
{
    const int64_t pick = j / l->width, block = pick / l->picks;
    return (block * l->n + l->choice[r * l->blocks * l->picks + pick]) * l->width + j % l->width;
}

static void live_dot(const ag_live *l, const void *px, const void *pw, const void *pbias, void *pa)
{
    const int64_t size = l->blocks * l->picks * l->width;
    const real *x = px, *w = pw, *bias = pbias;
    real *a = pa;
    for (int64_t r = 0; r < l->rows; r++)
        for (int64_t j = 0; j < size; j++) {
            const int64_t u = live_unit(l, r, j);
            a[r * size + j] = R(dot(l->d, x + r * l->d, w + u * l->d) +
                                (bias ? (double)bias[u] : 0));
        }
}

static void live_sum(const ag_live *l, const void *ph, const void *pw, const void *pbias,
                     const void *presidual, void *py, bool acc)
{
    const int64_t size = l->blocks * l->picks * l->width;
    const real *h = ph, *w = pw, *bias = pbias, *residual = presidual;
    real *y = py;
    for (int64_t r = 0; r < l->rows; r++)
        for (int64_t i = 0; i < l->d; i++) {
            double s = bias ? (double)bias[i] : 0;
            for (int64_t j = 0; j < size; j++)
                if (h[r * size + j] != 0)
                    s += (double)h[r * size + j] * (double)w[live_unit(l, r, j) * l->d + i];
            if (residual)
                s += (double)residual[r * l->d + i];
            put(y + r * l->d + i, acc, s);
        }
}

static void live_grad(const ag_live *l, const void *ph, const void *px, void *pdw, void *pdbias)
{
    const int64_t size = l->blocks * l->picks * l->width;
    const real *h = ph, *x = px;
    real *dw = pdw, *dbias = pdbias;
    for (int64_t r = 0; r < l->rows; r++)
        for (int64_t j = 0; j < size; j++) {
            const int64_t u = live_unit(l, r, j);
            for (int64_t i = 0; dw && i < l->d; i++)
                dw[u * l->d + i] += h[r * size + j] * x[r * l->d + i];
            if (dbias)
                dbias[u] += h[r * size + j];
        }
}

static void gate_fwd(int64_t m, int64_t width, const void *pa, const void *pgate, void *ph)
{
    const real *a = pa, *gate = pgate;
    real *h = ph;
    for (int64_t j = 0; j < m * width; j++)
        h[j] = a[j] > 0 ? (gate ? gate[j / width] * a[j] : a[j]) : 0;
}

static void gate_bwd(int64_t m, int64_t width, const void *pa, const void *pgate, const void *pdh,
                     void *pda, void *pdgate, bool acc)
{
    const real *a = pa, *gate = pgate, *dh = pdh;
    real *da = pda, *dgate = pdgate;
    for (int64_t j = 0; j < m; j++) {
        double s = 0;
        for (int64_t i = j * width; i < (j + 1) * width; i++) {
            s += a[i] > 0 ? (double)dh[i] * (double)a[i] : 0;
            if (da)
                da[i] = a[i] > 0 ? (gate ? dh[i] * gate[j] : dh[i]) : 0;
        }
        if (dgate)
            put(dgate + j, acc, s);
    }
}
