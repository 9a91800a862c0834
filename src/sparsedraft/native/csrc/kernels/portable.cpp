// The set for any CPU, in plain C++.
#define VECTORS simd_portable
#define SPARSEDRAFT_TOKENS 1  // one at a time: this set need not be fast, and there is less to compile
#define SPARSEDRAFT_TOGETHER 1
#define SPARSEDRAFT_SPREAD_DENSE true
#define SPARSEDRAFT_KERNELS kernels_portable
#define KERNELS_NAME "portable"
#include "kernels/simd_portable.hpp"

#include "kernels/kernels.inc"
