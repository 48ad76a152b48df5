/*
 * test_adafactor.c -- Adafactor against a second one in f64 and against NumPy's numbers, the places
 * of its moments, and the same bits for any number of threads.
 */
#include "autograd/base/arena.h"
#include "autograd/base/rng.h"
#include "optim/optim.h"
#include "tests/threads.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "golden/values_adafactor.inc"

#define COUNT(a) (sizeof(a) / sizeof *(a))

static opt_config config(void)
{
    return (opt_config){ .type = OPT_ADAFACTOR, .decay_rate = 0.8, .clip_threshold = 1,
                         .eps1 = 1e-16, .eps2 = 1e-3, .parameter_scale = true };
}

static opt_range tensor(int64_t offset, int64_t lead, int64_t rows, int64_t cols)
{
    return (opt_range){ offset, lead * rows * cols, true, rows, cols };
}
static opt_range vector(int64_t offset, int64_t n)
{
    return (opt_range){ .offset = offset, .count = n, .decay = true };
}

static opt_state *make(const opt_config *c, int64_t n, const opt_range *r, int n_ranges)
{
    opt_state *o = NULL;
    ag_err err = { 0 };
    if (opt_new(c, NULL, n, r, n_ranges, &o, &err)) fail_msg("%s", err.msg);
    return o;
}

static void step(opt_state *o, double lr, double unscale, float *p, float *g)
{
    ag_err err = { 0 };
    if (opt_step(o, lr, unscale, p, g, NULL, &err)) fail_msg("%s", err.msg);
}

static float between(uint32_t site, int64_t e, float lo, float hi)
{
    return lo + (hi - lo) * ag_uniform(ag_noise_bits(11, 0, site, (uint64_t)e));
}

/* --- against NumPy ---------------------------------------------------------------------------- */

/* Element e of tensor i, as in make_adafactor.py: 16 bits, exact in f32. */
static double fill(uint32_t i, uint32_t e)
{
    uint32_t h = (i * 1000003u + e) * 2654435761u;
    h = (h ^ h >> 15) * 2246822519u;
    return ((double)(h >> 16) / 65536 - 0.5) * 0.5;
}

typedef struct golden { opt_config c; double lr, size; const double *want; } golden;

/* Ranges with holes of 3 elements between them. */
static int golden_ranges(opt_range r[7], int64_t *ret_n)
{
    static const int64_t SHAPES[7][3] = { { 7, 0, 0 }, { 1, 5, 9 }, { 3, 4, 6 }, { 5, 4, 6 },
                                          { 6, 4, 5 }, { 1, 150, 5 }, { 1, 1, 1 } };
    int64_t at = 0;
    for (int i = 0; i < 7; i++) {
        const int64_t *s = SHAPES[i];
        r[i] = s[1] ? tensor(at, s[0], s[1], s[2]) : vector(at, s[0]);
        at += r[i].count + 3;
    }
    *ret_n = at;
    return 7;
}

static void run_golden(const golden *k)
{
    enum { STEPS = 8 };
    opt_range r[7];
    int64_t n, seen = 0;
    const int ranges = golden_ranges(r, &n);
    opt_state *o = make(&k->c, n, r, ranges);
    float *p = calloc((size_t)n, sizeof *p), *g = calloc((size_t)n, sizeof *g);
    assert_true(p && g);
    for (uint32_t i = 0; i < 7; i++)
        for (uint32_t e = 0; e < r[i].count; e++) p[r[i].offset + e] = (float)fill(i, e);
    for (uint32_t t = 1; t <= STEPS; t++) {
        for (uint32_t i = 0; i < 7; i++)
            for (uint32_t e = 0; e < r[i].count; e++)
                g[r[i].offset + e] = (float)(k->size * fill(100 * t + i, e));
        step(o, k->lr, 1, p, g);
        for (int64_t e = 0; e < n; e++) assert_true(g[e] == 0);
    }
    for (int i = 0; i < 7; i++)
        for (int64_t e = 0; e < r[i].count; e += r[i].count > 200 ? 7 : 1, seen++) {
            const double got = (double)p[r[i].offset + e];
            if (!(fabs(got - k->want[seen]) <= 1e-6 * (0.05 + fabs(k->want[seen]))))
                fail_msg("tensor %d, element %d: %.9g, NumPy %.9g", i, (int)e, got, k->want[seen]);
        }
    free(p);
    free(g);
    opt_free(o);
}

