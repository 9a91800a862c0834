// Rows -> tiles.
#pragma once

#include "layout/matrix.hpp"

namespace sparsedraft {

// A matrix as a checkpoint has it: `values` [rows, columns] lie row by row, zero where pruned.
struct RowMajor {
  const void* values = nullptr;
  Values type = Values::f32;
  size_t rows = 0;
  size_t columns = 0;
  const float* scale = nullptr;      // i8 only: [rows]
  const uint16_t* halves = nullptr;  // i4 only: float16 scales [rows, groups], a group being
  size_t group = 0;                  // so many consecutive inputs: 32, 64, 128 or 256
  bool nibbles = false;              // i4 only: two codes a byte, the first in its low half, rows of whole bytes; else one a byte
  int activations = 16;              // i8 only: bits of the inputs it is multiplied with, 16 or 8
};

// The matrix in tiles of this `layout`; `n`: of N:8. Several threads share the tiles.
// Throws std::invalid_argument where a group holds more than N (2) values, or where sizes or types make no sense.
Matrix lay_out(const RowMajor& source, Layout layout, int n);

}  // namespace sparsedraft
