// The formats of the paged cache: reading sixteen numbers, writing a token's keys and values (layouts: kernels.h).
#pragma once

#include <limits>

#include "kernels.h"
#include "simd.h"

namespace BRISE_ISA {

using namespace brise;

template <CacheFormat FORMAT> BRISE_INLINE F load_cache(const uint8_t* base, size_t index) {
  if constexpr (FORMAT == CacheFormat::F32) return f_load((const float*)base + index);
  else if constexpr (FORMAT == CacheFormat::F16) return f_load_f16((const uint16_t*)base + index);
  else return f_load_i8((const int8_t*)base + index);
}

// Calls f<FORMAT>().
template <class Call>
BRISE_INLINE void with_cache(CacheFormat format, Call&& f) {
  if (format == CacheFormat::F32) f.template operator()<CacheFormat::F32>();
  else if (format == CacheFormat::F16) f.template operator()<CacheFormat::F16>();
  else if (format == CacheFormat::Q8) f.template operator()<CacheFormat::Q8>();
  else f.template operator()<CacheFormat::Q4>();
}

BRISE_INLINE float int8_scale(const float* x, int n) {
  float top = 0.0f;
  for (int i = 0; i < n; i++) top = std::fabs(x[i]) > top ? std::fabs(x[i]) : top;
  return top / 127.0f;
}

// A subnormal scale has no inverse in float: numbers so small (below 1.5e-36) are stored as 0.
BRISE_INLINE float int8_inverse(float scale) { return scale >= std::numeric_limits<float>::min() ? 1.0f / scale : 0.0f; }

// One token's numbers of one head, `step` places apart from `at` on.
BRISE_INLINE void write_numbers(const CacheLayer& cache, const float* x, uint8_t* side, size_t at, size_t step, float* scale) {
  const int n = cache.head_dim;
  if (cache.format == CacheFormat::F32) {
    for (int e = 0; e < n; e++) ((float*)side)[at + (size_t)e * step] = x[e];
  } else if (cache.format == CacheFormat::F16) {
    for (int e = 0; e < n; e += LANES) {
      float part[LANES] = {};
      uint16_t out[LANES];
      const int m = n - e < LANES ? n - e : LANES;
      std::memcpy(part, x + e, sizeof(float) * (size_t)m);
      f_store_f16(out, f_load(part));
      for (int i = 0; i < m; i++) ((uint16_t*)side)[at + (size_t)(e + i) * step] = out[i];
    }
  } else {
    *scale = int8_scale(x, n);
    const float inverse = int8_inverse(*scale);
    for (int e = 0; e < n; e++) ((int8_t*)side)[at + (size_t)e * step] = (int8_t)std::nearbyint(x[e] * inverse);
  }
}

// Codes of up to 32 numbers, and the bits of their scale and minimum: a number is scale * code + minimum.
BRISE_INLINE void encode_q4(const float* x, int n, uint8_t* code, uint16_t& scale, uint16_t& minimum) {
  float padded[32];
  for (int i = 0; i < 32; i++) padded[i] = x[i < n ? i : n - 1];
  const F a = f_load(padded), b = f_load(padded + LANES);
  const float low = -f_top(f_max(f_sub(f_zero(), a), f_sub(f_zero(), b))), top = f_top(f_max(a, b));
  uint16_t half[LANES];
  f_store_f16(half, f_clamp(f_set((top - low) / 15.0f), 0.0f, 65504.0f));
  scale = half[0];
  const F by = f_load_f16(half);
  f_store_f16(half, f_clamp(f_set(low), -65504.0f, 65504.0f));
  minimum = half[0];
  const F from = f_load_f16(half);
  for (int i = 0; i < 32; i += LANES) {
    const F steps = f_if_less(f_zero(), by, f_div(f_sub(f_load(padded + i), from), by), f_zero());
    int8_t lanes[LANES];
    i_store_i8(lanes, i_round(f_clamp(steps, 0.0f, 15.0f)));
    std::memcpy(code + i, lanes, LANES);
  }
}

// One token's numbers of one head in Q4. Its bytes are `step` apart from `at` on, and so are those of groups.
BRISE_INLINE void write_q4(const CacheLayer& cache, const float* x, uint8_t* side, size_t at, size_t step, uint16_t* line) {
  for (int g = 0; g < cache.groups(); g++, x += 32, line += 2 * TILE) {
    const int n = cache.head_dim - 32 * g;
    uint8_t code[32];
    encode_q4(x, n < 32 ? n : 32, code, line[0], line[TILE]);
    for (int i = 0; i < 16; i++) side[at + (size_t)(16 * g + i) * step] = (uint8_t)(code[i] | code[i + 16] << 4);
  }
}

// Writes one token's key and value (kv_heads, head_dim) to its slot; a cache of latents has no values.
void write_cache(const CacheLayer& cache, int slot, const float* k, const float* v) {
  const size_t n = (size_t)cache.head_dim, lane = (size_t)(slot % TILE), groups = (size_t)cache.groups();
  for (int head = 0; head < cache.kv_heads; head++, k += n, v = v ? v + n : v) {
    const size_t tile = cache.tile(slot / cache.page_size, head, slot % cache.page_size), token = tile * TILE + lane;
    if (cache.format == CacheFormat::Q4) {
      const size_t line = tile * groups * 2 * TILE + lane;
      write_q4(cache, k, cache.keys, tile * groups * 16 * TILE + lane, TILE, cache.key_lines + line);
      if (v) write_q4(cache, v, cache.values, token * groups * 16, 1, cache.value_lines + line);
      continue;
    }
    write_numbers(cache, k, cache.keys, tile * n * TILE + lane, TILE, cache.key_scales + token);
    if (v) write_numbers(cache, v, cache.values, token * (size_t)cache.stride, 1, cache.value_scales + token);
  }
}

}  // namespace BRISE_ISA
