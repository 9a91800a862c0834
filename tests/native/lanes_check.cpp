// The kernels of int4 and of GGUF's types for vectors of 16 lanes, which need AVX-512, in plain C++: two vectors of 8 lanes stand for one. They must give
// the bits of the portable set, in each layout and for any number of tokens. `make lanes` builds and runs this.
#define VECTORS simd_sixteen
#include "kernels/simd_portable.hpp"
// the set itself first, for what is shared: namespaces, spread64
#include "engine/linear.hpp"
#include "layout/lay_out.hpp"
#include "layout/records.hpp"
#include "layout/blocks.hpp"

#include <algorithm>
#include <bit>
#include <cstdio>
#include <cstring>
#include <utility>

namespace sparsedraft::simd_sixteen {

namespace half = simd_portable;
using half::prefetch;
using half::spread16;
using half::spread8;
constexpr size_t kAhead = 4096;
#include "kernels/spread.inc"

struct F {
  half::F part[2];
};
struct I {
  half::I part[2];
};
template <class A, class Do>
inline A both(Do make) {
  return {{make(0), make(1)}};
}

inline F zero() { return {}; }
inline F splat(float x) {
  return both<F>([&](int) { return half::splat(x); });
}
inline F load(const float* p) {
  return both<F>([&](int i) { return half::load(p + 8 * i); });
}
inline void store(float* p, F a) {
  for (int i = 0; i < 2; ++i) half::store(p + 8 * i, a.part[i]);
}
inline F add(F a, F b) {
  return both<F>([&](int i) { return half::add(a.part[i], b.part[i]); });
}
inline F mul(F a, F b) {
  return both<F>([&](int i) { return half::mul(a.part[i], b.part[i]); });
}
inline F fma(F a, F b, F c) {
  return both<F>([&](int i) { return half::fma(a.part[i], b.part[i], c.part[i]); });
}
inline F to_float(I a) {
  return both<F>([&](int i) { return half::to_float(a.part[i]); });
}
inline I splat32(int32_t x) {
  return both<I>([&](int) { return half::splat32(x); });
}
inline I splat32(const void* p) {
  return both<I>([&](int) { return half::splat32(p); });
}
inline I splat128(const void* p) {
  return both<I>([&](int) { return half::splat128(p); });
}
#define SPARSEDRAFT_OF_TWO(name) \
  inline I name(I a, I b) { return both<I>([&](int i) { return half::name(a.part[i], b.part[i]); }); }
SPARSEDRAFT_OF_TWO(bits_and)
SPARSEDRAFT_OF_TWO(bits_or)
SPARSEDRAFT_OF_TWO(bits_xor)
SPARSEDRAFT_OF_TWO(sub32)
SPARSEDRAFT_OF_TWO(shuffle)
SPARSEDRAFT_OF_TWO(zip_low)
SPARSEDRAFT_OF_TWO(zip_high)
template <int S>
inline I left32(I a) {
  return both<I>([&](int i) { return half::left32<S>(a.part[i]); });
}
template <int S>
inline I right32(I a) {
  return both<I>([&](int i) { return half::right32<S>(a.part[i]); });
}
inline I where_equal(I a, I b, I yes, I no) {
  return both<I>([&](int i) { return half::where_equal(a.part[i], b.part[i], yes.part[i], no.part[i]); });
}
inline I begin_codes(const int32_t* start) { return splat32(start); }
inline I end_codes(I sum, const int32_t*) { return sum; }
inline I add_codes(I sum, I codes, I bytes) {
  return both<I>([&](int i) { return half::add_codes(sum.part[i], codes.part[i], bytes.part[i]); });
}
inline I factors_of(I codes) { return codes; }
inline I add_eights(I sum, I bytes) { return add_codes(sum, splat32(0x08080808), bytes); }
inline I add_wide_codes(I sum, I a, I x, I b, I y) { return add_codes(add_codes(sum, a, x), b, y); }
inline I begin_bytes(const int32_t* start) { return splat32(16 * *start); }
inline I bytes_of(I weights) { return bits_xor(weights, splat32(static_cast<int32_t>(0x80808080))); }
inline I add_bytes(I sum, I bytes, I x) { return add_codes(sum, bytes, x); }
constexpr int kLanes = 16;
inline I load_words(const uint8_t* p) {
  return both<I>([&](int i) { return half::iload(p + 32 * i); });
}
inline void store_words(uint8_t* p, I a) {
  for (int i = 0; i < 2; ++i) half::istore(p + 32 * i, a.part[i]);
}
inline I right32(I a, int by) {
  return both<I>([&](int i) { return half::right32(a.part[i], by); });
}
using Repeated = I;
inline Repeated repeated32(const void* p) { return splat32(p); }
inline F half_floats(const uint8_t* p) {
  return both<F>([&](int i) { return half::halves(p + 16 * i); });
}
inline F byte_floats(const uint8_t* p) {
  return both<F>([&](int i) { return half::to_float(half::bytes_to_words(p + 8 * i)); });
}
#define SPARSEDRAFT_TOGETHER 12
#define SPARSEDRAFT_SPREAD_DENSE true
#include "kernels/multiply_int4.inc"

}  // namespace sparsedraft::simd_sixteen

