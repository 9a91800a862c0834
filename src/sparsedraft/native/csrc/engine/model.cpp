#include "engine/model.hpp"

#include <cstring>

#include "layout/blocks.hpp"
#include "layout/half.hpp"

namespace sparsedraft {

size_t EmbeddingTable::row_bytes() const {
  if (is_blocks(values)) return sparsedraft::row_bytes(block_type(values), columns);
  return values == Values::i4 ? (columns + 1) / 2 : columns * size_of(values);
}

void EmbeddingTable::read(size_t row, float* out) const {
  const uint8_t* p = bytes.data() + row * row_bytes();
  if (is_blocks(values)) {
    for (size_t c = 0; c < columns; c += 32) {
      const BlockOf32 block = read_block(values, p, c);
      for (size_t i = 0; i < 32; ++i) out[c + i] = block.weight(block_type(values), i);
    }
    return;
  }
  for (size_t i = 0; i < columns; ++i) {
    if (values == Values::i4) {
      const int code = p[i / 2] >> (4 * (i % 2)) & 15;  // two's complement of 4 bits
      const size_t groups = (columns + group - 1) / group;
      out[i] = static_cast<float>(code < 8 ? code : code - 16) * half_to_float(halves[row * groups + i / group]);
    } else if (values == Values::i8) {
      out[i] = static_cast<float>(static_cast<int8_t>(p[i])) * scale[row];
    } else if (values == Values::f32) {
      std::memcpy(out + i, p + 4 * i, 4);
    } else {
      uint16_t bits;
      std::memcpy(&bits, p + 2 * i, 2);
      out[i] = values == Values::f16 ? half_to_float(bits) : bfloat_to_float(bits);
    }
  }
}

size_t Model::bytes() const {
  size_t total = head->bytes();
  for (const Layer& l : layers)
    for (const auto* m : {&l.q, &l.k, &l.v, &l.o, &l.gate, &l.up, &l.down}) total += (*m)->bytes();
  return total;
}

}  // namespace sparsedraft
