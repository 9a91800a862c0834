// float16 and bfloat16, bit by bit.
#pragma once

#include <bit>
#include <cstdint>

namespace sparsedraft {

inline float half_to_float(uint16_t h) {
  const uint32_t sign = uint32_t{h & 0x8000u} << 16, mantissa = h & 0x3FFu;
  uint32_t exponent = (h >> 10) & 0x1Fu;
  if (exponent == 0) return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(static_cast<float>(mantissa) * 0x1p-24f));
  exponent = exponent == 31 ? 255 : exponent + 112;
  return std::bit_cast<float>(sign | (exponent << 23) | (mantissa << 13));
}

inline float bfloat_to_float(uint16_t b) { return std::bit_cast<float>(uint32_t{b} << 16); }

}  // namespace sparsedraft
