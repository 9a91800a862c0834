#include "layout/lay_out.hpp"

#include <algorithm>
#include <future>
#include <numeric>
#include <thread>

#include "layout/blocks.hpp"
#include "layout/tiles.hpp"

namespace sparsedraft {
namespace {

void check_arguments(const RowMajor& m, Layout layout, int n) {
  const auto require = [](bool holds, const char* what) {
    if (!holds) throw std::invalid_argument(what);
  };
  require(m.rows && m.columns && m.rows <= kMostRows && m.columns <= kMostColumns, "a matrix of impossible size");
  require(layout != Layout::n_eight || (n >= 1 && n <= 7), "N:8 needs an N from 1 to 7");
  require(m.type != Values::f32 || layout == Layout::dense, "sparse layouts hold 16-bit, int8 or int4 values");
  require(!is_blocks(m.type) || (layout == Layout::dense && m.columns % block_type(m.type).inputs == 0),
          "blocks are laid out dense, and rows are whole blocks");
  require(m.type != Values::i8 || m.scale, "int8 values need a scale for each row");
  require(m.activations == 16 || (m.activations == 8 && m.type == Values::i8 && has_bytes(layout)),
          "only int8 values that lie dense or by a bitmask are multiplied with inputs of 8 bits");
  require(layout != Layout::window || padded(m.columns, kColumns) <= kMostWindowColumns, "a window needs at most 65536 columns");
  if (m.type != Values::i4) return;
  require(has_int4(layout, n), "int4 is laid out dense, as 2:4, 4:8, 2:8 or bitmask");
  require(m.halves && is_group(m.group), "int4 values need a scale for each group of 32, 64, 128 or 256 inputs");
  if (m.nibbles) return;
  const auto* codes = static_cast<const int8_t*>(m.values);
  require(std::all_of(codes, codes + m.rows * m.columns, [](int8_t code) { return code >= -kOffset4 && code < kOffset4; }),
          "a code of int4 that is not from -8 to 7");
}

// Rows by their number of weights, most first, so that the rows of a tile have about equally many; -1 for lanes without one.
std::vector<int32_t> order_by_density(const Source& source) {
  std::vector<size_t> count(source.rows);
  for (size_t r = 0; r < source.rows; ++r)
    for (size_t c = 0; c < source.columns; ++c) count[r] += !source.is_zero(source.bits(r, c));
  std::vector<int32_t> order(source.rows);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return count[a] > count[b]; });
  order.resize(padded(source.rows, kRows), -1);
  return order;
}

void write_tile(const Source& source, const Matrix& m, size_t tile, Stream& stream) {
  if (is_blocks(m.values)) return write_blocks(source, tile, m, stream);
  if (m.values == Values::i4) return write_int4(source, tile, m, stream);
  if (m.wants_bytes()) return (m.layout == Layout::dense ? write_bytes : write_mask_bytes)(source, tile, m.width(), stream);
  switch (m.layout) {
    case Layout::dense: return write_dense(source, tile, m.width(), stream);
    case Layout::two_four: return write_two_four(source, tile, m.width(), stream);
    case Layout::n_eight: return write_n_eight(source, tile, m.width(), m.n, stream);
    case Layout::bitmask: return write_bitmask(source, tile, m.width(), stream);
    case Layout::window: return write_window(source, tile, m.width(), stream);
  }
}

// work(first, last) over neighbouring tiles from `begin` on, by several threads where there are many; the results in order.
template <class Work>
auto in_parts(size_t begin, size_t tiles, Work work) {
  const size_t count = tiles - begin, cores = std::max(1u, std::thread::hardware_concurrency());
  const size_t helpers = std::min<size_t>({count / 32, cores - 1, 7});
  const auto begin_of = [&](size_t part) { return begin + count * part / (helpers + 1); };
  const auto write = [&](size_t part) { return work(begin_of(part), begin_of(part + 1)); };
  std::vector<std::future<decltype(work(begin, tiles))>> futures;
  for (size_t i = 1; i <= helpers; ++i)  // deferred: where the system gives no thread
    futures.push_back(std::async(std::launch::async | std::launch::deferred, write, i));
  std::vector<decltype(work(begin, tiles))> results;
  results.push_back(write(0));
  for (auto& future : futures) results.push_back(future.get());
  return results;
}

