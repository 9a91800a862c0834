// Which sets of kernels this CPU runs.
#include <string>

#include "kernels/kernels.hpp"

namespace sparsedraft {

std::vector<const Kernels*> available() {
  std::vector<const Kernels*> sets;
#ifdef SPARSEDRAFT_AVX2
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni") &&
                      __builtin_cpu_supports("avx512vbmi2");
  if (avx512) {
    if (const Kernels* amx = kernels_amx()) sets.push_back(amx);
    sets.push_back(&kernels_avx512);
  }
  if (avx2) sets.push_back(&kernels_avx2);
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
