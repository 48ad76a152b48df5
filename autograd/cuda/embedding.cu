/* embedding.cu -- kernels that go by index. */
#include "launch.cuh"
#include "number.cuh"

template <class T> void embedding_table(ag_kernels *k) { (void)k; }
template void embedding_table<float>(ag_kernels *k);
template void embedding_table<bf16>(ag_kernels *k);
template void embedding_table<f16>(ag_kernels *k);
