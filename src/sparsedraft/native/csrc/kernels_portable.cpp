#include "simd_portable.hpp"
#define SPARSEDRAFT_TOKENS 1  // nobody waits for these: less to compile
#define VECTORS simd_portable
#define SPARSEDRAFT_KERNELS kernels_portable
#define KERNELS_NAME "portable"
#include "kernels.inc"
