// The formats of the paged cache: reading sixteen pairs of numbers, writing a token's keys and values (layouts: kernels.h).
#pragma once

#include <limits>

#include "kernels.h"
#include "simd.h"

namespace BRISE_ISA {

using namespace brise;

// Sixteen pairs of whole numbers; HIGH: in Q4, those in the high halves of bytes.
template <CacheFormat FORMAT, bool HIGH = false> BRISE_INLINE P load_pairs(const uint8_t* p) {
  if constexpr (FORMAT == CacheFormat::I16) return p_load_i16(p);
  else if constexpr (FORMAT == CacheFormat::Q8) return p_load_i8(p);
  else return p_load_u4<HIGH>(p);
}
template <CacheFormat FORMAT> constexpr size_t PAIRS_BYTES = FORMAT == CacheFormat::I16 ? 64 : 32;

// Calls f<FORMAT>().
template <class Call>
BRISE_INLINE void with_cache(CacheFormat format, Call&& f) {
  if (format == CacheFormat::F32) f.template operator()<CacheFormat::F32>();
  else if (format == CacheFormat::I16) f.template operator()<CacheFormat::I16>();
  else if (format == CacheFormat::Q8) f.template operator()<CacheFormat::Q8>();
  else f.template operator()<CacheFormat::Q4>();
}

BRISE_INLINE float largest(const float* x, int n) {
  float top = 0.0f;
  for (int i = 0; i < n; i++) top = std::fabs(x[i]) > top ? std::fabs(x[i]) : top;
  return top;
}

// A subnormal scale has no inverse in float: numbers so small (below 1.5e-36) are stored as 0.
BRISE_INLINE float inverse_of(float scale) { return scale >= std::numeric_limits<float>::min() ? 1.0f / scale : 0.0f; }

// Queries and I16's keys: int16 whose norm is at most 46,300, so that any sum of products of two such vectors fits in int32 (Cauchy and
// Schwarz; rounding adds half the root of the dimension to a norm, and 46,340 squared is 2^31).
BRISE_INLINE float whole_scale(const float* x, int n) {
  const float top = largest(x, n), inverse = inverse_of(top);
  float squares = 0.0f;
  for (int i = 0; i < n; i++) squares += x[i] * inverse * (x[i] * inverse);
  const float norm = top * (std::sqrt(squares) / 46300.0f);
  return norm > top / 32767.0f ? norm : top / 32767.0f;
}

// I16's values: 32 keys times weights up to 2^13 (attend.h) fit in int32.
constexpr float VALUE_LEVELS = 8191.0f;

// One token's numbers of one head as integers: e at `at` + (e / run) * step + e % run.
template <class Int>
BRISE_INLINE void write_whole(const float* x, int n, float scale, Int* side, size_t at, size_t run, size_t step) {
  const float inverse = inverse_of(scale);
  for (int e = 0; e < n; e++) side[at + (size_t)e / run * step + (size_t)e % run] = (Int)std::nearbyint(x[e] * inverse);
}

// One token's key (or latent) of one head in lane `lane` of a tile.
BRISE_INLINE void write_key(const CacheLayer& cache, const float* x, size_t tile, size_t lane) {
  const int n = cache.head_dim;
  const size_t pairs = tile * cache.key_columns() * TILE + lane * 2;
  float* scale = cache.key_scales + tile * TILE + lane;
  if (cache.format == CacheFormat::F32) {
    for (int e = 0; e < n; e++) ((float*)cache.keys)[(tile * (size_t)n + (size_t)e) * TILE + lane] = x[e];
  } else if (cache.format == CacheFormat::I16) {
    write_whole(x, n, *scale = whole_scale(x, n), (int16_t*)cache.keys, pairs, 2, 2 * TILE);
  } else {
    write_whole(x, n, *scale = largest(x, n) / 127.0f, (int8_t*)cache.keys, pairs, 2, 2 * TILE);
  }
}

BRISE_INLINE void write_value(const CacheLayer& cache, const float* x, size_t tile, size_t lane) {
  const int n = cache.head_dim;
  const size_t stride = (size_t)cache.stride, pairs = (tile * TILE + lane / 2 * 2) * stride + lane % 2;
  float* scale = cache.value_scales + tile * TILE + lane;
  if (cache.format == CacheFormat::F32) std::memcpy((float*)cache.values + (tile * TILE + lane) * stride, x, sizeof(float) * (size_t)n);
  else if (cache.format == CacheFormat::I16) write_whole(x, n, *scale = largest(x, n) / VALUE_LEVELS, (int16_t*)cache.values, pairs, 1, 2);
  else write_whole(x, n, *scale = largest(x, n) / 127.0f, (int8_t*)cache.values, pairs, 1, 2);
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

// One token's numbers of one head in Q4: byte i of a group at (i / run) * step + i % run, groups `group_step` apart.
BRISE_INLINE void write_q4(const CacheLayer& cache, const float* x, uint8_t* side, size_t group_step, size_t run, size_t step, uint16_t* line) {
  for (int g = 0; g < cache.groups(); g++, x += 32, line += 2 * TILE, side += group_step) {
    const int n = cache.head_dim - 32 * g;
    uint8_t code[32];
    encode_q4(x, n < 32 ? n : 32, code, line[0], line[TILE]);
    for (size_t i = 0; i < 16; i++) side[i / run * step + i % run] = (uint8_t)(code[i] | code[i + 16] << 4);
  }
}

// Writes one token's key and value (kv_heads, head_dim) to its slot; a cache of latents has no values.
void write_cache(const CacheLayer& cache, int slot, const float* k, const float* v) {
  const size_t n = (size_t)cache.head_dim, lane = (size_t)(slot % TILE), groups = (size_t)cache.groups();
  for (int head = 0; head < cache.kv_heads; head++, k += n, v = v ? v + n : v) {
    const size_t tile = cache.tile(slot / cache.page_size, head, slot % cache.page_size);
    if (cache.format == CacheFormat::Q4) {
      const size_t line = tile * groups * 2 * TILE + lane;
      write_q4(cache, k, cache.keys + tile * groups * 16 * TILE + lane * 2, 16 * TILE, 2, 2 * TILE, cache.key_lines + line);
      if (v) write_q4(cache, v, cache.values + (tile * TILE + lane / 2 * 2) * groups * 16 + lane % 2, 32, 1, 2, cache.value_lines + line);
      continue;
    }
    write_key(cache, k, tile, lane);
    if (v) write_value(cache, v, tile, lane);
  }
}

}  // namespace BRISE_ISA
