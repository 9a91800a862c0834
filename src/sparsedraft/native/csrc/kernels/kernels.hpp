// kernels/: what runs on a CPU's vectors. READ THIS FIRST.
//
// A set of kernels is one Kernels struct: products of a laid-out matrix, and what a layer computes beside products. There are
// five sets, for five kinds of CPU; all give the same bits. select.cpp asks the CPU which of them it runs.
//
// Read in this order:
//   kernels.hpp          what a set offers (this file)
//   simd_portable.hpp    8 lanes of floats and integers in plain C++: the specification of each operation
//   elementwise.inc      quantisation, norm and gate
//   attention.inc        attention of a block of queries; layout/key_blocks.hpp says what it reads
//   multiply.inc         products: which function for which layout, how many tokens at once
//   multiply_floats.inc, multiply_int8.inc   products, one function a layout
//   multiply_int4.inc    the same of int4; int4_records.inc, int4_masks.inc with few tokens, int4_slab.inc with many;
//                        dense_pairs.inc two dense tiles at once
//   blocks.inc           the same of the types of GGUF files
//   spread.inc           a mask of bits -> a dense tile
//   simd_avx2.hpp        the same operations in 256 bits
//   simd_neon.hpp        the same in twice 128 bits, on ARM
//   wide.inc, simd_avx512.inc   two tiles at once in 512 bits
//   amx.inc              dense int8 and masks times many tokens on AMX; amx_bytes.inc   all weights for 8-bit inputs
//   portable.cpp, avx2.cpp, avx512.cpp, neon.cpp   the sets; select.cpp chooses one
//
// Why files are included several times. Each set is the same source compiled for another CPU, so it must lie in a namespace of
// its own: an inline function or template with one name for two sets would be merged by the linker, and code for AVX-512
// would run on a CPU without it. So portable.cpp, avx2.cpp, avx512.cpp and neon.cpp each set VECTORS (the namespace) and include
// kernels.inc, which includes the others; apart.cmake proves at build time that nothing is shared. And multiply.inc is written
// for vectors of any width: wide.inc includes it once more, in the namespace `wide`, for two tiles at once. A template over a
// class of vectors would do the same and be harder to read: every `load(p)` would become `V::load(p)`.
#pragma once

#include <vector>

#include "layout/key_blocks.hpp"
#include "layout/matrix.hpp"

namespace sparsedraft {

constexpr int kGroup = 16;      // tokens that Kernels::split takes together
constexpr size_t kUnit8 = 32;   // neighbouring inputs of Activations::q8

// Inputs of a product: `tokens` rows, each padded to the matrix's width with zeros. As floats; for matrices of int8 also as 16-bit
// integers with a scale for every kBlock of them: x = q * scale. (15 bits lose about 1e-5 of a block's largest value; 8 bits
// would cost acceptance.)
struct Activations {
  const float* x = nullptr;
  const int16_t* q = nullptr;
  const float* scale = nullptr;    // [tokens, blocks]
  size_t width = 0;                // inputs of a token, padded
  size_t blocks = 0;               // scales of a token
  int tokens = 0;
  const uint8_t* bytes = nullptr;  // q once more as Kernels::split lays it out; null where no matrix wants that
  // For matrices of int4 and of GGUF's types, tokens in groups of `together` (the last may be smaller), so that one pointer reaches all of a group:
  const int8_t* q8 = nullptr;       // [group][width / 32][token of the group][32], 8-bit integers, kSlack more at the end,
  const int32_t* start8 = nullptr;  // [group][width / 32][token of the group], -8 times the sum of 32 of these integers,
  const int32_t* half8 = nullptr;   // the same of the first 16 of them
  const float* ratio8 = nullptr;    // the same: at the first 32 of each 64 inputs, which share a scale, the scale before / theirs
  const float* last8 = nullptr;     // [tokens], the last scale
  int together = 1;
};

// Keys and values of one head: the first blocks are those of a cache, the others may be made of copies.
struct KeyBlocks {
  const KeyBlockShape* shape;
  const uint8_t* cached;
  const uint8_t* copied;
  size_t from;    // the first copied block
  uint8_t* wide;  // of 8 bits only: room for a block of 16 bits
  const uint8_t* block(size_t i) const { return i < from ? cached + i * shape->bytes() : copied + (i - from) * shape->bytes(); }
};

constexpr int kMostQueries = 64;  // of one call of Kernels::attend

// Queries that read the same keys: query = words * scale, where the scale holds that of the scores and log2(e), too, as the kernels
// take powers of two. Query r sees the tokens from begin[r] to end[r], at least one; neither falls from one query to the next.
struct Queries {
  const int16_t* words;  // [count, stride], as to_key_words gives them, and 0 behind an odd size
  size_t stride;         // even
  const float* scale;    // [count]
  const int32_t* begin;  // [count]
  const int32_t* end;    // [count]
  int count;
};

struct Kernels {
  const char* name;
  // y[t * stride + r] = sum over c of W[r, c] x[t, c] for the rows r of the tiles from `first` to `last`; y has room for whole
  // tiles of rows.
  void (*multiply)(const Matrix& w, const Activations& x, float* y, size_t stride, size_t first, size_t last);
  // q = round(x / scale), scale = max |x| / 32767 over each kBlock of x [width].
  void (*quantize)(const float* x, size_t width, int16_t* q, float* scale);
  // The members q8, start8, half8, ratio8 and last8 of Activations for one token of a group of `together`, from its first value on. Every 64
  // of x [width] share the scale max |x| / 127.
  void (*quantize8)(const float* x, size_t width, size_t together, int8_t* q, int32_t* start, int32_t* half, float* ratio,
                    float* last);
  int most_together;  // tokens of a group of Activations::q8, at most
  // Whether `multiply` reads what `split` writes of so many tokens: 2 * width * kGroup bytes for every kGroup. Null: never.
  bool (*wants_split)(const Matrix& m, int tokens);
  void (*split)(const int16_t* q, size_t width, int tokens, uint8_t* out);
  // out = x / sqrt(mean(x^2) + eps) * weight; `one_more`: times (1 + weight), as Gemma has it.
  void (*rms_norm)(const float* x, const float* weight, float eps, bool one_more, float* out, size_t n);
  // gate = act(gate) * up; act is SiLU, or with `gelu` GELU in its tanh approximation.
  void (*gated)(float* gate, const float* up, size_t n, bool gelu);
  // out[r] = sum over j of softmax2(query r . key[j]) value[j], softmax2(s)[j] = 2^s[j] / sum over i of 2^s[i], over the tokens j that query r sees: [queries, KeyBlockShape::width].
  void (*attend)(const KeyBlocks& seen, const Queries& queries, float* out);
};

extern const Kernels kernels_portable;
#ifdef SPARSEDRAFT_AVX2
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
const Kernels* kernels_amx();  // null where the compiler or this CPU has no AMX; call it only where kernels_avx512 run
#endif
#ifdef SPARSEDRAFT_NEON
extern const Kernels kernels_neon;
#endif

// The sets that this CPU runs, the fastest first.
std::vector<const Kernels*> available();
// The fastest set that this CPU runs, or the one of this name (std::invalid_argument where it does not run here).
const Kernels& kernels(const char* name = nullptr);

}  // namespace sparsedraft
