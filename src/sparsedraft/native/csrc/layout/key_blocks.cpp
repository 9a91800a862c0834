#include "layout/key_blocks.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

namespace sparsedraft {
namespace {

constexpr size_t kLanes = 8;
constexpr float kUnsound = std::numeric_limits<float>::quiet_NaN();
constexpr float kNothing = 1e-15f;  // a vector of this size is taken for zero: squares of such numbers lose their bits

// The nearest integer, for |x| < 2^22: above 2^23 a float has no fraction. (std::nearbyint would be a call for each number.)
inline float rounded(float x) { return (x + 12582912.0f) - 12582912.0f; }

// x * factor as integers; returns `scale`.
float to_words(const float* x, size_t n, float factor, float scale, int16_t* words) {
  for (size_t i = 0; i < n; ++i) words[i] = static_cast<int16_t>(static_cast<int32_t>(rounded(x[i] * factor)));
  return scale;
}
float zeros(size_t n, float scale, int16_t* words) {
  std::fill_n(words, n, int16_t{0});
  return scale;
}

// In lanes, so that it becomes vectors.
float norm(const float* x, size_t n) {
  float sums[kLanes] = {};
  size_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (size_t lane = 0; lane < kLanes; ++lane) sums[lane] += x[i + lane] * x[i + lane];
  for (size_t lane = 0; i < n; ++i, ++lane) sums[lane] += x[i] * x[i];
  for (size_t half = kLanes / 2; half; half /= 2)
    for (size_t lane = 0; lane < half; ++lane) sums[lane] += sums[lane + half];
  return std::sqrt(sums[0]);
}

float to_largest(const float* x, size_t n, float largest, int16_t* words) {
  float most = 0;
  float unsound = 0;  // the sum of x * 0
  for (size_t i = 0; i < n; ++i) {
    most = std::max(most, std::fabs(x[i]));
    unsound += x[i] * 0.0f;
  }
  if (unsound != 0) return zeros(n, kUnsound, words);
  if (most < kNothing) return zeros(n, 0, words);
  return to_words(x, n, largest / most, most / largest, words);
}

// Where the parts of a token lie.
struct Place {
  Place(const KeyBlockShape& shape, uint8_t* blocks, size_t token)
      : block(blocks + token / kKeyBlock * shape.bytes()),
        lane(token % kKeyBlock),
        key(block + lane * 2 * shape.unit),
        value(block + shape.values() + (lane / 2 * shape.width * 2 + lane % 2) * shape.unit),
        key_scale(block + shape.key_scales() + lane * 4),
        value_scale(block + shape.value_scales() + lane * 4) {}
  uint8_t* block;
  size_t lane;
  uint8_t* key;    // a pair of numbers every 2 * kKeyBlock numbers
  uint8_t* value;  // a number every two
  uint8_t* key_scale;
  uint8_t* value_scale;
};

// The low `unit` bytes of n words, `together` neighbours every `step` numbers.
void put_words(const int16_t* words, size_t n, size_t unit, size_t together, size_t step, uint8_t* to) {
  for (size_t i = 0; i < n; ++i) std::memcpy(to + (i / together * step + i % together) * unit, words + i, unit);  // little-endian
}

}  // namespace

float to_key_words(const float* x, size_t n, int16_t* words) {
  const float length = norm(x, n);
  if (!std::isfinite(length)) return zeros(n, kUnsound, words);
  if (length < kNothing) return zeros(n, 0, words);
  return to_words(x, n, kLargestKey / length, length / kLargestKey, words);
}

void store_token(const KeyBlockShape& shape, const float* key, const float* value, uint8_t* blocks, size_t token) {
  std::vector<int16_t> words(2 * shape.pairs);  // zero behind an odd `dim`
  const Place at(shape, blocks, token);
  const bool bytes = shape.unit == 1;
  float key_scale = bytes ? to_largest(key, shape.dim, kLargestByte, words.data()) : to_key_words(key, shape.dim, words.data());
  put_words(words.data(), 2 * shape.pairs, shape.unit, 2, 2 * kKeyBlock, at.key);
  float value_scale = to_largest(value, shape.dim, bytes ? kLargestByte : kLargestValue, words.data());
  put_words(words.data(), shape.dim, shape.unit, 1, 2, at.value);
  if (std::isnan(value_scale)) {  // the kernels look at the keys' scales only
    key_scale = kUnsound;
    value_scale = 0;
  }
  std::memcpy(at.key_scale, &key_scale, 4);
  std::memcpy(at.value_scale, &value_scale, 4);
}

void copy_token(const KeyBlockShape& shape, const uint8_t* source, size_t from, uint8_t* target, size_t to) {
  const Place a(shape, const_cast<uint8_t*>(source), from);  // only read
  const Place b(shape, target, to);
  const size_t pair = 2 * shape.unit;
  for (size_t p = 0; p < shape.pairs; ++p) std::memcpy(b.key + p * kKeyBlock * pair, a.key + p * kKeyBlock * pair, pair);
  for (size_t d = 0; d < shape.dim; ++d) std::memcpy(b.value + d * pair, a.value + d * pair, shape.unit);
  std::memcpy(b.key_scale, a.key_scale, 4);
  std::memcpy(b.value_scale, a.value_scale, 4);
}

}  // namespace sparsedraft
