// The 256-bit kernels, for CPUs with AVX-512 (VL, VNNI, VBMI2), and 512 bits where they pay: dense int8 and many tokens,
// and masks of bits.
#define VECTORS simd_avx512
#define SPARSEDRAFT_TOKENS 8
#define SPARSEDRAFT_KERNELS kernels_avx512
#define KERNELS_NAME "avx512"
#define SPARSEDRAFT_MULTIPLY multiply_wide
#include "simd_avx2.hpp"

#include "kernels.inc"
