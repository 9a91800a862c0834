// Prints a checksum of the portable kernels' results: products in each layout, type of values and number of tokens; attention, norms
// and gates of every size. `make aarch64` runs it on this machine and on an emulated aarch64: the lines must be the same.
// (test_kernels.py and test_kernel_bits.py compare the sets of kernels of one CPU.)
#include <cstdio>
#include <cstring>
#include <vector>

#include "engine/linear.hpp"
#include "layout/lay_out.hpp"

using namespace sparsedraft;

namespace {

uint64_t state = 1;
uint32_t draw() {  // Knuth's MMIX
  state = state * 6364136223846793005ULL + 1442695040888963407ULL;
  return static_cast<uint32_t>(state >> 33);
}

uint64_t checksum(const std::vector<float>& y) {  // FNV-1a
  uint64_t hash = 14695981039346656037ULL;
  for (const float f : y) {
    uint8_t bytes[4];
    std::memcpy(bytes, &f, 4);
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

// Attention of heads of `n` over 42 keys, and norms and gates of `n` values.
void check_size(size_t n) {
  constexpr size_t kCount = 45;
  const KeyBlockShape shape(n);
  const std::vector<float> query = floats(n), keys = floats(n * kCount), values = floats(n * kCount);
  LineBytes blocks(2 * shape.bytes());
  for (size_t t = 0; t < kCount; ++t) store_token(shape, keys.data() + t * n, values.data() + t * n, blocks.data(), t);
  std::vector<int16_t> words(2 * shape.pairs);
  const float scale = to_key_words(query.data(), n, words.data()) * 0.125f;
  const int32_t begin = 3, end = kCount;
  std::vector<float> attended(shape.width), out(3 * n);
  kernels_portable.attend({&shape, blocks.data(), nullptr, 2}, {words.data(), words.size(), &scale, &begin, &end, 1}, attended.data());
  std::copy_n(attended.data(), n, out.data());
  kernels_portable.rms_norm(query.data(), keys.data(), 1e-5f, true, out.data() + n, n);
  std::copy_n(query.data(), n, out.data() + 2 * n);
  kernels_portable.gated(out.data() + 2 * n, values.data(), n, n % 2 == 0);
  std::printf("size %zu %016llx\n", n, static_cast<unsigned long long>(checksum(out)));
}

}  // namespace

int main() {
  for (size_t n = 1; n <= 96; ++n) check_size(n);
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
  const std::pair<const char*, Values> types[] = {
      {"f32", Values::f32}, {"f16", Values::f16}, {"bf16", Values::bf16}, {"i8", Values::i8}, {"i4", Values::i4}};
  for (const Case& c : cases)
    for (const auto& [name, type] : types) {
      if (type == Values::f32 && c.layout != Layout::dense) continue;
      if (type == Values::i4 && !has_int4(c.layout, c.n)) continue;
      const size_t rows = 37, columns = 648;
      const std::vector<uint8_t> raw = weights(type, rows, columns, c.kept, c.of);
      std::vector<float> scale(rows);
      for (float& f : scale) f = static_cast<float>(draw() % 100 + 1) / 4096.0f;
      RowMajor source{raw.data(), type, rows, columns, type == Values::i8 ? scale.data() : nullptr};
      std::vector<uint16_t> halves(rows * padded(columns, 64) / 64);
      for (uint16_t& h : halves) h = static_cast<uint16_t>((draw() & 0x83FF) | (5 + draw() % 4) << 10);
      if (type == Values::i4) source.halves = halves.data(), source.group = 64;
      const Matrix m = lay_out(source, c.layout, c.n);
      for (const int tokens : {1, 2, 5, 17}) {
        std::vector<float> x(columns * tokens);
        for (float& f : x) f = (static_cast<float>(draw() % 4001) - 2000.0f) / 512.0f;
        Pool pool(2);
        ActivationBuffer buffer;
        buffer.resize(columns, tokens);
        for (int t = 0; t < tokens; ++t) std::copy_n(x.data() + t * columns, columns, buffer.row(t));
        std::vector<float> y(padded(rows, kRows4) * tokens);
        multiply_all(kernels_portable, pool, buffer, {{&m, y.data(), padded(rows, kRows4)}});
        std::printf("%s %s %d %016llx\n", c.name, name, tokens, static_cast<unsigned long long>(checksum(y)));
      }
    }
}
