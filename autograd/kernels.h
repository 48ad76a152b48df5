/*
 * kernels.h -- what a device must be able to do: one table of function pointers per (device,
 * instruction set, number type).
 *
 * Kernels know pointers and sizes, nothing of tensors, tapes or ops, and cannot fail.  Data
 * pointers are void: they point to the number type of the table, f32, f64, bf16 or f16 (indices:
 * int32_t).  A parameter `acc` says how an output is written: true adds to it, false overwrites it
 * (its bytes may be garbage before).  ag_kernels_ref(dtype), textbook C in cpu/ref_tmpl.c, is the
 * specification; every other table is tested against it (tests/test_kernels.c).  Results have the
 * same bits for any number of threads: parallel over outputs, reductions in fixed chunks.
 */
#ifndef AG_KERNELS_H
#define AG_KERNELS_H

#include "base/rng.h"
#include "pattern.h"
#include "tensor.h"

/* y = f(x) and y = f(a, b), elementwise; unary.def and binary.def hold the mathematics. */
enum ag_unary_id {
#define AG_UNARY(name, ...) AG_UNARY_##name,
#include "unary.def"
#undef AG_UNARY
    AG_UNARY_COUNT
};

enum ag_binary_id {
#define AG_BINARY(name, ...) AG_BINARY_##name,
#include "binary.def"
#undef AG_BINARY
    AG_BINARY_COUNT
};

typedef void (*ag_unary_fwd)(int64_t n, const void *x, void *y);
typedef void (*ag_unary_bwd)(int64_t n, const void *x, const void *y, const void *dy, void *dx,
                             bool acc);
typedef void (*ag_binary_fwd)(int64_t n, const void *a, const void *b, void *y);
/* da, db may be NULL */
typedef void (*ag_binary_bwd)(int64_t n, const void *a, const void *b, const void *y,
                              const void *dy, void *da, bool acc_a, void *db, bool acc_b);

/* Activations that a matrix product applies on its way out. */
typedef enum ag_act { AG_ACT_NONE, AG_ACT_RELU, AG_ACT_GELU_TANH, AG_ACT_GELU_ERF,
                      AG_ACT_GELU_QUICK, AG_ACT_COUNT } ag_act;

/*
 * c[m,n] (+)= op(a)[m,k] @ op(b)[k,n], op = transpose where ta, tb is set; row-major, ld* =
 * elements between rows as stored (a is [m,k], or [k,m] when ta).  Then, with acc = false only,
 * each element goes through:  + bias[n], stored to pre, activation, + residual.
 */
typedef struct ag_gemm {
    bool    ta, tb, acc;
    bool    c_f32;                   /* on a 16-bit table: c is f32, as the gradient of a weight */
    int64_t m, n, k;
    const void *a; int64_t lda;
    const void *b; int64_t ldb;
    void       *c; int64_t ldc;
    const void *bias;                /* [n] or NULL */
    void       *pre;                 /* [m,n] with ldc, or NULL: the value that the activation
                                      * sees */
    ag_act      act;
    const void *residual;            /* [m,n] with ldc, or NULL */
} ag_gemm;

/*
 * Multi-head attention, o = softmax(scale q k^T) v per head.  Position t of batch item b starts at
 * q + b*q_batch + t*q_row; head h's part is at + h*d_qk in it (k the same, v and o with d_v).
 * Causal: query i sees keys 0 .. i + q_pos0.  With lengths, item b has keys 0 .. lengths[b] - 1
 * only.  A query with no key gives o = 0 and zero gradients.
 * With a pattern a query sees the keys that the pattern says (and no more than causal allows): q of
 * position q_pos0 + i; drop is 0 and lengths NULL then.
 * Dropout applies to the softmax (kept entries times 1/(1-drop)); its noise is a matrix
 * [batch*heads*tq, tk], row (b*heads + h)*tq + i.
 */
typedef struct ag_attention {
    int64_t batch, heads, tq, tk, d_qk, d_v;
    bool    causal;
    int64_t q_pos0;
    const ag_pattern *pattern;       /* or NULL: all */
    const int32_t *lengths;          /* [batch], each 0 .. tk; NULL: tk */
    double  scale;                   /* usually 1/sqrt(d_qk) */
    double  drop;                    /* probability; 0: none */
    ag_noise noise;
    const void *q; int64_t q_row, q_batch;
    const void *k; int64_t k_row, k_batch;
    const void *v; int64_t v_row, v_batch;
    void *o;       int64_t o_row, o_batch;
    void *lse;         /* [batch,heads,tq], log of the sum of exp of a row; -inf if it has no key */
} ag_attention;

