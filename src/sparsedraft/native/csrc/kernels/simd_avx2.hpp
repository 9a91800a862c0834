// The operations of simd_portable.hpp in 256 bits with AVX2, FMA and F16C.
//
// avx2.cpp and avx512.cpp each include this once, with their own VECTORS: for CPUs with AVX-512 the same source compiles to twice
// as many registers, and integer sums to one instruction (why not shared: see kernels.hpp).

#include <immintrin.h>

#include <cstdint>

namespace sparsedraft::VECTORS {

struct F {
  __m256 v;
};
struct I {
  __m256i v;
};

inline F zero() { return {_mm256_setzero_ps()}; }
inline F load(const float* p) { return {_mm256_loadu_ps(p)}; }
inline void store(float* p, F a) { _mm256_storeu_ps(p, a.v); }
inline F splat(float x) { return {_mm256_set1_ps(x)}; }
inline F splat4(const float* p) { return {_mm256_broadcast_ps(reinterpret_cast<const __m128*>(p))}; }  // 4 floats, twice
inline F add(F a, F b) { return {_mm256_add_ps(a.v, b.v)}; }
inline F sub(F a, F b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline F mul(F a, F b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline F div(F a, F b) { return {_mm256_div_ps(a.v, b.v)}; }
inline F fma(F a, F b, F c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
inline F max(F a, F b) { return {_mm256_max_ps(a.v, b.v)}; }
inline F min(F a, F b) { return {_mm256_min_ps(a.v, b.v)}; }
inline F round(F a) { return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
inline F absolute(F a) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v)}; }
inline F permute8(F x, I i) { return {_mm256_permutevar8x32_ps(x.v, i.v)}; }  // low 3 bits of each index
inline F permute4(F x, I i) { return {_mm256_permutevar_ps(x.v, i.v)}; }      // low 2 bits, within each half
inline F to_float(I a) { return {_mm256_cvtepi32_ps(a.v)}; }
inline I to_int(F a) { return {_mm256_cvtps_epi32(a.v)}; }
inline F as_float(I a) { return {_mm256_castsi256_ps(a.v)}; }
inline F halves(const uint8_t* p) {  // 8 float16
  return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}

inline I izero() { return {_mm256_setzero_si256()}; }
inline I iload(const void* p) { return {_mm256_loadu_si256(static_cast<const __m256i*>(p))}; }
inline void istore(void* p, I a) { _mm256_storeu_si256(static_cast<__m256i*>(p), a.v); }
inline I splat32(int32_t x) { return {_mm256_set1_epi32(x)}; }
inline I splat32(const void* p) { return {_mm256_set1_epi32(*static_cast<const int32_t*>(p))}; }
inline I splat128(const void* p) {
  return {_mm256_broadcastsi128_si256(_mm_loadu_si128(static_cast<const __m128i*>(p)))};
}
inline I bits_and(I a, I b) { return {_mm256_and_si256(a.v, b.v)}; }
inline I bits_or(I a, I b) { return {_mm256_or_si256(a.v, b.v)}; }
template <int S>
inline I left32(I a) {
  return {_mm256_slli_epi32(a.v, S)};
}
template <int S>
inline I right32(I a) {
  return {_mm256_srli_epi32(a.v, S)};
}
inline I right32(I a, I by) { return {_mm256_srlv_epi32(a.v, by.v)}; }
inline I right32(I a, int by) { return {_mm256_srl_epi32(a.v, _mm_cvtsi32_si128(by))}; }
inline I add32(I a, I b) { return {_mm256_add_epi32(a.v, b.v)}; }
inline I sub32(I a, I b) { return {_mm256_sub_epi32(a.v, b.v)}; }
inline I bits_xor(I a, I b) { return {_mm256_xor_si256(a.v, b.v)}; }
inline I low_bytes(I a) { return {_mm256_srai_epi16(_mm256_slli_epi16(a.v, 8), 8)}; }  // of 16 pairs, sign kept
inline I high_bytes(I a) { return {_mm256_srai_epi16(a.v, 8)}; }
using Repeated = I;
inline Repeated repeated32(const void* p) { return splat32(p); }
inline I add_dot16(I sum, I a, I b) {  // and the sums of neighbours' products
#ifdef __AVX512VNNI__
  return {_mm256_dpwssd_epi32(sum.v, a.v, b.v)};
#else
  return {_mm256_add_epi32(sum.v, _mm256_madd_epi16(a.v, b.v))};
#endif
}
// Sums of codes in 16 bits: 16 products of 15 and 127 fit.
inline I begin_codes(const int32_t*) { return izero(); }
inline I add_codes(I sum, I codes, I bytes) { return {_mm256_add_epi16(sum.v, _mm256_maddubs_epi16(codes.v, bytes.v))}; }
inline I end_codes(I sum, const int32_t* start) { return add32({_mm256_madd_epi16(sum.v, _mm256_set1_epi16(1))}, splat32(start)); }
inline I factors_of(I codes) { return codes; }
inline I add_eights(I sum, I bytes) { return add_codes(sum, splat32(0x08080808), bytes); }
// Sums of products of signed bytes: of magnitudes and of bytes with the signs of both, as 16 bits hold two products of those.
inline I begin_bytes(const int32_t*) { return izero(); }
inline I bytes_of(I weights) { return weights; }
inline I add_bytes(I sum, I weights, I bytes) {
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(weights.v), _mm256_sign_epi8(bytes.v, weights.v));
  return {_mm256_add_epi32(sum.v, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))};
}
inline I add_wide_codes(I sum, I a, I x, I b, I y) {  // 4 products of 63 and 127 fit in 16 bits
  const __m256i pairs = _mm256_add_epi16(_mm256_maddubs_epi16(a.v, x.v), _mm256_maddubs_epi16(b.v, y.v));
  return {_mm256_add_epi32(sum.v, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))};
}
inline I bytes_to_words(const uint8_t* p) {
  return {_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)))};
}
inline I where_equal(I a, I b, I yes, I no) { return {_mm256_blendv_epi8(no.v, yes.v, _mm256_cmpeq_epi8(a.v, b.v))}; }
inline I shuffle(I x, I i) { return {_mm256_shuffle_epi8(x.v, i.v)}; }  // bytes, within each half
inline I zip_low(I a, I b) { return {_mm256_unpacklo_epi8(a.v, b.v)}; }  // of each half
inline I zip_high(I a, I b) { return {_mm256_unpackhi_epi8(a.v, b.v)}; }
inline I odd16(I even, I odd) { return {_mm256_blend_epi16(even.v, odd.v, 0xAA)}; }
inline void store16(int16_t* p, I a) {  // 8 int32 to 8 int16, which they fit
  const __m256i packed = _mm256_packs_epi32(a.v, a.v);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08)));
}
inline void store8(int8_t* p, I a) {  // 8 int32 to 8 int8, which they fit
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(a.v), _mm256_extracti128_si256(a.v, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(words, words));
}
inline int32_t sum_words(I a) {
  const __m128i half = _mm_add_epi32(_mm256_castsi256_si128(a.v), _mm256_extracti128_si256(a.v, 1));
  const __m128i quarter = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0x4E));
  return _mm_cvtsi128_si32(_mm_add_epi32(quarter, _mm_shuffle_epi32(quarter, 0xB1)));
}
inline float sum(F a) {
  const __m128 half = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  const __m128 quarter = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(quarter, _mm_shuffle_ps(quarter, quarter, 1)));
}
inline float largest(F a) {
  const __m128 half = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  const __m128 quarter = _mm_max_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_max_ss(quarter, _mm_shuffle_ps(quarter, quarter, 1)));
}
inline bool any_greater(F a, F b) { return _mm256_movemask_ps(_mm256_cmp_ps(a.v, b.v, _CMP_GT_OQ)) != 0; }
// GCC 12 leaves calls out that only prefetch, unless they are inlined before it looks.
inline __attribute__((always_inline)) void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }

// out[i] = values[places[i]], or 0 where places[i] is 0x80: 8 or 16 bytes.
inline void spread8(uint8_t* out, const uint8_t* values, const uint8_t* places) {
  const __m128i i = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(places));
  const __m128i x = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(values));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(out), _mm_shuffle_epi8(x, i));
}
inline void spread16(uint8_t* out, const uint8_t* values, const uint8_t* places) {
  const __m128i i = _mm_loadu_si128(reinterpret_cast<const __m128i*>(places));
  const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(values));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm_shuffle_epi8(x, i));
}

}  // namespace sparsedraft::VECTORS
