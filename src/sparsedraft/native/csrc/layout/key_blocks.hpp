// Keys and values of one head as integers of 16 or 8 bits, in blocks of kKeyBlock tokens: what Kernels::attend reads.
//
// A vector of n numbers becomes integers and one scale, x = q * scale. Sums of products are then sums of integers, which are the
// same in any order: so tokens may be read in whatever blocks, and beside whatever others, and the bits stay.
//   keys, queries   scale = |x| / 32767, |x| the Euclidean norm: by Cauchy and Schwarz no partial sum of a query times a key
//                   exceeds 32767^2 (and what rounding adds), which fits in 31 bits however large a head is
//   values          scale = max |x_i| / 8191: kKeyBlock products with weights of up to 8191 fit in 31 bits, too
//   of 8 bits       scale = max |x_i| / 127, of keys as of values; a block is widened to 16 bits before it is multiplied
// A float16 has 11 bits of each number and ends at 65504. Of a vector's norm these have 15, of a value's largest number 13, and
// they end where float32 does. A vector that holds NaN or infinity has the scale NaN: whatever sees it becomes NaN.
//
// A block, from front to back; `width` is the size of a head, padded:
//   keys    [pairs of numbers, kKeyBlock tokens, 2]
//   values  [pairs of tokens, width, 2]
//   scales of keys, then of values [kKeyBlock], float32
#pragma once

#include <cstddef>
#include <cstdint>

#include "layout/bytes.hpp"

namespace sparsedraft {

constexpr size_t kKeyBlock = 32;           // tokens of a block
constexpr size_t kKeyWidth = 32;           // values are padded to a multiple of this, with zeros: two vectors of 512 bits
constexpr float kLargestKey = 32767.0f;    // of the integers of keys and queries
constexpr float kLog2E = 1.44269504f;      // log2(e): e^x = 2^(x log2(e))
constexpr float kLargestByte = 127.0f;      // of keys and values of 8 bits
constexpr float kLargestValue = 8191.0f;   // of the integers of values and of their weights

struct KeyBlockShape {
  explicit KeyBlockShape(size_t head_dim, int bits = 16)
      : dim(head_dim), pairs((head_dim + 1) / 2), width(padded(head_dim, kKeyWidth)), unit(static_cast<size_t>(bits) / 8) {}
  size_t dim, pairs, width;
  size_t unit;  // bytes of a number
  size_t numbers() const { return (2 * pairs + width) * kKeyBlock; }  // of keys and values, without scales
  // Offsets of a block's parts, in bytes.
  size_t values() const { return 2 * pairs * kKeyBlock * unit; }
  size_t key_scales() const { return numbers() * unit; }
  size_t value_scales() const { return key_scales() + kKeyBlock * 4; }
  size_t bytes() const { return value_scales() + kKeyBlock * 4; }
};

// x [n] as integers of up to kLargestKey; returns their scale.
float to_key_words(const float* x, size_t n, int16_t* words);
// Key and value [dim] as token `token` of `blocks`.
void store_token(const KeyBlockShape& shape, const float* key, const float* value, uint8_t* blocks, size_t token);
// The key and value of token `from` of `source` as token `to` of `target`.
void copy_token(const KeyBlockShape& shape, const uint8_t* source, size_t from, uint8_t* target, size_t to);

}  // namespace sparsedraft
