/*
 * big_cases.h -- larger samples for test_kernels.c: shapes on which kernels work in tiles and in
 * threads, with sizes just off the powers of two.
 */
#ifndef BIG_CASES_H
#define BIG_CASES_H

#include "autograd/op.h"

#define S1(a) { 1, { a } }
#define S2(a, b) { 2, { a, b } }
#define S3(a, b, c) { 3, { a, b, c } }
#define BIG(op, low, high, ...) { &ag_op_##op, { .lo = low, .hi = high, __VA_ARGS__ } }
#define IN(...) .in = { __VA_ARGS__ }
#define MATMUL(ta, tb, ...) BIG(matmul, -1, 1, IN(__VA_ARGS__), .attr.matmul = { ta, tb })
#define LINEAR(f, low, out, m, n, k)                                                               \
    BIG(linear, low, 1, IN(S3(2, m, k), S2(n, k), S1(n), S3(2, m, n)), .absent = out,              \
        .attr.linear.act = f)
#define ATTEND(some, c, tq, tk, dk, dv, p, pos)                                                    \
    BIG(attend, -1.5, 1.5, IN(S3(2, tq, 3 * dk), S3(2, tk, 3 * dk), S3(2, tk, 3 * dv), S1(2)),     \
        .int_hi = tk + 1, .absent = some ? 0 : 8,                                                  \
        .attr.attention = { .heads = 3, .d_qk = dk, .d_v = dv, .causal = c, .drop = p, .site = 4,  \
                            .q_pos0 = pos })
#define CONTROL(r, h, size, t)                                                                     \
    BIG(control, -2, 2, IN(S2(401, 4 * size)), .surrogate = h,                                     \
        .attr.control = { .n = size, .relaxed = r, .hard = h, .temperature = t, .site = 2 })
#define MULT(m, d, modules, each, w)                                                               \
    BIG(multiplicative, -1, 1,                                                                     \
        IN(S2(m, d), S2(modules, d), S2(each, d), S1((w) ? (w) : (modules) * (each))),             \
        .attr.multiplicative = { w })
#define CONV(t, modules, taps, span, p, o, past)                                                   \
    BIG(module_conv, -1, 1, IN(S3(2, t, modules * p), S2(o, taps * span * p), S1(o)),              \
        .attr.module_conv = { modules, taps, span, past })

#define LSH(n, r, dk, dv, size, past, next, c, mask, dup, p, f0, f1)                               \
    BIG(lsh_attend, -1.5, 1.5,                                                                     \
        IN(S3(2, n, 2 * dk), S3(2, n, 2 * dv), { 4, { r, 2, 2, n } }, S1(2)),                      \
        .int_hi = f0 * f1 + 1, .absent = mask ? 0 : 8,                                             \
        .attr.lsh = { { .heads = 2, .d_qk = dk, .d_v = dv, .rounds = r, .factor = { f0, f1 },      \
                        .chunk = size, .before = past, .after = next, .causal = c,                 \
                        .bucket_mask = mask, .correct = dup, .drop = p, .drop_site = 6 },          \
                      NULL, 0 })
#define CHOOSE(g, size, t, p, every)                                                               \
    BIG(choose, -1, 1, IN(S2(401, 24), S2(24, 5 * size), S1(5 * size)),                            \
        .surrogate = g != AG_GATE_P,                                                               \
        .attr.choose = { .n = size, .temperature = t, .picks = p, .all = every, .gate = g,         \
                         .site = 2 })
#define LIVE(m, d, dout, size, w, p, every, out)                                                   \
    BIG(live_ff, 0.1, 1,                                                                           \
        IN(S2(m, d), S2(4 * size * w, d), S1(4 * size * w), S2(4 * size * w, dout), S1(dout),      \
           S2(m, 4 * (every ? size : p)), S2(m, 4 * p), S2(m, dout)), .absent = out,               \
        .int_hi = size, .surrogate = every,                                                        \
        .attr.live = { .n = size, .width = w, .picks = p, .all = every })

