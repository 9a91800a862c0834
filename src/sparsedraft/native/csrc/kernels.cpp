#include "kernels.hpp"

#include <string>

namespace sparsedraft {

std::vector<const Kernels*> available() {
  std::vector<const Kernels*> found;
#ifdef SPARSEDRAFT_AVX2
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi2")) {
    if (const Kernels* amx = kernels_amx()) found.push_back(amx);
    found.push_back(&kernels_avx512);
  }
  if (avx2) found.push_back(&kernels_avx2);
#endif
  found.push_back(&kernels_portable);
  return found;
}

const Kernels& kernels(const char* name) {
  for (const Kernels* k : available())
    if (!name || std::string(name) == k->name) return *k;
  throw std::invalid_argument("no kernels named " + std::string(name) + " for this CPU");
}

}  // namespace sparsedraft
