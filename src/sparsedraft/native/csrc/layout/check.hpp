// Tiles that come from a file: whoever wrote it, no kernel may read or write outside of what is there.
#pragma once

#include "layout/matrix.hpp"

namespace sparsedraft {

// Throws std::invalid_argument unless `m` is laid out as lay_out lays matrices out: sizes, where each tile begins and ends, the
// columns of windows, the rows of `order` (each once), scales (finite). Values, and their places within a group, may be any:
// each of them makes some matrix.
void check(const Matrix& m);

}  // namespace sparsedraft
