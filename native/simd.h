// Sixteen lanes of float, sixteen of int32, sixty-four of bytes: the only file with intrinsics.
//
// A kernel is written once over F, I and B; each instruction set compiles it in a namespace of its own.
// Sixteen lanes are one AVX-512 register, two of AVX2, four of NEON, and the height of a weight tile.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(BRISE_AVX512) || defined(BRISE_AVX2)
#include <immintrin.h>
#elif defined(BRISE_NEON)
#include <arm_neon.h>
#endif

#include "half.h"

#define BRISE_INLINE inline __attribute__((always_inline))

namespace BRISE_ISA {

constexpr int LANES = 16;

#if defined(BRISE_AVX512)

constexpr const char* ISA_NAME = "avx512";
// Accumulators: 12 int + 12 float registers of 32 leave 8 for weights, scales and masks.
constexpr int MAX_TOKENS = 12;
constexpr int GEMV_TILES = 4;
constexpr int FLOAT_TOKENS = 8;  // of float weights: more would need more addresses than there are registers for
using F = __m512;
using I = __m512i;
using B = __m512i;
using P = __m512i;  // sixteen pairs of int16, a pair in each lane

BRISE_INLINE F f_zero() { return _mm512_setzero_ps(); }
BRISE_INLINE F f_set(float v) { return _mm512_set1_ps(v); }
BRISE_INLINE F f_load(const float* p) { return _mm512_loadu_ps(p); }
BRISE_INLINE void f_store(float* p, F v) { _mm512_storeu_ps(p, v); }
BRISE_INLINE F f_add(F a, F b) { return _mm512_add_ps(a, b); }
BRISE_INLINE F f_sub(F a, F b) { return _mm512_sub_ps(a, b); }
BRISE_INLINE F f_mul(F a, F b) { return _mm512_mul_ps(a, b); }
BRISE_INLINE F f_div(F a, F b) { return _mm512_div_ps(a, b); }
BRISE_INLINE F f_max(F a, F b) { return _mm512_max_ps(a, b); }
BRISE_INLINE F f_min(F a, F b) { return _mm512_min_ps(a, b); }
BRISE_INLINE F f_fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
BRISE_INLINE F f_abs(F a) { return _mm512_abs_ps(a); }
BRISE_INLINE F f_if_less(F a, F b, F yes, F no) { return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), no, yes); }
BRISE_INLINE F f_from_i(I v) { return _mm512_cvtepi32_ps(v); }
BRISE_INLINE I i_round(F v) { return _mm512_cvtps_epi32(v); }
BRISE_INLINE F f_exp2_int(I v) {  // 2^v for v in [-126, 127]
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(v, _mm512_set1_epi32(127)), 23));
}
BRISE_INLINE F f_load_f16(const uint16_t* p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }
BRISE_INLINE void f_store_f16(uint16_t* p, F v) {
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
BRISE_INLINE F f_load_bf16(const uint16_t* p) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
}
BRISE_INLINE F f_load_i8(const int8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
}
BRISE_INLINE F f_load_u8(const uint8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p)));
}
BRISE_INLINE float f_sum(F v) { return _mm512_reduce_add_ps(v); }
BRISE_INLINE float f_top(F v) { return _mm512_reduce_max_ps(v); }
BRISE_INLINE I i_set(int32_t v) { return _mm512_set1_epi32(v); }
BRISE_INLINE void i_store_i8(int8_t* p, I v) { _mm_storeu_si128((__m128i*)p, _mm512_cvtsepi32_epi8(v)); }
BRISE_INLINE int32_t i_sum(I v) { return _mm512_reduce_add_epi32(v); }
BRISE_INLINE void i_store_i16(int16_t* p, I v) { _mm256_storeu_si256((__m256i*)p, _mm512_cvtsepi32_epi16(v)); }
BRISE_INLINE P p_load_i16(const uint8_t* p) { return _mm512_loadu_si512(p); }
BRISE_INLINE P p_load_i8(const uint8_t* p) { return _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i*)p)); }
template <bool HIGH> BRISE_INLINE P p_load_u4(const uint8_t* p) {
  const __m512i v = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i*)p));
  return HIGH ? _mm512_srli_epi16(v, 4) : _mm512_and_si512(v, _mm512_set1_epi16(15));
}
// A lane's pair times the pair in x. The intrinsic makes gcc 12 copy and spill its accumulators.
BRISE_INLINE I dot2(I acc, P p, int32_t x) {
  asm("vpdpwssd %2, %1, %0" : "+v"(acc) : "v"(p), "v"(_mm512_set1_epi32(x)));
  return acc;
}
template <bool ODD> BRISE_INLINE F f_from_p(P p) {
  return _mm512_cvtepi32_ps(_mm512_srai_epi32(ODD ? p : _mm512_slli_epi32(p, 16), 16));
}
BRISE_INLINE B b_load(const uint8_t* p) { return _mm512_loadu_si512(p); }
BRISE_INLINE B b_set(uint8_t v) { return _mm512_set1_epi8((char)v); }
BRISE_INLINE B b_and(B a, B b) { return _mm512_and_si512(a, b); }
BRISE_INLINE B b_or(B a, B b) { return _mm512_or_si512(a, b); }
template <int N> BRISE_INLINE B b_right(B a) { return N ? _mm512_srli_epi16(a, N) : a; }
template <int N> BRISE_INLINE B b_left(B a) { return N ? _mm512_slli_epi16(a, N) : a; }
BRISE_INLINE I dot4(I acc, B w, int32_t x) { return _mm512_dpbusd_epi32(acc, w, _mm512_set1_epi32(x)); }
BRISE_INLINE I dot4_wide(I acc, B w, int32_t x) { return dot4(acc, w, x); }
// The dot product takes unsigned bytes: 128 is added to each number of a table.
constexpr int TABLE_OFFSET = 128;
BRISE_INLINE B b_table(const int8_t* numbers) {
  return _mm512_xor_si512(_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)numbers)), _mm512_set1_epi8((char)0x80));
}
BRISE_INLINE B b_look_up(B table, B codes) { return _mm512_shuffle_epi8(table, codes); }
BRISE_INLINE I dot4_table(I acc, B w, int32_t x) { return dot4(acc, w, x); }
// 2^(e - 128). Below 2 the result is subnormal: its bits are 2^21 << e instead of (e - 1) << 23.
BRISE_INLINE F f_load_e8(const uint8_t* p) {
  const __m512i e = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p)), one = _mm512_set1_epi32(1);
  const __m512i least = _mm512_sllv_epi32(_mm512_set1_epi32(1 << 21), _mm512_min_epi32(e, one));
  return _mm512_castsi512_ps(_mm512_max_epi32(_mm512_slli_epi32(_mm512_sub_epi32(e, one), 23), least));
}

