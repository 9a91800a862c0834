// From a matrix as checkpoints hold it to the tiles of matrix.hpp.
#pragma once

#include "matrix.hpp"

namespace sparsedraft {

// `values`: [rows, columns] row by row, zeros where pruned. `scale`: [rows], of int8. `n`: of N:8.
// Throws std::invalid_argument where a group holds more than N (2) values, or sizes make no sense.
Matrix relay(const void* values, Values type, size_t rows, size_t columns, Layout layout, int n, const float* scale);

}  // namespace sparsedraft