static void same_as_numpy(void **state)
{
    (void)state;
    golden k = { config(), 1e-2, 1, plain_weights };
    run_golden(&k);
    k.want = small_weights;
    k.size = 1e-8;
    run_golden(&k);
    k = (golden){ config(), 1e-2, 1, decay_weights };
    k.c.weight_decay = 1e-3;
    k.c.weight_decay_steps = 6;
    k.c.clip_threshold = 0.5;
    run_golden(&k);
    k = (golden){ config(), 1e-3, 100, momentum_weights };
    k.c.weight_decay = 1e-4;
    k.c.parameter_scale = false;
    k.c.clip_threshold = 0;
    k.c.update_momentum = 0.9;
    run_golden(&k);
    assert_int_equal(COUNT(plain_weights), COUNT(momentum_weights));
    assert_int_equal(COUNT(plain_weights), 7 + 45 + 72 + 120 + 120 + 108 + 1);
}

/* --- against f64, the paper's shapes ---------------------------------------------------------- */

typedef struct oracle {              /* one tensor [lead, rows, cols] */
    int64_t lead, rows, cols;
    double *p, *vr, *vc, *y;
} oracle;

static oracle oracle_new(int64_t lead, int64_t rows, int64_t cols)
{
    const size_t n = (size_t)(lead * rows * cols);
    oracle k = { lead, rows, cols, calloc(n, sizeof(double)),
                 calloc((size_t)(lead * rows), sizeof(double)),
                 calloc((size_t)(lead * cols), sizeof(double)), calloc(n, sizeof(double)) };
    assert_true(k.p && k.vr && k.vc && k.y);
    return k;
}

static void oracle_free(oracle *k)
{
    free(k->p);
    free(k->vr);
    free(k->vc);
    free(k->y);
}

/* The update before its rate, y, element by element. */
static void oracle_update(oracle *k, double mix, const float *g)
{
    const int64_t R = k->rows, C = k->cols;
    for (int64_t i = 0; i < k->lead * R; i++) {
        double sum = 0;
        for (int64_t c = 0; c < C; c++) sum += (double)g[i * C + c] * (double)g[i * C + c];
        k->vr[i] += mix * (sum / (double)C - k->vr[i]);
    }
    for (int64_t i = 0; i < k->lead * C; i++) {
        double sum = 0;
        for (int64_t r = 0; r < R; r++) {
            const double x = (double)g[(i / C * R + r) * C + i % C];
            sum += x * x;
        }
        k->vc[i] += mix * (sum / (double)R - k->vc[i]);
    }
    for (int64_t l = 0; l < k->lead; l++) {
        double mean = 0;
        for (int64_t r = 0; r < R; r++) mean += k->vr[l * R + r] / (double)R;
        for (int64_t e = 0; e < R * C; e++)
            k->y[l * R * C + e] = (double)g[l * R * C + e] *
                                  sqrt(mean / (k->vr[l * R + e / C] + 1e-16)) /
                                  sqrt(k->vc[l * C + e % C] + 1e-16);
    }
}

static double rms(int64_t n, const double *x)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += x[i] * x[i];
    return sqrt(sum / (double)n);
}

static void close_enough(const char *what, double got, double want, double size)
{
    if (!(fabs(got - want) <= 2e-6 * size))
        fail_msg("%s: %.9g, in f64 %.9g", what, got, want);
}

static void run_paper(int64_t lead, int64_t rows, int64_t cols)
{
    const int64_t n = lead * rows * cols;
    const opt_range r = tensor(0, lead, rows, cols);
    const opt_config c = config();
    opt_state *o = make(&c, n, &r, 1);
    oracle k = oracle_new(lead, rows, cols);
    float *p = malloc((size_t)n * sizeof *p), *g = malloc((size_t)n * sizeof *g);
    assert_true(p && g);
    for (int64_t e = 0; e < n; e++) k.p[e] = (double)(p[e] = between(1, e, -1, 1));
    for (int t = 0; t < 3; t++) {
        /* rows and columns of different sizes, so that it matters what is a row */
        for (int64_t e = 0; e < n; e++)
            g[e] = between(2 + (uint32_t)t, e, -1, 1) * (float)(1 + e % cols) *
                   (float)(1 + e / cols % rows % 7);
        oracle_update(&k, pow(t + 1, -0.8), g);
        const double rate = 0.01 * rms(n, k.p) / fmax(1, rms(n, k.y));
        for (int64_t e = 0; e < n; e++) k.p[e] -= rate * k.y[e];
        step(o, 0.01, 1, p, g);
        for (int64_t e = 0; e < n; e++) close_enough("weight", (double)p[e], k.p[e], 1);
        for (int64_t e = 0; e < lead * rows; e++)
            close_enough("row", (double)o->v_row[e], k.vr[e], k.vr[e]);
        for (int64_t e = 0; e < lead * cols; e++)
            close_enough("column", (double)o->v_col[e], k.vc[e], k.vc[e]);
    }
    free(p);
    free(g);
    oracle_free(&k);
    opt_free(o);
}

