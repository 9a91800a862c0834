// The operations on vectors that the kernels are written in, in plain C++: F is 8 floats, I is 8 words of 32 bits. This is their
// specification; simd_avx2.hpp, simd_avx512.inc and simd_neon.hpp give the same results bit for bit.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "layout/half.hpp"

namespace sparsedraft::simd_portable {

struct F {
  float v[8];
};
struct I {
  uint32_t v[8];
  uint8_t byte(int i) const { return static_cast<uint8_t>(v[i / 4] >> (8 * (i % 4))); }
  void set(int i, uint8_t b) { v[i / 4] = (v[i / 4] & ~(0xFFu << (8 * (i % 4)))) | (uint32_t{b} << (8 * (i % 4))); }
  int16_t word(int i) const { return static_cast<int16_t>(v[i / 2] >> (16 * (i % 2))); }
};

template <class A, class Do>
inline A each(Do make) {
  A out;
  for (int i = 0; i < 8; ++i) out.v[i] = make(i);
  return out;
}
template <class T>
inline T read(const void* p, int i) {
  T out;
  std::memcpy(&out, static_cast<const uint8_t*>(p) + i * sizeof(T), sizeof(T));
  return out;
}

inline F zero() { return {}; }
inline F load(const float* p) {
  return each<F>([&](int i) { return p[i]; });
}
inline void store(float* p, F a) { std::memcpy(p, a.v, sizeof(a.v)); }
inline F splat(float x) {
  return each<F>([&](int) { return x; });
}
inline F splat4(const float* p) {
  return each<F>([&](int i) { return p[i % 4]; });
}
inline F add(F a, F b) {
  return each<F>([&](int i) { return a.v[i] + b.v[i]; });
}
inline F sub(F a, F b) {
  return each<F>([&](int i) { return a.v[i] - b.v[i]; });
}
inline F mul(F a, F b) {
  return each<F>([&](int i) { return a.v[i] * b.v[i]; });
}
inline F div(F a, F b) {
  return each<F>([&](int i) { return a.v[i] / b.v[i]; });
}
inline F fma(F a, F b, F c) {
  return each<F>([&](int i) { return std::fma(a.v[i], b.v[i], c.v[i]); });
}
inline F max(F a, F b) {
  return each<F>([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
inline F min(F a, F b) {
  return each<F>([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
}
inline F round(F a) {
  return each<F>([&](int i) { return std::nearbyint(a.v[i]); });
}
inline F absolute(F a) {
  return each<F>([&](int i) { return std::fabs(a.v[i]); });
}
inline F permute8(F x, I i) {
  return each<F>([&](int r) { return x.v[i.v[r] & 7]; });
}
inline F permute4(F x, I i) {
  return each<F>([&](int r) { return x.v[(r & 4) | (i.v[r] & 3)]; });
}
inline F to_float(I a) {
  return each<F>([&](int i) { return static_cast<float>(static_cast<int32_t>(a.v[i])); });
}
inline I to_int(F a) {
  return each<I>([&](int i) { return static_cast<uint32_t>(static_cast<int32_t>(std::nearbyint(a.v[i]))); });
}
inline F as_float(I a) {
  F out;
  std::memcpy(out.v, a.v, sizeof(out.v));
  return out;
}
inline F halves(const uint8_t* p) {
  return each<F>([&](int i) { return half_to_float(read<uint16_t>(p, i)); });
}

inline I izero() { return {}; }
inline I iload(const void* p) {
  return each<I>([&](int i) { return read<uint32_t>(p, i); });
}
inline void istore(void* p, I a) { std::memcpy(p, a.v, sizeof(a.v)); }
inline I splat32(int32_t x) {
  return each<I>([&](int) { return static_cast<uint32_t>(x); });
}
inline I splat32(const void* p) {
  const uint32_t x = read<uint32_t>(p, 0);
  return each<I>([&](int) { return x; });
}
inline I splat128(const void* p) {
  return each<I>([&](int i) { return read<uint32_t>(p, i % 4); });
}
inline I bits_and(I a, I b) {
  return each<I>([&](int i) { return a.v[i] & b.v[i]; });
}
inline I bits_or(I a, I b) {
  return each<I>([&](int i) { return a.v[i] | b.v[i]; });
}
template <int S>
inline I left32(I a) {
  return each<I>([&](int i) { return a.v[i] << S; });
}
template <int S>
inline I right32(I a) {
  return each<I>([&](int i) { return a.v[i] >> S; });
}
inline I right32(I a, int by) {
  return each<I>([&](int i) { return a.v[i] >> by; });
}
inline I right32(I a, I by) {
  return each<I>([&](int i) { return a.v[i] >> by.v[i]; });
}
inline I add32(I a, I b) {
  return each<I>([&](int i) { return a.v[i] + b.v[i]; });
}
inline I sub32(I a, I b) {
  return each<I>([&](int i) { return a.v[i] - b.v[i]; });
}
inline I bits_xor(I a, I b) {
  return each<I>([&](int i) { return a.v[i] ^ b.v[i]; });
}
inline uint32_t pair(int low, int high) {
  return static_cast<uint16_t>(low) | (static_cast<uint32_t>(static_cast<uint16_t>(high)) << 16);
}
inline I low_bytes(I a) {
  return each<I>([&](int i) {
    return pair(static_cast<int8_t>(a.byte(4 * i)), static_cast<int8_t>(a.byte(4 * i + 2)));
  });
}
inline I high_bytes(I a) {
  return each<I>([&](int i) {
    return pair(static_cast<int8_t>(a.byte(4 * i + 1)), static_cast<int8_t>(a.byte(4 * i + 3)));
  });
}
// Four bytes of inputs for all lanes: the last operand of add_dot16, add_codes and add_bytes.
using Repeated = I;
inline Repeated repeated32(const void* p) { return splat32(p); }
inline I add_dot16(I sum, I a, I b) {
  return each<I>([&](int i) {
    return sum.v[i] + static_cast<uint32_t>(a.word(2 * i) * b.word(2 * i)) +
           static_cast<uint32_t>(a.word(2 * i + 1) * b.word(2 * i + 1));
  });
}
// Sums of products of codes from 0 to 15 with signed bytes, four neighbours a word and up to 32 in all: begin_codes, then
// add_codes, then end_codes, which gives start + their sum. Between, a set may keep them as it likes.
inline I begin_codes(const int32_t*) { return {}; }
inline I end_codes(I sum, const int32_t* start) { return add32(sum, splat32(start)); }
inline I add_codes(I sum, I codes, I bytes) {
  return each<I>([&](int i) {
    uint32_t out = sum.v[i];
    for (int k = 4 * i; k < 4 * i + 4; ++k) out += static_cast<uint32_t>(codes.byte(k) * static_cast<int8_t>(bytes.byte(k)));
    return out;
  });
}
// Sums of (code - 8) times byte are those of factors_of(codes) times bytes less those of add_eights: a set takes the 8 away in one of
// the two.
inline I factors_of(I codes) { return codes; }
inline I add_eights(I sum, I bytes) { return add_codes(sum, splat32(0x08080808), bytes); }
// Sums of products of signed bytes, four neighbours a word: begin_bytes, then add_bytes of what bytes_of makes of the first ones.
inline I begin_bytes(const int32_t*) { return {}; }
inline I bytes_of(I weights) { return weights; }
inline I add_bytes(I sum, I weights, I bytes) {
  return each<I>([&](int i) {
    uint32_t out = sum.v[i];
    for (int k = 4 * i; k < 4 * i + 4; ++k)
      out += static_cast<uint32_t>(static_cast<int8_t>(weights.byte(k)) * static_cast<int8_t>(bytes.byte(k)));
    return out;
  });
}
// The same of codes up to 63, two steps of them.
inline I add_wide_codes(I sum, I a, I x, I b, I y) { return add_codes(add_codes(sum, a, x), b, y); }
// 8 signed bytes as words.
inline I bytes_to_words(const uint8_t* p) {
  return each<I>([&](int i) { return static_cast<uint32_t>(static_cast<int8_t>(p[i])); });
}
// Of each byte: a == b ? yes : no
inline I where_equal(I a, I b, I yes, I no) {
  I out{};
  for (int k = 0; k < 32; ++k) out.set(k, a.byte(k) == b.byte(k) ? yes.byte(k) : no.byte(k));
  return out;
}
// Within each half. An index is from 0 to 15, or 0x80: then the byte is 0.
inline I shuffle(I x, I i) {
  I out{};
  for (int b = 0; b < 32; ++b)
    if (!(i.byte(b) & 0x80)) out.set(b, x.byte((b & 16) | (i.byte(b) & 15)));
  return out;
}
inline I zipped(I a, I b, int from) {
  I out{};
  for (int j = 0; j < 16; ++j) {
    const int half = j / 8 * 16;
    const int source = half + from + j % 8;
    out.set(half + 2 * (j % 8), a.byte(source));
    out.set(half + 2 * (j % 8) + 1, b.byte(source));
  }
  return out;
}
inline I zip_low(I a, I b) { return zipped(a, b, 0); }
inline I zip_high(I a, I b) { return zipped(a, b, 8); }
inline I odd16(I even, I odd) {
  return each<I>([&](int i) { return (even.v[i] & 0xFFFFu) | (odd.v[i] & 0xFFFF0000u); });
}
inline void store16(int16_t* p, I a) {
  for (int i = 0; i < 8; ++i) p[i] = static_cast<int16_t>(a.v[i]);
}
inline void store8(int8_t* p, I a) {
  for (int i = 0; i < 8; ++i) p[i] = static_cast<int8_t>(a.v[i]);
}
inline int32_t sum_words(I a) {
  uint32_t out = 0;
  for (const uint32_t word : a.v) out += word;
  return static_cast<int32_t>(out);
}
inline float sum(F a) {
  const float even = (a.v[0] + a.v[4]) + (a.v[2] + a.v[6]);  // the order in which 256 bits are halved
  const float odd = (a.v[1] + a.v[5]) + (a.v[3] + a.v[7]);
  return even + odd;
}
inline float largest(F a) { return *std::max_element(a.v, a.v + 8); }
inline bool any_greater(F a, F b) {
  bool out = false;
  for (int i = 0; i < 8; ++i) out |= a.v[i] > b.v[i];
  return out;
}
inline void prefetch(const void*) {}

inline void spread(uint8_t* out, const uint8_t* values, const uint8_t* places, int n) {
  for (int i = 0; i < n; ++i) out[i] = places[i] & 0x80 ? uint8_t{0} : values[places[i]];
}
inline void spread8(uint8_t* out, const uint8_t* values, const uint8_t* places) { spread(out, values, places, 8); }
inline void spread16(uint8_t* out, const uint8_t* values, const uint8_t* places) { spread(out, values, places, 16); }

}  // namespace sparsedraft::simd_portable
