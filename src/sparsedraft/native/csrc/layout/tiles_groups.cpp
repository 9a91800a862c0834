// Tiles of 2:4 and of N:8: exactly N weights of each group of M inputs, and their places in the group.
#include <string>

#include "layout/tiles.hpp"

namespace sparsedraft {

Group group_of(const Source& source, size_t row, size_t column, int n, int m) {
  uint32_t bits[8];
  int weights = 0;
  for (int i = 0; i < m; ++i) {
    bits[i] = source.bits(row, column + i);
    weights += !source.is_zero(bits[i]);
  }
  if (weights > n)
    throw std::invalid_argument("row " + std::to_string(row) + " has more than " + std::to_string(n) +
                                " values in the group at column " + std::to_string(column));
  Group out{};
  int count = 0;
  int fill = n - weights;
  for (int i = 0; i < m; ++i) {
    const bool zero = source.is_zero(bits[i]);
    if (zero && fill-- <= 0) continue;
    out.slots[count] = {i, zero ? 0 : bits[i]};
    ++count;
  }
  return out;
}

namespace {

// `place` into the word of `lane`, from bit `shift` on.
void put_place(uint8_t* words, int lane, int place, int shift) {
  uint32_t word;
  std::memcpy(&word, words + 4 * lane, 4);
  word |= static_cast<uint32_t>(place) << shift;
  std::memcpy(words + 4 * lane, &word, 4);
}

void write_two_four8(Stream& stream, const Slots* slots) {
  uint8_t* places = stream.extend(TwoFourRecord::kSize8);
  uint8_t* values = places + TwoFourRecord::kValues;
  for (size_t j = 0; j < TwoFourRecord::kSlots; ++j) {
    const size_t second = j / 2 % 2;
    for (int lane = 0; lane < kRows; ++lane) {
      const Slot& slot = slots[j][lane];
      places[pair_place(lane, second, j % 2)] |= static_cast<uint8_t>(slot.place << (2 * (j / 4)));
      values[kPairValues * (j / 4) + pair_value(lane, second, j % 2)] = static_cast<uint8_t>(slot.bits);
    }
  }
}

}  // namespace

void write_values16(Stream& stream, Values type, const Slots* slots, size_t count) {
  uint8_t* p = stream.extend(count * kRows * 2);
  for (size_t j = 0; j < count; ++j)
    for (int lane = 0; lane < kRows; ++lane) {
      const size_t at = type == Values::bf16 ? (j / 2) * 32 + lane * 4 + (j % 2) * 2 : j * 16 + lane * 2;
      put(p + at, slots[j][lane].bits, 2);
    }
}

void write_record8(Stream& stream, const Slots* slots) {
  uint8_t* places = stream.extend(EightRecord::kSize8);
  uint8_t* values = places + EightRecord::kValues;
  for (size_t j = 0; j < EightRecord::kSlots; ++j) {
    const size_t second = j / 2 % 2;
    for (int lane = 0; lane < kRows; ++lane) {
      const Slot& slot = slots[j][lane];
      // twice the place: the byte at which a 16-bit input begins
      places[pair_place(lane, second, j % 2)] |= static_cast<uint8_t>((2 * slot.place) << (4 * (j / 4)));
      values[kPairValues * (j / 4) + pair_value(lane, second, j % 2)] = static_cast<uint8_t>(slot.bits);
    }
  }
}

void write_two_four(const Source& source, size_t tile, size_t width, Stream& stream) {
  for (size_t c = 0; c < width; c += TwoFourRecord::kInputs) {
    Slots slots[TwoFourRecord::kSlots];
    for (int g = 0; g < 8; ++g)
      for (int lane = 0; lane < kRows; ++lane) {
        const Group group = group_of(source, source.row(tile, lane), c + 4 * g, 2, 4);
        slots[2 * g][lane] = group.slots[0];
        slots[2 * g + 1][lane] = group.slots[1];
      }
    if (source.type == Values::i8) {
      write_two_four8(stream, slots);
      continue;
    }
    uint8_t* places = stream.extend(kPlaceBytes);
    for (size_t j = 0; j < TwoFourRecord::kSlots; ++j)
      for (int lane = 0; lane < kRows; ++lane) put_place(places, lane, slots[j][lane].place, static_cast<int>(2 * j));
    write_values16(stream, source.type, slots, TwoFourRecord::kSlots);
  }
}

void write_n_eight(const Source& source, size_t tile, size_t width, int n, Stream& stream) {
  std::vector<Slots> slots(8 * n);
  for (size_t c = 0; c < width; c += EightRecord::kInputs) {
    for (int g = 0; g < 8; ++g)
      for (int lane = 0; lane < kRows; ++lane) {
        const Group group = group_of(source, source.row(tile, lane), c + 8 * g, n, 8);
        for (int j = 0; j < n; ++j) slots[g * n + j][lane] = group.slots[j];
      }
    for (int i = 0; i < n; ++i) {
      const Slots* record = &slots[8 * i];
      if (source.type == Values::i8) {
        write_record8(stream, record);
        continue;
      }
      uint8_t* places = stream.extend(kPlaceBytes);
      for (int j = 0; j < 8; ++j)
        for (int lane = 0; lane < kRows; ++lane) put_place(places, lane, record[j][lane].place, 4 * j);
      write_values16(stream, source.type, record, EightRecord::kSlots);
    }
  }
}

}  // namespace sparsedraft