#elif defined(BRISE_AVX2)

constexpr const char* ISA_NAME = "avx2";
constexpr int MAX_TOKENS = 4;
constexpr int GEMV_TILES = 2;
constexpr int FLOAT_TOKENS = 6;  // 6 x 2 accumulators, 2 registers of weights, one of activations: 15 of 16
struct F { __m256 a, b; };
struct I { __m256i a, b; };
using B = I;
using P = I;

BRISE_INLINE F f_set(float v) { __m256 s = _mm256_set1_ps(v); return {s, s}; }
BRISE_INLINE F f_zero() { return f_set(0.0f); }
BRISE_INLINE F f_load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
BRISE_INLINE void f_store(float* p, F v) { _mm256_storeu_ps(p, v.a); _mm256_storeu_ps(p + 8, v.b); }
BRISE_INLINE F f_add(F x, F y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
BRISE_INLINE F f_sub(F x, F y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
BRISE_INLINE F f_mul(F x, F y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
BRISE_INLINE F f_div(F x, F y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
BRISE_INLINE F f_max(F x, F y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
BRISE_INLINE F f_min(F x, F y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
BRISE_INLINE F f_fma(F x, F y, F z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
BRISE_INLINE F f_abs(F x) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
}
BRISE_INLINE F f_if_less(F x, F y, F yes, F no) {
  return {_mm256_blendv_ps(no.a, yes.a, _mm256_cmp_ps(x.a, y.a, _CMP_LT_OQ)),
          _mm256_blendv_ps(no.b, yes.b, _mm256_cmp_ps(x.b, y.b, _CMP_LT_OQ))};
}
BRISE_INLINE F f_from_i(I v) { return {_mm256_cvtepi32_ps(v.a), _mm256_cvtepi32_ps(v.b)}; }
BRISE_INLINE I i_round(F v) { return {_mm256_cvtps_epi32(v.a), _mm256_cvtps_epi32(v.b)}; }
BRISE_INLINE F f_exp2_int(I v) {
  const __m256i bias = _mm256_set1_epi32(127);
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(v.a, bias), 23)),
          _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(v.b, bias), 23))};
}
BRISE_INLINE F f_load_f16(const uint16_t* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)), _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(p + 8)))};
}
BRISE_INLINE void f_store_f16(uint16_t* p, F v) {
  _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph(v.a, _MM_FROUND_TO_NEAREST_INT));
  _mm_storeu_si128((__m128i*)(p + 8), _mm256_cvtps_ph(v.b, _MM_FROUND_TO_NEAREST_INT));
}
BRISE_INLINE F f_load_bf16(const uint16_t* p) {
  __m256i a = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p));
  __m256i b = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)(p + 8)));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(a, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(b, 16))};
}
BRISE_INLINE F f_load_i8(const int8_t* p) {
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p))),
          _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)(p + 8))))};
}
BRISE_INLINE F f_load_u8(const uint8_t* p) {
  return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p))),
          _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)(p + 8))))};
}
BRISE_INLINE float f_sum(F v) {
  __m256 s = _mm256_add_ps(v.a, v.b);
  __m128 t = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
  t = _mm_add_ps(t, _mm_movehl_ps(t, t));
  return _mm_cvtss_f32(_mm_add_ss(t, _mm_shuffle_ps(t, t, 1)));
}
BRISE_INLINE float f_top(F v) {
  __m256 s = _mm256_max_ps(v.a, v.b);
  __m128 t = _mm_max_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
  t = _mm_max_ps(t, _mm_movehl_ps(t, t));
  return _mm_cvtss_f32(_mm_max_ss(t, _mm_shuffle_ps(t, t, 1)));
}
BRISE_INLINE I i_set(int32_t v) { __m256i s = _mm256_set1_epi32(v); return {s, s}; }
BRISE_INLINE void i_store_i8(int8_t* p, I v) {
  alignas(32) int32_t lane[16];
  _mm256_store_si256((__m256i*)lane, v.a);
  _mm256_store_si256((__m256i*)(lane + 8), v.b);
  for (int i = 0; i < 16; i++) p[i] = (int8_t)lane[i];
}
BRISE_INLINE int32_t i_sum(I v) {
  __m256i s = _mm256_add_epi32(v.a, v.b);
  __m128i t = _mm_add_epi32(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1));
  t = _mm_add_epi32(t, _mm_shuffle_epi32(t, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(t, _mm_shuffle_epi32(t, 0xb1)));
}
BRISE_INLINE void i_store_i16(int16_t* p, I v) {
  _mm256_storeu_si256((__m256i*)p, _mm256_permute4x64_epi64(_mm256_packs_epi32(v.a, v.b), 0xd8));
}
BRISE_INLINE B b_load(const uint8_t* p) {
  return {_mm256_loadu_si256((const __m256i*)p), _mm256_loadu_si256((const __m256i*)(p + 32))};
}
BRISE_INLINE P p_load_i16(const uint8_t* p) { return b_load(p); }
BRISE_INLINE P p_load_i8(const uint8_t* p) {
  return {_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)p)), _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)(p + 16)))};
}
template <bool HIGH> BRISE_INLINE P p_load_u4(const uint8_t* p) {
  const __m256i a = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)p)), mask = _mm256_set1_epi16(15);
  const __m256i b = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)(p + 16)));
  return {HIGH ? _mm256_srli_epi16(a, 4) : _mm256_and_si256(a, mask), HIGH ? _mm256_srli_epi16(b, 4) : _mm256_and_si256(b, mask)};
}
BRISE_INLINE I dot2(I acc, P p, int32_t x) {
  const __m256i xs = _mm256_set1_epi32(x);
  return {_mm256_add_epi32(acc.a, _mm256_madd_epi16(p.a, xs)), _mm256_add_epi32(acc.b, _mm256_madd_epi16(p.b, xs))};
}
template <bool ODD> BRISE_INLINE F f_from_p(P p) {
  return {_mm256_cvtepi32_ps(_mm256_srai_epi32(ODD ? p.a : _mm256_slli_epi32(p.a, 16), 16)),
          _mm256_cvtepi32_ps(_mm256_srai_epi32(ODD ? p.b : _mm256_slli_epi32(p.b, 16), 16))};
}
BRISE_INLINE B b_set(uint8_t v) { __m256i s = _mm256_set1_epi8((char)v); return {s, s}; }
BRISE_INLINE B b_and(B x, B y) { return {_mm256_and_si256(x.a, y.a), _mm256_and_si256(x.b, y.b)}; }
BRISE_INLINE B b_or(B x, B y) { return {_mm256_or_si256(x.a, y.a), _mm256_or_si256(x.b, y.b)}; }
template <int N> BRISE_INLINE B b_right(B x) { return {_mm256_srli_epi16(x.a, N), _mm256_srli_epi16(x.b, N)}; }
template <int N> BRISE_INLINE B b_left(B x) { return {_mm256_slli_epi16(x.a, N), _mm256_slli_epi16(x.b, N)}; }
// vpmaddubsw adds two products in 16 bits: 127 * 127 * 2 = 32,258 still fits, hence codes up to 127.
BRISE_INLINE I dot4(I acc, B w, int32_t x) {
  const __m256i one = _mm256_set1_epi16(1), xs = _mm256_set1_epi32(x);
  return {_mm256_add_epi32(acc.a, _mm256_madd_epi16(_mm256_maddubs_epi16(w.a, xs), one)),
          _mm256_add_epi32(acc.b, _mm256_madd_epi16(_mm256_maddubs_epi16(w.b, xs), one))};
}
// Codes up to 255 as their low seven bits and their top bit: 128 * 127 * 2 = 32,512 fits too.
BRISE_INLINE I dot4_wide(I acc, B w, int32_t x) {
  return dot4(dot4(acc, b_and(w, b_set(0x7f)), x), b_and(w, b_set(0x80)), x);
}
constexpr int TABLE_OFFSET = 0;
BRISE_INLINE B b_table(const int8_t* numbers) {
  __m256i v = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)numbers));
  return {v, v};
}
BRISE_INLINE B b_look_up(B table, B codes) { return {_mm256_shuffle_epi8(table.a, codes.a), _mm256_shuffle_epi8(table.b, codes.b)}; }
// A number's sign moves to the activation, so that the unsigned side of vpmaddubsw gets its size, at most 127.
BRISE_INLINE I dot4_table(I acc, B w, int32_t x) {
  const __m256i one = _mm256_set1_epi16(1), xs = _mm256_set1_epi32(x);
  const __m256i a = _mm256_maddubs_epi16(_mm256_abs_epi8(w.a), _mm256_sign_epi8(xs, w.a));
  const __m256i b = _mm256_maddubs_epi16(_mm256_abs_epi8(w.b), _mm256_sign_epi8(xs, w.b));
  return {_mm256_add_epi32(acc.a, _mm256_madd_epi16(a, one)), _mm256_add_epi32(acc.b, _mm256_madd_epi16(b, one))};
}
BRISE_INLINE __m256 m_from_e8(__m256i e) {
  const __m256i one = _mm256_set1_epi32(1), least = _mm256_sllv_epi32(_mm256_set1_epi32(1 << 21), _mm256_min_epi32(e, one));
  return _mm256_castsi256_ps(_mm256_max_epi32(_mm256_slli_epi32(_mm256_sub_epi32(e, one), 23), least));
}
BRISE_INLINE F f_load_e8(const uint8_t* p) {
  return {m_from_e8(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p))),
          m_from_e8(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)(p + 8))))};
}

