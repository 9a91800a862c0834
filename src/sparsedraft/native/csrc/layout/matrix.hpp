// layout/: a weight matrix as the kernels read it, and keys and values. READ THIS FIRST.
//
// Checkpoints hold a matrix row by row. The kernels read tiles: 8 rows (16 of int4 and others for 8-bit inputs), row r of a tile in SIMD lane r, columns
// padded to a multiple of 64 with zeros. A tile is one sequential stream of bytes, so a kernel reads memory from front to back
// and nothing else. This folder makes tiles from rows, and checks tiles that come from a file.
//
// Read in this order:
//   matrix.hpp    a matrix and its five layouts (this file)
//   records.hpp   the bytes of a tile in each layout
//   records_int4.hpp   the same of int4; blocks.hpp   of the types of GGUF files
//   lay_out.hpp   rows -> tiles (lay_out.cpp; tiles_*.cpp write one layout each)
//   check.hpp     tiles from a file -> the same tiles, or an error
//   key_blocks.hpp   keys and values, as attention reads them
//   bytes.hpp, half.hpp   memory; float16 and bfloat16
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "layout/bytes.hpp"

namespace sparsedraft {

enum class Values : uint8_t { f32, f16, bf16, i8, i4, q8_0, q4_1, q5_0, q5_1, q4_k, q5_k, q6_k };  // the type of a weight's value

// How a tile stores its weights. Sparse layouts hold 16-bit or int8 values.
enum class Layout : uint8_t {
  dense,     // every weight
  two_four,  // 2 weights of each 4 consecutive inputs, and their places
  n_eight,   // N weights of each 8 consecutive inputs, and their places
  bitmask,   // a bit for each weight, and the values whose bit is set
  window,    // a window of 8 inputs slides over the columns; at each step a lane gives one weight that lies in it
};

constexpr int kRows = 8;      // rows of a tile: the 32-bit lanes of 256 bits
constexpr int kRows4 = 16;    // rows of a tile that is multiplied with inputs of 8 bits: the 32-bit lanes of 512 bits
constexpr int kColumns = 64;  // columns are padded to a multiple of this
constexpr int kBlock = 512;   // inputs that share an activation scale: 127 * 32767 * 512 still fits in 31 bits
constexpr int kSlack = 64;    // bytes that kernels may read past a stream's end
constexpr size_t kMostRows = size_t{1} << 28;
constexpr size_t kMostColumns = size_t{1} << 24;
constexpr size_t kMostWindowColumns = 65536;  // padded: the column of a window is written in 16 bits

// Bytes of a value as `lay_out` reads it: of int4, that is a code in a byte; GGUF's types are read as bytes.
inline size_t size_of(Values v) { return v == Values::f32 ? 4 : v >= Values::i8 ? 1 : 2; }

// Whether int8 in this layout may be multiplied with inputs of 8 bits.
inline bool has_bytes(Layout layout) { return layout == Layout::dense || layout == Layout::bitmask; }

struct Matrix {
  size_t rows = 0;     // as the checkpoint has them
  size_t columns = 0;  // as the checkpoint has them
  Layout layout = Layout::dense;
  Values values = Values::f32;
  int n = 0;                   // N of Layout::n_eight
  size_t group = 0;            // i4 only: consecutive inputs that share a scale
  int activations = 16;        // i8 only: bits of the inputs it is multiplied with: 16, or 8 where it is dense or bitmask
  Bytes stream;                // the tiles, one behind the other, and kSlack
  std::vector<size_t> tiles;   // where each tile begins in `stream`, and the end of the last
  std::vector<int32_t> order;  // window only: the row in each lane of each tile; -1: none
  std::vector<float> scale;    // i8 only: of the row in each lane of each tile; weight = value * scale

  size_t tile_count() const { return tiles.empty() ? 0 : tiles.size() - 1; }
  size_t width() const { return padded(columns, kColumns); }
  // Whether it is multiplied with inputs of 8 bits.
  bool wants_bytes() const { return values >= Values::i4 || (values == Values::i8 && activations == 8); }
  size_t tile_rows() const { return wants_bytes() ? kRows4 : kRows; }
  size_t bytes() const { return stream.size() + scale.size() * 4; }
};

}  // namespace sparsedraft
