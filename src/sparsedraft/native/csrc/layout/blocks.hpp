// Weights as GGUF files hold them, in the blocks of ggml: weight = scale * (code - offset) - minimum.
//
//   type   block          code     group  scale, minimum
//   q8_0   32 inputs      8 bits   32     a float16 each group
//   q4_1   32             4        32     two float16; the second is added
//   q5_0   32             5        32     a float16
//   q5_1   32             5        32     two float16; the second is added
//   q4_k   256            4        32     6 bits each a group, times two float16 each block
//   q5_k   256            5        32     the same
//   q6_k   256            6        16     8 bits a group, times a float16 each block
//
// (q4_0 is int4 with groups of 32: records_int4.hpp.)
//
// A tile has 16 rows (lanes), as one of int4, and holds the same numbers in another order:
//
//   factors   of the types of 256 inputs, for every 256 of them: 16 float16, one a lane; with minimums another 16; all filled up
//             to whole cache lines
//   records   64 inputs each:
//     scales  for each group: 16 float16, or 16 bytes times the factor; with minimums another 16
//     high    the bits of codes above 4, 4 inputs a step: bits (bits - 4) * (step % (8 / (bits - 4))) of each byte of a vector
//     codes   the low 4 bits, as of int4; of 8 bits a vector a step, code - offset
#pragma once

#include "layout/records_int4.hpp"

namespace sparsedraft {

constexpr size_t kSuperBlock = 256;  // inputs of the larger blocks

struct BlockType {
  size_t inputs;  // of a block
  size_t bytes;   // of a block in the file
  int bits;       // of a code
  int offset;     // what codes are stored plus
  size_t group;   // inputs that share a scale
  bool minimum;
  constexpr bool factors() const { return inputs == kSuperBlock; }
};

constexpr bool is_blocks(Values v) { return v >= Values::q8_0; }

constexpr BlockType block_type(Values v) {
  switch (v) {
    case Values::q8_0: return {32, 34, 8, 128, 32, false};
    case Values::q4_1: return {32, 20, 4, 0, 32, true};
    case Values::q5_0: return {32, 22, 5, 16, 32, false};
    case Values::q5_1: return {32, 24, 5, 0, 32, true};
    case Values::q4_k: return {256, 144, 4, 0, 32, true};
    case Values::q5_k: return {256, 176, 5, 0, 32, true};
    default: return {256, 210, 6, 32, 16, false};  // q6_k
  }
}

// Bytes of a tile's parts.
constexpr size_t scale_bytes(BlockType t) { return kRows4 * (t.factors() ? 1 : 2) * (t.minimum ? 2 : 1); }  // of a group
constexpr size_t scales_bytes(BlockType t) { return kColumns / t.group * scale_bytes(t); }                   // of a record
constexpr size_t high_vectors(BlockType t) { return t.bits == 8 ? 0 : 2 * static_cast<size_t>(t.bits - 4); }
constexpr size_t code_vectors(BlockType t) { return t.bits == 8 ? 16 : 8; }
constexpr size_t record_bytes(BlockType t) { return scales_bytes(t) + (high_vectors(t) + code_vectors(t)) * kVector4; }
constexpr size_t factor_bytes(BlockType t) { return t.factors() ? kRows4 * 2 * (t.minimum ? 2 : 1) : 0; }  // of 256 inputs
inline size_t factors_bytes(BlockType t, size_t width) {
  return padded(padded(width, kSuperBlock) / kSuperBlock * factor_bytes(t), kCacheLine);
}

// 32 neighbouring inputs of a row.
struct BlockOf32 {
  uint8_t code[32];      // as stored, offset included
  uint16_t factor[2];    // float16: of scales, of minimums; without factors the scale and the minimum themselves
  int8_t scale[2];       // times the factor: of the first and of the second 16 inputs
  uint8_t minimum;       // times its factor
  // The weight of input i.
  float weight(BlockType t, size_t i) const;
};
// Those from `column` (a multiple of 32) on of the row that begins at `row`.
BlockOf32 read_block(Values type, const uint8_t* row, size_t column);

// How many of the weights [rows, columns] are not zero.
size_t nonzero_of_blocks(Values type, const uint8_t* rows, size_t count, size_t columns);

// Bytes of a row in the file.
inline size_t row_bytes(BlockType t, size_t columns) { return columns / t.inputs * t.bytes; }

}  // namespace sparsedraft