// Tiles that are all of one size: each goes to its place, so that the matrix is never in memory twice.
void write_equal_tiles(const Source& source, size_t tiles, Matrix& m) {
  Stream first;
  write_tile(source, m, 0, first);
  const size_t size = first.out.size();
  for (size_t tile = 0; tile <= tiles; ++tile) m.tiles.push_back(tile * size);
  m.stream = Bytes(tiles * size + kSlack);
  uint8_t* out = m.stream.writable();
  std::copy(first.out.begin(), first.out.end(), out);
  in_parts(1, tiles, [&](size_t from, size_t to) {
    Stream stream;
    for (size_t tile = from; tile < to; ++tile) {
      stream.out.clear();
      write_tile(source, m, tile, stream);
      std::copy(stream.out.begin(), stream.out.end(), out + tile * size);
    }
    return to;
  });
  std::memset(out + tiles * size, 0, kSlack);
}

struct Part {  // neighbouring tiles
  Stream stream;
  std::vector<size_t> tiles;  // where each begins in `stream`
};

// Tiles of any size: parts one behind the other. Each part's memory goes as soon as it is copied.
void write_unequal_tiles(const Source& source, size_t tiles, Matrix& m) {
  std::vector<Part> parts = in_parts(0, tiles, [&](size_t from, size_t to) {
    Part part;
    for (size_t tile = from; tile < to; ++tile) {
      part.tiles.push_back(part.stream.out.size());
      write_tile(source, m, tile, part.stream);
      if (tile == from) part.stream.out.reserve(part.stream.out.size() * (to - from) / 4 * 5);  // the others are about as large
    }
    return part;
  });
  size_t size = 0;
  for (const Part& part : parts) {
    for (const size_t tile : part.tiles) m.tiles.push_back(size + tile);
    size += part.stream.out.size();
  }
  m.tiles.push_back(size);
  m.stream = Bytes(size + kSlack);
  uint8_t* to = m.stream.writable();
  for (Part& part : parts) {
    to = std::copy(part.stream.out.begin(), part.stream.out.end(), to);
    std::vector<uint8_t>().swap(part.stream.out);
  }
  std::memset(to, 0, kSlack);
}

}  // namespace

Matrix lay_out(const RowMajor& rows, Layout layout, int n) {
  check_arguments(rows, layout, n);
  Matrix m;
  m.rows = rows.rows;
  m.columns = rows.columns;
  m.layout = layout;
  m.values = rows.type;
  m.n = n;
  m.group = rows.type == Values::i4 ? rows.group : 0;
  m.activations = rows.activations;
  Source source{static_cast<const uint8_t*>(rows.values), rows.type, rows.rows, rows.columns, nullptr, rows.halves, rows.nibbles};
  if (layout == Layout::window) {
    m.order = order_by_density(source);
    source.order = m.order.data();
  }
  const size_t tiles = padded(m.rows, m.tile_rows()) / m.tile_rows();
  m.tiles.reserve(tiles + 1);
  (layout == Layout::bitmask || layout == Layout::window ? write_unequal_tiles : write_equal_tiles)(source, tiles, m);
  if (rows.type == Values::i8) {
    m.scale.assign(tiles * m.tile_rows(), 0.0f);
    for (size_t i = 0; i < m.scale.size(); ++i) {
      const size_t row = source.row(i / kRows, static_cast<int>(i % kRows));
      if (row < m.rows) m.scale[i] = rows.scale[row];
    }
  }
  return m;
}

}  // namespace sparsedraft
