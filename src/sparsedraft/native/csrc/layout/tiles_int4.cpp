// Tiles of int4: see records_int4.hpp.
#include <algorithm>

#include "layout/records_int4.hpp"
#include "layout/tiles.hpp"

namespace sparsedraft {
namespace {

// The code of a weight as its record has it.
int biased(const Source& source, size_t row, size_t column) {
  return static_cast<int8_t>(source.bits(row, column)) + kOffset4;
}

void put_code(uint8_t* codes, size_t step, size_t lane, size_t byte, int biased_code) {
  uint8_t& at = codes[step / 2 * kVector4 + lane * 4 + byte];
  at = static_cast<uint8_t>(at | biased_code << (4 * (step % 2)));
}

void put_place(uint8_t* places, Layout layout, int n, size_t step, size_t lane, size_t byte, int place) {
  const size_t at = lane * 4 + byte;
  if (layout == Layout::n_eight && n == 2) {  // in the step's 16 inputs
    const int in_step = place + (byte < 2 ? 0 : 8);
    places[step / 2 * kVector4 + at] |= static_cast<uint8_t>(in_step << (4 * (step % 2)));
    return;
  }
  places[step / 4 * kVector4 + at] |= static_cast<uint8_t>((place & 3) << (2 * (step % 4)));
  if (layout == Layout::n_eight) places[2 * kVector4 + at] |= static_cast<uint8_t>((place >> 2) << step);
}

void write_scales(const Source& source, size_t tile, size_t column, size_t group, Stream& stream) {
  const size_t groups = padded(source.columns, group) / group;  // of a row
  for (size_t g = 0; g < groups_of_record(column, group); ++g) {
    uint8_t* p = stream.extend(kScaleBytes4);
    const size_t number = column / group + g;
    for (size_t lane = 0; lane < kRows4; ++lane) {
      const size_t row = tile * kRows4 + lane;
      if (row < source.rows && number < groups) put(p + 2 * lane, source.halves[row * groups + number], 2);
    }
  }
}

void write_dense_codes(const Source& source, size_t tile, size_t column, uint8_t* codes) {
  for (size_t c = 0; c < kColumns; ++c)
    for (size_t lane = 0; lane < kRows4; ++lane)
      put_code(codes, c / 4, lane, c % 4, biased(source, tile * kRows4 + lane, column + c));
}

void write_group_codes(const Source& source, size_t tile, size_t column, Layout layout, int n, uint8_t* record) {
  const int m = layout == Layout::two_four ? 4 : 8;
  if (layout == Layout::two_four) n = 2;
  const Record4 sizes = record4(layout, n);
  uint8_t* codes = record + sizes.places * kVector4;
  for (size_t lane = 0; lane < kRows4; ++lane) {
    size_t slot = 0;  // of the record; four a step
    for (size_t c = 0; c < kColumns; c += static_cast<size_t>(m)) {
      const Group group = group_of(source, tile * kRows4 + lane, column + c, n, m);
      for (int i = 0; i < n; ++i, ++slot) {
        put_place(record, layout, n, slot / 4, lane, slot % 4, group.slots[i].place);
        put_code(codes, slot / 4, lane, slot % 4, static_cast<int8_t>(group.slots[i].bits) + kOffset4);
      }
    }
  }
}

// The masks of the record at `column`, and its codes to `codes`.
void write_masks(const Source& source, size_t tile, size_t column, uint8_t* masks, std::vector<uint8_t>& codes) {
  for (size_t i = 0; i < kColumns * kRows4; ++i) {
    const size_t lane = i / 4 % kRows4;
    const size_t c = i / (4 * kRows4) * 4 + i % 4;
    const uint32_t bits = source.bits(tile * kRows4 + lane, column + c);
    if (source.is_zero(bits)) continue;
    masks[i / 8] = static_cast<uint8_t>(masks[i / 8] | 1u << (i % 8));
    codes.push_back(bits & 0xF);
  }
}

void write_bitmask_tile(const Source& source, size_t tile, const Matrix& m, Stream& stream) {
  Stream records;
  std::vector<uint8_t> low, high;  // codes
  for (size_t c = 0; c < m.width(); c += kColumns) {
    write_scales(source, tile, c, m.group, records);
    write_masks(source, tile, c, records.extend(kMaskBytes4), c < low_columns(m.width()) ? low : high);
  }
  uint8_t* p = stream.extend(std::max(low.size(), high.size()));
  std::copy(low.begin(), low.end(), p);
  for (size_t i = 0; i < high.size(); ++i) p[i] = static_cast<uint8_t>(p[i] | high[i] << 4);
  stream.out.insert(stream.out.end(), records.out.begin(), records.out.end());
}

}  // namespace

void write_int4(const Source& source, size_t tile, const Matrix& m, Stream& stream) {
  if (m.layout == Layout::bitmask) return write_bitmask_tile(source, tile, m, stream);
  for (size_t c = 0; c < m.width(); c += kColumns) {
    write_scales(source, tile, c, m.group, stream);
    uint8_t* record = stream.extend(record4(m.layout, m.n).bytes());
    if (m.layout == Layout::dense) write_dense_codes(source, tile, c, record);
    else write_group_codes(source, tile, c, m.layout, m.n, record);
  }
}

}  // namespace sparsedraft
