/*
 * fast.h -- prototypes of the fast kernels of one instruction set (kernels.h says what they do).
 */
#ifndef AG_CPU_FAST_H
#define AG_CPU_FAST_H

#include "autograd/cpu/simd.h"
#include "autograd/kernels.h"

/* Work below this many numbers stays on the calling thread: a parallel region costs 1 to 2 us. */
enum { AG_PARALLEL_FROM = 20000 };

/* A pragma with the parameters of a macro in it. */
#define AG_PRAGMA(...) _Pragma(#__VA_ARGS__)

#define AG_UNARY(name, ...)                                                                 \
    void AG_NAME(unary_fwd_##name)(int64_t n, const void *x, void *y);                      \
    void AG_NAME(unary_bwd_##name)(int64_t n, const void *x, const void *y, const void *dy, \
                                   void *dx, bool acc);
#include "autograd/unary.def"
#undef AG_UNARY

#define AG_BINARY(name, ...)                                                                \
    void AG_NAME(binary_fwd_##name)(int64_t n, const void *a, const void *b, void *y);      \
    void AG_NAME(binary_bwd_##name)(int64_t n, const void *a, const void *b, const void *y, \
                                    const void *dy, void *da, bool acc_a, void *db, bool acc_b);
#include "autograd/binary.def"
#undef AG_BINARY

void AG_NAME(gemm)(const ag_gemm *g);
void AG_NAME(attention_fwd)(const ag_attention *a);
void AG_NAME(attention_bwd)(const ag_attention *a, const ag_attention_grad *g);

void AG_NAME(act_bwd)(ag_act act, int64_t m, int64_t n, const void *pre, const void *dy, void *dx,
                      void *db, bool acc_db);
void AG_NAME(fill)(int64_t n, double value, void *y);
void AG_NAME(fixed_add)(int64_t n, int point, int sign, const void *x, int32_t *s, int32_t *peak);
void AG_NAME(fixed_read)(int64_t n, int point, const int32_t *s, void *y);
void AG_NAME(add)(int64_t n, const void *x, void *y);
void AG_NAME(scale)(int64_t n, double alpha, const void *x, void *y, bool acc);
void AG_NAME(add_scalar)(int64_t n, double alpha, const void *c, void *y, bool acc);
void AG_NAME(sum)(int64_t n, double alpha, const void *x, void *y);
void AG_NAME(row_sum)(int64_t m, int64_t n, const void *x, void *y);
void AG_NAME(row_add)(int64_t m, int64_t n, const void *dy, void *dx, bool acc);
void AG_NAME(dropout_fwd)(int64_t m, int64_t n, double p, const ag_noise *z, const void *x,
                          const void *residual, void *y);
void AG_NAME(dropout_bwd)(int64_t m, int64_t n, double p, const ag_noise *z, const void *dy,
                          void *dx, bool acc);

void AG_NAME(layernorm_fwd)(int64_t m, int64_t n, double eps, const void *x, const void *gain,
                            const void *bias, void *y, void *mean, void *rstd);
void AG_NAME(layernorm_bwd)(int64_t m, int64_t n, const void *x, const void *gain, const void *mean,
                            const void *rstd, const void *dy, void *dx, bool acc_dx, void *dgain,
                            void *dbias);
void AG_NAME(softmax_fwd)(int64_t m, int64_t n, bool log, const void *x, void *y);
void AG_NAME(softmax_bwd)(int64_t m, int64_t n, bool log, const void *y, const void *dy, void *dx,
                          bool acc);
void AG_NAME(embedding_fwd)(int64_t m, int64_t d, const int32_t *ids, const void *table,
                            const void *pos, int64_t t, int64_t pos0, void *y);
void AG_NAME(embedding_bwd)(int64_t m, int64_t v, int64_t d, const int32_t *ids, const void *dy,
                            int64_t t, int64_t pos0, void *dtable, void *dpos);
void AG_NAME(gather_fwd)(int64_t m, int64_t n, const int32_t *idx, const void *x, void *y);
void AG_NAME(gather_bwd)(int64_t m, int64_t v, int64_t n, const int32_t *idx, const void *dy,
                         void *dx);
void AG_NAME(pick_fwd)(int64_t m, int64_t n, const int32_t *idx, const void *x, void *y);
void AG_NAME(pick_bwd)(int64_t m, int64_t n, const int32_t *idx, const void *dy, void *dx);
void AG_NAME(argmax)(int64_t m, int64_t n, const void *x, int32_t *idx);
void AG_NAME(xent_fwd)(int64_t m, int64_t n, const void *x, const int32_t *target, void *lse,
                       void *loss);
void AG_NAME(xent_bwd)(int64_t m, int64_t n, const void *x, const int32_t *target, const void *lse,
                       const void *dloss, void *dx, bool acc);
void AG_NAME(copy_rows)(int64_t m, int64_t n, const void *x, int64_t ldx, void *y, int64_t ldy,
                        bool acc);
void AG_NAME(outer_fwd)(int64_t a, int64_t b, int64_t n, const void *p, const void *q, void *y);
void AG_NAME(outer_bwd)(int64_t a, int64_t b, int64_t n, const void *p, const void *q,
                        const void *dy, void *dp, void *dq);
void AG_NAME(sru_fwd)(int64_t batch, int64_t t, int64_t n, const void *z, const void *x,
                      const void *c0, void *c, void *h);
void AG_NAME(sru_bwd)(int64_t batch, int64_t t, int64_t n, const void *z, const void *x,
                      const void *c, const void *dh, void *dz, bool acc_z, void *dx, bool acc_x);
void AG_NAME(normal)(int64_t m, int64_t n, const ag_noise *z, void *y);
void AG_NAME(lsh_hash)(const ag_lsh *a, const void *r, bool shared);
void AG_NAME(lsh_fwd)(const ag_lsh *a);
void AG_NAME(lsh_bwd)(const ag_lsh *a, const void *do_, void *dq, void *dv);
void AG_NAME(lsh_decode)(const ag_lsh_decode *a);
void AG_NAME(controller_fwd)(const ag_controller *c, const void *z, void *mask, int32_t *choice,
                             void *p);
void AG_NAME(controller_bwd)(const ag_controller *c, const void *p, const void *dmask, void *dz,
                             bool acc);
void AG_NAME(choose_fwd)(const ag_chooser *c, int32_t *choice, void *gate, void *scratch);
void AG_NAME(choose_bwd)(const ag_chooser *c, const int32_t *choice, const void *dgate, void *dlow,
                         bool acc, void *dc2, void *dcb, void *scratch);
void AG_NAME(live_dot)(const ag_live *l, const void *x, const void *w, const void *bias, void *a);
void AG_NAME(live_sum)(const ag_live *l, const void *h, const void *w, const void *bias,
                       const void *residual, void *y, bool acc);
void AG_NAME(live_grad)(const ag_live *l, const void *h, const void *x, void *dw, void *dbias);
void AG_NAME(gate_fwd)(int64_t m, int64_t width, const void *a, const void *gate, void *h);
void AG_NAME(gate_bwd)(int64_t m, int64_t width, const void *a, const void *gate, const void *dh,
                       void *da, void *dgate, bool acc);

#endif
