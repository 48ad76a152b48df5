/*
 * test_mma.cpp -- what mma.cuh does on the CPU: fragments against a product of scalars, each number
 * in its place, and copies that arrive when they are waited for and not before.
 */
#include "autograd/cuda/mma.cuh"

extern "C" {
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
}

enum { M = 16, N = 16, K = 16, ROW = K + 8 };

/* A whole number of few bits: products of such are exact in any order. */
static float number(unsigned i, unsigned j) { return (float)((i * 7 + j * 5 + i * j) % 13) - 6; }

/* c[M,N] = a[M,K] b, where b is [N,K] (by_rows false) or [K,N] in shared memory */
template <class T> static __global__ void product(float *c, bool by_rows)
{
    AG_SHARED(T, a);
    T *b = a + M * ROW;
    for (unsigned i = threadIdx.x; i < M * K; i += blockDim.x) {
        put(&a[i / K * ROW + i % K], number(i / K, i % K));
        put(&b[i / K * ROW + i % K], number(3 + i / K, i % K + 2));
    }
    __syncthreads();
    const unsigned l = threadIdx.x, g = l / 4, t = l % 4;
    uint32_t fa[4], fb[4];
    float x[2][4] = {};
    ldmatrix(fa, a + l % 16 * ROW + l / 16 * 8);
    if (by_rows) ldmatrix_trans(fb, b + l % 16 * ROW + l / 16 * 8);
    else ldmatrix(fb, b + (l % 8 + l / 16 * 8) * ROW + l / 8 % 2 * 8);
    mma<T>(x[0], fa, fb);
    mma<T>(x[1], fa, fb + 2);
    mma<T>(x[1], fa, fb + 2);        /* adds */
    for (unsigned n = 0; n < 2; n++)
        for (unsigned i = 0; i < 4; i++)
            c[(g + i / 2 * 8) * N + n * 8 + 2 * t + i % 2] = x[n][i];
}

template <class T> static void check_product(bool by_rows)
{
    float c[M * N];
    simt::launch("product", 1, 32, (M + N) * ROW * sizeof(T), [&] { product<T>(c, by_rows); });
    for (unsigned i = 0; i < M; i++)
        for (unsigned j = 0; j < N; j++) {
            float want = 0;
            for (unsigned k = 0; k < K; k++)
                want += number(i, k) * (by_rows ? number(3 + k, j + 2) : number(3 + j, k + 2));
            assert_true(c[i * N + j] == want * (j < 8 ? 1 : 2));
        }
}

static void fragments(void **)
{
    for (int by_rows = 0; by_rows < 2; by_rows++) {
        check_product<bf16>(by_rows);
        check_product<f16>(by_rows);
    }
}

/* The numbers of a lane where the PTX manual has them: a product with a single 1 on either side. */
static __global__ void one_place(unsigned row, unsigned k, unsigned col, float *c)
{
    const unsigned g = threadIdx.x / 4, t = threadIdx.x % 4;
    uint32_t a[4], b[2];
    float x[4] = {};
    for (unsigned i = 0; i < 4; i++) {
        const bool mine = g + i % 2 * 8 == row && 2 * t + i / 2 * 8 == k / 2 * 2;
        a[i] = mine ? pack2<bf16>(k % 2 ? 0.0f : 1.0f, k % 2 ? 1.0f : 0.0f) : 0;
    }
    for (unsigned i = 0; i < 2; i++) {
        const bool mine = g == col && 2 * t + i * 8 == k / 2 * 2;
        b[i] = mine ? pack2<bf16>(k % 2 ? 0.0f : 1.0f, k % 2 ? 1.0f : 0.0f) : 0;
    }
    mma<bf16>(x, a, b);
    for (unsigned i = 0; i < 4; i++) c[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = x[i];
}

static void places(void **)
{
    for (unsigned k = 0; k < K; k++) {
        const unsigned row = (k * 5 + 3) % 16, col = (k * 3 + 1) % 8;
        float c[M * 8];
        simt::launch("one_place", 1, 32, 0, [&] { one_place(row, k, col, c); });
        for (unsigned i = 0; i < M * 8; i++)
            assert_true(c[i] == (i == row * 8 + col ? 1.0f : 0.0f));
    }
}

static __global__ void copying(const float *from, float *before, float *after)
{
    AG_SHARED(float, s);
    async_copies copies;
    copies.start(s + threadIdx.x * 4, from + threadIdx.x * 4, threadIdx.x % 2 ? 16 : 0);
    before[threadIdx.x] = s[threadIdx.x * 4];
    copies.wait();
    __syncthreads();
    for (unsigned i = 0; i < 4; i++) after[threadIdx.x * 4 + i] = s[threadIdx.x * 4 + i];
}

static void copies_arrive_late(void **)
{
    __align__(16) float from[128];
    float before[32], after[128];
    for (int i = 0; i < 128; i++) from[i] = (float)i + 1;
    simt::launch("copying", 1, 32, sizeof from, [&] { copying(from, before, after); });
    for (int i = 0; i < 128; i++) {
        assert_true(std::isnan(before[i / 4]));
        assert_true(after[i] == (i / 4 % 2 ? from[i] : 0.0f));
    }
}

int main()
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fragments), cmocka_unit_test(places),
        cmocka_unit_test(copies_arrive_late),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
