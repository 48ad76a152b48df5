/* none.c -- in the place of a GPU where the program is built without CUDA. */
#include "cuda.h"

int ag_cuda_open(const ag_device **ret, ag_err *err)
{
    *ret = NULL;
    return ag_err_set(err, AG_EFAIL, "train.device = cuda: this program was built without CUDA; "
                      "with the CUDA toolkit installed, -Dcuda=enabled builds it in");
}

void ag_cuda_close(void) {}
void ag_cuda_time_begin(void) {}
double ag_cuda_time_end(void) { return 0; }
long ag_cuda_refused_products(void) { return 0; }

const ag_kernels *ag_kernels_cuda(ag_dtype dtype)
{
    (void)dtype;
    return NULL;
}
