// The 256-bit kernels, for CPUs with AVX-512 (VL and VNNI).
#define VECTORS simd_avx512
#define SPARSEDRAFT_TOKENS 8
#define SPARSEDRAFT_KERNELS kernels_avx512
#define KERNELS_NAME "avx512"
#include "simd_avx2.hpp"

#include "kernels.inc"