#elif defined(BRISE_NEON)

constexpr const char* ISA_NAME = "neon";
constexpr int MAX_TOKENS = 2;
constexpr int GEMV_TILES = 1;
constexpr int FLOAT_TOKENS = 6;  // 6 x 4 accumulators, 4 registers of weights, one of activations: 29 of 32
struct F { float32x4_t v[4]; };
struct I { int32x4_t v[4]; };
struct B { uint8x16_t v[4]; };
struct P { int16x8_t even[2], odd[2]; };  // taken apart when loaded: a widening product has four lanes

#define BRISE_EACH(T, expr) ({ T r_; for (int i = 0; i < 4; i++) r_.v[i] = (expr); r_; })
BRISE_INLINE F f_set(float v) { return BRISE_EACH(F, vdupq_n_f32(v)); }
BRISE_INLINE F f_zero() { return f_set(0.0f); }
BRISE_INLINE F f_load(const float* p) { return BRISE_EACH(F, vld1q_f32(p + 4 * i)); }
BRISE_INLINE void f_store(float* p, F x) { for (int i = 0; i < 4; i++) vst1q_f32(p + 4 * i, x.v[i]); }
BRISE_INLINE F f_add(F x, F y) { return BRISE_EACH(F, vaddq_f32(x.v[i], y.v[i])); }
BRISE_INLINE F f_sub(F x, F y) { return BRISE_EACH(F, vsubq_f32(x.v[i], y.v[i])); }
BRISE_INLINE F f_mul(F x, F y) { return BRISE_EACH(F, vmulq_f32(x.v[i], y.v[i])); }
BRISE_INLINE F f_div(F x, F y) { return BRISE_EACH(F, vdivq_f32(x.v[i], y.v[i])); }
BRISE_INLINE F f_max(F x, F y) { return BRISE_EACH(F, vmaxq_f32(x.v[i], y.v[i])); }
BRISE_INLINE F f_min(F x, F y) { return BRISE_EACH(F, vminq_f32(x.v[i], y.v[i])); }
BRISE_INLINE F f_fma(F x, F y, F z) { return BRISE_EACH(F, vfmaq_f32(z.v[i], x.v[i], y.v[i])); }
BRISE_INLINE F f_abs(F x) { return BRISE_EACH(F, vabsq_f32(x.v[i])); }
BRISE_INLINE F f_if_less(F x, F y, F yes, F no) { return BRISE_EACH(F, vbslq_f32(vcltq_f32(x.v[i], y.v[i]), yes.v[i], no.v[i])); }
BRISE_INLINE F f_from_i(I x) { return BRISE_EACH(F, vcvtq_f32_s32(x.v[i])); }
BRISE_INLINE I i_round(F x) { return BRISE_EACH(I, vcvtnq_s32_f32(x.v[i])); }
BRISE_INLINE F f_exp2_int(I x) {
  return BRISE_EACH(F, vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(x.v[i], vdupq_n_s32(127)), 23)));
}
BRISE_INLINE F f_load_f16(const uint16_t* p) {
  return BRISE_EACH(F, vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * i))));
}
BRISE_INLINE void f_store_f16(uint16_t* p, F x) {
  for (int i = 0; i < 4; i++) vst1_u16(p + 4 * i, vreinterpret_u16_f16(vcvt_f16_f32(x.v[i])));
}
BRISE_INLINE F f_load_bf16(const uint16_t* p) {
  return BRISE_EACH(F, vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p + 4 * i), 16)));
}
BRISE_INLINE F f_load_i8(const int8_t* p) {
  int16x8_t a = vmovl_s8(vld1_s8(p)), b = vmovl_s8(vld1_s8(p + 8));
  return {{vcvtq_f32_s32(vmovl_s16(vget_low_s16(a))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(a))),
           vcvtq_f32_s32(vmovl_s16(vget_low_s16(b))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(b)))}};
}
BRISE_INLINE F f_load_u8(const uint8_t* p) {
  uint16x8_t a = vmovl_u8(vld1_u8(p)), b = vmovl_u8(vld1_u8(p + 8));
  return {{vcvtq_f32_u32(vmovl_u16(vget_low_u16(a))), vcvtq_f32_u32(vmovl_u16(vget_high_u16(a))),
           vcvtq_f32_u32(vmovl_u16(vget_low_u16(b))), vcvtq_f32_u32(vmovl_u16(vget_high_u16(b)))}};
}
BRISE_INLINE float f_sum(F x) { return vaddvq_f32(vaddq_f32(vaddq_f32(x.v[0], x.v[1]), vaddq_f32(x.v[2], x.v[3]))); }
BRISE_INLINE float f_top(F x) { return vmaxvq_f32(vmaxq_f32(vmaxq_f32(x.v[0], x.v[1]), vmaxq_f32(x.v[2], x.v[3]))); }
BRISE_INLINE I i_set(int32_t v) { return BRISE_EACH(I, vdupq_n_s32(v)); }
BRISE_INLINE void i_store_i8(int8_t* p, I x) {
  for (int i = 0; i < 4; i++) for (int j = 0; j < 4; j++) p[4 * i + j] = (int8_t)x.v[i][j];
}
BRISE_INLINE int32_t i_sum(I x) { return vaddvq_s32(vaddq_s32(vaddq_s32(x.v[0], x.v[1]), vaddq_s32(x.v[2], x.v[3]))); }
BRISE_INLINE void i_store_i16(int16_t* p, I x) {
  for (int i = 0; i < 4; i++) vst1_s16(p + 4 * i, vqmovn_s32(x.v[i]));
}
BRISE_INLINE P p_load_i16(const uint8_t* p) {
  const int16x8x2_t a = vld2q_s16((const int16_t*)p), b = vld2q_s16((const int16_t*)p + 16);
  return {{a.val[0], b.val[0]}, {a.val[1], b.val[1]}};
}
BRISE_INLINE P p_load_i8(const uint8_t* p) {
  const int8x8x2_t a = vld2_s8((const int8_t*)p), b = vld2_s8((const int8_t*)p + 16);
  return {{vmovl_s8(a.val[0]), vmovl_s8(b.val[0])}, {vmovl_s8(a.val[1]), vmovl_s8(b.val[1])}};
}
BRISE_INLINE int16x8_t v_widen_u4(uint8x8_t v) { return vreinterpretq_s16_u16(vmovl_u8(v)); }
template <bool HIGH> BRISE_INLINE P p_load_u4(const uint8_t* p) {
  const uint8x8x2_t a = vld2_u8(p), b = vld2_u8(p + 16);
  const auto half = [](uint8x8_t v) { return v_widen_u4(HIGH ? vshr_n_u8(v, 4) : vand_u8(v, vdup_n_u8(15))); };
  return {{half(a.val[0]), half(b.val[0])}, {half(a.val[1]), half(b.val[1])}};
}
BRISE_INLINE I dot2(I acc, P p, int32_t x) {
  const int16_t even = (int16_t)x, odd = (int16_t)(x >> 16);
  for (int i = 0; i < 2; i++) {
    acc.v[2 * i] = vmlal_n_s16(vmlal_n_s16(acc.v[2 * i], vget_low_s16(p.even[i]), even), vget_low_s16(p.odd[i]), odd);
    acc.v[2 * i + 1] = vmlal_n_s16(vmlal_n_s16(acc.v[2 * i + 1], vget_high_s16(p.even[i]), even), vget_high_s16(p.odd[i]), odd);
  }
  return acc;
}
template <bool ODD> BRISE_INLINE F f_from_p(P p) {
  const int16x8_t a = ODD ? p.odd[0] : p.even[0], b = ODD ? p.odd[1] : p.even[1];
  return {{vcvtq_f32_s32(vmovl_s16(vget_low_s16(a))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(a))),
           vcvtq_f32_s32(vmovl_s16(vget_low_s16(b))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(b)))}};
}
BRISE_INLINE B b_load(const uint8_t* p) { return BRISE_EACH(B, vld1q_u8(p + 16 * i)); }
BRISE_INLINE B b_set(uint8_t v) { return BRISE_EACH(B, vdupq_n_u8(v)); }
BRISE_INLINE B b_and(B x, B y) { return BRISE_EACH(B, vandq_u8(x.v[i], y.v[i])); }
BRISE_INLINE B b_or(B x, B y) { return BRISE_EACH(B, vorrq_u8(x.v[i], y.v[i])); }
template <int N> BRISE_INLINE B b_right(B x) { return BRISE_EACH(B, vshlq_u8(x.v[i], vdupq_n_s8(-N))); }
template <int N> BRISE_INLINE B b_left(B x) { return BRISE_EACH(B, vshlq_u8(x.v[i], vdupq_n_s8(N))); }
BRISE_INLINE I dot4(I acc, B w, int32_t x) {
  const int8x16_t xs = vreinterpretq_s8_s32(vdupq_n_s32(x));
  return BRISE_EACH(I, vdotq_s32(acc.v[i], vreinterpretq_s8_u8(w.v[i]), xs));
}
// SDOT takes signed bytes: codes up to 255 go as their low seven bits and twice half of their top bit.
BRISE_INLINE I dot4_wide(I acc, B w, int32_t x) {
  B top = b_and(b_right<1>(w), b_set(0x40));
  return dot4(dot4(dot4(acc, b_and(w, b_set(0x7f)), x), top, x), top, x);
}
constexpr int TABLE_OFFSET = 0;
BRISE_INLINE B b_table(const int8_t* numbers) { return BRISE_EACH(B, vreinterpretq_u8_s8(vld1q_s8(numbers))); }
BRISE_INLINE B b_look_up(B table, B codes) { return BRISE_EACH(B, vqtbl1q_u8(table.v[i], codes.v[i])); }
BRISE_INLINE I dot4_table(I acc, B w, int32_t x) { return dot4(acc, w, x); }
BRISE_INLINE float32x4_t v_from_e8(uint16x4_t v) {
  const int32x4_t e = vreinterpretq_s32_u32(vmovl_u16(v)), one = vdupq_n_s32(1);
  const int32x4_t least = vshlq_s32(vdupq_n_s32(1 << 21), vminq_s32(e, one));
  return vreinterpretq_f32_s32(vmaxq_s32(vshlq_n_s32(vsubq_s32(e, one), 23), least));
}
BRISE_INLINE F f_load_e8(const uint8_t* p) {
  const uint16x8_t a = vmovl_u8(vld1_u8(p)), b = vmovl_u8(vld1_u8(p + 8));
  return {{v_from_e8(vget_low_u16(a)), v_from_e8(vget_high_u16(a)), v_from_e8(vget_low_u16(b)), v_from_e8(vget_high_u16(b))}};
}

