// Which sets of kernels this CPU runs.
#include <string>

#include "kernels/kernels.hpp"

#if defined(SPARSEDRAFT_NEON) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace sparsedraft {

#ifdef SPARSEDRAFT_NEON
namespace {
bool has_dot_products() {
#if defined(__linux__)
  constexpr unsigned long kDotProducts = 1ul << 20;  // HWCAP_ASIMDDP; older headers do not name it
  return getauxval(AT_HWCAP) & kDotProducts;
#elif defined(__APPLE__)
  return true;  // of every Mac with an ARM CPU
#else
  return false;
#endif
}
}  // namespace
#endif

std::vector<const Kernels*> available() {
  std::vector<const Kernels*> sets;
#ifdef SPARSEDRAFT_AVX2
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni") &&
                      __builtin_cpu_supports("avx512vbmi2") && __builtin_cpu_supports("gfni");
  if (avx512) {
    if (const Kernels* amx = kernels_amx()) sets.push_back(amx);
    sets.push_back(&kernels_avx512);
  }
  if (avx2) sets.push_back(&kernels_avx2);
#endif
#ifdef SPARSEDRAFT_NEON
  if (has_dot_products()) sets.push_back(&kernels_neon);
#endif
  sets.push_back(&kernels_portable);
  return sets;
}

const Kernels& kernels(const char* name) {
  for (const Kernels* set : available())
    if (!name || std::string(name) == set->name) return *set;
  throw std::invalid_argument("no kernels named " + std::string(name) + " for this CPU");
}

}  // namespace sparsedraft