using namespace sparsedraft;

namespace {

uint64_t state = 1;
uint32_t draw() {  // Knuth's MMIX
  state = state * 6364136223846793005ULL + 1442695040888963407ULL;
  return static_cast<uint32_t>(state >> 33);
}

Matrix matrix(Layout layout, int n, size_t kept, size_t of, size_t rows, size_t columns, size_t group) {
  std::vector<int8_t> codes(rows * columns);
  for (size_t i = 0; i < codes.size(); ++i)
    if (i % columns % of < kept) codes[i] = static_cast<int8_t>(static_cast<int>(draw() % 16) - 8);
  std::vector<uint16_t> scales(rows * (padded(columns, group) / group));
  for (uint16_t& s : scales) s = static_cast<uint16_t>((draw() & 0x83FF) | (8 + draw() % 4) << 10);
  RowMajor source;
  source.values = codes.data();
  source.type = Values::i4;
  source.rows = rows;
  source.columns = columns;
  source.halves = scales.data();
  source.group = group;
  return lay_out(source, layout, n);
}

// A matrix of GGUF's blocks, whose float16 begin at these bytes of each.
Matrix blocks(Values type, std::vector<size_t> halves, size_t rows, size_t columns) {
  const BlockType t = block_type(type);
  std::vector<uint8_t> bytes(rows * row_bytes(t, columns));
  for (uint8_t& b : bytes) b = static_cast<uint8_t>(draw());
  for (size_t block = 0; block < bytes.size(); block += t.bytes)
    for (const size_t at : halves) {
      const uint16_t half = static_cast<uint16_t>((draw() & 0x83FF) | (8 + draw() % 4) << 10);
      std::memcpy(bytes.data() + block + at, &half, 2);
    }
  RowMajor source;
  source.values = bytes.data();
  source.type = type;
  source.rows = rows;
  source.columns = columns;
  return lay_out(source, Layout::dense, 0);
}

// Whether `set` gives the portable set's bits for any number of tokens; says where it does not.
bool same(const Kernels& set, const Matrix& m, const char* what, int number) {
  Pool pool(1);
  for (const int tokens : {1, 2, 4, 5, 7, 8, 9, 12, 23, 100}) {
    ActivationBuffer buffer;
    buffer.resize(m.columns, tokens);
    for (int t = 0; t < tokens; ++t)
      for (size_t i = 0; i < m.columns; ++i) buffer.row(t)[i] = (static_cast<float>(draw() % 4001) - 2000.0f) / 512.0f;
    const size_t stride = padded(m.rows, kRows4);
    std::vector<float> expected(stride * tokens), found(stride * tokens);
    multiply_all(kernels_portable, pool, buffer, {{&m, expected.data(), stride}});
    multiply_all(set, pool, buffer, {{&m, found.data(), stride}});
    if (!std::memcmp(expected.data(), found.data(), found.size() * 4)) continue;
    std::printf("%s %d, groups of %zu, %d tokens\n", what, number, m.group, tokens);
    return false;
  }
  return true;
}

}  // namespace

int main() {
  struct Case {
    Layout layout;
    int n;
    size_t kept, of;
  };
  const Case cases[] = {{Layout::dense, 0, 1, 1}, {Layout::two_four, 2, 2, 4}, {Layout::n_eight, 4, 4, 8},
                        {Layout::n_eight, 2, 2, 8}, {Layout::bitmask, 0, 3, 7}};
  const Kernels sixteen = [] {
    Kernels k = kernels_portable;
    k.multiply = simd_sixteen::multiply_bytes;
    k.most_together = SPARSEDRAFT_TOGETHER;
    return k;
  }();
  bool equal = true;
  for (const Case& c : cases)
    for (const size_t group : {32, 64, 128, 256})
      equal &= same(sixteen, matrix(c.layout, c.n, c.kept, c.of, 35, 1096, group), "layout", static_cast<int>(c.layout));
  for (const Values type : {Values::q8_0, Values::q5_0}) equal &= same(sixteen, blocks(type, {0}, 35, 1120), "type", static_cast<int>(type));
  for (const Values type : {Values::q4_1, Values::q5_1, Values::q4_k, Values::q5_k})
    equal &= same(sixteen, blocks(type, {0, 2}, 35, 1280), "type", static_cast<int>(type));
  equal &= same(sixteen, blocks(Values::q6_k, {208}, 35, 1280), "type", static_cast<int>(Values::q6_k));
  if (!equal) return 1;
  std::puts("equal");
}
