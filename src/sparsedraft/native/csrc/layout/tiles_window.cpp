// Tiles of windows: a window of 8 inputs slides over a stretch of columns. At each step every lane whose next weight lies in the
// window gives it; the others give a zero.
#include <algorithm>

#include "layout/tiles.hpp"

namespace sparsedraft {
namespace {

struct Step {
  size_t column;  // the window's first
  Slots slots;
};

// The steps over the columns from `begin` to `end`, filled up with empty ones to a multiple of `multiple`.
std::vector<Step> slide(const Source& source, size_t tile, size_t begin, size_t end, size_t multiple) {
  std::vector<size_t> next(kRows, begin);  // the column of each lane's next weight
  const auto advance = [&](int lane) {
    const size_t row = source.row(tile, lane);
    while (next[lane] < end && source.is_zero(source.bits(row, next[lane]))) ++next[lane];
  };
  for (int lane = 0; lane < kRows; ++lane) advance(lane);
  std::vector<Step> steps;
  for (;;) {
    const size_t least = *std::min_element(next.begin(), next.end());
    if (least == end) break;
    Step step{std::min(least, end - kWindowWidth), {}};
    for (int lane = 0; lane < kRows; ++lane) {
      if (next[lane] >= step.column + kWindowWidth) continue;
      step.slots[lane] = {static_cast<int>(next[lane] - step.column), source.bits(source.row(tile, lane), next[lane])};
      ++next[lane];
      advance(lane);
    }
    steps.push_back(step);
  }
  while (steps.size() % multiple) steps.push_back({begin, {}});
  return steps;
}

void write_record16(Stream& stream, Values type, const Slots* slots) {
  for (size_t j = 0; j < WindowRecord16::kSteps; ++j) {
    uint32_t places = 0;
    for (int lane = 0; lane < kRows; ++lane) places |= static_cast<uint32_t>(slots[j][lane].place) << (4 * lane);
    put(stream.extend(4), places, 4);
  }
  write_values16(stream, type, slots, WindowRecord16::kSteps);
}

}  // namespace

void write_window(const Source& source, size_t tile, size_t width, Stream& stream) {
  const bool int8 = source.type == Values::i8;
  const size_t stretch = int8 ? kBlock : width;
  const size_t steps_of_record = int8 ? WindowRecord8::kSteps : WindowRecord16::kSteps;
  for (size_t begin = 0; begin < width; begin += stretch) {
    const std::vector<Step> steps = slide(source, tile, begin, std::min(width, begin + stretch), steps_of_record);
    put(stream.extend(kWindowCount), static_cast<uint32_t>(steps.size() / steps_of_record), kWindowCount);
    for (size_t i = 0; i < steps.size(); i += steps_of_record) {
      Slots slots[WindowRecord8::kSteps] = {};
      for (size_t j = 0; j < steps_of_record; ++j) {
        put(stream.extend(2), static_cast<uint32_t>(steps[i + j].column), 2);
        slots[j] = steps[i + j].slots;
      }
      if (int8) write_record8(stream, slots);
      else write_record16(stream, source.type, slots);
    }
  }
}

}  // namespace sparsedraft
