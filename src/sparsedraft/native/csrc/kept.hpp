// A matrix whose parts were kept in a file: whoever wrote that, no kernel may read or write outside of what is there.
#pragma once

#include "matrix.hpp"

namespace sparsedraft {

// Throws std::invalid_argument unless `m` is laid out as relay lays matrices out: sizes, where each tile begins and ends, the
// columns that windows lie on, the rows of `order` (each once), scales (finite). Values and their places within a group may be
// any: each of them makes some matrix.
void check(const Matrix& m);

}  // namespace sparsedraft
