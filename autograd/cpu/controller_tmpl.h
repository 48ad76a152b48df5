/*
 * controller_tmpl.h -- the 1-in-N controller for one instruction set.  Part of rows_tmpl.c.
 *
 * Small blocks (up to a vector) lie side by side in a vector; larger ones go one by one.
 */
#include "autograd/cpu/controller.h"

/* Blocks of 1, 2, 4, .. VL numbers lie side by side in a vector: no lane is idle. */
static inline bool is_packed(int64_t n) { return n <= VL && VL % n == 0; }

/* Each lane takes the lane whose number differs in the bits of h. */
static inline vf vswap(vf x, int h) { return __builtin_shuffle(x, vlane() ^ h); }

/* The sum, and the largest, of each run of n lanes, in all of its lanes. */
static inline vf vpacked_sum(vf x, int64_t n)
{
    for (int h = 1; h < n; h *= 2)
        x += vswap(x, h);
    return x;
}

static inline vf vpacked_max(vf x, int64_t n)
{
    for (int h = 1; h < n; h *= 2)
        x = vmax(x, vswap(x, h));
    return x;
}

/* In all lanes of each run of n, its choice; `left` lanes exist. */
static inline vf vpacked_given(const int32_t *choice, int64_t left, int64_t n)
{
    float at[VL] = { 0 };
    for (int64_t l = 0; l < VL && l < left; l++)
        at[l] = (float)choice[l / n];
    vf v;
    memcpy(&v, at, sizeof v);
    return v;
}

/*
 * One block: on entry g[n] holds the noise (has_noise), which p replaces; mask first serves for
 * exp.  argmax(log p + t g) is taken as that of z - max z + t g: log p differs from it by a
 * constant.
 */
static void controller_block(const ag_controller *c, bool has_noise, const float *z, float *mask,
                             int32_t *choice, float *p)
{
    const int64_t n = c->n;
    const float t = (float)c->temperature,
        inv_t = c->relaxed && has_noise ? (float)(1 / c->temperature) : 1.0f;
    const bool shift = c->relaxed && has_noise, late = !c->relaxed && has_noise;
    vf top = vset(-__builtin_inff());
    FOR_VECTORS(j, n) {
        const vf v = vload_to(z + j, n - j);
        top = vmax(vhead(shift ? v + vload_to(p + j, n - j) : v, n - j, -__builtin_inff()), top);
    }
    const float row_top = vmaxall(top);
    vbest best = vbest_start();
    vtree sum;
    vtree_start(&sum);
    FOR_RUNS(b, n) {
        vf s = { 0 };
        FOR_RUN(j, b, n) {
            const vf g = has_noise ? vload_to(p + j, n - j) : vset(0.0f);
            const vf v = vload_to(z + j, n - j), d = (shift ? v + g : v) - row_top,
                e = vexp(d * inv_t);
            vbest_see(&best, late ? d + g * t : d, j, n - j);
            vstore_to(mask + j, e, n - j);
            s += vhead(e, n - j, 0.0f);
        }
        vtree_add(&sum, s);
    }
    if (!c->given)
        *choice = vbest_at(&best);
    const float inv = 1.0f / vtree_total(&sum);
    FOR_VECTORS(j, n) {
        const vf v = vload_to(mask + j, n - j) * inv;
        vstore_to(p + j, v, n - j);
        vstore_to(mask + j, c->hard ? vset(0.0f) : v, n - j);
    }
    if (c->hard)
        mask[*choice] = 1.0f;
}

