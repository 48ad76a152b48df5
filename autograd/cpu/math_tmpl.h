/*
 * math_tmpl.h -- the transcendental functions of the fast kernels, written once for a number type.
 *
 * simd.h includes this twice: with F = float (names ag_m_exp, ...; loops over them vectorise, being
 * free of branches and calls) and with F = a vector of floats (names vexp, ...).  libm would do
 * neither.
 *
 *   F, U           float and unsigned type of the same shape
 *   M(name)        the function's name
 *   BITS, FLOAT    reinterpret F as U and back
 *   SELECT(a, b, x, y)   a < b ? x : y per lane (y where a or b is NaN)
 *   MAX(a, b), MIN(a, b)   a > b ? a : b, a < b ? a : b
 *   SPLAT(c)       the constant c in every lane
 *   RECIP(x)       1 / x for 1 <= x <= 2, to 1 ulp
 *   SCALEF(p, n)   p * 2^n, n whole (optional: where the machine has it)
 *
 * Errors in ulp of f32, swept by tests/test_map.c: exp, log, erf <= 1.5, tanh <= 2, sigmoid <= 2.5.
 * The polynomials are minimax fits made for this file (relative error, Lawson's iteration in double
 * precision); their own errors are below 0.3 ulp.  NaN comes out as NaN; infinities give the
 * limits.
 */

/* p * 2^n for n in [-150, 128]: two factors, so that the result may be subnormal or overflow to
 * inf. */
static inline F M(ldexp)(F p, F n)
{
#ifdef SCALEF
    return SCALEF(p, n);
#else
    const F shift = SPLAT(0x1.8p23f);   /* n + 1.5 * 2^23 holds n in its low bits */
    const U k = BITS(n + shift) - BITS(shift) + 512u, h = k >> 1;
    return p * FLOAT((h - 129u) << 23) * FLOAT((k - h - 129u) << 23);
#endif
}

/* expm1(r), where x = n log 2 + r and *n is the nearest whole number to x / log 2. */
static inline F M(exp_reduced)(F x, F *n)
{
    const F shift = SPLAT(0x1.8p23f);
    *n = (x * 1.44269504088896341f + shift) - shift;
    const F r = (x - *n * 0.693359375f) - *n * -2.12194440e-4f;   /* log 2 in two parts
                                                                   * (Cody and Waite) */
    const F q = (((1.38823932e-3f * r + 8.36718098e-3f) * r + 4.16672213e-2f) * r
                 + 1.66665387e-1f) * r + 4.99999980e-1f;
    return r * r * q + r;
}

static inline F M(exp)(F x)
{
    F n;
    x = MIN(SPLAT(89.0f), x);                             /* inf from 88.73, 0 below -103.98 */
    x = MAX(SPLAT(-104.0f), x);
    const F p = M(exp_reduced)(x, &n);
    return M(ldexp)(p + 1.0f, n);
}

/* log x for normal positive x = 2^e (1 + f), f in [sqrt 1/2 - 1, sqrt 2 - 1]:
 * e log 2 + f - f^2/2 + f^3 P(f) */
static inline F M(log_normal)(F x)
{
    const U k = BITS(x) - 0x3f3504f3u;                    /* the bits of sqrt 1/2 */
    const F f = FLOAT((k & 0x007fffffu) + 0x3f3504f3u) - 1.0f;
    /* e + 128 as a float: the bits of 2^23 + i for a small whole i */
    const F e = FLOAT(((k + 0x40000000u) >> 23) | 0x4b000000u) - (8388608.0f + 128.0f);
    const F p =
        ((((((-7.63442984e-2f * f + 1.27615503e-1f) * f - 1.31601951e-1f) * f + 1.42017625e-1f) * f
           - 1.66233565e-1f) * f + 2.00012267e-1f) * f - 2.50008211e-1f) * f + 3.33333317e-1f;
    const F s = f * f;
    return (e * -2.12194440e-4f + (s * f * p - 0.5f * s)) + f + e * 0.693359375f;
}

static inline F M(log)(F x)
{
    const F tiny = SPLAT(0x1p-126f), zero = SPLAT(0.0f), inf = SPLAT(__builtin_inff());
    F y = M(log_normal)(SELECT(x, tiny, x * 0x1p23f, x)); /* subnormals made normal */
    y = y - SELECT(x, tiny, SPLAT(15.942385152878742f), zero);
    y = SELECT(zero, x, y, SPLAT(-__builtin_inff()));     /* x <= 0 or NaN: -inf for now */
    y = SELECT(x, zero, SPLAT(__builtin_nanf("")), y);
    return SELECT(x, inf, y, x + y);                      /* inf, NaN: as they came */
}

