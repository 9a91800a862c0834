#include "layout/blocks.hpp"

#include <cstring>

#include "layout/half.hpp"

namespace sparsedraft {
namespace {

uint16_t half_at(const uint8_t* p) {
  uint16_t half;
  std::memcpy(&half, p, 2);
  return half;
}

// 16 bytes that hold 32 codes of 4 bits: the first half of the inputs in the low halves.
void read_nibbles(const uint8_t* p, uint8_t* code) {
  for (int i = 0; i < 16; ++i) {
    code[i] = p[i] & 15;
    code[16 + i] = p[i] >> 4;
  }
}

// The scale and the minimum, of 6 bits each, of group `g` of eight, from 12 bytes: four of each lie in the low 6 bits of the first
// 8 bytes; of the others the low 4 bits lie in the last 4 bytes, and the high 2 above the first ones.
void read_six_bits(const uint8_t* p, size_t g, int8_t& scale, uint8_t& minimum) {
  if (g < 4) {
    scale = static_cast<int8_t>(p[g] & 63);
    minimum = p[g + 4] & 63;
  } else {
    scale = static_cast<int8_t>((p[g + 4] & 15) | (p[g - 4] >> 6) << 4);
    minimum = static_cast<uint8_t>(p[g + 4] >> 4 | (p[g] >> 6) << 4);
  }
}

// Group `g` of a block of q4_k or q5_k: 64 neighbouring inputs share 32 bytes, the first 32 in the low halves; of q5_k bit g of byte i
// of `high` is the fifth of input i.
void read_super(const uint8_t* scales, const uint8_t* high, const uint8_t* codes, size_t g, BlockOf32& out) {
  read_six_bits(scales, g, out.scale[0], out.minimum);
  out.scale[1] = out.scale[0];
  for (size_t i = 0; i < 32; ++i) {
    const uint8_t both = codes[g / 2 * 32 + i];
    out.code[i] = g % 2 ? both >> 4 : both & 15;
    if (high) out.code[i] = static_cast<uint8_t>(out.code[i] | (high[i] >> g & 1) << 4);
  }
}

// Inputs 32 g .. of a block of q6_k. Half h = g / 4 of the block has 64 bytes of low halves and 32 of high bits: of part g % 4 the
// low 4 bits lie in bytes 32 (g % 2) .., in the low half for the first two parts, and the 2 high bits at 2 (g % 4).
void read_six(const uint8_t* block, size_t g, BlockOf32& out) {
  const size_t half = g / 4, part = g % 4;
  const uint8_t* low = block + 64 * half + 32 * (part % 2);
  const uint8_t* high = block + 128 + 32 * half;
  for (size_t i = 0; i < 32; ++i) {
    const int four = part < 2 ? low[i] & 15 : low[i] >> 4;
    out.code[i] = static_cast<uint8_t>(four | (high[i] >> (2 * part) & 3) << 4);
  }
  std::memcpy(out.scale, block + 192 + 2 * g, 2);
}

}  // namespace

float BlockOf32::weight(BlockType t, size_t i) const {
  const float first = half_to_float(factor[0]);
  const float s = t.factors() ? first * scale[i / 16] : first;
  const float value = s * static_cast<float>(code[i] - t.offset);
  if (!t.minimum) return value;
  const float second = half_to_float(factor[1]);
  return t.factors() ? value - second * minimum : value + second;
}

BlockOf32 read_block(Values type, const uint8_t* row, size_t column) {
  const BlockType t = block_type(type);
  const uint8_t* block = row + column / t.inputs * t.bytes;
  const size_t g = column % t.inputs / 32;
  BlockOf32 out{};
  switch (type) {
    case Values::q8_0:
      out.factor[0] = half_at(block);
      for (int i = 0; i < 32; ++i) out.code[i] = block[2 + i] ^ 0x80;
      break;
    case Values::q4_1:
    case Values::q5_1:
      out.factor[0] = half_at(block);
      out.factor[1] = half_at(block + 2);
      read_nibbles(block + (type == Values::q4_1 ? 4 : 8), out.code);
      break;
    case Values::q5_0:
      out.factor[0] = half_at(block);
      read_nibbles(block + 6, out.code);
      break;
    case Values::q4_k:
    case Values::q5_k: {
      const bool five = type == Values::q5_k;
      out.factor[0] = half_at(block);
      out.factor[1] = half_at(block + 2);
      read_super(block + 4, five ? block + 16 : nullptr, block + (five ? 48 : 16), g, out);
      break;
    }
    default:  // q6_k
      out.factor[0] = half_at(block + 208);
      read_six(block, g, out);
  }
  if (type == Values::q5_0 || type == Values::q5_1) {
    uint32_t high;  // bit i: the fifth of input i
    std::memcpy(&high, block + (type == Values::q5_0 ? 2 : 4), 4);
    for (int i = 0; i < 32; ++i) out.code[i] = static_cast<uint8_t>(out.code[i] | (high >> i & 1) << 4);
  }
  return out;
}

size_t nonzero_of_blocks(Values type, const uint8_t* rows, size_t count, size_t columns) {
  const BlockType t = block_type(type);
  size_t nonzero = 0;
  for (size_t r = 0; r < count; ++r)
    for (size_t c = 0; c < columns; c += 32) {
      const BlockOf32 block = read_block(type, rows + r * row_bytes(t, columns), c);
      for (size_t i = 0; i < 32; ++i) nonzero += block.weight(t, i) != 0;
    }
  return nonzero;
}

}  // namespace sparsedraft