static void papers_shapes_against_f64(void **state)
{
    (void)state;
    run_paper(96, 64, 64);           /* C2 (r, D1, N) */
    run_paper(256, 64, 64);          /* W1 (d, D1, N), a quarter of its d */
    run_paper(16, 64, 1024);         /* W2 (N, D1, d), a quarter of its N */
    run_paper(1, 333, 65);           /* an embedding: rows that do not fill the last part */
    run_paper(4, 1, 100);
    run_paper(4, 100, 1);
}

/* A row of zeros and a matrix of zeros have no update, and no NaN. */
static void dead_rows_stay(void **state)
{
    (void)state;
    const opt_range r[] = { tensor(0, 2, 3, 4), vector(24, 4) };
    const opt_config c = config();
    opt_state *o = make(&c, 28, r, 2);
    float p[28], g[28];
    for (int i = 0; i < 28; i++) p[i] = 1;
    for (int t = 0; t < 3; t++) {
        for (int i = 0; i < 28; i++) g[i] = i < 4 || (i >= 12 && i != 25) ? 0 : 1;
        step(o, 0.1, 1, p, g);
        for (int i = 0; i < 28; i++)
            assert_true(i < 4 || (i >= 12 && i != 25) ? p[i] == 1 : p[i] < 1 - 0.05f * (float)t);
    }
    opt_free(o);
}

/* --- slots, threads, errors ------------------------------------------------------------------- */

static void slots_are_small(void **state)
{
    (void)state;
    const opt_range r[] = { tensor(0, 1, 100, 50), vector(5003, 9), tensor(5020, 3, 4, 5) };
    opt_config c = config();
    c.ema_decay = 0.5;
    opt_state *o = make(&c, 5100, r, 3);
    static const char *const NAMES[] = { "v_row", "v_col", "v", "ema" };
    static const int64_t SIZES[] = { 112, 65, 9, 5100 };
    static const int64_t SPANS[4][3] = { { 100, 0, 12 }, { 50, 0, 15 }, { 0, 9, 0 },
                                         { 5000, 9, 60 } };
    static const int64_t OFFSETS[4][3] = { { 0, 100, 100 }, { 0, 50, 50 }, { 0, 0, 9 },
                                           { 0, 5003, 5020 } };
    assert_int_equal(o->n_slots, 4);
    for (int k = 0; k < 4; k++) {
        assert_string_equal(o->slot[k].name, NAMES[k]);
        assert_int_equal(o->slot[k].n, SIZES[k]);
        for (int i = 0; i < 3; i++) {
            int64_t at = -1;
            assert_int_equal(opt_slot_span(o, k, i, &at), SPANS[k][i]);
            assert_int_equal(at, OFFSETS[k][i]);
        }
    }
    assert_in_range(opt_bytes(o), 4 * 5286, 4 * 5286 + 5100);
    opt_free(o);
}

/* All that a run of some steps leaves: weights and slots, one behind the other. */
static size_t run_steps(const opt_config *c, double unscale, float *out)
{
    enum { N = 120000 };
    static float p[N], g[N];
    const opt_range r[] = { tensor(0, 1, 300, 130), vector(40000, 9000), tensor(50000, 5, 70, 33),
                            tensor(62000, 64, 1, 900) };
    opt_state *o = make(c, N, r, 4);
    for (int i = 0; i < N; i++) p[i] = between(30, i, -1, 1);
    for (uint32_t s = 0; s < 3; s++) {
        for (int i = 0; i < N; i++) g[i] = between(31 + s, i, -1, 1) / (float)unscale;
        step(o, 0.01, unscale, p, g);
    }
    size_t at = 0;
    memcpy(out, p, sizeof p);
    at += N;
    for (int k = 0; k < o->n_slots; k++, at += (size_t)o->slot[k - 1].n)
        memcpy(out + at, o->slot[k].data, (size_t)o->slot[k].n * sizeof(float));
    opt_free(o);
    return at;
}

