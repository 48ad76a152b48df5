/* rows.cu -- kernels along rows and columns. */
#include "launch.cuh"
#include "number.cuh"

template <class T> void rows_table(ag_kernels *k) { (void)k; }
template void rows_table<float>(ag_kernels *k);
template void rows_table<bf16>(ag_kernels *k);
template void rows_table<f16>(ag_kernels *k);
