// The sets for CPUs with AVX-512 (VL, VNNI, VBMI2, GFNI), without and with AMX. Two tiles at once in 512 bits halve the instructions of a
// sparse matrix and hide memory's latency behind two streams. Windows, and all that is not a product, run in 256 bits.
#define VECTORS simd_avx512
#define SPARSEDRAFT_TOKENS 8
#define SPARSEDRAFT_TOGETHER 12
#define SPARSEDRAFT_SPREAD_DENSE true
#define SPARSEDRAFT_KERNELS kernels_avx512
#define KERNELS_NAME "avx512"
#define SPARSEDRAFT_MULTIPLY multiply_wide
#ifdef __AMX_INT8__
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "kernels/simd_avx2.hpp"

#include "kernels/kernels.inc"

namespace sparsedraft {
#ifdef __AMX_INT8__
namespace VECTORS {
#include "kernels/amx.inc"
}  // namespace VECTORS

namespace {
constinit const Kernels amx = {"amx",          VECTORS::multiply_amx, VECTORS::quantize, VECTORS::quantize8, VECTORS::wide::kMostOnAmx, VECTORS::wants_split,
                               VECTORS::split, VECTORS::rms_norm,     VECTORS::gated,    VECTORS::attend};
}
const Kernels* kernels_amx() { return VECTORS::amx_available() ? &amx : nullptr; }
#else
const Kernels* kernels_amx() { return nullptr; }
#endif
}  // namespace sparsedraft
