// float16 and the exponent of MXFP4 as bits, for code without intrinsics.
#pragma once

#include <cstdint>
#include <cstring>

namespace brise {

// Always inline, so that object files of different instruction sets share no function.
static inline __attribute__((always_inline)) float half_to_float(uint16_t h) {
  const uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = (h >> 10) & 31, mantissa = h & 1023;
  uint32_t bits;
  if (exponent == 31) bits = sign | 0x7f800000 | mantissa << 13;
  else if (exponent) bits = sign | (exponent + 112) << 23 | mantissa << 13;
  else {
    const float f = (float)mantissa * 0x1p-24f;
    std::memcpy(&bits, &f, 4);
    bits |= sign;
  }
  float out;
  std::memcpy(&out, &bits, 4);
  return out;
}

static inline __attribute__((always_inline)) uint16_t float_to_half(float f) {
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  const uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return (uint16_t)(sign | 0x7e00);
  if (magnitude >= 0x477ff000) return (uint16_t)(sign | 0x7c00);  // 65520 and more round to infinity
  if (magnitude < 0x38800000) {  // below 2^-14: a multiple of 2^-24, rounded to even by the float adder
    float scaled;
    std::memcpy(&scaled, &magnitude, 4);
    scaled += 0.5f;  // one unit in the last place of 0.5 is 2^-24
    uint32_t raw;
    std::memcpy(&raw, &scaled, 4);
    return (uint16_t)(sign | (raw - 0x3f000000));
  }
  const uint32_t rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
  return (uint16_t)(sign | ((rounded - 0x38000000) >> 13));
}

// The exponent of MXFP4 under which `top`, a group's largest size, is a number from 4 to 8 times 2^(e - 127).
static inline __attribute__((always_inline)) int nearest_exponent(float top) {
  uint32_t bits;
  std::memcpy(&bits, &top, 4);
  const int exponent = (int)(bits >> 23 & 255);
  return exponent > 2 ? exponent - 2 : 0;
}

// 2^(e - 128), which is half of the E8M0 of OCP Microscaling Formats 1.0; below 2 it is subnormal.
static inline __attribute__((always_inline)) float exponent_to_float(uint8_t e) {
  const uint32_t bits = e < 2 ? 0x00200000u << e : (uint32_t)(e - 1) << 23;
  float out;
  std::memcpy(&out, &bits, 4);
  return out;
}

}  // namespace brise