#else

constexpr const char* ISA_NAME = "scalar";
constexpr int MAX_TOKENS = 1;
constexpr int GEMV_TILES = 1;
constexpr int FLOAT_TOKENS = 2;
struct F { float v[16]; };
struct I { int32_t v[16]; };
struct B { uint8_t v[64]; };
struct P { int16_t v[32]; };

using brise::float_to_half, brise::half_to_float;

#define BRISE_LANES(T, N, expr) T r_; for (int i = 0; i < N; i++) r_.v[i] = (expr); return r_
BRISE_INLINE F f_set(float v) { BRISE_LANES(F, 16, v); }
BRISE_INLINE F f_zero() { return f_set(0.0f); }
BRISE_INLINE F f_load(const float* p) { BRISE_LANES(F, 16, p[i]); }
BRISE_INLINE void f_store(float* p, F x) { std::memcpy(p, x.v, sizeof x.v); }
BRISE_INLINE F f_add(F x, F y) { BRISE_LANES(F, 16, x.v[i] + y.v[i]); }
BRISE_INLINE F f_sub(F x, F y) { BRISE_LANES(F, 16, x.v[i] - y.v[i]); }
BRISE_INLINE F f_mul(F x, F y) { BRISE_LANES(F, 16, x.v[i] * y.v[i]); }
BRISE_INLINE F f_div(F x, F y) { BRISE_LANES(F, 16, x.v[i] / y.v[i]); }
BRISE_INLINE F f_max(F x, F y) { BRISE_LANES(F, 16, x.v[i] > y.v[i] ? x.v[i] : y.v[i]); }
BRISE_INLINE F f_min(F x, F y) { BRISE_LANES(F, 16, x.v[i] < y.v[i] ? x.v[i] : y.v[i]); }
BRISE_INLINE F f_fma(F x, F y, F z) { BRISE_LANES(F, 16, x.v[i] * y.v[i] + z.v[i]); }
BRISE_INLINE F f_abs(F x) { BRISE_LANES(F, 16, std::fabs(x.v[i])); }
BRISE_INLINE F f_if_less(F x, F y, F yes, F no) { BRISE_LANES(F, 16, x.v[i] < y.v[i] ? yes.v[i] : no.v[i]); }
BRISE_INLINE F f_from_i(I x) { BRISE_LANES(F, 16, (float)x.v[i]); }
BRISE_INLINE I i_round(F x) { BRISE_LANES(I, 16, (int32_t)std::nearbyint(x.v[i])); }
BRISE_INLINE F f_exp2_int(I x) { BRISE_LANES(F, 16, std::ldexp(1.0f, x.v[i])); }
BRISE_INLINE F f_load_f16(const uint16_t* p) { BRISE_LANES(F, 16, half_to_float(p[i])); }
BRISE_INLINE void f_store_f16(uint16_t* p, F x) { for (int i = 0; i < 16; i++) p[i] = float_to_half(x.v[i]); }
BRISE_INLINE F f_load_bf16(const uint16_t* p) {
  F r;
  for (int i = 0; i < 16; i++) { uint32_t bits = (uint32_t)p[i] << 16; std::memcpy(&r.v[i], &bits, 4); }
  return r;
}
BRISE_INLINE F f_load_i8(const int8_t* p) { BRISE_LANES(F, 16, (float)p[i]); }
BRISE_INLINE F f_load_u8(const uint8_t* p) { BRISE_LANES(F, 16, (float)p[i]); }
BRISE_INLINE float f_sum(F x) { float s = 0; for (int i = 0; i < 16; i++) s += x.v[i]; return s; }
BRISE_INLINE float f_top(F x) { float s = x.v[0]; for (int i = 1; i < 16; i++) s = x.v[i] > s ? x.v[i] : s; return s; }
BRISE_INLINE I i_set(int32_t v) { BRISE_LANES(I, 16, v); }
BRISE_INLINE void i_store_i8(int8_t* p, I x) { for (int i = 0; i < 16; i++) p[i] = (int8_t)x.v[i]; }
BRISE_INLINE int32_t i_sum(I x) { int32_t s = 0; for (int i = 0; i < 16; i++) s += x.v[i]; return s; }
BRISE_INLINE void i_store_i16(int16_t* p, I x) {
  for (int i = 0; i < 16; i++) p[i] = (int16_t)(x.v[i] > 32767 ? 32767 : x.v[i] < -32768 ? -32768 : x.v[i]);
}
BRISE_INLINE P p_load_i16(const uint8_t* p) { P r; std::memcpy(r.v, p, 64); return r; }
BRISE_INLINE P p_load_i8(const uint8_t* p) { BRISE_LANES(P, 32, (int8_t)p[i]); }
template <bool HIGH> BRISE_INLINE P p_load_u4(const uint8_t* p) { BRISE_LANES(P, 32, HIGH ? p[i] >> 4 : p[i] & 15); }
BRISE_INLINE I dot2(I acc, P p, int32_t x) { BRISE_LANES(I, 16, acc.v[i] + p.v[2 * i] * (int16_t)x + p.v[2 * i + 1] * (int16_t)(x >> 16)); }
template <bool ODD> BRISE_INLINE F f_from_p(P p) { BRISE_LANES(F, 16, (float)p.v[2 * i + ODD]); }
BRISE_INLINE B b_load(const uint8_t* p) { B r; std::memcpy(r.v, p, 64); return r; }
BRISE_INLINE B b_set(uint8_t v) { BRISE_LANES(B, 64, v); }
BRISE_INLINE B b_and(B x, B y) { BRISE_LANES(B, 64, (uint8_t)(x.v[i] & y.v[i])); }
BRISE_INLINE B b_or(B x, B y) { BRISE_LANES(B, 64, (uint8_t)(x.v[i] | y.v[i])); }
template <int N> BRISE_INLINE B b_right(B x) { BRISE_LANES(B, 64, (uint8_t)(x.v[i] >> N)); }
template <int N> BRISE_INLINE B b_left(B x) { BRISE_LANES(B, 64, (uint8_t)(x.v[i] << N)); }
BRISE_INLINE I dot4(I acc, B w, int32_t x) {
  int8_t xs[4];
  std::memcpy(xs, &x, 4);
  for (int i = 0; i < 16; i++)
    for (int j = 0; j < 4; j++) acc.v[i] += (int32_t)w.v[4 * i + j] * xs[j];
  return acc;
}
BRISE_INLINE I dot4_wide(I acc, B w, int32_t x) { return dot4(acc, w, x); }
constexpr int TABLE_OFFSET = 0;
BRISE_INLINE B b_table(const int8_t* numbers) { BRISE_LANES(B, 64, (uint8_t)numbers[i % 16]); }
BRISE_INLINE B b_look_up(B table, B codes) { BRISE_LANES(B, 64, table.v[codes.v[i]]); }
BRISE_INLINE I dot4_table(I acc, B w, int32_t x) {
  int8_t xs[4];
  std::memcpy(xs, &x, 4);
  for (int i = 0; i < 16; i++)
    for (int j = 0; j < 4; j++) acc.v[i] += (int32_t)(int8_t)w.v[4 * i + j] * xs[j];
  return acc;
}
BRISE_INLINE F f_load_e8(const uint8_t* p) { BRISE_LANES(F, 16, brise::exponent_to_float(p[i])); }