typedef struct ag_attention_grad {   /* dq, dk, dv are laid out as q, k, v; do_ as o */
    const void *do_;
    void *dq, *dk, *dv;              /* overwritten (acc false) or added to */
    bool  acc;
    void *delta;                     /* scratch [batch,heads,tq] */
} ag_attention_grad;

/*
 * The 1-in-N controller (2111.12763 section 3.1; Gumbel-softmax 1611.01144).  z[rows, blocks*N];
 * per block
 *   relaxed false:  p = softmax(z),           choice = argmax(log p + temperature * g)   (trax)
 *   relaxed true:   p = softmax((z + g)/t),   choice = argmax(z + g)                     (standard)
 * with g = -log(-log u), u uniform, clamped to [1e-6, 1-1e-6]; no noise where temperature is 0
 * (relaxed then means t = 1).  The mask is p (soft) or one-hot of the choice (hard); ties go to the
 * lowest index.
 */
typedef struct ag_controller {
    int64_t rows, blocks, n;
    bool    relaxed, hard;
    bool    given;                   /* the choices are there already; only the rest is made */
    double  temperature;
    ag_noise noise;                  /* matrix [rows, blocks*n] */
} ag_controller;

/*
 * The same controller with its last matrix: z = low @ c2 + cb, which is never stored.  Its gate is
 * what a block's output is multiplied with.
 */
typedef enum ag_gate {
    AG_GATE_ONE,                     /* 1; gradient as if it were p: straight-through (1308.3432) */
    AG_GATE_P,                       /* p of the choice, with its gradient (Switch) */
    AG_GATE_SCALED,                  /* p of the choice as a constant, times AG_GATE_ONE */
    AG_GATE_COUNT
} ag_gate;

typedef struct ag_chooser {
    ag_controller c;                 /* hard is not looked at */
    int64_t rank;
    const void *low, *c2, *cb;       /* [rows,rank], [rank,blocks*n], [blocks*n] or NULL */
    ag_gate gate;
    int64_t picks;                   /* listed per block: the choice, then the other n with the
                                      * highest p */
    bool    all;                     /* a gate for each of the n; picks is 1 */
} ag_chooser;

/*
 * Feed-forward units of which few are live.  They form blocks of n choices, a choice is `width`
 * units in a row: choice k of block b has the units u = (b*n + k)*width + 0 .. width-1, and w
 * [blocks*n*width, d] a row for each.  A listed unit is one of a row's picks.
 */
typedef struct ag_live {
    int64_t rows, d;
    int64_t blocks, n, width, picks;
    const int32_t *choice;           /* [rows,blocks,picks], each 0 .. n-1 */
} ag_live;

/*
 * Attention within buckets of a hash (Reformer, 2001.04451, as the released code of 2111.12763 has
 * it): ops/lsh.c has the formulas.  In each round the t positions of a sequence and head are sorted
 * by bucket, stably, and cut into chunks, the last of a round maybe short; the chunks of all rounds
 * form one ring.  The queries of a chunk meet the keys of `before` chunks before it, its own, and
 * `after` behind it, each once.  A key is not seen if it is later (causal), at or beyond lengths of
 * its sequence, or, with bucket_mask, in another bucket or round; a position sees itself only where
 * it sees nothing else in any round.  One softmax runs over all that a query sees in all rounds.
 * Dropout has one mask [chunk, slots * ag_noise_stride(chunk)] for each sequence and head, row
 * (b*heads + h)*chunk + i of the noise for the i-th query of a chunk, column
 * slot*ag_noise_stride(chunk) + j for the j-th key of the slot-th chunk that it meets.
 */
enum { AG_LSH_ROUNDS = 16 };           /* at most */

typedef struct ag_lsh {
    int64_t batch, heads, t, d_qk, d_v;
    int64_t rounds, factor[2];       /* buckets of a round: their product, and one for padding */
    int64_t chunk, before, after;
    bool    causal, bucket_mask;
    bool    correct;                 /* minus log of how often a query meets a key in all rounds */
    double  drop;
    ag_noise noise;
    const int32_t *lengths;          /* [batch], NULL: t */
    int32_t    *bucket;              /* [rounds,batch,heads,t] */
    const void *q, *v;               /* [batch,t,heads*d_qk], [batch,t,heads*d_v] */
    void       *o;                   /* [batch,t,heads*d_v] */
    void       *lse;                 /* [batch,heads,t]; -inf if it sees nothing but itself */
    void       *scratch;             /* ag_lsh_scratch(a) bytes */
} ag_lsh;

