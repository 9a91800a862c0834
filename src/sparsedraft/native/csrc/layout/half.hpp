// float16 and bfloat16 to float32, bit by bit.
#pragma once

#include <bit>
#include <cstdint>

namespace sparsedraft {

// (-1)^sign * 2^(exponent - 15) * (1 + mantissa / 1024); exponent 0: mantissa * 2^-24; exponent 31: infinity or NaN
inline float half_to_float(uint16_t h) {
  const uint32_t sign = uint32_t{h & 0x8000u} << 16;
  const uint32_t mantissa = h & 0x3FFu;
  uint32_t exponent = (h >> 10) & 0x1Fu;
  if (exponent == 0) return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(static_cast<float>(mantissa) * 0x1p-24f));
  exponent = exponent == 31 ? 255 : exponent + 112;  // 127 - 15
  return std::bit_cast<float>(sign | (exponent << 23) | (mantissa << 13));
}

// bfloat16 is the upper half of a float32
inline float bfloat_to_float(uint16_t b) { return std::bit_cast<float>(uint32_t{b} << 16); }

}  // namespace sparsedraft
