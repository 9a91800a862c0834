// What lay_out.cpp and the writers of tiles (tiles_*.cpp, one function a layout) share.
#pragma once

#include <array>
#include <cstring>

#include "layout/records.hpp"

namespace sparsedraft {

// The bits of a matrix as the checkpoint has it; zeros beyond its rows and columns.
struct Source {
  const uint8_t* values;
  Values type;
  size_t rows, columns;
  const int32_t* order;  // the row in each lane of each tile (-1: none); null: lane r of tile t is row 8 t + r
  const uint16_t* halves = nullptr;  // i4 only: float16 scales [rows, groups of inputs]
  bool nibbles = false;              // i4 only: see RowMajor

  size_t row(size_t tile, int lane) const {
    const size_t at = tile * kRows + lane;
    if (!order) return at;
    return order[at] < 0 ? rows : static_cast<size_t>(order[at]);
  }
  uint32_t bits(size_t r, size_t c) const {
    if (r >= rows || c >= columns) return 0;
    if (nibbles) {
      const int code = values[r * ((columns + 1) / 2) + c / 2] >> (4 * (c % 2)) & 15;
      return static_cast<uint8_t>(code < 8 ? code : code - 16);  // as a byte has it
    }
    const size_t i = r * columns + c;
    uint32_t out = 0;
    std::memcpy(&out, values + i * size_of(type), size_of(type));
    return out;
  }
  bool is_zero(uint32_t bits) const {  // -0.0, too
    if (size_of(type) == 1) return bits == 0;
    return type == Values::f32 ? (bits & 0x7FFFFFFF) == 0 : (bits & 0x7FFF) == 0;
  }
};

// A growing stream of bytes.
struct Stream {
  std::vector<uint8_t> out;
  // `size` more bytes, zero; valid until the next call.
  uint8_t* extend(size_t size) {
    out.resize(out.size() + size);
    return out.data() + out.size() - size;
  }
};

// The low `size` bytes of `bits` to `p`.
inline void put(uint8_t* p, uint32_t bits, size_t size) { std::memcpy(p, &bits, size); }

// A weight of one lane, and its place in the group or window.
struct Slot {
  int place = 0;
  uint32_t bits = 0;
};
using Slots = std::array<Slot, kRows>;  // one for each lane

// The N slots of one lane's group of M inputs, by place. Zeros at the lowest free places fill a group that has fewer weights.
struct Group {
  Slot slots[8];
};
// Throws std::invalid_argument where the group has more than N weights.
Group group_of(const Source& source, size_t row, size_t column, int n, int m);

// 16-bit values of `count` slots, as dense stores inputs.
void write_values16(Stream& stream, Values type, const Slots* slots, size_t count);
// 8 slots of i8: an EightRecord.
void write_record8(Stream& stream, const Slots* slots);

// Tile number `tile` of each layout, `width` inputs wide, to the end of `stream`.
void write_dense(const Source& source, size_t tile, size_t width, Stream& stream);
void write_bitmask(const Source& source, size_t tile, size_t width, Stream& stream);
void write_two_four(const Source& source, size_t tile, size_t width, Stream& stream);
void write_n_eight(const Source& source, size_t tile, size_t width, int n, Stream& stream);
void write_window(const Source& source, size_t tile, size_t width, Stream& stream);
// Dense values of one byte for inputs of 8 bits, and so 16 rows: for each four inputs a word a lane.
void write_bytes(const Source& source, size_t tile, size_t width, Stream& stream);
// Those of a bitmask: see records.hpp.
void write_mask_bytes(const Source& source, size_t tile, size_t width, Stream& stream);
// The same of int4, in the layout of `m`.
void write_int4(const Source& source, size_t tile, const Matrix& m, Stream& stream);
// The same of GGUF's blocks.
void write_blocks(const Source& source, size_t tile, const Matrix& m, Stream& stream);

}  // namespace sparsedraft
