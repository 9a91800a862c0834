#include "relay.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <future>
#include <numeric>
#include <string>
#include <thread>

namespace sparsedraft {
namespace {

// What a tile is written from: the bits of 8 rows' values, columns padded with zeros.
struct Source {
  const uint8_t* values;
  Values type;
  size_t rows, columns;
  const int32_t* order;  // the row in each lane, or null: as they come

  size_t row(size_t tile, int lane) const {
    const size_t at = tile * kRows + lane;
    if (!order) return at;
    return order[at] < 0 ? rows : static_cast<size_t>(order[at]);
  }
  uint32_t at(size_t r, size_t c) const {
    if (r >= rows || c >= columns) return 0;
    const size_t i = r * columns + c;
    uint32_t out = 0;
    std::memcpy(&out, values + i * size_of(type), size_of(type));
    return out;
  }
  bool zero(uint32_t bits) const {  // -0.0 is one, too
    return type == Values::i8 ? !bits : type == Values::f32 ? !(bits << 1) : !(bits & 0x7FFF);
  }
};

struct Writer {
  std::vector<uint8_t> out;
  uint8_t* extend(size_t n) {
    out.resize(out.size() + n);
    return out.data() + out.size() - n;
  }
};

void put(uint8_t* p, uint32_t value, size_t size) { std::memcpy(p, &value, size); }
void put_bits(uint8_t* p, size_t lane, uint32_t bits) {
  uint32_t word;
  std::memcpy(&word, p + 4 * lane, 4);
  word |= bits;
  std::memcpy(p + 4 * lane, &word, 4);
}

// Which element of a dense tile the `i`-th of its stream is, columns counted from the stream's beginning.
struct Element {
  int lane;
  size_t column;
};
Element element(Values type, size_t i) {
  switch (type) {
    case Values::bf16: return {static_cast<int>(i / 2 % 8), i / 16 * 2 + i % 2};
    case Values::i8: {
      constexpr size_t at[4] = {0, 2, 1, 3};  // low bytes of 16-bit lanes hold inputs 0 and 1, high bytes 2 and 3
      return {static_cast<int>(i / 4 % 8), i / 32 * 4 + at[i % 4]};
    }
    default: return {static_cast<int>(i % 8), i / 8};
  }
}

// Element i of a dense tile's stream is at(element(i)); here the other way round, row by row, as it is what most weights are.
template <class T, class Place>
void scatter(const Source& s, size_t tile, uint8_t* stream, Place place) {
  for (int lane = 0; lane < kRows; ++lane) {
    const size_t row = s.row(tile, lane);
    if (row >= s.rows) continue;
    const uint8_t* from = s.values + row * s.columns * sizeof(T);
    for (size_t c = 0; c < s.columns; ++c) std::memcpy(stream + place(lane, c) * sizeof(T), from + c * sizeof(T), sizeof(T));
  }
}

void dense(const Source& s, size_t tile, size_t width, Writer& w) {
  uint8_t* p = w.extend(width * kRows * size_of(s.type));  // zeros
  switch (s.type) {
    case Values::i8: return scatter<uint8_t>(s, tile, p, [](int lane, size_t c) {
      constexpr size_t at[4] = {0, 2, 1, 3};  // its own inverse
      return c / 4 * 32 + lane * 4 + at[c % 4];
    });
    case Values::bf16: return scatter<uint16_t>(s, tile, p, [](int lane, size_t c) { return c / 2 * 16 + lane * 2 + c % 2; });
    case Values::f16: return scatter<uint16_t>(s, tile, p, [](int lane, size_t c) { return c * 8 + lane; });
    case Values::f32: return scatter<uint32_t>(s, tile, p, [](int lane, size_t c) { return c * 8 + lane; });
  }
}

void bitmask(const Source& s, size_t tile, size_t width, Writer& w) {
  const size_t size = size_of(s.type);
  for (size_t c = 0; c < width; c += kColumns) {
    const size_t at = w.out.size();
    w.extend(kColumns);
    for (size_t i = 0; i < kColumns * kRows; ++i) {
      const Element e = element(s.type, i);
      const uint32_t bits = s.at(s.row(tile, e.lane), c + e.column);
      if (s.zero(bits)) continue;
      w.out[at + i / 8] |= static_cast<uint8_t>(1u << (i % 8));
      put(w.extend(size), bits, size);
    }
  }
}

// The kept of one lane's group: exactly n of m, padded with zeros at places that are free.
struct Kept {
  int place[8];
  uint32_t bits[8];
};
Kept kept(const Source& s, size_t row, size_t column, int n, int m) {
  uint32_t bits[8];
  int there = 0;
  for (int i = 0; i < m; ++i) bits[i] = s.at(row, column + i), there += !s.zero(bits[i]);
  if (there > n)
    throw std::invalid_argument("row " + std::to_string(row) + " has more than " + std::to_string(n) +
                                " values in the group at column " + std::to_string(column));
  Kept out{};
  int found = 0, spare = n - there;  // zeros that fill the places that are left, the first ones
  for (int i = 0; i < m; ++i) {
    const bool zero = s.zero(bits[i]);
    if (zero && spare-- <= 0) continue;
    out.place[found] = i, out.bits[found++] = zero ? 0 : bits[i];
  }
  return out;
}

// Slots, 8 at a time, in 16-bit types: a word of places for each lane, then the values.
struct Slot {
  int place = 0;
  uint32_t bits = 0;
};
using Slots = std::array<Slot, kRows>;  // one for each lane
void values16(Writer& w, Values type, const Slots* slots, int count) {
  uint8_t* p = w.extend(static_cast<size_t>(count) * kRows * 2);
  for (int j = 0; j < count; ++j)
    for (int r = 0; r < kRows; ++r) {
      const size_t at = type == Values::bf16 ? (j / 2) * 32 + r * 4 + (j % 2) * 2 : j * 16 + r * 2;
      put(p + at, slots[j][r].bits, 2);
    }
}

// Pair-steps of int8: slots 2s and 2s+1 of 8 rows. Byte j of a half of the places: row j/2 % 4, slot j % 2 of the first
// pair-step; from byte 8 on of the second. Values: those of the first in the low bytes of 16-bit lanes.
void put_place(uint8_t* p, int second, int row, int slot, int bits) {
  p[row / 4 * 16 + second * 8 + row % 4 * 2 + slot] |= static_cast<uint8_t>(bits);
}
void put_value(uint8_t* p, int second, int row, int slot, uint32_t bits) {
  p[row * 4 + slot * 2 + second] = static_cast<uint8_t>(bits);
}

void two_four(const Source& s, size_t tile, size_t width, Writer& w) {
  for (size_t c = 0; c < width; c += 32) {
    Slots slots[16];
    for (int g = 0; g < 8; ++g)
      for (int r = 0; r < kRows; ++r) {
        const Kept k = kept(s, s.row(tile, r), c + 4 * g, 2, 4);
        for (int j = 0; j < 2; ++j) slots[2 * g + j][r] = {k.place[j], k.bits[j]};
      }
    if (s.type != Values::i8) {
      uint8_t* p = w.extend(32);
      for (int j = 0; j < 16; ++j)
        for (int r = 0; r < kRows; ++r) put_bits(p, r, static_cast<uint32_t>(slots[j][r].place) << (2 * j));
      values16(w, s.type, slots, 16);
      continue;
    }
    uint8_t* p = w.extend(32 + 128);
    for (int j = 0; j < 16; ++j)
      for (int r = 0; r < kRows; ++r) {
        put_place(p, j / 2 % 2, r, j % 2, slots[j][r].place << (2 * (j / 4)));
        put_value(p + 32 + 32 * (j / 4), j / 2 % 2, r, j % 2, slots[j][r].bits);
      }
  }
}

// 8 slots of int8 as 4 pair-steps: places (twice the input's number in its block of 8, in half a byte), then values.
void pairs8(Writer& w, const Slots* slots) {
  uint8_t* p = w.extend(32 + 64);
  for (int j = 0; j < 8; ++j)
    for (int r = 0; r < kRows; ++r) {
      put_place(p, j / 2 % 2, r, j % 2, (2 * slots[j][r].place) << (4 * (j / 4)));
      put_value(p + 32 + 32 * (j / 4), j / 2 % 2, r, j % 2, slots[j][r].bits);
    }
}

void n_eight(const Source& s, size_t tile, size_t width, int n, Writer& w) {
  std::vector<Slots> slots(8 * n);
  for (size_t c = 0; c < width; c += 64) {
    for (int b = 0; b < 8; ++b)
      for (int r = 0; r < kRows; ++r) {
        const Kept k = kept(s, s.row(tile, r), c + 8 * b, n, 8);
        for (int j = 0; j < n; ++j) slots[b * n + j][r] = {k.place[j], k.bits[j]};
      }
    for (int i = 0; i < n; ++i) {
      if (s.type == Values::i8) {
        pairs8(w, &slots[8 * i]);
        continue;
      }
      uint8_t* p = w.extend(32);
      for (int j = 0; j < 8; ++j)
        for (int r = 0; r < kRows; ++r) put_bits(p, r, static_cast<uint32_t>(slots[8 * i + j][r].place) << (4 * j));
      values16(w, s.type, &slots[8 * i], 8);
    }
  }
}

// A window of 8 inputs slides over a stretch of columns; at each step every lane whose next value lies in it gives it.
struct Step {
  size_t base;
  Slots slots;
};
std::vector<Step> slide(const Source& s, size_t tile, size_t begin, size_t end, size_t multiple) {
  std::vector<size_t> next(kRows, begin);
  const auto advance = [&](int r) {
    const size_t row = s.row(tile, r);
    while (next[r] < end && s.zero(s.at(row, next[r]))) ++next[r];
  };
  for (int r = 0; r < kRows; ++r) advance(r);
  std::vector<Step> steps;
  for (;;) {
    const size_t least = *std::min_element(next.begin(), next.end());
    if (least == end) break;
    Step step{std::min(least, end - 8), {}};
    for (int r = 0; r < kRows; ++r) {
      if (next[r] >= step.base + 8) continue;
      step.slots[r] = {static_cast<int>(next[r] - step.base), s.at(s.row(tile, r), next[r])};
      ++next[r];
      advance(r);
    }
    steps.push_back(step);
  }
  while (steps.size() % multiple) steps.push_back({begin, {}});
  return steps;
}

void window(const Source& s, size_t tile, size_t width, Writer& w) {
  const bool small = s.type == Values::i8;
  const size_t stretch = small ? kBlock : width, group = small ? 8 : 4;
  for (size_t begin = 0; begin < width; begin += stretch) {
    const std::vector<Step> steps = slide(s, tile, begin, std::min(width, begin + stretch), group);
    put(w.extend(4), static_cast<uint32_t>(steps.size() / group), 4);
    for (size_t i = 0; i < steps.size(); i += group) {
      Slots slots[8] = {};
      for (size_t j = 0; j < group; ++j) {
        put(w.extend(2), static_cast<uint32_t>(steps[i + j].base), 2);
        slots[j] = steps[i + j].slots;
      }
      if (small) {
        pairs8(w, slots);
        continue;
      }
      for (size_t j = 0; j < group; ++j) {
        uint32_t places = 0;
        for (int r = 0; r < kRows; ++r) places |= static_cast<uint32_t>(slots[j][r].place) << (4 * r);
        put(w.extend(4), places, 4);
      }
      values16(w, s.type, slots, 4);
    }
  }
}

struct Part {  // some of the tiles
  Writer written;
  std::vector<size_t> tiles;  // where each begins in what was written
};

std::vector<int32_t> by_density(const Source& s) {
  std::vector<size_t> count(s.rows);
  for (size_t r = 0; r < s.rows; ++r)
    for (size_t c = 0; c < s.columns; ++c) count[r] += !s.zero(s.at(r, c));
  std::vector<int32_t> order(s.rows);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return count[a] > count[b]; });
  order.resize(padded(s.rows, kRows), -1);
  return order;
}

}  // namespace

