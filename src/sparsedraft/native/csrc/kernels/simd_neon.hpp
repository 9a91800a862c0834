// The operations of simd_portable.hpp with NEON and its products of bytes (sdot): two registers of 128 bits for 8 lanes.
#pragma once

#include <arm_neon.h>

#include <cstdint>
#include <cstring>

namespace sparsedraft::simd_neon {

struct F {
  float32x4_t low, high;
};
struct I {
  uint32x4_t low, high;
};

// The same bits as other lanes.
inline uint8x16_t bytes(uint32x4_t a) { return vreinterpretq_u8_u32(a); }
inline int8x16_t signed_bytes(uint32x4_t a) { return vreinterpretq_s8_u32(a); }
inline int16x8_t shorts(uint32x4_t a) { return vreinterpretq_s16_u32(a); }
inline int32x4_t ints(uint32x4_t a) { return vreinterpretq_s32_u32(a); }
inline uint32x4_t words(int8x16_t a) { return vreinterpretq_u32_s8(a); }
inline uint32x4_t words(uint8x16_t a) { return vreinterpretq_u32_u8(a); }
inline uint32x4_t words(int16x8_t a) { return vreinterpretq_u32_s16(a); }
inline uint32x4_t words(int32x4_t a) { return vreinterpretq_u32_s32(a); }
inline uint32x4_t words_at(const void* p) { return words(vld1q_u8(static_cast<const uint8_t*>(p))); }

// a > b ? a : b, also where one is NaN, which vmaxq_f32 would give
inline float32x4_t larger(float32x4_t a, float32x4_t b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
inline float32x4_t smaller(float32x4_t a, float32x4_t b) { return vbslq_f32(vcltq_f32(a, b), a, b); }

inline F zero() { return {vdupq_n_f32(0), vdupq_n_f32(0)}; }
inline F load(const float* p) { return {vld1q_f32(p), vld1q_f32(p + 4)}; }
inline void store(float* p, F a) {
  vst1q_f32(p, a.low);
  vst1q_f32(p + 4, a.high);
}
inline F splat(float x) { return {vdupq_n_f32(x), vdupq_n_f32(x)}; }
inline F splat4(const float* p) { return {vld1q_f32(p), vld1q_f32(p)}; }
inline F add(F a, F b) { return {vaddq_f32(a.low, b.low), vaddq_f32(a.high, b.high)}; }
inline F sub(F a, F b) { return {vsubq_f32(a.low, b.low), vsubq_f32(a.high, b.high)}; }
inline F mul(F a, F b) { return {vmulq_f32(a.low, b.low), vmulq_f32(a.high, b.high)}; }
inline F div(F a, F b) { return {vdivq_f32(a.low, b.low), vdivq_f32(a.high, b.high)}; }
inline F fma(F a, F b, F c) { return {vfmaq_f32(c.low, a.low, b.low), vfmaq_f32(c.high, a.high, b.high)}; }
inline F max(F a, F b) { return {larger(a.low, b.low), larger(a.high, b.high)}; }
inline F min(F a, F b) { return {smaller(a.low, b.low), smaller(a.high, b.high)}; }
inline F round(F a) { return {vrndnq_f32(a.low), vrndnq_f32(a.high)}; }
inline F absolute(F a) { return {vabsq_f32(a.low), vabsq_f32(a.high)}; }
// The bytes of the floats number `i` of a table: 4 i, 4 i + 1, 4 i + 2, 4 i + 3, for each lane.
template <uint32_t kMost>
inline uint8x16_t bytes_of_float(uint32x4_t i) {
  return bytes(vmlaq_n_u32(vdupq_n_u32(0x03020100), vandq_u32(i, vdupq_n_u32(kMost)), 0x04040404));
}
inline F permute8(F x, I i) {
  const uint8x16x2_t table = {vreinterpretq_u8_f32(x.low), vreinterpretq_u8_f32(x.high)};
  return {vreinterpretq_f32_u8(vqtbl2q_u8(table, bytes_of_float<7>(i.low))),
          vreinterpretq_f32_u8(vqtbl2q_u8(table, bytes_of_float<7>(i.high)))};
}
inline F permute4(F x, I i) {
  return {vreinterpretq_f32_u8(vqtbl1q_u8(vreinterpretq_u8_f32(x.low), bytes_of_float<3>(i.low))),
          vreinterpretq_f32_u8(vqtbl1q_u8(vreinterpretq_u8_f32(x.high), bytes_of_float<3>(i.high)))};
}
inline F to_float(I a) { return {vcvtq_f32_s32(ints(a.low)), vcvtq_f32_s32(ints(a.high))}; }
inline I to_int(F a) { return {words(vcvtnq_s32_f32(a.low)), words(vcvtnq_s32_f32(a.high))}; }
inline F as_float(I a) { return {vreinterpretq_f32_u32(a.low), vreinterpretq_f32_u32(a.high)}; }
inline F halves(const uint8_t* p) {
  const float16x8_t a = vreinterpretq_f16_u8(vld1q_u8(p));
  return {vcvt_f32_f16(vget_low_f16(a)), vcvt_high_f32_f16(a)};
}

inline I izero() { return {vdupq_n_u32(0), vdupq_n_u32(0)}; }
inline I iload(const void* p) { return {words_at(p), words_at(static_cast<const uint8_t*>(p) + 16)}; }
inline void istore(void* p, I a) {
  vst1q_u8(static_cast<uint8_t*>(p), bytes(a.low));
  vst1q_u8(static_cast<uint8_t*>(p) + 16, bytes(a.high));
}
inline I splat32(int32_t x) { return {words(vdupq_n_s32(x)), words(vdupq_n_s32(x))}; }
inline I splat32(const void* p) {
  int32_t x;
  std::memcpy(&x, p, 4);
  return splat32(x);
}
inline I splat128(const void* p) { return {words_at(p), words_at(p)}; }
inline I bits_and(I a, I b) { return {vandq_u32(a.low, b.low), vandq_u32(a.high, b.high)}; }
inline I bits_or(I a, I b) { return {vorrq_u32(a.low, b.low), vorrq_u32(a.high, b.high)}; }
inline I bits_xor(I a, I b) { return {veorq_u32(a.low, b.low), veorq_u32(a.high, b.high)}; }
template <int S>
inline I left32(I a) {
  return {vshlq_n_u32(a.low, S), vshlq_n_u32(a.high, S)};
}
template <int S>
inline I right32(I a) {
  return {vshrq_n_u32(a.low, S), vshrq_n_u32(a.high, S)};
}
inline I right32(I a, I by) {
  return {vshlq_u32(a.low, vnegq_s32(ints(by.low))), vshlq_u32(a.high, vnegq_s32(ints(by.high)))};
}
inline I right32(I a, int by) { return right32(a, splat32(by)); }
inline I add32(I a, I b) { return {vaddq_u32(a.low, b.low), vaddq_u32(a.high, b.high)}; }
inline I sub32(I a, I b) { return {vsubq_u32(a.low, b.low), vsubq_u32(a.high, b.high)}; }
inline I high_bytes(I a) { return {words(vshrq_n_s16(shorts(a.low), 8)), words(vshrq_n_s16(shorts(a.high), 8))}; }
inline I low_bytes(I a) {
  return high_bytes({words(vshlq_n_s16(shorts(a.low), 8)), words(vshlq_n_s16(shorts(a.high), 8))});
}

// Four bytes for all lanes, in the low end of a register: instructions take them from there. (A load into all lanes has no offset,
// and takes time in the units for vectors.)
struct Repeated {
  int8x8_t v;
};
inline Repeated repeated32(const void* p) {
  uint32_t x;
  std::memcpy(&x, p, 4);
  return {vcreate_s8(x)};
}

inline uint32x4_t add_dot16(uint32x4_t sum, int16x8_t a, int16x8_t b) {
  const int32x4_t first = vmull_s16(vget_low_s16(a), vget_low_s16(b));
  return vaddq_u32(sum, words(vpaddq_s32(first, vmull_high_s16(a, b))));
}
inline I add_dot16(I sum, I a, I b) {
  return {add_dot16(sum.low, shorts(a.low), shorts(b.low)), add_dot16(sum.high, shorts(a.high), shorts(b.high))};
}

// The pairs of `a` apart: what that takes is done once for all tokens.
inline uint32x4_t add_dot16(uint32x4_t sum, int32x4_t a, int16x4_t b) {
  const int32x4_t first = vmlal_lane_s16(ints(sum), vmovn_s32(a), b, 0);
  return words(vmlal_lane_s16(first, vshrn_n_s32(a, 16), b, 1));
}
inline I add_dot16(I sum, I a, Repeated b) {
  const int16x4_t pair = vreinterpret_s16_s8(b.v);
  return {add_dot16(sum.low, ints(a.low), pair), add_dot16(sum.high, ints(a.high), pair)};
}

// Sums of four products of signed bytes a word, which codes are, too.
inline I add_bytes(I sum, I a, I b) {
  return {words(vdotq_s32(ints(sum.low), signed_bytes(a.low), signed_bytes(b.low))),
          words(vdotq_s32(ints(sum.high), signed_bytes(a.high), signed_bytes(b.high)))};
}
inline I add_bytes(I sum, I a, Repeated b) {
  return {words(vdotq_lane_s32(ints(sum.low), signed_bytes(a.low), b.v, 0)),
          words(vdotq_lane_s32(ints(sum.high), signed_bytes(a.high), b.v, 0))};
}
inline I begin_bytes(const int32_t*) { return izero(); }
inline I bytes_of(I weights) { return weights; }
inline I begin_codes(const int32_t* start) { return splat32(start); }
inline I add_codes(I sum, I codes, I b) { return add_bytes(sum, codes, b); }
inline I add_codes(I sum, I codes, Repeated b) { return add_bytes(sum, codes, b); }
inline I add_wide_codes(I sum, I a, Repeated x, I b, Repeated y) { return add_bytes(add_bytes(sum, a, x), b, y); }
inline I bytes_to_words(const uint8_t* p) {
  const int16x8_t wide = vmovl_s8(vreinterpret_s8_u8(vld1_u8(p)));
  return {words(vmovl_s16(vget_low_s16(wide))), words(vmovl_s16(vget_high_s16(wide)))};
}
inline I end_codes(I sum, const int32_t*) { return sum; }
inline I factors_of(I codes) {
  const int8x16_t eight = vdupq_n_s8(8);
  return {words(vsubq_s8(signed_bytes(codes.low), eight)), words(vsubq_s8(signed_bytes(codes.high), eight))};
}
inline I add_eights(I sum, I) { return sum; }

inline uint32x4_t chosen(uint32x4_t a, uint32x4_t b, uint32x4_t yes, uint32x4_t no) {
  return words(vbslq_u8(vceqq_u8(bytes(a), bytes(b)), bytes(yes), bytes(no)));
}
inline I where_equal(I a, I b, I yes, I no) {
  return {chosen(a.low, b.low, yes.low, no.low), chosen(a.high, b.high, yes.high, no.high)};
}
inline I shuffle(I x, I i) {
  return {words(vqtbl1q_u8(bytes(x.low), bytes(i.low))), words(vqtbl1q_u8(bytes(x.high), bytes(i.high)))};
}
inline I zip_low(I a, I b) {
  return {words(vzip1q_u8(bytes(a.low), bytes(b.low))), words(vzip1q_u8(bytes(a.high), bytes(b.high)))};
}
inline I zip_high(I a, I b) {
  return {words(vzip2q_u8(bytes(a.low), bytes(b.low))), words(vzip2q_u8(bytes(a.high), bytes(b.high)))};
}
inline I odd16(I even, I odd) {
  const uint32x4_t first = vdupq_n_u32(0xFFFF);
  return {vbslq_u32(first, even.low, odd.low), vbslq_u32(first, even.high, odd.high)};
}
inline int16x8_t lower_halves(I a) { return vcombine_s16(vmovn_s32(ints(a.low)), vmovn_s32(ints(a.high))); }
inline void store16(int16_t* p, I a) { vst1q_s16(p, lower_halves(a)); }
inline void store8(int8_t* p, I a) { vst1_s8(p, vmovn_s16(lower_halves(a))); }
inline int32_t sum_words(I a) { return vaddvq_s32(vaddq_s32(ints(a.low), ints(a.high))); }
inline float sum(F a) {
  const float32x4_t half = vaddq_f32(a.low, a.high);
  return vpadds_f32(vadd_f32(vget_low_f32(half), vget_high_f32(half)));
}
inline float largest(F a) {
  const float32x4_t half = larger(a.low, a.high);
  const float32x4_t quarter = larger(half, vextq_f32(half, half, 2));
  return vgetq_lane_f32(larger(quarter, vextq_f32(quarter, quarter, 1)), 0);
}
inline bool any_greater(F a, F b) {
  return vmaxvq_u32(vorrq_u32(vcgtq_f32(a.low, b.low), vcgtq_f32(a.high, b.high))) != 0;
}
inline void prefetch(const void* p) { __builtin_prefetch(p); }

// 16 bytes of values are read, of which 8 may lie behind the last one: in kSlack.
inline void spread8(uint8_t* out, const uint8_t* values, const uint8_t* places) {
  vst1_u8(out, vqtbl1_u8(vld1q_u8(values), vld1_u8(places)));
}
inline void spread16(uint8_t* out, const uint8_t* values, const uint8_t* places) {
  vst1q_u8(out, vqtbl1q_u8(vld1q_u8(values), vld1q_u8(places)));
}

}  // namespace sparsedraft::simd_neon
