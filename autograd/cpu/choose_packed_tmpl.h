/*
 * choose_packed_tmpl.h -- the choice among blocks that lie side by side in a vector, and its
 * gradient.  Part of choose_tmpl.c.
 */

#define ALWAYS_INLINE static inline __attribute__((always_inline))
/* f(.., n) with a constant for each n that there is, so that its loops unfold */
#define BY_SIZE(n, f, ...)                           \
    switch (n) {                                     \
    case 4:  f(__VA_ARGS__, 4); break;               \
    case 8:  f(__VA_ARGS__, 8); break;               \
    case 16: f(__VA_ARGS__, 16); break;              \
    default: f(__VA_ARGS__, n);                      \
    }

/* p of each place of a vector of blocks of n: z, with the noise in it where that is relaxed */
ALWAYS_INLINE vf packed_soft(vf z, float inv, int64_t n)
{
    const vf e = vexp((z - vpacked_max(z, n)) * inv);
    return e / vpacked_sum(e, n);
}

/* The picks of the block at place `at` of a vector, of which the first is known; or all are. */
static void packed_picks(const ag_chooser *c, vf score, int32_t first, int64_t at, int32_t *pick)
{
    if (c->c.given)
        return;
    pick[0] = first;
    if (c->picks == 1)
        return;
    float s[VL];
    memcpy(s, &score, sizeof s);
    list_picks(c->c.n, c->picks, s + at, pick);
}

/* choose_strip() for t.size numbers; g is the noise or NULL */
ALWAYS_INLINE void choose_packed(const ag_chooser *c, strip t, const float *z, const float *g,
                                 int32_t *choice, float *gate, int64_t n)
{
    const int64_t size = c->all ? n : c->picks;
    const vf f = vset(c->c.relaxed ? 1.0f : (float)c->c.temperature), zero = vset(0.0f);
    const vf lane = __builtin_convertvector(vlane() & (int32_t)(n - 1), vf);
    FOR_VECTORS(j, t.size) {
        const int64_t left = t.size - j;
        const vf v = vload_to(z + j, left), y = g ? v + f * vload_to(g + j, left) : v;
        const vf best = vpacked_max(y, n);
        /* the lowest of equals */
        const vf at = c->c.given ? vpacked_given(choice, c->picks, left, n)
                                 : -vpacked_max(vselect(y, best, vset(-(float)VL), -lane), n);
        const vf soft = c->gate == AG_GATE_ONE ? vset(1.0f)
                                               : packed_soft(is_soft_noise(c) ? y : v, inv_t(c), n);
        const vf one = vselect(lane, at, zero, vselect(at, lane, zero, soft));
        for (int64_t l = 0; l < VL && l < left; l += n, choice += c->picks, gate += size) {
            const int32_t k = (int32_t)at[l];
            packed_picks(c, is_soft_noise(c) ? y : v, k, l, choice);
            memset(gate, 0, (size_t)size * sizeof *gate);
            gate[c->all ? k : 0] = one[l + k];
        }
    }
}

/* dp of the blocks of a vector, from the gates of their listed places; p where it is a factor */
ALWAYS_INLINE vf packed_dp(const ag_chooser *c, const int32_t *choice, const float *dgate,
                           int64_t left, vf p, int64_t n)
{
    const int64_t size = c->all ? n : c->picks;
    if (n == VL && c->all && c->gate == AG_GATE_ONE)
        return vload(dgate);
    float dp[VL] = { 0 };
    for (int64_t l = 0; l < VL && l < left; l += n, choice += c->picks, dgate += size) {
        const float f = c->gate == AG_GATE_SCALED ? p[l + *choice] : 1.0f;
        for (int64_t k = 0; k < size; k++)
            if (c->gate != AG_GATE_P || k == (c->all ? *choice : 0))
                dp[l + (c->all ? k : choice[k])] = f * dgate[k];
    }
    return vload(dp);
}

/* strip_dz() for t.size numbers; g is the noise or NULL */
ALWAYS_INLINE void packed_dz(const ag_chooser *c, strip t, const float *g, const int32_t *choice,
                             const float *dgate, float *z, int64_t n)
{
    const int64_t blocks = VL / n, size = c->all ? n : c->picks;
    const float inv = inv_t(c);
    FOR_VECTORS(j, t.size) {
        const int64_t left = t.size - j;
        vf v = vload_to(z + j, left);
        if (g)
            v += vload_to(g + j, left);
        const vf p = packed_soft(v, inv, n), dp = packed_dp(c, choice, dgate, left, p, n);
        vstore_to(z + j, p * (dp - vpacked_sum(p * dp, n)) * inv, left);
        choice += blocks * c->picks;
        dgate += blocks * size;
    }
}
