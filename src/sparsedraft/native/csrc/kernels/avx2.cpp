// The set for CPUs with AVX2, FMA and F16C.
#define VECTORS simd_avx2
#define SPARSEDRAFT_TOKENS 6
#define SPARSEDRAFT_TOGETHER 4
#define SPARSEDRAFT_SPREAD_DENSE false  // unpacking dense codes again for a few tokens at a time costs less than reading them spread out
#define SPARSEDRAFT_KERNELS kernels_avx2
#define KERNELS_NAME "avx2"
#include "kernels/simd_avx2.hpp"

#include "kernels/kernels.inc"
