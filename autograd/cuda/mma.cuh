/*
 * mma.cuh -- tensor cores for 16-bit numbers, and copies into shared memory that run beside the
 * arithmetic: what compute capability 8.0 has, and the same on the CPU.
 *
 * A warp multiplies a [16,16] by b [16,8] and adds to c [16,8], f32.  With g = lane / 4 and
 * t = lane % 4, a lane holds these numbers, two of 16 bits in a register, the first one low (PTX
 * ISA, mma.m16n8k16):
 *
 *     a[0]: row g,     columns 2t, 2t+1        b[0]: rows 2t, 2t+1 of column g
 *     a[1]: row g + 8, the same columns        b[1]: rows 2t+8, 2t+9
 *     a[2]: row g,     columns 2t+8, 2t+9      c[0], c[1]: row g,     columns 2t, 2t+1
 *     a[3]: row g + 8, the same                c[2], c[3]: row g + 8, the same
 *
 * So the c of a product, rounded, is the a of another: c of columns 0..7 and of 8..15 make one a.
 */
#ifndef AG_CUDA_MMA_CUH
#define AG_CUDA_MMA_CUH

#include "number.cuh"

#ifndef __CUDACC__
#include <vector>
#endif

/* Two numbers rounded into a register. */
template <class T> static __device__ __forceinline__ uint32_t pack2(float low, float high)
{
    T x[2];
    put(&x[0], low);
    put(&x[1], high);
    return (uint32_t)x[0].bits | (uint32_t)x[1].bits << 16;
}

template <class T> static __device__ __forceinline__ float low_of(uint32_t x)
{
    const T v = { (uint16_t)x };
    return get(&v);
}
template <class T> static __device__ __forceinline__ float high_of(uint32_t x)
{
    return low_of<T>(x >> 16);
}

#ifdef __CUDACC__

template <class T>
static __device__ __forceinline__ void mma(float c[4], const uint32_t a[4], const uint32_t b[2]);

#define AG_MMA(T, name)                                                                 \
    template <> __device__ __forceinline__ void mma<T>(float c[4], const uint32_t a[4], \
                                                       const uint32_t b[2])             \
    {                                                                                   \
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." name "." name ".f32 "     \
                     "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"            \
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                   \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));  \
    }
AG_MMA(bf16, "bf16")
AG_MMA(f16, "f16")
#undef AG_MMA

static __device__ __forceinline__ unsigned shared_address(const void *p)
{
    return (unsigned)__cvta_generic_to_shared(p);
}

/* Four matrices of 8 rows of 8 numbers in shared memory: lane l gives the address of row l % 8 of
 * matrix l / 8, a multiple of 16 bytes, and gets columns 2t, 2t+1 of row g of each. */
static __device__ __forceinline__ void ldmatrix(uint32_t r[4], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(row))
                 : "memory");
}

/* The same, and gets rows 2t, 2t+1 of column g. */
static __device__ __forceinline__ void ldmatrix_trans(uint32_t r[4], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(row))
                 : "memory");
}

/* Copies of a thread that are on their way from global to shared memory. */
struct async_copies {
    /* 16 bytes, of which the first `bytes`, 0 or 16, are read and the others 0; `from` is aligned
     * to 16 bytes. */
    __device__ __forceinline__ void start(void *to, const void *from, int bytes)
    {
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                     :: "r"(shared_address(to)), "l"(from), "r"(bytes) : "memory");
    }
    /* All have arrived, for this thread: for others after a barrier. */
    __device__ __forceinline__ void wait()
    {
        asm volatile("cp.async.wait_all;" ::: "memory");
    }
};

#else

template <class T> static inline void mma(float c[4], const uint32_t a[4], const uint32_t b[2])
{
    struct { float a[4][2], b[2][2]; } mine, all[32];
    for (int i = 0; i < 4; i++) mine.a[i][0] = low_of<T>(a[i]), mine.a[i][1] = high_of<T>(a[i]);
    for (int i = 0; i < 2; i++) mine.b[i][0] = low_of<T>(b[i]), mine.b[i][1] = high_of<T>(b[i]);
    simt::exchange(AG_HERE, &mine, sizeof mine, all);
    const unsigned g = simt::lane() / 4, t = simt::lane() % 4;
    for (unsigned i = 0; i < 4; i++)
        for (unsigned k = 0; k < 16; k++) {
            const unsigned n = 2 * t + i % 2, of = k % 8 / 2;
            c[i] += all[g * 4 + of].a[i / 2 + k / 8 * 2][k % 2] * all[n * 4 + of].b[k / 8][k % 2];
        }
}

static inline void ldmatrix(uint32_t r[4], const void *row)
{
    const void *all[32];
    simt::exchange(AG_HERE, &row, sizeof row, all);
    const unsigned g = simt::lane() / 4, t = simt::lane() % 4;
    for (unsigned i = 0; i < 4; i++) r[i] = static_cast<const uint32_t *>(all[i * 8 + g])[t];
}

static inline void ldmatrix_trans(uint32_t r[4], const void *row)
{
    const void *all[32];
    simt::exchange(AG_HERE, &row, sizeof row, all);
    const unsigned g = simt::lane() / 4, t = simt::lane() % 4;
    for (unsigned i = 0; i < 4; i++)
        r[i] = (uint32_t)static_cast<const uint16_t *>(all[i * 8 + 2 * t])[g] |
            (uint32_t)static_cast<const uint16_t *>(all[i * 8 + 2 * t + 1])[g] << 16;
}

/* Nothing arrives before wait(), and until then the target is NaN. */
struct async_copies {
    struct copy { void *to; const void *from; int bytes; };
    std::vector<copy> on_the_way;

    void start(void *to, const void *from, int bytes)
    {
        memset(to, 0xff, 16);
        on_the_way.push_back({ to, from, bytes });
    }
    void wait()
    {
        for (const copy &c : on_the_way) {
            memset(c.to, 0, 16);
            memcpy(c.to, c.from, (size_t)c.bytes);
        }
        on_the_way.clear();
    }
};

#endif
#endif
