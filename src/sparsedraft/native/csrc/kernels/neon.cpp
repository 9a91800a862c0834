// The set for 64-bit ARM with NEON's products of bytes (sdot; ARMv8.2 with dotprod).
//
// A vector of 8 lanes is two of 32 registers. Four tokens' sums of 16 rows take 16 of these, the codes of two steps 8, inputs and
// constants 3; GCC 12 then keeps no sum of a block in memory. Six tokens' sums of 8 rows take 24, their weights 4 to 6.
// (smmla, of i8mm, multiplies two rows with two tokens: it would need tiles and inputs that lie otherwise.)
#define VECTORS simd_neon
#define SPARSEDRAFT_TOKENS 6
#define SPARSEDRAFT_TOGETHER 4
#define SPARSEDRAFT_SPREAD_DENSE true
#define SPARSEDRAFT_KERNELS kernels_neon
#define KERNELS_NAME "neon"
#include "kernels/simd_neon.hpp"

#include "kernels/kernels.inc"
