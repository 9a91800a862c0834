#include "kernels.hpp"

#include <string>

namespace sparsedraft {
namespace {

const Kernels* found(const char* name) {
#ifdef SPARSEDRAFT_AVX2
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c") &&
      (!name || std::string(name) == kernels_avx2.name))
    return &kernels_avx2;
#endif
  return !name || std::string(name) == kernels_portable.name ? &kernels_portable : nullptr;
}

}  // namespace

const Kernels& kernels(const char* name) {
  if (const Kernels* k = found(name)) return *k;
  throw std::invalid_argument("no kernels named " + std::string(name) + " for this CPU");
}

}  // namespace sparsedraft