Matrix relay(const void* values, Values type, size_t rows, size_t columns, Layout layout, int n, const float* scale) {
  if (!rows || !columns || rows > kMostRows || columns > kMostColumns) throw std::invalid_argument("a matrix of impossible size");
  if (layout == Layout::n_eight && (n < 1 || n > 7)) throw std::invalid_argument("N:8 needs an N from 1 to 7");
  if (type == Values::f32 && layout != Layout::dense) throw std::invalid_argument("sparse layouts hold 16-bit or int8 values");
  if (type == Values::i8 && !scale) throw std::invalid_argument("int8 values need a scale for each row");
  if (layout == Layout::window && padded(columns, kColumns) > kWindowColumns)
    throw std::invalid_argument("a window needs at most 65536 columns");
  Matrix m;
  m.rows = rows, m.columns = columns, m.layout = layout, m.values = type, m.n = n;
  Source source{static_cast<const uint8_t*>(values), type, rows, columns, nullptr};
  if (layout == Layout::window) {
    m.order = by_density(source);
    source.order = m.order.data();
  }
  const size_t count = padded(rows, kRows) / kRows;
  const auto lay = [&](size_t first, size_t last) {
    Part part;
    Writer& w = part.written;
    for (size_t tile = first; tile < last; ++tile) {
      part.tiles.push_back(w.out.size());
      switch (layout) {
        case Layout::dense: dense(source, tile, m.width(), w); break;
        case Layout::two_four: two_four(source, tile, m.width(), w); break;
        case Layout::n_eight: n_eight(source, tile, m.width(), n, w); break;
        case Layout::bitmask: bitmask(source, tile, m.width(), w); break;
        case Layout::window: window(source, tile, m.width(), w); break;
      }
      if (tile == first) w.out.reserve(w.out.size() * (last - first) / 4 * 5);
    }
    return part;
  };
  const size_t helpers = std::min<size_t>({count / 32, std::max(1u, std::thread::hardware_concurrency()) - 1, 7});
  std::vector<std::future<Part>> parts;
  for (size_t i = 1; i <= helpers; ++i)
    parts.push_back(std::async(std::launch::async | std::launch::deferred, lay,  // deferred: where no thread is to be had
                                count * i / (helpers + 1), count * (i + 1) / (helpers + 1)));
  std::vector<Part> done;
  done.push_back(lay(0, count / (helpers + 1)));
  for (auto& part : parts) done.push_back(part.get());
  size_t size = 0;
  m.tiles.reserve(count + 1);
  for (const Part& part : done) {
    for (const size_t tile : part.tiles) m.tiles.push_back(size + tile);
    size += part.written.out.size();
  }
  m.tiles.push_back(size);
  m.stream = Bytes(size + kSlack);
  uint8_t* to = m.stream.writable();
  for (Part& part : done) {
    to = std::copy(part.written.out.begin(), part.written.out.end(), to);
    std::vector<uint8_t>().swap(part.written.out);
  }
  std::memset(to, 0, kSlack);
  if (type == Values::i8) {
    m.scale.assign(count * kRows, 0.0f);
    for (size_t i = 0; i < count * kRows; ++i) {
      const size_t row = source.row(i / kRows, static_cast<int>(i % kRows));
      if (row < rows) m.scale[i] = scale[row];
    }
  }
  return m;
}

}  // namespace sparsedraft
