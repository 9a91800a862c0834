// For CPUs with AVX-512 (VL, VNNI, VBMI2): two tiles at once in 512 bits, which halves the instructions of a sparse matrix and
// hides memory's latency behind two streams; what is not a product, and windows, in 256. And the same with AMX.
#define VECTORS simd_avx512
#define SPARSEDRAFT_TOKENS 8
#define SPARSEDRAFT_KERNELS kernels_avx512
#define KERNELS_NAME "avx512"
#define SPARSEDRAFT_MULTIPLY multiply_wide
#ifdef __AMX_INT8__
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "simd_avx2.hpp"

#include "kernels.inc"

namespace sparsedraft {
#ifdef __AMX_INT8__
namespace VECTORS {
#include "amx.inc"
}  // namespace VECTORS

namespace {
constinit const Kernels amx = {"amx",          VECTORS::multiply_amx, VECTORS::quantize, VECTORS::wants_split,
                               VECTORS::split, VECTORS::rms_norm,     VECTORS::gated,    VECTORS::attend};
}
const Kernels* kernels_amx() { return VECTORS::amx_here() ? &amx : nullptr; }
#else
const Kernels* kernels_amx() { return nullptr; }
#endif
}  // namespace sparsedraft