static opt_config everything(void)
{
    opt_config c = config();
    c.weight_decay = 1e-3;
    c.weight_decay_steps = 2;
    c.update_momentum = 0.5;
    c.ema_decay = 0.9;
    c.clip_norm = 3;
    return c;
}

static void threads_agree(void **state)
{
    (void)state;
    static const int THREADS[] = { 1, 2, 3, 7 };
    static float first[450000], now[450000];
    const opt_config c = everything();
    for (int k = 0; k < 4; k++) {
        set_threads(THREADS[k]);
        const size_t n = run_steps(&c, 1, k ? now : first);
        assert_in_range(n, 420000, COUNT(first));
        if (k) assert_memory_equal(now, first, n * sizeof *now);
    }
    set_threads(2);
}

/* A power of two in front of the gradient leaves the bits as they are. */
static void scaled_gradients_agree(void **state)
{
    (void)state;
    static float first[450000], now[450000];
    const opt_config c = everything();
    const size_t n = run_steps(&c, 1, first);
    run_steps(&c, 0x1p-16, now);
    assert_memory_equal(now, first, n * sizeof *now);
    run_steps(&c, 0x1p10, now);
    assert_memory_equal(now, first, n * sizeof *now);
}

static void bad_settings_are_named(void **state)
{
    (void)state;
    struct {
        double decay_rate, clip, eps1, eps2, decay, momentum;
        int64_t steps;
        const char *word;
    } cases[] = { { 0, 1, 1, 0, 0, 0, 0, "optim.decay_rate" },
                { 1.5, 1, 1, 0, 0, 0, 0, "optim.decay_rate" },
                { NAN, 1, 1, 0, 0, 0, 0, "optim.decay_rate" },
                { 1, -1, 1, 0, 0, 0, 0, "optim.clip_threshold" },
                { 1, 1, 0, 0, 0, 0, 0, "optim.eps1" },
                { 1, 1, 1, -1, 0, 0, 0, "optim.eps2" },
                { 1, 1, 1, 0, 1, 0, 0, "optim.weight_decay" },
                { 1, 1, 1, 0, 0, 1, 0, "optim.update_momentum" },
                { 1, 1, 1, 0, 0, 0, -1, "optim.weight_decay_steps" } };
    for (size_t i = 0; i < COUNT(cases); i++) {
        const opt_config c = { .type = OPT_ADAFACTOR, .decay_rate = cases[i].decay_rate,
                               .clip_threshold = cases[i].clip, .eps1 = cases[i].eps1,
                               .eps2 = cases[i].eps2, .weight_decay = cases[i].decay,
                               .update_momentum = cases[i].momentum,
                               .weight_decay_steps = cases[i].steps };
        opt_state *o = NULL;
        ag_err err = { 0 };
        assert_int_equal(opt_new(&c, NULL, 4, NULL, 0, &o, &err), AG_ECONFIG);
        assert_non_null(strstr(err.msg, cases[i].word));
    }
}

static void out_of_memory_is_reported(void **state)
{
    (void)state;
    const opt_config c = everything();
    const opt_range r[] = { tensor(0, 2, 3, 4), vector(24, 4) };
    int failures = 0;
    for (int k = 1;; k++, failures++) {
        opt_state *o = NULL;
        ag_err err = { 0 };
        ag_fault_after(k, 0);
        const int code = opt_new(&c, NULL, 28, r, 2, &o, &err);
        ag_fault_after(0, 0);
        if (code == AG_OK) {
            opt_free(o);
            break;
        }
        assert_int_equal(code, AG_ENOMEM);
        assert_null(o);
    }
    assert_int_equal(failures, 10);  /* the state, parts, ranges, 5 slots, 2 of the work */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(same_as_numpy),
        cmocka_unit_test(papers_shapes_against_f64),
        cmocka_unit_test(dead_rows_stay),
        cmocka_unit_test(slots_are_small),
        cmocka_unit_test(threads_agree),
        cmocka_unit_test(scaled_gradients_agree),
        cmocka_unit_test(bad_settings_are_named),
        cmocka_unit_test(out_of_memory_is_reported),
    };
    return cmocka_run_group_tests_name("adafactor", tests, NULL, NULL);
}
