// Tiles of GGUF's blocks: see blocks.hpp.
#include "layout/blocks.hpp"
#include "layout/tiles.hpp"

namespace sparsedraft {
namespace {

// 32 inputs of a lane, the first of which is input `first` (0 or 32) of the record at `p`.
void put_block(const BlockOf32& block, BlockType t, size_t lane, size_t first, uint8_t* p) {
  const size_t groups = 32 / t.group;
  for (size_t g = 0; g < groups; ++g) {
    uint8_t* scales = p + (first / t.group + g) * scale_bytes(t);
    if (t.factors()) {
      scales[lane] = static_cast<uint8_t>(block.scale[g]);
      if (t.minimum) scales[kRows4 + lane] = block.minimum;
    } else {
      std::memcpy(scales + 2 * lane, &block.factor[0], 2);
      if (t.minimum) std::memcpy(scales + 2 * (kRows4 + lane), &block.factor[1], 2);
    }
  }
  uint8_t* high = p + scales_bytes(t);
  uint8_t* codes = high + high_vectors(t) * kVector4;
  const size_t bits = static_cast<size_t>(t.bits) - 4;  // of the high part
  for (size_t i = 0; i < 32; ++i) {
    const size_t step = (first + i) / 4, at = lane * 4 + i % 4;
    const uint8_t code = block.code[i];
    if (t.bits == 8) {
      codes[step * kVector4 + at] = code ^ 0x80;
      continue;
    }
    codes[step / 2 * kVector4 + at] |= static_cast<uint8_t>((code & 15) << (4 * (step % 2)));
    if (!bits) continue;
    const size_t steps = 8 / bits;  // of a vector
    high[step / steps * kVector4 + at] |= static_cast<uint8_t>((code >> 4) << (bits * (step % steps)));
  }
}

}  // namespace

void write_blocks(const Source& source, size_t tile, const Matrix& m, Stream& stream) {
  const BlockType t = block_type(m.values);
  const size_t factors = factors_bytes(t, m.width()), records = m.width() / kColumns * record_bytes(t);
  uint8_t* out = stream.extend(factors + records);
  for (size_t lane = 0; lane < kRows4; ++lane) {
    const size_t row = tile * kRows4 + lane;
    if (row >= source.rows) break;
    const uint8_t* from = source.values + row * row_bytes(t, source.columns);
    for (size_t c = 0; c < source.columns; c += 32) {
      const BlockOf32 block = read_block(m.values, from, c);
      put_block(block, t, lane, c % kColumns, out + factors + c / kColumns * record_bytes(t));
      if (!t.factors() || c % kSuperBlock) continue;
      uint8_t* p = out + c / kSuperBlock * factor_bytes(t) + 2 * lane;
      std::memcpy(p, &block.factor[0], 2);
      if (t.minimum) std::memcpy(p + 2 * kRows4, &block.factor[1], 2);
    }
  }
}

}  // namespace sparsedraft
