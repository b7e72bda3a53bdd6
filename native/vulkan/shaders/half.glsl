#ifndef HALF_GLSL
#define HALF_GLSL

// float16 by its bits: a device may flush subnormal numbers in its own conversion, and scales and cached numbers often are.
float from_half(uint h) {
  const uint magnitude = h & 0x7fffu, sign = (h & 0x8000u) << 16;
  precise const float tiny = float(magnitude) * 5.9604644775390625e-8;  // 2^-24
  const uint bits = (magnitude << 13) + (magnitude < 0x7c00u ? 112u << 23 : 224u << 23);
  return uintBitsToFloat((magnitude < 0x400u ? floatBitsToUint(tiny) : bits) | sign);
}

// Both of a word, the lower one first.
vec2 from_halves(uint word) { return vec2(from_half(word & 0xffffu), from_half(word >> 16)); }

#endif
