// What a CPU's own code offers; one implementation for each set of vectors (kernels.inc compiled several times).
#pragma once

#include <vector>

#include "matrix.hpp"

namespace sparsedraft {

struct Kernels {
  const char* name;
  // y[t * stride + r] = sum over c of W[r, c] x[t, c] for the rows of these tiles; y has room for whole tiles of rows.
  void (*multiply)(const Matrix& w, const Activations& x, float* y, size_t stride, size_t first, size_t last);
  // x [width] to 16-bit integers and a scale for every kBlock of them.
  void (*quantize)(const float* x, size_t width, int16_t* q, float* scale);
  // Whether `multiply` reads what `split` writes of so many tokens, a part of 2 * width * kGroup bytes for every kGroup; null: never.
  bool (*wants_split)(const Matrix& m, int tokens);
  void (*split)(const int16_t* q, size_t width, int tokens, uint8_t* out);
  // out = x / rms(x) * weight; `one_more`: times (1 + weight), as Gemma has it.
  void (*rms_norm)(const float* x, const float* weight, float eps, bool one_more, float* out, size_t n);
  // gate = act(gate) * up; `gelu`: tanh-approximated instead of SiLU.
  void (*gated)(float* gate, const float* up, size_t n, bool gelu);
  // Scores of one query over `count` keys, softmax, and the weighted sum of the values; keys and values lie `dim` apart, and
  // `seen` (or null: the first ones) says which they are. `scores` is scratch of `count`.
  void (*attend)(const float* query, const float* keys, const float* values, size_t dim, size_t count, float scale,
                 const int32_t* seen, float* scores, float* out);
};

extern const Kernels kernels_portable;
#ifdef SPARSEDRAFT_AVX2
extern const Kernels kernels_avx2, kernels_avx512;
const Kernels* kernels_amx();  // null where the compiler, or this CPU, has none; to be asked where kernels_avx512 run
#endif

// Those that this CPU runs, the best first.
std::vector<const Kernels*> available();
// The best that this CPU runs, or the one of this name (std::invalid_argument if it is not there).
const Kernels& kernels(const char* name = nullptr);

}  // namespace sparsedraft
