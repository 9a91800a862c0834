// Rows -> tiles.
#pragma once

#include "layout/matrix.hpp"

namespace sparsedraft {

// The matrix whose `values` [rows, columns] lie row by row, zero where pruned, in tiles of this `layout`. `scale` [rows]: of i8;
// `n`: of N:8. Several threads share the tiles.
// Throws std::invalid_argument where a group holds more than N (2) values, or where sizes make no sense.
Matrix lay_out(const void* values, Values type, size_t rows, size_t columns, Layout layout, int n, const float* scale);

}  // namespace sparsedraft