/* controller_block() for all blocks of a row of `size` numbers, where they are packed. */
static void controller_packed(const ag_controller *c, bool has_noise, int64_t size, const float *z,
                              float *mask, int32_t *choice, float *p)
{
    const int64_t n = c->n;
    const bool shift = c->relaxed && has_noise, late = !c->relaxed && has_noise;
    const vf t = vset((float)c->temperature),
        inv_t = vset(shift ? (float)(1 / c->temperature) : 1.0f);
    const vf zero = vset(0.0f), lane = __builtin_convertvector(vlane() & (int32_t)(n - 1), vf);
    FOR_VECTORS(j, size) {
        const int64_t left = size - j;
        const vf g = has_noise ? vload_to(p + j, left) : zero, v = vload_to(z + j, left),
            a = shift ? v + g : v;
        const vf d = a - vpacked_max(a, n), e = vexp(d * inv_t), score = late ? d + g * t : d;
        const vf best = vpacked_max(score, n);
        /* the lowest of equals */
        const vf at = c->given ? vpacked_given(choice + j / n, left, n)
                               : -vpacked_max(vselect(score, best, vset(-(float)VL), -lane), n);
        const vf soft = e / vpacked_sum(e, n);
        vstore_to(p + j, soft, left);
        vstore_to(mask + j, c->hard ? vselect(lane, at, zero,
                                              vselect(at, lane, zero, vset(1.0f))) : soft, left);
        for (int64_t l = 0; l < VL && l < left; l += n)
            choice[(j + l) / n] = (int32_t)at[l];
    }
}

void AG_NAME(controller_fwd)(const ag_controller *c, const void *pz, void *pmask, int32_t *choice,
                             void *pp)
{
    const bool has_noise = c->temperature != 0;
    const int64_t n = c->blocks * c->n;
    FOR_ROWS(i, c->rows, n) {
        const float *z = (const float *)pz + i * n;
        float *mask = (float *)pmask + i * n, *p = (float *)pp + i * n;
        if (has_noise)
            gumbel_columns(&c->noise, i, n, 0, n, p);
        if (is_packed(c->n)) {
            controller_packed(c, has_noise, n, z, mask, choice + i * c->blocks, p);
            continue;
        }
        for (int64_t b = 0; b < c->blocks; b++)
            controller_block(c, has_noise, z + b * c->n, mask + b * c->n,
                             choice + i * c->blocks + b, p + b * c->n);
    }
}

static void controller_bwd_packed(int64_t size, int64_t n, float inv_t, const float *p,
                                  const float *dmask, float *dz, bool acc)
{
    FOR_VECTORS(j, size) {
        const vf v = vload_to(p + j, size - j), d = vload_to(dmask + j, size - j);
        put_vector(dz + j, v * (d - vpacked_sum(v * d, n)) * inv_t, size - j, acc);
    }
}

static void controller_bwd_block(int64_t n, float inv_t, const float *p, const float *dmask,
                                 float *dz, bool acc)
{
    vtree t;
    vtree_start(&t);
    FOR_RUNS(b, n) {
        vf s = { 0 };
        FOR_RUN(j, b, n)
            s += vload_to(p + j, n - j) * vload_to(dmask + j, n - j);
        vtree_add(&t, s);
    }
    const float s = vtree_total(&t);
    FOR_VECTORS(j, n)
        put_vector(dz + j, vload_to(p + j, n - j) * (vload_to(dmask + j, n - j) - s) * inv_t, n - j,
                   acc);
}

void AG_NAME(controller_bwd)(const ag_controller *c, const void *pp, const void *pdmask, void *pdz,
                             bool acc)
{
    const float inv_t = c->relaxed && c->temperature != 0 ? (float)(1 / c->temperature) : 1.0f;
    const int64_t n = c->blocks * c->n;
    FOR_ROWS(i, c->rows, n) {
        const float *p = (const float *)pp + i * n, *dmask = (const float *)pdmask + i * n;
        float *dz = (float *)pdz + i * n;
        if (is_packed(c->n)) {
            controller_bwd_packed(n, c->n, inv_t, p, dmask, dz, acc);
            continue;
        }
        for (int64_t b = 0; b < n; b += c->n)
            controller_bwd_block(c->n, inv_t, p + b, dmask + b, dz + b, acc);
    }
}
