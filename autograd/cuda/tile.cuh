/* tile.cuh -- the side of a tile of attention: queries, and keys. */
#ifndef AG_CUDA_TILE_CUH
#define AG_CUDA_TILE_CUH

#define DEVICE static __device__ __forceinline__

constexpr int TILE = 64;             /* noise comes in groups of 64 columns */

#endif