/* One-token decoding of the same: `t` new positions follow `past` ones.  A query takes, of the
 * positions up to itself, the newest that share a bucket with it in any round, then the newest
 * others, `most` in all, and attends to those, to itself only if it is alone. */
typedef struct ag_lsh_decode {
    int64_t batch, heads, past, t, capacity, d_qk, d_v;
    int64_t rounds, most;
    const int32_t *bucket;           /* [batch,heads,rounds,capacity] */
    const void *k, *v;               /* [batch,capacity,heads*d_qk], [batch,capacity,heads*d_v] */
    void       *o;                   /* [batch,t,heads*d_v] */
    void       *scratch;             /* ag_lsh_decode_scratch(a) bytes */
} ag_lsh_decode;

/*
 * One index of x[n], drawn: i with a probability proportional to exp(x[i] / temperature), of the
 * top_k largest and of as many of the largest as together have top_p of all probability.  Of equal
 * numbers the first counts as the larger.  Chosen is the first, from the largest down, at which the
 * sum of probabilities reaches u times that of all that may be drawn.
 */
typedef struct ag_draw {
    double  temperature;             /* 0: the largest */
    int64_t top_k;                   /* 0: all */
    double  top_p;                   /* (0, 1] */
    double  u;                       /* uniform in (0, 1) */
} ag_draw;

/*
 * A 16-bit table has fill, scale and what pays; the other pointers are NULL, and the f32 table
 * behind it does that work on widened numbers.  Its kernels compute in f32 and round once, to the
 * nearest, where they store.  Gradients of weights (db of act_bwd, dgain, dbias, dtable, dpos, dp,
 * dq) and what is kept of a row (mean, rstd, lse) are f32 there too.
 */
