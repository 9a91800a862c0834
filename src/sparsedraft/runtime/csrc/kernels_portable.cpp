#include "simd_portable.hpp"
#define SPARSEDRAFT_ONE_TOKEN
#define VECTORS simd_portable
#define SPARSEDRAFT_KERNELS kernels_portable
#define KERNELS_NAME "portable"
#include "kernels.inc"
