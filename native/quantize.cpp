// Quantizes float32 rows to GGUF blocks: calls the kernels that fit numbers, and writes codes and scales (layouts:
// formats.cpp).
//
// 32-column formats without importance (but IQ4_NL, whose scales others search, too) are bit for bit what other programs write; everything else is fitted
// (quantize.h), with the same result on every instruction set.
#include "kernels.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "formats.h"
#include "half.h"

namespace brise {

namespace {

constexpr int GROUPS = 16;  // that a kernel fits at once

void put_half(uint8_t* p, uint16_t bits) { std::memcpy(p, &bits, 2); }

// 32 codes from 0: their low nibbles, columns 0..15 below 16..31.
void put_nibbles(const uint8_t* code, uint8_t* p) {
  for (int i = 0; i < 16; i++) p[i] = (uint8_t)((code[i] & 15) | (code[i + 16] & 15) << 4);
}

void put_fifth_bits(const uint8_t* code, uint8_t* p) {
  uint32_t bits = 0;
  for (int i = 0; i < 32; i++) bits |= (uint32_t)(code[i] >> 4 & 1) << i;
  std::memcpy(p, &bits, 4);
}

// One block of 32 from codes (from 0, but signed for Q8_0) and the bits of its scale and minimum.
void put_plain(Format format, const uint8_t* code, uint16_t d, uint16_t m, uint8_t* p) {
  if (format == Format::MXFP4) return p[0] = (uint8_t)d, put_nibbles(code, p + 1);
  put_half(p, d);
  switch (format) {
    case Format::Q4_0:
    case Format::IQ4_NL: return put_nibbles(code, p + 2);
    case Format::Q5_0: return put_fifth_bits(code, p + 2), put_nibbles(code, p + 6);
    case Format::Q4_1: return put_half(p + 2, m), put_nibbles(code, p + 4);
    case Format::Q5_1: return put_half(p + 2, m), put_fifth_bits(code, p + 4), put_nibbles(code, p + 8);
    default: std::memcpy(p + 2, code, 32);
  }
}

int lowest_code(Format format) {
  switch (format) {
    case Format::Q4_0: return -8;
    case Format::Q5_0: return -16;
    case Format::Q3_K: return -4;
    case Format::Q6_K: return -32;
    default: return 0;
  }
}

// Fitted codes as a block stores them: from 0, or as places in the format's table.
void put_stored(Format format, const int8_t* fitted, int n, uint8_t* code) {
  if (format == Format::IQ4_NL || format == Format::IQ4_XS || format == Format::MXFP4) {
    const int8_t* numbers = format == Format::MXFP4 ? FP4_NUMBERS : IQ4_NUMBERS;
    uint8_t place[256] = {};
    for (int i = 15; i >= 0; i--) place[(uint8_t)numbers[i]] = (uint8_t)i;  // of two zeros the first
    for (int i = 0; i < n; i++) code[i] = place[(uint8_t)fitted[i]];
    return;
  }
  const int lowest = lowest_code(format);
  for (int i = 0; i < n; i++) code[i] = (uint8_t)(fitted[i] - lowest);
}

// The largest number becomes the lowest code; without a lowest one, the range is divided evenly.
void plain_block(Format format, const float* x, uint8_t* p) {
  uint8_t code[32];
  if (format == Format::Q8_0) {
    float top = 0.0f;
    for (int i = 0; i < 32; i++) top = std::max(top, std::fabs(x[i]));
    const float d = top / 127.0f, inverse = d == 0.0f ? 0.0f : 1.0f / d;
    for (int i = 0; i < 32; i++) {  // halves away from 0, without a call of std::round
      const float v = x[i] * inverse, size = std::fabs(v);
      const int below = (int)size, rounded = below + (int)(2.0f * (size - (float)below));
      code[i] = (uint8_t)(v < 0.0f ? -rounded : rounded);
    }
    return put_plain(format, code, float_to_half(d), 0, p);
  }
  if (format == Format::MXFP4) {  // halves towards 0
    float top = 0.0f;
    for (int i = 0; i < 32; i++) top = std::max(top, std::fabs(x[i]));
    const int exponent = top > 0.0f ? nearest_exponent(top) : 0;
    const float d = exponent_to_float((uint8_t)exponent);
    for (int i = 0; i < 32; i++) {
      const float size = std::fabs(x[i]);
      int nearest = 0;
      while (nearest < 7 && size > d * 0.5f * (float)(FP4_NUMBERS[nearest] + FP4_NUMBERS[nearest + 1])) nearest++;
      code[i] = (uint8_t)(nearest && x[i] < 0.0f ? nearest + 8 : nearest);
    }
    return put_plain(format, code, (uint16_t)exponent, 0, p);
  }
  const int lowest = lowest_code(format), most = format == Format::Q4_0 || format == Format::Q4_1 ? 15 : 31;
  float d, from = 0.0f, half = 0.5f;
  if (lowest) {
    float top = 0.0f;
    for (int i = 0; i < 32; i++) top = std::fabs(x[i]) > std::fabs(top) ? x[i] : top;
    d = top / (float)lowest;
    half -= (float)lowest;
  } else {
    from = *std::min_element(x, x + 32);
    d = (*std::max_element(x, x + 32) - from) / (float)most;
  }
  const float inverse = d == 0.0f ? 0.0f : 1.0f / d;
  for (int i = 0; i < 32; i++) code[i] = (uint8_t)std::min((int)((x[i] - from) * inverse + half), most);
  put_plain(format, code, float_to_half(d), float_to_half(from), p);
}

// 6-bit scales and minimums of Q4_K and Q5_K: eight of each in 12 bytes.
void put_scale_min(const int8_t* scale, const int8_t* min, uint8_t* s) {
  for (int j = 0; j < 4; j++) {
    s[j] = (uint8_t)(scale[j] | (scale[j + 4] >> 4) << 6);
    s[j + 4] = (uint8_t)(min[j] | (min[j + 4] >> 4) << 6);
    s[j + 8] = (uint8_t)((scale[j + 4] & 15) | (min[j + 4] & 15) << 4);
  }
}

// One block of 256. The scales are those of its first group on.
void put_k(Format format, const uint8_t* code, uint16_t d, uint16_t m, const int8_t* scale, const int8_t* min, uint8_t* p) {
  const auto at = [code](int block, int i) { return code[32 * block + i]; };
  const bool is_two = format == Format::Q2_K, is_five = format == Format::Q5_K;
  switch (format) {
    case Format::Q2_K:
    case Format::Q3_K:
      for (int j = 0; j < 8; j++)
        for (int i = 0; i < 32; i++) {
          p[(is_two ? 16 : 32) + 32 * (j / 4) + i] |= (uint8_t)((at(j, i) & 3) << (2 * (j % 4)));
          if (!is_two) p[i] |= (uint8_t)((at(j, i) >> 2) << j);
        }
      for (int j = 0; j < 16; j++)
        if (is_two) p[j] = (uint8_t)(scale[j] | min[j] << 4);
        else {
          const int s = scale[j] + 32;
          p[96 + j % 8] |= (uint8_t)((s & 15) << (j / 8 * 4));
          p[104 + j % 4] |= (uint8_t)((s >> 4) << (j / 4 * 2));
        }
      put_half(p + (is_two ? 80 : 108), d);
      if (is_two) put_half(p + 82, m);
      return;
    case Format::Q4_K:
    case Format::Q5_K:
      put_half(p, d);
      put_half(p + 2, m);
      put_scale_min(scale, min, p + 4);
      for (int j = 0; j < 8; j++)
        for (int i = 0; i < 32; i++) {
          p[(is_five ? 48 : 16) + 32 * (j / 2) + i] |= (uint8_t)((at(j, i) & 15) << (4 * (j % 2)));
          if (is_five) p[16 + i] |= (uint8_t)((at(j, i) >> 4) << j);
        }
      return;
    case Format::IQ4_XS:
      put_half(p, d);
      for (int j = 0; j < 8; j++) {
        const int s = scale[j] + 32;
        p[4 + j / 2] |= (uint8_t)((s & 15) << (4 * (j % 2)));
        p[2 + j / 4] |= (uint8_t)((s >> 4) << (2 * (j % 4)));
        put_nibbles(code + 32 * j, p + 8 + 16 * j);
      }
      return;
    default:  // Q6_K
      for (int j = 0; j < 8; j++)
        for (int i = 0; i < 32; i++) {
          p[64 * (j / 4) + 32 * (j % 2) + i] |= (uint8_t)((at(j, i) & 15) << (j % 4 / 2 * 4));
          p[128 + 32 * (j / 4) + i] |= (uint8_t)((at(j, i) >> 4) << (2 * (j % 4)));
        }
      std::memcpy(p + 192, scale, 16);
      put_half(p + 208, d);
  }
}

}  // namespace

void encode_row(const Kernels& kernels, Format format, const float* x, const float* importance, int cols, uint8_t* out) {
  const int block = block_columns(format);
  const size_t block_bytes = source_row_bytes(format, block);
  if (block == 32 && !importance && format != Format::IQ4_NL) {
    for (int c = 0; c < cols; c += block) plain_block(format, x + c, out + (size_t)(c / block) * block_bytes);
    return;
  }
  const bool halves = format == Format::Q2_K || format == Format::Q3_K || format == Format::Q6_K;
  const int group = halves ? 16 : 32, share = block / group;  // groups of a block
  Fitted fitted;
  for (int c = 0; c < cols; c += GROUPS * group) {
    const int groups = std::min((cols - c) / group, GROUPS);
    kernels.fit(format, x + c, importance ? importance + c : nullptr, groups, fitted);
    uint8_t code[GROUPS * 32];
    put_stored(format, fitted.codes, groups * group, code);
    for (int g = 0; g < groups; g += share) {
      uint8_t* p = out + (size_t)((c + g * group) / block) * block_bytes;
      if (share == 1) put_plain(format, code + g * group, fitted.d[g], fitted.m[g], p);
      else {
        std::memset(p, 0, block_bytes);
        put_k(format, code + g * group, fitted.d[g], fitted.m[g], fitted.scale + g, fitted.min + g, p);
      }
    }
  }
}

}  // namespace brise
