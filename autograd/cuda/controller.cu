/* controller.cu -- the 1-in-N controller. */
#include "launch.cuh"
#include "number.cuh"

template <class T> void controller_table(ag_kernels *k) { (void)k; }
template void controller_table<float>(ag_kernels *k);
template void controller_table<bf16>(ag_kernels *k);
template void controller_table<f16>(ag_kernels *k);