static const struct big { const ag_op *op; ag_sample s; } big[] = {
#define AG_UNARY(name, f, df, lo, hi, g) BIG(name, lo, hi, .gap = g, IN(S2(70, 1001))),
#include "autograd/unary.def"
#undef AG_UNARY
#define AG_BINARY(name, f, a, b, lo, hi, g)                                      \
    BIG(name, lo, hi, .gap = g, IN(S2(70, 1001), S2(70, 1001))),
#include "autograd/binary.def"
#undef AG_BINARY
    MATMUL(false, false, S2(131, 259), S2(259, 197)),
    MATMUL(true, false, S2(259, 131), S2(259, 197)),
    MATMUL(false, true, S2(131, 259), S2(197, 259)),
    MATMUL(true, true, S2(259, 131), S2(197, 259)),
    MATMUL(false, true, S2(3, 5000), S2(7, 5000)),       /* a long inner size */
    MATMUL(false, true, S2(1, 700), S2(900, 700)),       /* a vector, as in decoding */
    MATMUL(true, false, S2(4000, 20), S2(4000, 30)),     /* a gradient of few weights */
    LINEAR(AG_ACT_NONE, -1, 0, 131, 130, 129),
    LINEAR(AG_ACT_RELU, 0.1, 8, 131, 66, 129),
    LINEAR(AG_ACT_GELU_TANH, -0.3, 8, 131, 130, 65),
    LINEAR(AG_ACT_GELU_ERF, -0.3, 0, 131, 130, 65),
    LINEAR(AG_ACT_GELU_QUICK, -0.3, 4, 65, 130, 129),
    BIG(layernorm, -2, 2, IN(S2(301, 257), S1(257), S1(257)), .attr.layernorm.eps = 1e-5),
    BIG(layernorm, -2, 2, IN(S2(3000, 16), S1(16)), .absent = 4, .attr.layernorm.eps = 1e-5),
    BIG(embedding, -1, 1, IN(S2(31, 50), S2(65, 48), S2(50, 48)), .int_hi = 65),
    BIG(dropout, -1, 1, IN(S2(301, 257), S2(301, 257)), .attr.dropout = { 0.2, 7 }),
    ATTEND(false, true, 131, 131, 32, 32, 0, 0),
    ATTEND(false, false, 70, 150, 17, 40, 0.2, 0),
    ATTEND(false, true, 65, 129, 64, 64, 0.1, 64),
    ATTEND(false, true, 150, 70, 8, 8, 0, -40),          /* queries that see no key */
    ATTEND(true, false, 70, 150, 17, 40, 0.2, 0),        /* lengths of items */
    ATTEND(true, true, 131, 131, 32, 32, 0, 0),
    BIG(attend_source, -1.5, 1.5, IN(S3(4, 70, 3 * 17), S3(4, 150, 3 * 17), S3(4, 150, 96), S1(4)),
        .int_hi = 151, .attr.attention = { .heads = 3, .d_qk = 17, .d_v = 32 }),
    BIG(attend_qkv, -1.5, 1.5, IN(S3(3, 140, 2 * (2 * 24 + 24)), S1(3)), .int_hi = 141,
        .attr.attention = { .heads = 2, .d_qk = 24, .d_v = 24 }),
    BIG(attend_qkv, -1.5, 1.5, IN(S3(3, 140, 2 * (2 * 24 + 24))), .absent = 2,
        .attr.attention = { .heads = 2, .d_qk = 24, .d_v = 24, .causal = true, .drop = 0.1 }),
    BIG(cross_entropy, -3, 3, IN(S2(700, 65), S1(700)), .int_hi = 65),
    BIG(cross_entropy, -3, 3, IN(S2(90, 1003), S1(90)), .int_lo = -300, .int_hi = 1003),
    BIG(softmax, -3, 3, IN(S2(301, 257))),
    BIG(log_softmax, -3, 3, IN(S2(301, 257)), .attr.softmax.log = true),
    CONTROL(false, false, 32, 0.1),
    CONTROL(false, true, 32, 0.1),
    CONTROL(true, false, 25, 0.7),
    CONTROL(true, true, 64, 1),
    CHOOSE(AG_GATE_ONE, 64, 0.1, 1, false),
    CHOOSE(AG_GATE_P, 50, 0, 1, false),
    CHOOSE(AG_GATE_SCALED, 16, 0.7, 3, false),
    CHOOSE(AG_GATE_ONE, 33, 0.7, 1, true),
    LIVE(301, 130, 131, 64, 1, 1, false, 0),
    LIVE(301, 384, 384, 16, 1, 3, false, 4),
    LIVE(301, 65, 66, 16, 5, 1, false, 16),
    LIVE(301, 130, 131, 32, 1, 1, true, 0),
    LIVE(1, 515, 517, 50, 1, 1, false, 32),              /* a row, as in decoding */
    BIG(repeat, -1, 1, IN(S2(301, 33)), .attr.repeat.times = 17),
    BIG(scatter, -1, 1, IN(S2(700, 130), S1(700), S2(65, 130)), .int_hi = 65,
        .attr.reshape = { 2, { 65, 130 } }),
    BIG(gather, -1, 1, IN(S2(65, 130), S1(700)), .int_hi = 65),
    BIG(pick, -1, 1, IN(S2(700, 65), S1(700)), .int_hi = 65),
    BIG(argmax, -1, 1, IN(S2(700, 65))),
    BIG(sum, -1, 1, IN(S1(200003))),
    BIG(mean, 1, 1.1, IN(S1(200003))),
    BIG(row_sum, 0, 1, IN(S2(33, 5003))),
    BIG(scale, -1, 1, IN(S1(70001)), .attr.scale.alpha = 0.3),
    MULT(300, 130, 9, 31, 0),                            /* two groups of modules, the last cut */
    MULT(300, 515, 7, 80, 7 * 80 - 33),
    MULT(3, 515, 7, 80, 7 * 80 - 33),                    /* few rows */
    CONV(140, 9, 3, 3, 24, 17, false),
    CONV(35, 17, 2, 3, 33, 65, true),
    CONV(600, 33, 3, 1, 16, 16, false),                  /* several tiles */
    BIG(module_linear, -1, 1, IN(S2(301, 9 * 33), S2(9 * 17, 3 * 33), S1(9 * 17)),
        .attr.module_linear = { 9, 3 }),
    BIG(sru, -1.5, 1.5, IN(S3(3, 201, 3 * 37), S3(3, 201, 37))),
    BIG(sru_cached, -1.5, 1.5, IN(S3(3, 201, 3 * 37), S3(3, 201, 37))),
    BIG(merge, -1, 1, IN(S3(5, 131, 65), S3(5, 70, 65), S1(5)), .int_hi = 132),
    BIG(strip, -1, 1, IN(S3(5, 201, 65), S1(5)), .int_hi = 132, .attr.strip = { 70 }),
    BIG(columns, -1, 1, IN(S2(65, 700)), .int_hi = 1000, .attr.columns = { 131, 515 }),
    BIG(count_tokens, -1, 1, IN(S2(65, 700)), .int_hi = 2, .attr.columns = { 0, 515 }),
    LSH(131, 3, 24, 17, 64, 1, 0, true, false, false, 0, 2, 1),
    LSH(300, 2, 32, 40, 64, 1, 1, false, false, false, 0.2, 8, 4),
    LSH(257, 4, 8, 8, 33, 1, 0, true, true, true, 0.1, 4, 2),
    LSH(200, 1, 300, 16, 300, 1, 0, true, false, false, 0, 2, 1),    /* one chunk, a wide head */
    BIG(lsh_hash, -1.5, 1.5, IN(S3(2, 201, 3 * 24), S1(2)), .int_hi = 201,
        .attr.lsh = { { .heads = 3, .d_qk = 24, .d_v = 1, .rounds = 3, .factor = { 32, 18 },
                        .chunk = 64, .site = 5 }, NULL, 0 }),
    BIG(module_concat, -1, 1, IN(S2(301, 9 * 33), S2(301, 9 * 17)), .attr.module_concat = { 9 }),
};
enum { N_BIG = sizeof big / sizeof *big };

#endif
