// The bytes of a tile of int4: 16 rows (lanes). A record holds 64 inputs, from front to back:
//
//   scales   of each group of inputs that begins in the record: 16 float16, one a lane (weight = code * scale)
//   places   which weights are there (below); dense has none
//   codes    4 bits each: code + 8
//
// A step is four codes of each lane, which one instruction multiplies with four bytes of inputs: a word (32 bits) a lane. Two
// steps share a vector of 16 words: the first in the low half of each byte, the second in the high half.
//
//   layout   steps  inputs of a step                     places
//   dense    16     4: all                               none
//   2:4      8      8: 2 of the first 4, 2 of the others    2 vectors: place of step s in bits 2 (s % 4) of each byte
//   4:8      8      8: 4 of them                         2 vectors: their low 2 bits, as 2:4; 1 vector: bit 2 of step s in bit s
//   2:8      4      16: 2 of the first 8, 2 of the others   2 vectors, as codes: the place in the step's 16 inputs
//   bitmask  16     4                                    64 bits a step: bit i is set if code i of the dense step is there
//
// A tile of bitmasks has its codes before all records, so that nothing must be unpacked, and records are equally large:
//
//   codes    4 bits each, without the 8 (two's complement), one byte behind the other: in the low halves those of the first half of
//            the records, in the high halves, from the first byte on, those of the others
//   records  scales and masks
#pragma once

#include "layout/matrix.hpp"

namespace sparsedraft {

constexpr size_t kScaleBlock = 32;                  // inputs whose products are summed as integers; scales of weights span a multiple
constexpr size_t kInputGroup = 64;                  // inputs of 8 bits that share a scale
constexpr size_t kVector4 = kRows4 * 4;             // bytes of a vector: a word a lane
constexpr size_t kScaleBytes4 = kRows4 * 2;         // of one group
constexpr size_t kMaskBytes4 = kColumns * kRows4 / 8;  // of a record
constexpr int kOffset4 = 8;                         // codes are stored plus this

// The places and codes of a record, in vectors; of bitmask none.
struct Record4 {
  size_t places;
  size_t codes;
  size_t steps;        // two a vector of codes
  size_t bytes() const { return (places + codes) * kVector4; }
};

constexpr Record4 record4(Layout layout, int n) {
  if (layout == Layout::dense) return {0, 8, 16};
  if (layout == Layout::two_four) return {2, 4, 8};
  if (layout == Layout::n_eight) return n == 4 ? Record4{3, 4, 8} : Record4{2, 2, 4};
  return {0, 0, 0};
}

// Whether int4 has this layout: dense, 2:4, 4:8, 2:8 and bitmask.
constexpr bool has_int4(Layout layout, int n) {
  return layout == Layout::n_eight ? n == 2 || n == 4 : layout != Layout::window;
}

// Whether so many inputs may share a scale.
constexpr bool is_group(size_t group) { return group == 32 || group == 64 || group == 128 || group == 256; }

// Groups of inputs that begin in the record at `column`.
inline size_t groups_of_record(size_t column, size_t group) {
  return group == kScaleBlock ? 2 : column % group == 0 ? 1 : 0;
}

// Bytes of a bitmask tile's records.
inline size_t mask_records_bytes(size_t width, size_t group) {
  return width / kColumns * kMaskBytes4 + padded(width, group) / group * kScaleBytes4;
}

// Columns of a bitmask tile whose codes lie in the low halves.
inline size_t low_columns(size_t width) { return padded(width / 2, kColumns); }

}  // namespace sparsedraft
