// Prints checksums of what a set of kernels computes: products in each layout, type of values and number of tokens; attention,
// norms and gates of every size; inputs as integers of 8 bits. `make aarch64` runs it for the portable set on this machine and for
// each set on an emulated aarch64: the lines must be the same. Without a name it prints those of the sets that this CPU runs.
// (test_kernels.py and test_kernel_bits.py compare the sets of kernels of one CPU.)
#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "engine/linear.hpp"
#include "layout/blocks.hpp"
#include "layout/lay_out.hpp"

using namespace sparsedraft;

namespace {

uint64_t state = 1;
uint32_t draw() {  // Knuth's MMIX
  state = state * 6364136223846793005ULL + 1442695040888963407ULL;
  return static_cast<uint32_t>(state >> 33);
}

template <class T>
unsigned long long checksum(const std::vector<T>& y) {  // FNV-1a
  unsigned long long hash = 14695981039346656037ULL;
  for (const T& value : y) {
    uint8_t bytes[sizeof(T)];
    std::memcpy(bytes, &value, sizeof(T));
    for (const uint8_t b : bytes) hash = (hash ^ b) * 1099511628211ULL;
  }
  return hash;
}

// A matrix whose masks fit the layout: of every `m` neighbours `n` stay.
std::vector<uint8_t> weights(Values type, size_t rows, size_t columns, size_t n, size_t m) {
  std::vector<uint8_t> out(rows * columns * size_of(type));
  for (size_t i = 0; i < rows * columns; ++i) {
    const uint32_t r = draw();
    if (i % columns % m >= n) continue;  // zero
    uint8_t* at = out.data() + i * size_of(type);
    const float f = (static_cast<float>(r % 2001) - 1000.0f) / 1024.0f;
    uint32_t bits;
    std::memcpy(&bits, &f, 4);
    const uint16_t bf16 = static_cast<uint16_t>(bits >> 16), f16 = static_cast<uint16_t>((r & 0x83FF) | (10 + r % 8) << 10);
    if (type == Values::f32) std::memcpy(at, &f, 4);
    else if (type == Values::i8) *at = static_cast<uint8_t>(r % 255 - 127);
    else if (type == Values::i4) *at = static_cast<uint8_t>(r % 16 - 8);
    else std::memcpy(at, type == Values::bf16 ? &bf16 : &f16, 2);
  }
  return out;
}

std::vector<float> floats(size_t n) {
  std::vector<float> out(n);
  for (float& f : out) f = (static_cast<float>(draw() % 4001) - 2000.0f) / 512.0f;
  return out;
}

// Attention of heads of `n` for 7 queries over up to 45 keys, and norms and gates of `n` values.
void check_size(const Kernels& kernels, size_t n) {
  constexpr size_t kCount = 45, kQueries = 7;
  const KeyBlockShape shape(n);
  const std::vector<float> queries = floats(n * kQueries), keys = floats(n * kCount), values = floats(n * kCount);
  LineBytes blocks(2 * shape.bytes());
  for (size_t t = 0; t < kCount; ++t) store_token(shape, keys.data() + t * n, values.data() + t * n, blocks.data(), t);
  const size_t stride = 2 * shape.pairs;
  std::vector<int16_t> words(stride * kQueries);
  float scale[kQueries];
  int32_t begin[kQueries], end[kQueries];
  for (size_t r = 0; r < kQueries; ++r) {
    scale[r] = to_key_words(queries.data() + r * n, n, words.data() + r * stride) * 0.125f;
    begin[r] = static_cast<int32_t>(r / 3);
    end[r] = static_cast<int32_t>(kCount + 1 - kQueries + r);
  }
  std::vector<float> attended(shape.width * kQueries), out((kQueries + 2) * n);
  kernels.attend({&shape, blocks.data(), nullptr, 2}, {words.data(), stride, scale, begin, end, kQueries}, attended.data());
  for (size_t r = 0; r < kQueries; ++r) std::copy_n(attended.data() + r * shape.width, n, out.data() + r * n);
  float* rest = out.data() + kQueries * n;
  kernels.rms_norm(queries.data(), keys.data(), 1e-5f, true, rest, n);
  std::copy_n(queries.data(), n, rest + n);
  kernels.gated(rest + n, values.data(), n, n % 2 == 0);
  std::printf("size %zu %016llx\n", n, checksum(out));
}

// Inputs as integers of 8 bits, the second of a group of two tokens.
void check_quantize8(const Kernels& kernels, size_t width) {
  std::vector<float> x = floats(width);
  for (size_t i = 0; i < width; ++i) x[i] *= std::ldexp(1.0f, static_cast<int>(i / kInputGroup * 37 % 160) - 80);
  std::vector<int8_t> q(2 * width);
  std::vector<int32_t> start(width / kScaleBlock * 2), half(start.size());
  std::vector<float> ratio(start.size() + 1);
  kernels.quantize8(x.data(), width, 2, q.data() + kUnit8, start.data() + 1, half.data() + 1, ratio.data() + 1, ratio.data());
  std::printf("quantize8 %zu %016llx %016llx %016llx %016llx\n", width, checksum(q), checksum(start), checksum(half), checksum(ratio));
}

// Products of all numbers of tokens that a pass may take; parts of a cache.
void check_products(const Kernels& set, const Matrix& m, const std::string& what) {
  for (const int tokens : {1, 2, 3, 4, 5, 8, 9, 17, 62}) {
    std::vector<float> x(m.columns * tokens);
    for (float& f : x) f = (static_cast<float>(draw() % 4001) - 2000.0f) / 512.0f;
    Pool pool(2);
    ActivationBuffer buffer;
    buffer.resize(m.columns, tokens);
    for (int t = 0; t < tokens; ++t) std::copy_n(x.data() + t * m.columns, m.columns, buffer.row(t));
    std::vector<float> y(padded(m.rows, kRows4) * tokens);
    multiply_all(set, pool, buffer, {{&m, y.data(), padded(m.rows, kRows4)}});
    std::printf("%s %d %016llx\n", what.c_str(), tokens, checksum(y));
  }
}

// GGUF's blocks of a type, whose float16 begin at these bytes of each.
void check_blocks(const Kernels& set, Values type, std::vector<size_t> halves, size_t columns) {
  const BlockType t = block_type(type);
  RowMajor source;
  source.type = type;
  source.rows = 37;
  source.columns = columns;
  std::vector<uint8_t> raw(source.rows * row_bytes(t, columns));
  for (uint8_t& b : raw) b = static_cast<uint8_t>(draw());
  for (size_t block = 0; block < raw.size(); block += t.bytes)
    for (const size_t at : halves) {
      const uint16_t half = static_cast<uint16_t>((draw() & 0x83FF) | (5 + draw() % 4) << 10);
      std::memcpy(raw.data() + block + at, &half, 2);
    }
  source.values = raw.data();
  check_products(set, lay_out(source, Layout::dense, 0), "blocks " + std::to_string(static_cast<int>(type)));
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 2) {
    for (const Kernels* set : available()) std::puts(set->name);
    return 0;
  }
  const Kernels& set = kernels(arguments[1]);
  for (size_t n = 1; n <= 96; ++n) check_size(set, n);
  for (size_t width = kInputGroup; width <= 4096; width *= 2) check_quantize8(set, width);
  struct Case {
    const char* name;
    Layout layout;
    int n, kept, of;
  };
  const Case cases[] = {{"dense", Layout::dense, 0, 1, 1},     {"2:4", Layout::two_four, 0, 2, 4},
                        {"1:8", Layout::n_eight, 1, 1, 8},     {"3:8", Layout::n_eight, 3, 3, 8},
                        {"4:8", Layout::n_eight, 4, 4, 8},     {"2:8", Layout::n_eight, 2, 2, 8},
                        {"7:8", Layout::n_eight, 7, 7, 8},
                        {"bitmask", Layout::bitmask, 0, 5, 9}, {"window", Layout::window, 0, 2, 9}};
  struct Type {
    const char* name;
    Values values;
    size_t group = 0;
    int activations = 16;
  };
  const Type types[] = {{"f32", Values::f32},        {"f16", Values::f16},          {"bf16", Values::bf16},
                        {"i8", Values::i8},          {"i8 of 8 bits", Values::i8, 0, 8},
                        {"i4 in 32", Values::i4, 32}, {"i4 in 64", Values::i4, 64}, {"i4 in 256", Values::i4, 256}};
  for (const Case& c : cases)
    for (const auto& [name, type, group, activations] : types) {
      if ((type == Values::f32 || activations == 8) && c.layout != Layout::dense) continue;
      if (type == Values::i4 && !has_int4(c.layout, c.n)) continue;
      const size_t rows = 37, columns = 648;
      const std::vector<uint8_t> raw = weights(type, rows, columns, c.kept, c.of);
      std::vector<float> scale(rows);
      for (float& f : scale) f = static_cast<float>(draw() % 100 + 1) / 4096.0f;
      RowMajor source{raw.data(), type, rows, columns, type == Values::i8 ? scale.data() : nullptr};
      source.activations = activations;
      source.group = group;
      std::vector<uint16_t> halves(group ? rows * padded(columns, group) / group : 0);
      for (uint16_t& h : halves) h = static_cast<uint16_t>((draw() & 0x83FF) | (5 + draw() % 4) << 10);
      if (group) source.halves = halves.data();
      const Matrix m = lay_out(source, c.layout, c.n);
      check_products(set, m, std::string(c.name) + " " + name);
    }
  for (const Values type : {Values::q8_0, Values::q5_0}) check_blocks(set, type, {0}, 672);
  for (const Values type : {Values::q4_1, Values::q5_1}) check_blocks(set, type, {0, 2}, 672);
  for (const Values type : {Values::q4_k, Values::q5_k}) check_blocks(set, type, {0, 2}, 768);
  check_blocks(set, Values::q6_k, {208}, 768);
}
