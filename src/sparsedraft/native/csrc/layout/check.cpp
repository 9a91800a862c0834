#include "layout/check.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <string>
#include <utility>

#include "layout/half.hpp"
#include "layout/records.hpp"
#include "layout/blocks.hpp"

namespace sparsedraft {
namespace {

void require(bool holds, const char* what) {
  if (!holds) throw std::invalid_argument(std::string("kept parts that are no matrix: ") + what);
}

// Bytes of a tile of the layouts whose tiles have equally many.
size_t tile_size(const Matrix& m) {
  const bool int8 = m.values == Values::i8;
  switch (m.layout) {
    case Layout::two_four:
      return m.width() / TwoFourRecord::kInputs * (int8 ? TwoFourRecord::kSize8 : TwoFourRecord::kSize16);
    case Layout::n_eight:
      return m.width() / EightRecord::kInputs * static_cast<size_t>(m.n) * (int8 ? EightRecord::kSize8 : EightRecord::kSize16);
    default: return m.width() * m.tile_rows() * size_of(m.values);
  }
}

// A tile's bytes from front to back, each taken once.
struct Reader {
  const uint8_t* at;
  const uint8_t* end;
  const uint8_t* take(size_t size) {
    require(size <= static_cast<size_t>(end - at), "a tile is too short");
    return std::exchange(at, at + size);
  }
};

void check_bitmask(const Matrix& m, Reader tile) {
  const size_t mask_bytes = kColumns * m.tile_rows() / 8;
  for (size_t c = 0; c < m.width(); c += kColumns) {
    const uint8_t* masks = tile.take(mask_bytes);
    size_t values = 0;
    for (size_t i = 0; i < mask_bytes; ++i) values += static_cast<size_t>(std::popcount(masks[i]));
    tile.take(values * size_of(m.values));
  }
  require(tile.at == tile.end, "a tile is too long");
}

void check_window(const Matrix& m, Reader tile) {
  const bool int8 = m.values == Values::i8;
  const size_t stretch = int8 ? kBlock : m.width();
  const size_t steps = int8 ? WindowRecord8::kSteps : WindowRecord16::kSteps;
  const size_t size = int8 ? WindowRecord8::kSize : WindowRecord16::kSize;
  for (size_t begin = 0; begin < m.width(); begin += stretch) {
    const size_t last = std::min(m.width(), begin + stretch) - kWindowWidth;
    uint32_t records;
    std::memcpy(&records, tile.take(kWindowCount), kWindowCount);
    for (; records; --records) {
      const uint8_t* record = tile.take(size);
      for (size_t i = 0; i < steps; ++i) {
        uint16_t column;
        std::memcpy(&column, record + 2 * i, 2);
        require(begin <= column && column <= last, "a window outside of its columns");
      }
    }
  }
  require(tile.at == tile.end, "a tile is too long");
}

void check_halves(Reader& tile, size_t count) {
  const uint8_t* halves = tile.take(2 * count);
  for (size_t i = 0; i < count; ++i) {
    uint16_t half;
    std::memcpy(&half, halves + 2 * i, 2);
    require(std::isfinite(half_to_float(half)), "a scale that is not finite");
  }
}
void check_scales(Reader& tile, size_t groups) { check_halves(tile, groups * kRows4); }

// Scales are finite; of bitmasks, too, there are as many codes as the masks say, in the low halves and in the high ones.
void check_int4_masks(const Matrix& m, Reader tile) {
  const size_t size = static_cast<size_t>(tile.end - tile.at);
  const size_t records = mask_records_bytes(m.width(), m.group);
  require(records <= size, "a tile is too short");
  tile.take(size - records);
  size_t low = 0, high = 0;  // codes
  for (size_t c = 0; c < m.width(); c += kColumns) {
    check_scales(tile, groups_of_record(c, m.group));
    uint64_t masks[kMaskBytes4 / 8];
    std::memcpy(masks, tile.take(kMaskBytes4), kMaskBytes4);
    for (const uint64_t mask : masks) (c < low_columns(m.width()) ? low : high) += static_cast<size_t>(std::popcount(mask));
  }
  require(std::max(low, high) == size - records, "a tile with too many or too few codes");
}

// Scales are finite.
void check_int4(const Matrix& m, Reader tile) {
  for (size_t c = 0; c < m.width(); c += kColumns) {
    check_scales(tile, groups_of_record(c, m.group));
    tile.take(record4(m.layout, m.n).bytes());
  }
  require(tile.at == tile.end, "a tile is too long");
}

// Factors, and scales where there are none, are finite.
void check_blocks(const Matrix& m, Reader tile) {
  const BlockType t = block_type(m.values);
  check_halves(tile, factors_bytes(t, m.width()) / 2);
  for (size_t c = 0; c < m.width(); c += kColumns) {
    if (t.factors()) tile.take(scales_bytes(t));
    else check_halves(tile, scales_bytes(t) / 2);
    tile.take(record_bytes(t) - scales_bytes(t));
  }
  require(tile.at == tile.end, "a tile is too long");
}

// `order` names each row once.
void check_order(const Matrix& m, size_t lanes) {
  require(m.order.size() == lanes, "rows in no order");
  std::vector<bool> seen(m.rows);
  size_t count = 0;
  for (const int32_t row : m.order) {
    if (row == -1) continue;
    require(row >= 0 && static_cast<size_t>(row) < m.rows && !seen[static_cast<size_t>(row)], "a row that is not there, or twice");
    seen[static_cast<size_t>(row)] = true;
    ++count;
  }
  require(count == m.rows, "a row is lacking");
}

void check_tiles(const Matrix& m, size_t count) {
  require(m.tiles.size() == count + 1 && m.tiles.front() == 0 && std::is_sorted(m.tiles.begin(), m.tiles.end()), "tiles");
  require(m.stream.size() >= kSlack && m.tiles.back() == m.stream.size() - kSlack, "a stream of another size");
  for (size_t i = 0; i < count; ++i) {
    const Reader tile{m.stream.data() + m.tiles[i], m.stream.data() + m.tiles[i + 1]};
    if (is_blocks(m.values)) check_blocks(m, tile);
    else if (m.values == Values::i4) (m.layout == Layout::bitmask ? check_int4_masks : check_int4)(m, tile);
    else if (m.layout == Layout::bitmask) check_bitmask(m, tile);
    else if (m.layout == Layout::window) check_window(m, tile);
    else require(m.tiles[i + 1] - m.tiles[i] == tile_size(m), "a tile of another size");
  }
}

}  // namespace

void check(const Matrix& m) {
  require(m.rows && m.columns && m.rows <= kMostRows && m.columns <= kMostColumns, "impossible size");
  require(m.values != Values::f32 || m.layout == Layout::dense, "sparse values of 32 bits");
  require(m.layout != Layout::n_eight || (m.n >= 1 && m.n <= 7), "N");
  require(m.layout != Layout::window || m.width() <= kMostWindowColumns, "too many columns for windows");
  require((m.values == Values::i4) == (m.group != 0), "groups of inputs");
  require(m.activations == 16 || (m.activations == 8 && m.values == Values::i8 && has_bytes(m.layout)), "bits of inputs");
  require(m.values != Values::i4 || (has_int4(m.layout, m.n) && is_group(m.group)), "no layout of int4");
  require(!is_blocks(m.values) || (m.layout == Layout::dense && m.columns % block_type(m.values).inputs == 0), "blocks");
  const size_t count = padded(m.rows, m.tile_rows()) / m.tile_rows();
  const size_t lanes = count * m.tile_rows();
  check_tiles(m, count);
  if (m.layout == Layout::window) check_order(m, lanes);
  else require(m.order.empty(), "an order of rows");
  require(m.scale.size() == (m.values == Values::i8 ? lanes : 0), "scales");
  require(std::all_of(m.scale.begin(), m.scale.end(), [](float s) { return std::isfinite(s); }), "a scale that is not finite");
}

}  // namespace sparsedraft
