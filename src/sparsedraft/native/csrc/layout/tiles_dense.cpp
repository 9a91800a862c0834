// Tiles that follow the dense order of elements: all of them, or those whose bit is set.
#include "layout/records_int4.hpp"
#include "layout/tiles.hpp"

namespace sparsedraft {
namespace {

// Element i of a dense tile's stream: its lane, and its column from the beginning of the stream on.
struct Element {
  int lane;
  size_t column;
};

Element element(Values type, size_t i) {
  switch (type) {
    case Values::bf16: return {static_cast<int>(i / 2 % 8), i / 16 * 2 + i % 2};
    case Values::i8: return {static_cast<int>(i / 4 % 8), i / 32 * 4 + kByteOfInput[i % 4]};
    default: return {static_cast<int>(i % 8), i / 8};
  }
}

// The inverse of `element`, row by row: position(lane, column) is the element's number.
template <class T, class Position>
void scatter(const Source& source, size_t tile, uint8_t* stream, Position position) {
  for (int lane = 0; lane < kRows; ++lane) {
    const size_t row = source.row(tile, lane);
    if (row >= source.rows) continue;
    const uint8_t* from = source.values + row * source.columns * sizeof(T);
    for (size_t c = 0; c < source.columns; ++c)
      std::memcpy(stream + position(lane, c) * sizeof(T), from + c * sizeof(T), sizeof(T));
  }
}

}  // namespace

void write_dense(const Source& source, size_t tile, size_t width, Stream& stream) {
  uint8_t* p = stream.extend(width * kRows * size_of(source.type));
  const auto by_column = [](int lane, size_t c) { return c * 8 + lane; };
  switch (source.type) {
    case Values::f32: return scatter<uint32_t>(source, tile, p, by_column);
    case Values::f16: return scatter<uint16_t>(source, tile, p, by_column);
    case Values::bf16:
      return scatter<uint16_t>(source, tile, p, [](int lane, size_t c) { return c / 2 * 16 + lane * 2 + c % 2; });
    case Values::i8:
      return scatter<uint8_t>(source, tile, p, [](int lane, size_t c) { return c / 4 * 32 + lane * 4 + kByteOfInput[c % 4]; });
    default: return;  // write_int4 and write_blocks write those
  }
}

void write_bytes(const Source& source, size_t tile, size_t width, Stream& stream) {
  uint8_t* p = stream.extend(width * kRows4);
  for (size_t lane = 0; lane < kRows4; ++lane)
    for (size_t c = 0; c < source.columns; ++c)
      p[c / 4 * 4 * kRows4 + lane * 4 + c % 4] = static_cast<uint8_t>(source.bits(tile * kRows4 + lane, c));
}

void write_mask_bytes(const Source& source, size_t tile, size_t width, Stream& stream) {
  for (size_t c = 0; c < width; c += kColumns) {
    const size_t masks = stream.out.size();
    stream.extend(kMaskBytes4);
    for (size_t i = 0; i < kColumns * kRows4; ++i) {
      const uint32_t bits = source.bits(tile * kRows4 + i / 4 % kRows4, c + i / (4 * kRows4) * 4 + i % 4);
      if (source.is_zero(bits)) continue;
      stream.out[masks + i / 8] |= static_cast<uint8_t>(1u << (i % 8));
      *stream.extend(1) = static_cast<uint8_t>(bits);
    }
  }
}

void write_bitmask(const Source& source, size_t tile, size_t width, Stream& stream) {
  const size_t size = size_of(source.type);
  for (size_t c = 0; c < width; c += kColumns) {
    const size_t masks = stream.out.size();
    stream.extend(kMaskBytes);
    for (size_t i = 0; i < kColumns * kRows; ++i) {
      const Element e = element(source.type, i);
      const uint32_t bits = source.bits(source.row(tile, e.lane), c + e.column);
      if (source.is_zero(bits)) continue;
      stream.out[masks + i / 8] |= static_cast<uint8_t>(1u << (i % 8));
      put(stream.extend(size), bits, size);
    }
  }
}

}  // namespace sparsedraft
