/* attention.cu -- attention. */
#include "launch.cuh"
#include "number.cuh"

template <class T> void attention_table(ag_kernels *k) { (void)k; }
template void attention_table<float>(ag_kernels *k);
template void attention_table<bf16>(ag_kernels *k);
template void attention_table<f16>(ag_kernels *k);