#endif

// Halves to even, for numbers below 2^22: above 1.5 * 2^23 floats are whole.
BRISE_INLINE F f_whole(F v) { return f_sub(f_add(v, f_set(12582912.0f)), f_set(12582912.0f)); }
BRISE_INLINE F f_clamp(F v, float low, float high) { return f_min(f_max(v, f_set(low)), f_set(high)); }

BRISE_INLINE void prefetch_l2(const void* p) { __builtin_prefetch(p, 0, 1); }

// exp(x) for x <= 88, exactly 0 below -87; relative error below 3e-7: 2^n times a polynomial on [-ln2/2, ln2/2] (Cephes).
BRISE_INLINE F f_exp(F any) {
  const F x = f_max(f_min(any, f_set(88.0f)), f_set(-87.0f));
  const I n = i_round(f_mul(x, f_set(1.44269504f)));
  const F whole = f_from_i(n);
  F r = f_fma(whole, f_set(-0.693359375f), x);
  r = f_fma(whole, f_set(2.12194440e-4f), r);
  F p = f_set(1.9875691500e-4f);
  p = f_fma(p, r, f_set(1.3981999507e-3f));
  p = f_fma(p, r, f_set(8.3334519073e-3f));
  p = f_fma(p, r, f_set(4.1665795894e-2f));
  p = f_fma(p, r, f_set(1.6666665459e-1f));
  p = f_fma(p, r, f_set(5.0000001201e-1f));
  p = f_add(f_fma(p, f_mul(r, r), r), f_set(1.0f));
  return f_if_less(any, f_set(-87.0f), f_zero(), f_mul(p, f_exp2_int(n)));
}

// The same for x <= 0, with fewer instructions where there is one that scales by a power of two.
BRISE_INLINE F f_exp_below(F any) {
#if defined(BRISE_AVX512)
  const F x = f_max(any, f_set(-104.0f));  // whose exp is 0
  const F n = _mm512_roundscale_ps(f_mul(x, f_set(1.44269504f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  F r = f_fma(n, f_set(-0.693359375f), x);
  r = f_fma(n, f_set(2.12194440e-4f), r);
  F p = f_set(1.9875691500e-4f);
  p = f_fma(p, r, f_set(1.3981999507e-3f));
  p = f_fma(p, r, f_set(8.3334519073e-3f));
  p = f_fma(p, r, f_set(4.1665795894e-2f));
  p = f_fma(p, r, f_set(1.6666665459e-1f));
  p = f_fma(p, r, f_set(5.0000001201e-1f));
  return _mm512_scalef_ps(f_add(f_fma(p, f_mul(r, r), r), f_set(1.0f)), n);
#else
  return f_exp(any);
#endif
}

}  // namespace BRISE_ISA
