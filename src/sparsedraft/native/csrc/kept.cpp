#include "kept.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <string>
#include <utility>

namespace sparsedraft {
namespace {

void require(bool holds, const char* what) {
  if (!holds) throw std::invalid_argument(std::string("kept parts that are no matrix: ") + what);
}

// Bytes of every tile of a layout whose tiles have equally many.
size_t tile_size(const Matrix& m) {
  const bool small = m.values == Values::i8;
  switch (m.layout) {
    case Layout::two_four: return m.width() / 32 * (small ? 160 : 288);
    case Layout::n_eight: return m.width() / 64 * static_cast<size_t>(m.n) * (small ? 96 : 160);
    default: return m.width() * kRows * size_of(m.values);
  }
}

// A tile's bytes from front to back, each taken once.
struct Reader {
  const uint8_t *at, *end;
  const uint8_t* take(size_t size) {
    require(size <= static_cast<size_t>(end - at), "a tile is too short");
    return std::exchange(at, at + size);
  }
};

void check_bitmask(const Matrix& m, Reader tile) {
  for (size_t c = 0; c < m.width(); c += kColumns) {
    uint64_t masks[kColumns * kRows / 64];
    std::memcpy(masks, tile.take(sizeof(masks)), sizeof(masks));
    size_t values = 0;
    for (const uint64_t mask : masks) values += static_cast<size_t>(std::popcount(mask));
    tile.take(values * size_of(m.values));
  }
  require(tile.at == tile.end, "a tile is too long");
}

void check_window(const Matrix& m, Reader tile) {
  const bool small = m.values == Values::i8;
  const size_t stretch = small ? kBlock : m.width(), steps = small ? 8 : 4, group = small ? 112 : 88;
  for (size_t begin = 0; begin < m.width(); begin += stretch) {
    const size_t last = std::min(m.width(), begin + stretch) - 8;
    uint32_t groups;
    std::memcpy(&groups, tile.take(4), 4);
    for (; groups; --groups) {
      const uint8_t* p = tile.take(group);
      for (size_t i = 0; i < steps; ++i) {
        uint16_t column;
        std::memcpy(&column, p + 2 * i, 2);
        require(begin <= column && column <= last, "a window outside of its columns");
      }
    }
  }
  require(tile.at == tile.end, "a tile is too long");
}

void check_order(const Matrix& m, size_t lanes) {
  require(m.order.size() == lanes, "rows in no order");
  std::vector<bool> seen(m.rows);
  size_t found = 0;
  for (const int32_t row : m.order) {
    if (row == -1) continue;
    require(row >= 0 && static_cast<size_t>(row) < m.rows && !seen[static_cast<size_t>(row)], "a row that is not there, or twice");
    seen[static_cast<size_t>(row)] = true, ++found;
  }
  require(found == m.rows, "a row is lacking");
}

}  // namespace

void check(const Matrix& m) {
  require(m.rows && m.columns && m.rows <= kMostRows && m.columns <= kMostColumns, "impossible size");
  require(m.values != Values::f32 || m.layout == Layout::dense, "sparse values of 32 bits");
  require(m.layout != Layout::n_eight || (m.n >= 1 && m.n <= 7), "N");
  require(m.layout != Layout::window || m.width() <= kWindowColumns, "too many columns for windows");
  const size_t count = padded(m.rows, kRows) / kRows, lanes = count * kRows;
  require(m.tiles.size() == count + 1 && m.tiles.front() == 0 && std::is_sorted(m.tiles.begin(), m.tiles.end()), "tiles");
  require(m.stream.size() >= kSlack && m.tiles.back() == m.stream.size() - kSlack, "a stream of another size");
  for (size_t i = 0; i < count; ++i) {
    const Reader tile{m.stream.data() + m.tiles[i], m.stream.data() + m.tiles[i + 1]};
    if (m.layout == Layout::bitmask) check_bitmask(m, tile);
    else if (m.layout == Layout::window) check_window(m, tile);
    else require(m.tiles[i + 1] - m.tiles[i] == tile_size(m), "a tile of another size");
  }
  if (m.layout == Layout::window) check_order(m, lanes);
  else require(m.order.empty(), "an order of rows");
  require(m.scale.size() == (m.values == Values::i8 ? lanes : 0), "scales");
  require(std::all_of(m.scale.begin(), m.scale.end(), [](float s) { return std::isfinite(s); }), "a scale that is not finite");
}

}  // namespace sparsedraft