/* |x| < 0.625: x + x^3 P(x^2);  else 1 - 2 / (exp(2|x|) + 1), with the sign of x;  1 in f32 from
 * 9.011 */
static inline F M(tanh)(F x)
{
    const U sign = BITS(x) & 0x80000000u;
    F n, t = FLOAT(BITS(x) & 0x7fffffffu);
    t = MIN(SPLAT(10.0f), t);
    const F s = t * t;
    const F p = (((-5.70497836e-3f * s + 2.06390788e-2f) * s - 5.37397122e-2f) * s
                 + 1.33314422e-1f) * s - 3.33332819e-1f;
    const F m = M(exp_reduced)(2.0f * t, &n);
    const F e = M(ldexp)(m + 1.0f, n);
    const F y = SELECT(t, SPLAT(0.625f), t * s * p + t, 1.0f - 2.0f / (e + 1.0f));
    return FLOAT(BITS(y) | sign);
}

/* |x| < 0.92: x + x P(x^2);  else 1 - exp(-|x| + |x| Q(|x|)), with the sign of x */
static inline F M(erf)(F x)
{
    const U sign = BITS(x) & 0x80000000u;
    F t = FLOAT(BITS(x) & 0x7fffffffu);
    t = MIN(SPLAT(4.0f), t);
    const F s = t * t;
    const F p =
        (((((8.37009753e-5f * s - 8.14270351e-4f) * s + 5.20103221e-3f) * s - 2.68593982e-2f) * s
          + 1.12836955e-1f) * s - 3.76126337e-1f) * s + 1.28379167e-1f;
    const F q =
        (((((-1.13038211e-5f * t + 3.23529300e-4f) * t - 3.64540701e-3f) * t + 2.37682942e-2f) * t
          - 1.06244107e-1f) * t - 6.35146948e-1f) * t - 1.28649565e-1f;
    F n;
    const F m = M(exp_reduced)(t * q - t, &n);
    const F c = M(ldexp)(m + 1.0f, n);
    const F y = SELECT(t, SPLAT(0.921875f), t * p + t, 1.0f - c);
    return FLOAT(BITS(y) | sign);
}

static inline F M(sigmoid)(F x) { return 1.0f / (1.0f + M(exp)(-x)); }

/*
 * GELU (1606.08415) and its derivatives.
 *   tanh:   x (1 + tanh s) / 2 = x sigmoid(2s),  2s = 2 sqrt(2/pi) (x + 0.044715 x^3)
 *   erf:    x Phi(x),  Phi(x) = (1 + erf(x / sqrt 2)) / 2;      derivative Phi(x) + x phi(x)
 *   quick:  x sigmoid(1.702 x)
 * sigmoid(z) is r or e r with e = exp(-|z|), r = 1 / (1 + e): nothing overflows.  The derivative of
 * x sigmoid(z(x)) is g + x z' g (1 - g) with g = sigmoid(z), and g (1 - g) = e r^2 does not cancel.
 */
static inline F M(gate)(F z)
{
    const F e = M(exp)(FLOAT(BITS(z) | 0x80000000u)), r = RECIP(1.0f + e);
    return SELECT(z, SPLAT(0.0f), e * r, r);
}

static inline F M(gate_d)(F z, F xdz)
{
    const F e = M(exp)(FLOAT(BITS(z) | 0x80000000u)), r = RECIP(1.0f + e), er = e * r;
    return SELECT(z, SPLAT(0.0f), er, r) + er * r * xdz;
}

static inline F M(gelu_tanh)(F x)
{
    return x * M(gate)(x * (1.59576912f + 0.0713548162f * (x * x)));
}

static inline F M(gelu_tanh_d)(F x)
{
    x = MAX(SPLAT(-20.0f), MIN(SPLAT(20.0f), x));         /* 0 and 1 from there on; x^3 must not
                                                           * overflow */
    const F s = x * x;
    return M(gate_d)(x * (1.59576912f + 0.0713548162f * s), x * (1.59576912f + 0.2140644486f * s));
}

static inline F M(gelu_erf)(F x)
{
    const F h = 0.5f * x;
    return h + h * M(erf)(x * 0.707106781f);
}

static inline F M(gelu_erf_d)(F x)
{
    return 0.5f + 0.5f * M(erf)(x * 0.707106781f) + x * (0.398942280f * M(exp)(-0.5f * (x * x)));
}

static inline F M(gelu_quick)(F x) { return x * M(gate)(1.702f * x); }
static inline F M(gelu_quick_d)(F x) { return M(gate_d)(1.702f * x, 1.702f * x); }

#undef F
#undef U
#undef M
#undef BITS
#undef FLOAT
#undef SELECT
#undef SPLAT
#undef SCALEF
#undef MAX
#undef MIN
#undef RECIP
