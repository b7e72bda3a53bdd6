// Blocks of a GGUF format (layouts: formats.cpp) as float32, one row at a time, for code that computes in plain numbers.
// Bound by memory, once the compiler has vectorized the loops over 32 codes. A product and a difference are rounded separately
// (see CMakeLists.txt), as in brise.quant.dequantize, so that the numbers are the same to the last bit.
#pragma once

#include <cstring>

#include "formats.h"
#include "half.h"
#include "simd.h"

namespace BRISE_ISA {

using namespace brise;

BRISE_INLINE float half_at(const uint8_t* p) {
  uint16_t bits;
  std::memcpy(&bits, p, 2);
  return half_to_float(bits);
}

// 16 bytes: columns 0..15 in the low nibbles, 16..31 in the high ones.
BRISE_INLINE void nibbles_of(const uint8_t* q, uint8_t* code) {
  for (int i = 0; i < 16; i++) code[i] = q[i] & 15;
  for (int i = 0; i < 16; i++) code[16 + i] = q[i] >> 4;
}

BRISE_INLINE void fifth_bits_of(const uint8_t* bits, uint8_t* code) {
  uint32_t high;
  std::memcpy(&high, bits, 4);
  for (int i = 0; i < 32; i++) code[i] |= (uint8_t)((high >> i & 1) << 4);
}

BRISE_INLINE void put_scaled(const uint8_t* code, int offset, float d, int n, float* out) {
  for (int i = 0; i < n; i++) out[i] = d * (float)((int)code[i] - offset);
}

BRISE_INLINE void put_shifted(const uint8_t* code, float d, float minimum, int n, float* out) {
  for (int i = 0; i < n; i++) out[i] = d * (float)code[i] - minimum;
}

BRISE_INLINE void put_listed(const uint8_t* code, const int8_t* numbers, float d, float* out) {
  for (int i = 0; i < 32; i++) out[i] = d * (float)numbers[code[i]];
}

// One block of 32 numbers.
BRISE_INLINE void decode_32(Format format, const uint8_t* p, float* out) {
  uint8_t code[32];
  switch (format) {
    case Format::Q4_0: return nibbles_of(p + 2, code), put_scaled(code, 8, half_at(p), 32, out);
    case Format::Q4_1: return nibbles_of(p + 4, code), put_shifted(code, half_at(p), -half_at(p + 2), 32, out);
    case Format::Q5_0: return nibbles_of(p + 6, code), fifth_bits_of(p + 2, code), put_scaled(code, 16, half_at(p), 32, out);
    case Format::Q5_1:
      return nibbles_of(p + 8, code), fifth_bits_of(p + 4, code), put_shifted(code, half_at(p), -half_at(p + 2), 32, out);
    case Format::IQ4_NL: return nibbles_of(p + 2, code), put_listed(code, IQ4_NUMBERS, half_at(p), out);
    case Format::MXFP4: return nibbles_of(p + 1, code), put_listed(code, FP4_NUMBERS, exponent_to_float(p[0]), out);
    default:  // Q8_0
      for (int i = 0; i < 32; i++) out[i] = half_at(p) * (float)(int8_t)p[2 + i];
  }
}

// Six bits of each of 8 scales and 8 minimums in 12 bytes.
BRISE_INLINE void six_bits_of(const uint8_t* s, uint8_t* scale, uint8_t* minimum) {
  for (int j = 0; j < 4; j++) {
    scale[j] = s[j] & 63;
    minimum[j] = s[j + 4] & 63;
    scale[j + 4] = (uint8_t)((s[j + 8] & 15) | (s[j] >> 6) << 4);
    minimum[j + 4] = (uint8_t)((s[j + 8] >> 4) | (s[j + 4] >> 6) << 4);
  }
}

// Q2_K and Q3_K: 32 bytes have the low two bits of four groups of 32.
BRISE_INLINE void decode_2_3(Format format, const uint8_t* p, float* out) {
  const bool is_two = format == Format::Q2_K;
  const float d = half_at(p + (is_two ? 80 : 108)), dmin = is_two ? half_at(p + 82) : 0.0f;
  for (int j = 0; j < 8; j++, out += 32) {
    uint8_t code[32];
    const uint8_t* low = p + (is_two ? 16 : 32) + 32 * (j / 4);
    for (int i = 0; i < 32; i++) code[i] = low[i] >> (2 * (j % 4)) & 3;
    if (!is_two)
      for (int i = 0; i < 32; i++) code[i] |= (uint8_t)((p[i] >> j & 1) << 2);
    for (int h = 0; h < 2; h++) {
      const int group = 2 * j + h;
      if (is_two) {
        put_shifted(code + 16 * h, d * (float)(p[group] & 15), dmin * (float)(p[group] >> 4), 16, out + 16 * h);
        continue;
      }
      const uint8_t* s = p + 96;
      const int nibble = group < 8 ? s[group] & 15 : s[group - 8] >> 4;
      const int scale = (nibble | (s[8 + group % 4] >> (2 * (group / 4)) & 3) << 4) - 32;
      put_scaled(code + 16 * h, 4, d * (float)scale, 16, out + 16 * h);
    }
  }
}

// Q4_K and Q5_K: 32 bytes have two groups of 32, low nibbles first.
BRISE_INLINE void decode_4_5(Format format, const uint8_t* p, float* out) {
  const bool is_five = format == Format::Q5_K;
  const float d = half_at(p), dmin = half_at(p + 2);
  uint8_t scale[8], minimum[8], code[32];
  six_bits_of(p + 4, scale, minimum);
  for (int j = 0; j < 8; j++) {
    const uint8_t* q = p + (is_five ? 48 : 16) + 32 * (j / 2);
    const int shift = 4 * (j % 2);
    for (int i = 0; i < 32; i++) code[i] = q[i] >> shift & 15;
    if (is_five)
      for (int i = 0; i < 32; i++) code[i] |= (uint8_t)((p[16 + i] >> j & 1) << 4);
    put_shifted(code, d * (float)scale[j], dmin * (float)minimum[j], 32, out + 32 * j);
  }
}

// Q6_K: halves of 128 numbers; quarter k has its low bits in nibble k / 2 of bytes 32 (k % 2).
BRISE_INLINE void decode_6(const uint8_t* p, float* out) {
  const float d = half_at(p + 208);
  for (int j = 0; j < 8; j++) {
    const int side = j / 4, quarter = j % 4;
    const uint8_t *low = p + 64 * side + 32 * (quarter % 2), *high = p + 128 + 32 * side;
    uint8_t code[32];
    for (int i = 0; i < 32; i++)
      code[i] = (uint8_t)((low[i] >> (quarter / 2 * 4) & 15) | (high[i] >> (2 * quarter) & 3) << 4);
    for (int h = 0; h < 2; h++)
      put_scaled(code + 16 * h, 32, d * (float)(int8_t)p[192 + 2 * j + h], 16, out + 32 * j + 16 * h);
  }
}

// IQ4_XS: eight groups of 32, whose scales + 32 have their low four bits in bytes 4..7 and their high two in bytes 2..3.
BRISE_INLINE void decode_listed(const uint8_t* p, float* out) {
  const float d = half_at(p);
  for (int j = 0; j < 8; j++, out += 32) {
    const int low = p[4 + j / 2] >> (4 * (j % 2)) & 15, high = p[2 + j / 4] >> (2 * (j % 4)) & 3;
    uint8_t code[32];
    nibbles_of(p + 8 + 16 * j, code);
    put_listed(code, IQ4_NUMBERS, d * (float)((low | high << 4) - 32), out);
  }
}

// One block of 32 or 256 numbers.
void decode(Format format, const uint8_t* p, float* out) {
  switch (format) {
    case Format::Q2_K:
    case Format::Q3_K: return decode_2_3(format, p, out);
    case Format::Q4_K:
    case Format::Q5_K: return decode_4_5(format, p, out);
    case Format::Q6_K: return decode_6(p, out);
    case Format::IQ4_XS: return decode_listed(p, out);
    default: decode_32(format, p, out);
  }
}

// Rounds halves to even; a NaN stays a NaN.
void round_bf16(const float* x, int n, uint16_t* out) {
  for (int i = 0; i < n; i++) {
    uint32_t bits;
    std::memcpy(&bits, x + i, 4);
    const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16, kept = bits >> 16 | 0x40;
    out[i] = (uint16_t)((bits & 0x7fffffff) > 0x7f800000 ? kept : rounded);
  }
}

}  // namespace BRISE_ISA
