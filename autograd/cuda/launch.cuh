/*
 * launch.cuh -- how the host side of a kernel family runs kernels, and what it may ask of the
 * device (device.cu).
 *
 * Everything runs in one stream, so in order.  A kernel that does not start, and a call of the
 * runtime that fails, leave an error with the device, of which the first is kept; nothing here
 * returns one.
 */
#ifndef AG_CUDA_LAUNCH_CUH
#define AG_CUDA_LAUNCH_CUH

#include "autograd/device.h"
#include "autograd/flat.h"
#include "autograd/kernels.h"
#include "runtime.h"
#include "simt.h"

cudaStream_t ag_cuda_stream(void);
/* Is no error kept?  While one is, nothing is launched: it would compute on what is not there. */
bool ag_cuda_works(void);
/* After a launch: keeps its error, with the name of the kernel. */
void ag_cuda_launched(const char *kernel);
/* Is e success?  Keeps the error if not, `what` being what was tried. */
bool ag_cuda_ok(cudaError_t e, const char *what);
/* Keeps this as the error. */
void ag_cuda_fail(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* Lets a kernel have more shared memory than the 48 KB that all have.  False: it cannot. */
bool ag_cuda_room(const void *kernel, size_t shared_bytes);
size_t ag_cuda_shared_most(void);    /* bytes that a block can have so: 227 KB, or 99 KB (8.6) */
/* At least `bytes` of device memory that a kernel may use until the next call of this; NULL: an
 * error is kept.  All launches being in order, the next user waits for the last. */
void *ag_cuda_workspace(size_t bytes);
bool ag_cuda_captures(void);         /* is what is launched kept as a graph (graph.cu)? */
int ag_cuda_processors(void);        /* how many: for the size of grids */
int ag_cuda_major(void);             /* of the compute capability: 9 of an H100 */

/* AG_LAUNCH(kernel, grid, block, bytes of shared memory, arguments...).  A grid of no block is not
 * run.  A template with a comma goes in parentheses. */
#ifdef __CUDACC__
#define AG_RUN(kernel, g, b, s, ...)                                                    \
    if (ag_cuda_room((const void *)(kernel), s))                                        \
        (kernel)<<<g, b, s, ag_cuda_stream()>>>(__VA_ARGS__)
#else
namespace simt {
template <class T> struct given { typedef T type; };
/* A pointer must be to memory that a kernel reaches: the host's ends the program. */
void check_argument(const char *kernel, const void *p);
template <class T> void check_argument(const char *, const T &) {}
template <class T> void check_argument(const char *kernel, T *const &p)
{
    check_argument(kernel, (const void *)p);
}
/* The arguments are those of now, however late the kernel runs. */
template <class... T>
auto call_later(const char *name, void (*kernel)(T...), typename given<T>::type... args)
{
    (check_argument(name, args), ...);
    return [=] { kernel(args...); };
}
}
#define AG_RUN(kernel, g, b, s, ...)                                                    \
    simt::launch(#kernel, g, b, s, simt::call_later(#kernel, kernel, __VA_ARGS__))
#endif

#define AG_LAUNCH(kernel, grid, block, shared, ...)                                     \
    do {                                                                                \
        const dim3 grid_ = (grid), block_ = (block);                                    \
        const size_t shared_ = (shared);                                                \
        if (grid_.x && grid_.y && grid_.z && ag_cuda_works()) {                         \
            AG_RUN(kernel, grid_, block_, shared_, __VA_ARGS__);                        \
            ag_cuda_launched(#kernel);                                                  \
        }                                                                               \
    } while (0)

/* May p be read 16 bytes at a time?  NULL may. */
static inline bool aligned(const void *p) { return ((uintptr_t)p & 15) == 0; }

/* Blocks of `per` elements for n, at most what a grid may have. */
static inline unsigned blocks_for(int64_t n, int64_t per)
{
    const int64_t blocks = (n + per - 1) / per;
    return (unsigned)(blocks < 0x7fffffff ? blocks : 0x7fffffff);
}

/* The rows of the table that each family fills in, for number type T; instantiated in its file for
 * float, bf16 and f16. */
template <class T> void map_table(ag_kernels *k);        /* map.cu: elementwise */
template <class T> void copy_table(ag_kernels *k);       /* copy.cu: from row to row */
template <class T> void noise_table(ag_kernels *k);      /* noise.cu: dropout, normal numbers */
template <class T> void rows_table(ag_kernels *k);       /* rows.cu: along rows and columns */
template <class T> void norm_table(ag_kernels *k);       /* norm.cu: layer normalisation */
template <class T> void draw_table(ag_kernels *k);       /* draw.cu: an index by its probability */
template <class T> void embedding_table(ag_kernels *k);  /* embedding.cu: by index */
template <class T> void gemm_table(ag_kernels *k);       /* gemm.cu */
template <class T> void attention_table(ag_kernels *k);  /* attention.cu */
template <class T> void controller_table(ag_kernels *k); /* controller.cu */
template <class T> void choose_table(ag_kernels *k);     /* choose.cu */
template <class T> void live_table(ag_kernels *k);       /* live.cu */
void scan_table(ag_kernels *k);                          /* scan.cu: f32 only */
void lsh_table(ag_kernels *k);                           /* lsh.cu: f32 only */
ag_flat flat_table(void);                                /* flat.cu: the optimizer */
void graph_table(ag_device *d);                          /* graph.cu: what is kept */

#endif
