// Exponential, error function and float16 without built-in functions, whose precision Vulkan leaves open.

// exp(x) for x <= 88, exactly 0 below -87: 2^n times a polynomial on [-ln2/2, ln2/2] (Cephes), as native/simd.h has it.
float exponential(float any) {
  precise float x = max(min(any, 88.0), -87.0);
  precise float n = roundEven(x * 1.44269504);
  precise float r = x - n * 0.693359375;  // the product is exact
  r = r + n * 2.12194440e-4;
  precise float p = 1.9875691500e-4;
  p = p * r + 1.3981999507e-3;
  p = p * r + 8.3334519073e-3;
  p = p * r + 4.1665795894e-2;
  p = p * r + 1.6666665459e-1;
  p = p * r + 5.0000001201e-1;
  p = (p * (r * r) + r) + 1.0;
  p = p * intBitsToFloat((int(n) + 127) << 23);
  return any < -87.0 ? 0.0 : p;
}

// x / (1 + exp(-by)): the exponential is at most 1, so nothing overflows.
float divided(float x, float by) {
  precise float e = exponential(-abs(by));
  precise float share = (by < 0.0 ? e : 1.0) / (1.0 + e);
  precise float result = x * share;
  return result;
}

// x (1 + tanh(z)) / 2 with z = sqrt(2 / pi) (x + 0.044715 x^3), which is x / (1 + exp(-2 z)).
float gelu_by_tanh(float x) {
  precise float twice = x * ((x * x) * 0.0713548162726 + 1.5957691216);
  return divided(x, twice);
}

// 1 - erf(z) for z >= 0: exp(-z^2) t P(t) with t = 2 / (2 + z); P is fitted for the least relative error, which is 4e-8.
float erfc_above(float z) {
  precise float t = 2.0 / (2.0 + z);
  precise float p = -0.0590692163;
  p = p * t + 0.284576178;
  p = p * t - 0.487202287;
  p = p * t + 0.278069794;
  p = p * t - 0.0266273841;
  p = p * t + 0.202687562;
  p = p * t + 0.243103608;
  p = p * t + 0.282375336;
  p = p * t + 0.282086402;
  precise float square = z * z;
  precise float result = exponential(-square) * (t * p);
  return result;
}

float gelu_by_erf(float x) {
  precise float c = erfc_above(abs(x) * 0.70710678);
  precise float share = x < 0.0 ? c : 2.0 - c;
  precise float result = 0.5 * x * share;
  return result;
}

// The nearest float16, halves to even, as bits (native/half.h): packHalf2x16 may round either way.
uint half_bits(float f) {
  uint bits = floatBitsToUint(f), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return sign | 0x7e00u;
  if (magnitude >= 0x477ff000u) return sign | 0x7c00u;  // 65520 and more round to infinity
  if (magnitude < 0x38800000u) {  // below 2^-14: a multiple of 2^-24, rounded to even by the float adder
    precise float scaled = uintBitsToFloat(magnitude) + 0.5;  // one unit in the last place of 0.5 is 2^-24
    return sign | (floatBitsToUint(scaled) - 0x3f000000u);
  }
  uint rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u);
  return sign | (rounded - 0x38000000u) >> 13;
}