typedef struct ag_kernels {
    const char *name;                /* "ref", "base", "avx2", "avx512", "avx512bf16" */
    ag_dtype    dtype;
    const struct ag_device *device;  /* whose memory the pointers point to; NULL: the host's */
    const struct ag_kernels *wide;   /* of a 16-bit table: the f32 one; NULL, as the next two, of
                                      * others */
    void (*narrow)(int64_t n, const float *x, void *y);  /* y = x rounded */
    void (*widen)(int64_t n, const void *x, float *y);

    ag_unary_fwd  unary_fwd[AG_UNARY_COUNT];
    ag_unary_bwd  unary_bwd[AG_UNARY_COUNT];
    ag_binary_fwd binary_fwd[AG_BINARY_COUNT];
    ag_binary_bwd binary_bwd[AG_BINARY_COUNT];

    void (*gemm)(const ag_gemm *g);

    /* dx[m,n] = dy * act'(pre); relu may be given y for pre.  And, where db is not NULL,
     * db[n] (+)= column sums of dx.  dx may be NULL (only the sums) and may be dy itself. */
    void (*act_bwd)(ag_act act, int64_t m, int64_t n, const void *pre, const void *dy, void *dx,
                    void *db, bool acc_db);

    void (*fill)(int64_t n, double value, void *y);
    void (*add)(int64_t n, const void *x, void *y);                       /* y += x */
    /* Fixed point, int32 with `point` binary digits behind the point: s = 0, s += round(x), s -=
     * round(x) for sign 0, 1, -1; sums wrap.  peak[0] = max(peak[0], |s|), INT32_MAX where a sum or
     * x is out of range or not a number (which counts as 0).  y = s. */
    void (*fixed_add)(int64_t n, int point, int sign, const void *x, int32_t *s, int32_t *peak);
    void (*fixed_read)(int64_t n, int point, const int32_t *s, void *y);
    /* y (+)= alpha x */
    void (*scale)(int64_t n, double alpha, const void *x, void *y, bool acc);
    /* y[n] (+)= alpha c[0] */
    void (*add_scalar)(int64_t n, double alpha, const void *c, void *y, bool acc);
    void (*sum)(int64_t n, double alpha, const void *x, void *y);         /* y[1] = alpha sum(x) */
    void (*row_sum)(int64_t m, int64_t n, const void *x, void *y);        /* y[m] = sum of row */
    /* dx[m,n] (+)= dy[m] */
    void (*row_add)(int64_t m, int64_t n, const void *dy, void *dx, bool acc);

    /* y = (x - mean) * rstd * gain + bias over rows of n; gain, bias may be NULL.  mean, rstd [m]
     * are kept. */
    void (*layernorm_fwd)(int64_t m, int64_t n, double eps, const void *x, const void *gain,
                          const void *bias, void *y, void *mean, void *rstd);
    /* dgain[n], dbias[n] are added to; each of dx, dgain, dbias may be NULL */
    void (*layernorm_bwd)(int64_t m, int64_t n, const void *x, const void *gain, const void *mean,
                          const void *rstd, const void *dy, void *dx, bool acc_dx, void *dgain,
                          void *dbias);

    void (*softmax_fwd)(int64_t m, int64_t n, bool log, const void *x, void *y);
    void (*softmax_bwd)(int64_t m, int64_t n, bool log, const void *y, const void *dy, void *dx,
                        bool acc);

    /* y[m,d] = table[ids[m], d] + pos[(pos0 + row % t), d]; pos may be NULL. */
    void (*embedding_fwd)(int64_t m, int64_t d, const int32_t *ids, const void *table,
                          const void *pos, int64_t t, int64_t pos0, void *y);
    /* dtable[v,d] += rows of dy, dpos[.,d] += likewise, in the order of rows; either may be NULL */
    void (*embedding_bwd)(int64_t m, int64_t v, int64_t d, const int32_t *ids, const void *dy,
                          int64_t t, int64_t pos0, void *dtable, void *dpos);

    /* y[r*ldy ..] (+)= x[r*ldx ..], m rows of n; ldx may be 0: the same row m times */
    void (*copy_rows)(int64_t m, int64_t n, const void *x, int64_t ldx, void *y, int64_t ldy,
                      bool acc);
    /* y[a,b,n] = p[a,n] * q[b,n]: each row of p times each of q; backward, dy f32 on 16 bits too:
     * dp[i] += sum_j q[j] dy[i,j], dq[j] += sum_i p[i] dy[i,j]; either may be NULL */
    void (*outer_fwd)(int64_t a, int64_t b, int64_t n, const void *p, const void *q, void *y);
    void (*outer_bwd)(int64_t a, int64_t b, int64_t n, const void *p, const void *q, const void *dy,
                      void *dp, void *dq);

    /* y[r] = x[idx[r]] over rows of n; backward dx[idx[r]] += dy[r], into v rows, in the order
     * of r */
    void (*gather_fwd)(int64_t m, int64_t n, const int32_t *idx, const void *x, void *y);
    void (*gather_bwd)(int64_t m, int64_t v, int64_t n, const int32_t *idx, const void *dy,
                       void *dx);
    /* y[r] = x[r, idx[r]]; backward dx[r, idx[r]] += dy[r] */
    void (*pick_fwd)(int64_t m, int64_t n, const int32_t *idx, const void *x, void *y);
    void (*pick_bwd)(int64_t m, int64_t n, const int32_t *idx, const void *dy, void *dx);
    void (*argmax)(int64_t m, int64_t n, const void *x, int32_t *idx);  /* ties: the lowest index */
    /* idx[1], -1 if a number is NaN or +Inf.  NULL: none, the host's memory needs no kernel. */
    void (*draw)(const ag_draw *d, int64_t n, const void *x, int32_t *idx);

    /* y = residual + x * keep / (1 - p) over [m,n]; residual may be NULL;
     * dx (+)= dy * keep / (1 - p) */
    void (*dropout_fwd)(int64_t m, int64_t n, double p, const ag_noise *z, const void *x,
                        const void *residual, void *y);
    void (*dropout_bwd)(int64_t m, int64_t n, double p, const ag_noise *z, const void *dy, void *dx,
                        bool acc);

    /* From z[batch,t,3n] = [z_r | z_f | y] and x[batch,t,n], with r, f = sigmoid of z_r, z_f:
     * c[batch,t,n] = f c_before + (1 - f) y, h[batch,t,n] = r c + (1 - r) sqrt(3) x.  c before the
     * first position is c0[batch,n], NULL: 0. */
    void (*sru_fwd)(int64_t batch, int64_t t, int64_t n, const void *z, const void *x,
                    const void *c0, void *c, void *h);
    /* c0 is 0; dz and dx may be NULL */
    void (*sru_bwd)(int64_t batch, int64_t t, int64_t n, const void *z, const void *x,
                    const void *c, const void *dh, void *dz, bool acc_z, void *dx, bool acc_x);

    /* y[m,n] standard normal: columns 2 i and 2 i + 1 from the noise of both, ag_normal2 */
    void (*normal)(int64_t m, int64_t n, const ag_noise *z, void *y);
    /* a->bucket of a->q, by rotations r[batch*heads, or heads if shared][d_qk,rounds*half], half =
     * factor[0]/2 + factor[1]/2 (whole numbers): ops/lsh.c */
    void (*lsh_hash)(const ag_lsh *a, const void *r, bool shared);
    void (*lsh_fwd)(const ag_lsh *a);
    /* dq and dv are added to */
    void (*lsh_bwd)(const ag_lsh *a, const void *do_, void *dq, void *dv);
    void (*lsh_decode)(const ag_lsh_decode *a);

    void (*attention_fwd)(const ag_attention *a);
    void (*attention_bwd)(const ag_attention *a, const ag_attention_grad *g);

    /* loss[0] = mean over rows with target >= 0 of lse(x) - x[target]; lse[m] is kept.  No such
     * row: loss 0. */
    void (*xent_fwd)(int64_t m, int64_t n, const void *x, const int32_t *target, void *lse,
                     void *loss);
    void (*xent_bwd)(int64_t m, int64_t n, const void *x, const int32_t *target, const void *lse,
                     const void *dloss, void *dx, bool acc);

    void (*controller_fwd)(const ag_controller *c, const void *z, void *mask, int32_t *choice,
                           void *p);
    /* dz (+)= p * (dmask - sum(p dmask)) per block, times 1/temperature when relaxed with noise */
    void (*controller_bwd)(const ag_controller *c, const void *p, const void *dmask, void *dz,
                           bool acc);

    /* choice[rows,blocks,picks]; gate[rows,blocks,picks], 0 but for the first pick, or, with
     * c->all, gate[rows,blocks,n], 0 but for the choice.  scratch: ag_choose_scratch(c) bytes. */
    void (*choose_fwd)(const ag_chooser *c, int32_t *choice, void *gate, void *scratch);
    /* From dgate, which is 0 for units that are not listed:  dp = dgate (times p of the choice for
     * AG_GATE_SCALED), dz as controller_bwd, dlow (+)= dz c2^T, dc2 += low^T dz, dcb += column sums
     * of dz.  Each of the three may be NULL. */
    void (*choose_bwd)(const ag_chooser *c, const int32_t *choice, const void *dgate, void *dlow,
                       bool acc, void *dc2, void *dcb, void *scratch);

    /* Over the listed units, a and h [rows,blocks,picks,width]:  a = x[r] . w[u] + bias[u] */
    void (*live_dot)(const ag_live *l, const void *x, const void *w, const void *bias, void *a);
    /* y[r] (+)= sum of h w[u] over the row's listed units, + bias[d] + residual[rows,d], which may
     * be NULL; the weights of units with h = 0 need not be read */
    void (*live_sum)(const ag_live *l, const void *h, const void *w, const void *bias,
                     const void *residual, void *y, bool acc);
    /* dw[u] += sum over the rows that list u of h x[r]; dbias[u] += sum of h; either may be NULL */
    void (*live_grad)(const ag_live *l, const void *h, const void *x, void *dw, void *dbias);
    /* h[m,width] = gate[m] max(a, 0), gate NULL: 1 */
    void (*gate_fwd)(int64_t m, int64_t width, const void *a, const void *gate, void *h);
    /* da = dh gate (a > 0), may be dh itself; dgate[m] (+)= sum over width of dh max(a, 0); either
     * may be NULL */
    void (*gate_bwd)(int64_t m, int64_t width, const void *a, const void *gate, const void *dh,
                     void *da, void *dgate, bool acc);
} ag_kernels;

#ifdef __cplusplus
extern "C" {
#endif

/* Bytes that choose_fwd and choose_bwd need for a while, on any table. */
size_t ag_choose_scratch(const ag_chooser *c, ag_dtype dtype);

/* Bytes that lsh_fwd and lsh_bwd, and lsh_decode need for a while. */
size_t ag_lsh_scratch(const ag_lsh *a, ag_dtype dtype);
size_t ag_lsh_decode_scratch(const ag_lsh_decode *a, ag_dtype dtype);

/* Plain C, one thread: the specification. */
const ag_kernels *ag_kernels_ref(ag_dtype dtype);

/* The best table for this machine; TULLE_ISA = ref | base | avx2 | avx512 | avx512bf16 forces one,
 * or the next best for a type that it has no table for.  NULL with *ret_why set if that names an
 * unknown or unavailable one.  f64 is always served by ref. */
const ag_kernels *ag_kernels_best(ag_dtype dtype, const char **ret_why);

/* Every table of that type that this machine can run, for tests: up to max of them, ref first.
 * Returns how many. */
int ag_kernels_all(ag_dtype dtype, const ag_kernels **ret, int max);

#ifdef __cplusplus
}
#endif

#endif
