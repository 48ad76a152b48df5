/* gemm.cu -- products of matrices. */
#include "launch.cuh"
#include "number.cuh"

template <class T> void gemm_table(ag_kernels *k) { (void)k; }
template void gemm_table<float>(ag_kernels *k);
template void gemm_table<bf16>(ag_kernels *k);
template void gemm_table<f16>(ag_kernels *k);
