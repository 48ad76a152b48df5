/*
 * cuda.h -- the GPU as a device (autograd/device.h) and its kernel tables.
 *
 * The program is linked with one of: device.cu and its kernels; none.c, where it is built without
 * CUDA; the same kernels run on the CPU (tests/simt), in tests.
 */
#ifndef AG_CUDA_H
#define AG_CUDA_H

#include "autograd/base/error.h"
#include "autograd/device.h"
#include "autograd/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Takes the first GPU that CUDA_VISIBLE_DEVICES leaves.  AG_EFAIL: built without CUDA, no driver,
 * no GPU; the message says which.  Again: the same device. */
int ag_cuda_open(const ag_device **ret, ag_err *err);
/* Gives back what the device holds for itself; blocks that were allocated stay. */
void ag_cuda_close(void);
/* The table of that number type, f32, bf16 or f16, once the device is open; NULL: not open. */
const ag_kernels *ag_kernels_cuda(ag_dtype dtype);

/* For benchmarks: seconds of the GPU's clock from one to the other; waits. */
void   ag_cuda_time_begin(void);
double ag_cuda_time_end(void);
/* Products so far that cuBLASLt did not do, so that a slow kernel did. */
long   ag_cuda_refused_products(void);

#ifdef __cplusplus
}
#endif
#endif
