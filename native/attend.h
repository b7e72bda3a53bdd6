// Causal attention over the paged cache, for the queries of one sequence that share one key/value head.
//
// Bound: multiply-adds in prefill, memory in decode at long contexts. Query rows (tokens times the heads that
// share the kv head) go through in blocks that fill the registers; keys are taken 16 to a register. Scores of
// KEY_CHUNK keys at a time, then softmax, then the weighted sum of values; chunks begin at multiples of KEY_CHUNK
// and are merged in order, so a query's result does not depend on which other queries it came with.
#pragma once

#include <limits>

#include "kernels.h"
#include "simd.h"

namespace BRISE_ISA {

using namespace brise;

constexpr int QUERY_ROWS = MAX_TOKENS >= 12 ? 12 : 4;
constexpr float MINUS_INFINITY = -std::numeric_limits<float>::infinity();

template <CacheFormat FORMAT> BRISE_INLINE F load_cache(const uint8_t* base, size_t index) {
  if constexpr (FORMAT == CacheFormat::F32) return f_load((const float*)base + index);
  else if constexpr (FORMAT == CacheFormat::F16) return f_load_f16((const uint16_t*)base + index);
  else return f_load_i8((const int8_t*)base + index);
}

// Running state of one query row: max, sum, and the unnormalised output.
struct Row {
  const float* q;
  float* out;
  int position, first;  // sees keys [first, position]
  float max, sum;
};

// Scores of one key tile for N rows: scores[r * KEY_CHUNK + 0..15].
template <CacheFormat FORMAT, int N>
BRISE_INLINE void score_rows(const CacheLayer& cache, const Row* rows, size_t tile, int head_dim, float scale, float* scores) {
  F acc[N];
  for (int r = 0; r < N; r++) acc[r] = f_zero();
  const size_t base = tile * (size_t)head_dim * TILE;
  for (int e = 0; e < head_dim; e++) {
    const F keys = load_cache<FORMAT>(cache.keys, base + (size_t)e * TILE);
#pragma GCC unroll 12
    for (int r = 0; r < N; r++) acc[r] = f_fma(keys, f_set(rows[r].q[e]), acc[r]);
  }
  F by = f_set(scale);
  if constexpr (FORMAT == CacheFormat::Q8) by = f_mul(by, f_load(cache.key_scales + tile * TILE));
  for (int r = 0; r < N; r++) f_store(scores + (size_t)r * KEY_CHUNK, f_mul(acc[r], by));
}

// Adds sum over keys of p * v to sums[r][0..stride), 16 numbers of the head at a time.
template <CacheFormat FORMAT, int N>
BRISE_INLINE void weigh_rows(const CacheLayer& cache, size_t tile, int keys, const float* p, int column, F (&acc)[N]) {
  for (int k = 0; k < keys; k++) {
    const F v = load_cache<FORMAT>(cache.values, (tile * TILE + (size_t)k) * (size_t)cache.stride + (size_t)column);
#pragma GCC unroll 12
    for (int r = 0; r < N; r++) acc[r] = f_fma(v, f_set(p[(size_t)r * KEY_CHUNK + k]), acc[r]);
  }
}

BRISE_INLINE size_t tile_of(const CacheLayer& cache, const AttendUnit& unit, int key) {
  return cache.tile(unit.pages[key / cache.page_size], unit.kv_head, key % cache.page_size);
}

// Turns scores of keys [begin, end) into weights exp(s - max); returns their max and sum. Masked ones become 0.
BRISE_INLINE void soften(const Row& row, int begin, int end, float* s, float& max, float& sum) {
  const int padded = (end - begin + TILE - 1) / TILE * TILE;
  // Rows of one pass see different keys: a row's window may begin behind this chunk, whose scores end at `end`.
  const int from = row.first > begin ? (row.first < end ? row.first : end) - begin : 0;
  const int to = row.position + 1 < end ? row.position + 1 - begin : end - begin;
  for (int i = 0; i < from; i++) s[i] = MINUS_INFINITY;
  for (int i = to < 0 ? 0 : to; i < padded; i++) s[i] = MINUS_INFINITY;
  F top = f_set(MINUS_INFINITY);
  for (int i = 0; i < padded; i += LANES) top = f_max(top, f_load(s + i));
  max = f_top(top);
  sum = 0.0f;
  if (max == MINUS_INFINITY) return std::memset(s, 0, sizeof(float) * (size_t)padded), void();
  F total = f_zero();
  for (int i = 0; i < padded; i += LANES) {
    const F weight = f_exp(f_sub(f_load(s + i), f_set(max)));  // of a masked score: exactly 0
    f_store(s + i, weight);
    total = f_add(total, weight);
  }
  sum = f_sum(total);
}

// One chunk of keys for N rows: scores, weights, weighted values, merged into the rows' running state.
template <CacheFormat FORMAT, int N>
void chunk_rows(const CacheLayer& cache, const AttendShape& shape, const AttendUnit& unit, Row* rows, int begin, int end,
                float* scores) {
  for (int key = begin; key < end; key += TILE)
    score_rows<FORMAT, N>(cache, rows, tile_of(cache, unit, key), shape.head_dim, shape.scale, scores + (key - begin));
  float keep[N], take[N];
  for (int r = 0; r < N; r++) {
    float max, sum, *s = scores + (size_t)r * KEY_CHUNK;
    soften(rows[r], begin, end, s, max, sum);
    const float joint = max > rows[r].max ? max : rows[r].max;
    keep[r] = rows[r].max == MINUS_INFINITY ? 0.0f : std::exp(rows[r].max - joint);
    take[r] = max == MINUS_INFINITY ? 0.0f : std::exp(max - joint);
    rows[r].sum = rows[r].sum * keep[r] + sum * take[r];
    rows[r].max = joint;
    if constexpr (FORMAT == CacheFormat::Q8)  // the values' scales go into the weights
      for (int key = begin; key < end; key += TILE)
        f_store(s + (key - begin), f_mul(f_load(s + (key - begin)), f_load(cache.value_scales + tile_of(cache, unit, key) * TILE)));
  }
  for (int column = 0; column < cache.stride; column += LANES) {
    F acc[N];
    for (int r = 0; r < N; r++) acc[r] = f_zero();
    for (int key = begin; key < end; key += TILE)
      weigh_rows<FORMAT, N>(cache, tile_of(cache, unit, key), end - key < TILE ? end - key : TILE, scores + (key - begin), column, acc);
    for (int r = 0; r < N; r++)
      f_store(rows[r].out + column, f_fma(f_load(rows[r].out + column), f_set(keep[r]), f_mul(acc[r], f_set(take[r]))));
  }
}

template <CacheFormat FORMAT, int N>
void attend_rows(const CacheLayer& cache, const AttendShape& shape, const AttendUnit& unit, Row* rows, float* scores) {
  int first = rows[0].first, last = rows[0].position;
  for (int r = 1; r < N; r++) {
    if (rows[r].first < first) first = rows[r].first;
    if (rows[r].position > last) last = rows[r].position;
  }
  for (int begin = first / KEY_CHUNK * KEY_CHUNK; begin <= last; begin += KEY_CHUNK)
    chunk_rows<FORMAT, N>(cache, shape, unit, rows, begin, last + 1 < begin + KEY_CHUNK ? last + 1 : begin + KEY_CHUNK, scores);
}

template <CacheFormat FORMAT>
void attend_n(int n, const CacheLayer& cache, const AttendShape& shape, const AttendUnit& unit, Row* rows, float* scores) {
  while (n > 0) {  // whatever the split, each row's sums run over the same chunks in the same order
    const int take = n >= QUERY_ROWS ? QUERY_ROWS : n >= 8 && QUERY_ROWS >= 8 ? 8 : n >= 6 && QUERY_ROWS >= 6 ? 6
                     : n >= 4 ? 4 : n >= 3 ? 3 : n >= 2 ? 2 : 1;
    switch (take) {
      case 12: if constexpr (QUERY_ROWS >= 12) attend_rows<FORMAT, 12>(cache, shape, unit, rows, scores); break;
      case 8: if constexpr (QUERY_ROWS >= 8) attend_rows<FORMAT, 8>(cache, shape, unit, rows, scores); break;
      case 6: if constexpr (QUERY_ROWS >= 6) attend_rows<FORMAT, 6>(cache, shape, unit, rows, scores); break;
      case 4: attend_rows<FORMAT, 4>(cache, shape, unit, rows, scores); break;
      case 3: attend_rows<FORMAT, 3>(cache, shape, unit, rows, scores); break;
      case 2: attend_rows<FORMAT, 2>(cache, shape, unit, rows, scores); break;
      default: attend_rows<FORMAT, 1>(cache, shape, unit, rows, scores);
    }
    rows += take;
    n -= take;
  }
}

size_t attend_scratch(int head_dim) {
  const size_t stride = (size_t)(head_dim + TILE - 1) / TILE * TILE;
  return (size_t)QUERY_ROWS * (KEY_CHUNK + stride);
}

void attend(const CacheLayer& cache, const AttendShape& shape, const AttendUnit& unit, float* scratch) {
  const int share = shape.heads / shape.kv_heads;
  float *scores = scratch, *sums = scratch + (size_t)QUERY_ROWS * KEY_CHUNK;
  const int total = (unit.end - unit.begin) * share;
  for (int done = 0; done < total; done += QUERY_ROWS) {
    Row rows[QUERY_ROWS];
    const int n = total - done < QUERY_ROWS ? total - done : QUERY_ROWS;
    std::memset(sums, 0, sizeof(float) * (size_t)(n * cache.stride));
    for (int r = 0; r < n; r++) {
      const int token = unit.begin + (done + r) / share, head = unit.kv_head * share + (done + r) % share;
      const int position = unit.positions[token];
      rows[r] = {unit.q + ((size_t)token * shape.heads + head) * shape.head_dim, sums + (size_t)r * cache.stride, position,
                 shape.window && position >= shape.window ? position - shape.window + 1 : 0, MINUS_INFINITY, 0.0f};
    }
    if (cache.format == CacheFormat::F32) attend_n<CacheFormat::F32>(n, cache, shape, unit, rows, scores);
    else if (cache.format == CacheFormat::F16) attend_n<CacheFormat::F16>(n, cache, shape, unit, rows, scores);
    else attend_n<CacheFormat::Q8>(n, cache, shape, unit, rows, scores);
    for (int r = 0; r < n; r++) {
      const int token = unit.begin + (done + r) / share, head = unit.kv_head * share + (done + r) % share;
      float* out = unit.out + ((size_t)token * shape.heads + head) * shape.head_dim;
      for (int e = 0; e < shape.head_dim; e++) out[e] = rows[r].out[e] / rows[r].sum;
    }
  }
}

BRISE_INLINE float int8_scale(const float* x, int n) {
  float top = 0.0f;
  for (int i = 0; i < n; i++) top = std::fabs(x[i]) > top ? std::fabs(x[i]) : top;
  return top / 127.0f;
}

// A subnormal scale has no inverse in float: numbers so small (below 1.5e-36) are stored as 0.
BRISE_INLINE float int8_inverse(float scale) { return scale >= std::numeric_limits<float>::min() ? 1.0f / scale : 0.0f; }

// Writes one token's key and value (kv_heads, head_dim) to its slot.
void write_cache(const CacheLayer& cache, int slot, const float* k, const float* v) {
  const int n = cache.head_dim, lane = slot % TILE;
  for (int head = 0; head < cache.kv_heads; head++, k += n, v += n) {
    const size_t tile = cache.tile(slot / cache.page_size, head, slot % cache.page_size);
    const size_t key = tile * (size_t)n * TILE + (size_t)lane, value = (tile * TILE + (size_t)lane) * (size_t)cache.stride;
    if (cache.format == CacheFormat::F32) {
      for (int e = 0; e < n; e++) ((float*)cache.keys)[key + (size_t)e * TILE] = k[e];
      std::memcpy((float*)cache.values + value, v, sizeof(float) * (size_t)n);
    } else if (cache.format == CacheFormat::F16) {
      for (int e = 0; e < n; e += LANES) {
        float part[LANES] = {};
        uint16_t out[LANES];
        const int m = n - e < LANES ? n - e : LANES;
        std::memcpy(part, k + e, sizeof(float) * (size_t)m);
        f_store_f16(out, f_load(part));
        for (int i = 0; i < m; i++) ((uint16_t*)cache.keys)[key + (size_t)(e + i) * TILE] = out[i];
        std::memcpy(part, v + e, sizeof(float) * (size_t)m);
        f_store_f16((uint16_t*)cache.values + value + e, f_load(part));
      }
    } else {
      const float ks = int8_scale(k, n), vs = int8_scale(v, n);
      const float ki = int8_inverse(ks), vi = int8_inverse(vs);
      cache.key_scales[tile * TILE + (size_t)lane] = ks;
      cache.value_scales[tile * TILE + (size_t)lane] = vs;
      for (int e = 0; e < n; e++) {
        ((int8_t*)cache.keys)[key + (size_t)e * TILE] = (int8_t)std::nearbyint(k[e] * ki);
        ((int8_t*)cache.values)[value + (size_t)e] = (int8_t)std::nearbyint(v[e] * vi);
      }
    }
  }
}

}  // namespace BRISE_ISA
