// The bytes of a tile. A record holds some inputs of all 8 rows (lanes) of a tile; a slot is one weight of each lane.
//
//   layout, values      inputs  record, from front to back
//   dense, f32          1       8 values of 4 bytes: lane 0..7
//   dense, f16          1       8 values of 2 bytes: lane 0..7
//   dense, bf16         2       8 words of 4 bytes: lane 0..7, the first input in the low half
//   dense, i8           4       8 words of 4 bytes: lane 0..7, bytes of inputs 0, 2, 1, 3 (kByteOfInput)
//   2:4, 16 bits        32      places: a word a lane, 2 bits a slot; then 16 slots of values (as dense stores inputs)
//   2:4, i8             32      places and values of 4 double pair-steps (below)
//   N:8, 16 bits        64 / N  places: a word a lane, 4 bits a slot; then 8 slots of values
//   N:8, i8             64 / N  places and values of 2 double pair-steps
//   bitmask             64      512 bits: bit i is set if element i of the dense record is there; then those values
//   bitmask, i8, inputs of 8 bits: the same of 16 rows, 1024 bits; element i is input i / 64 * 4 + i % 4 of lane i / 4 % 16
//   window, 16 bits     -       first columns of 4 windows, places (a word a step, 4 bits a lane), 4 slots of values
//   window, i8          -       first columns of 8 windows, then as N:8
//
// Stretches of windows begin with the number of their records (4 bytes). A stretch is the whole tile, or with i8 kBlock inputs.
//
// A double pair-step of i8 is four slots of 8 lanes: `shuffle` of 16-bit integers chooses two slots at once. Its places are 4
// bytes a lane (PairPlace), its values 4 bytes a lane (PairValue); the first pair lies in the low bytes of 16-bit words, the
// second in the high ones.
#pragma once

#include "layout/matrix.hpp"

namespace sparsedraft {

constexpr size_t kByteOfInput[4] = {0, 2, 1, 3};  // in a word of dense i8; its own inverse

constexpr size_t kPlaceBytes = 32;  // places of one record: a 32-bit word a lane

struct TwoFourRecord {
  static constexpr size_t kInputs = 32;
  static constexpr size_t kSlots = 16;
  static constexpr size_t kValues = kPlaceBytes;  // offset
  static constexpr size_t kSize16 = kValues + kSlots * kRows * 2;
  static constexpr size_t kSize8 = kValues + kSlots * kRows;
};

struct EightRecord {  // of N:8; N of them cover 64 inputs
  static constexpr size_t kInputs = 64;
  static constexpr size_t kSlots = 8;
  static constexpr size_t kValues = kPlaceBytes;  // offset
  static constexpr size_t kSize16 = kValues + kSlots * kRows * 2;
  static constexpr size_t kSize8 = kValues + kSlots * kRows;
};

struct WindowRecord16 {
  static constexpr size_t kSteps = 4;
  static constexpr size_t kPlaces = kSteps * 2;            // offset; the columns, of 2 bytes, come before
  static constexpr size_t kValues = kPlaces + kSteps * 4;  // offset
  static constexpr size_t kSize = kValues + kSteps * kRows * 2;
};

struct WindowRecord8 {
  static constexpr size_t kSteps = 8;
  static constexpr size_t kPlaces = kSteps * 2;  // offset; an EightRecord from here on
  static constexpr size_t kSize = kPlaces + EightRecord::kSize8;
};

constexpr size_t kMaskBytes = kColumns * kRows / 8;  // of a bitmask's record; the values follow
constexpr size_t kWindowCount = 4;                   // bytes of the number of records that begins a stretch
constexpr size_t kWindowWidth = 8;                   // inputs that a window spans

// Offsets of a double pair-step. `second`: 0 or 1, the pair; `slot`: 0 or 1, within the pair.
constexpr size_t pair_place(size_t lane, size_t second, size_t slot) { return lane / 4 * 16 + second * 8 + lane % 4 * 2 + slot; }
constexpr size_t pair_value(size_t lane, size_t second, size_t slot) { return lane * 4 + slot * 2 + second; }
constexpr size_t kPairValues = 32;  // bytes of values of a double pair-step

}  // namespace sparsedraft
