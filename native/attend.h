// Causal attention over the paged cache, for the queries of one sequence that share one key/value head.
//
// Bound: products in prefill, memory in decode at long contexts. Query rows (tokens times the heads that
// share the kv head) are processed in blocks that fill the registers, with 16 keys to a register. For KEY_CHUNK keys
// at a time it computes scores, softmax and the weighted sum of values. Chunks begin at multiples of KEY_CHUNK and are
// merged in order, so that a query's result does not depend on the other queries of its batch.
//
// Caches of whole numbers (all but F32) are multiplied as integers: a query is rounded to 15 bits once, the weights of a
// chunk's keys, times their values' scales, to 13 or 15 bits of their largest. What is rounded depends on the row and the chunk's
// keys that it sees alone, and sums of integers are exact in any order: a prefill and a decode give the same bits.
#pragma once

#include <limits>

#include "cache.h"

namespace BRISE_ISA {

using namespace brise;

constexpr int QUERY_ROWS = MAX_TOKENS >= 12 ? 12 : 4;
template <int VALUE> struct Number { static constexpr int value = VALUE; };
constexpr float MINUS_INFINITY = -std::numeric_limits<float>::infinity();

// Registers for accumulators, less those that a pass needs for other values. They set how many tiles of keys, or columns
// of values, are processed side by side: more of them hide the latency of a multiply-add and use whole cache lines.
constexpr int ACCUMULATORS = MAX_TOKENS >= 12 ? 16 : 6;
constexpr int side_by_side(int rows) { return rows >= ACCUMULATORS ? 1 : ACCUMULATORS / rows > 8 ? 8 : ACCUMULATORS / rows; }

// The same for integers, which take `sets` accumulators a row: a power of two.
constexpr int WHOLE_ACCUMULATORS = MAX_TOKENS >= 12 ? 24 : 6;
constexpr int whole_side_by_side(int rows, int sets) {
  int n = 1;
  while (2 * n * rows * sets <= WHOLE_ACCUMULATORS && n < 8) n *= 2;
  return n;
}

// Bits of weights: 32 of I16's values (2^13), and a chunk of Q8's (2^7), times weights fit in int32.
template <CacheFormat FORMAT> constexpr int WEIGHT_BITS = FORMAT == CacheFormat::I16 ? 13 : 15;
template <CacheFormat FORMAT> constexpr int TILES_OF_SUM = FORMAT == CacheFormat::I16 ? 2 : KEY_CHUNK / TILE;

// Running state of one query row: max, sum, and the unnormalized output.
struct Row {
  const float* q;
  float* out;
  int position, first;  // sees keys [first, position], its own position or a later one
  float max, sum;
  // Of caches of whole numbers: q as pairs of int16, those of a unit's rows side by side (QUERY_ROWS apart), its scale times the scores'
  // scale, and its sums in groups of 32, which Q4 needs.
  const int32_t* pairs;
  float scale;
  const float* group_sums;
};

// The first n lanes; the others are zero, whatever memory holds there.
BRISE_INLINE F first_lanes(F v, int n) {
  static constexpr float NUMBERS[LANES] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return f_if_less(f_load(NUMBERS), f_set((float)n), v, f_zero());
}

// A chunk of keys: the places of its tiles, and its work space.
struct Chunk {
  int begin, end, tiles;
  int keys(int t) const { return end - begin - t * TILE < TILE ? end - begin - t * TILE : TILE; }
  size_t tile[KEY_CHUNK / TILE];
  int tiles_ahead;  // of the next chunk, whose keys are prefetched while this one's values are read
  size_t ahead[KEY_CHUNK / TILE];
  float* scores;    // [row][KEY_CHUNK]
  float* scaled;    // the same: weights times the values' scales
  int16_t* weights; // the same as whole numbers
};

// Scores of S key tiles for N rows: scores[r * KEY_CHUNK + 0..16 S). Prefetches the tiles' values.
template <int N, int S>
BRISE_INLINE void score_rows_f32(const CacheLayer& cache, const Row* rows, const size_t* tile, float scale, float* scores) {
  F acc[S][N];
  const int head_dim = cache.head_dim;
  const size_t size = (size_t)head_dim * TILE, value_bytes = (size_t)cache.stride * TILE * sizeof(float);
  for (int s = 0; s < S; s++)
    for (int r = 0; r < N; r++) acc[s][r] = f_zero();
  for (int e = 0; e < head_dim; e++) {
    F keys[S];
    for (int s = 0; s < S; s++) {
      keys[s] = f_load((const float*)cache.keys + tile[s] * size + (size_t)e * TILE);
      prefetch_l2(cache.values + tile[s] * value_bytes + (size_t)e * TILE * sizeof(float));
    }
#pragma GCC unroll 12
    for (int r = 0; r < N; r++)
      for (int s = 0; s < S; s++) acc[s][r] = f_fma(keys[s], f_set(rows[r].q[e]), acc[s][r]);
  }
  for (int s = 0; s < S; s++)
    for (int r = 0; r < N; r++) f_store(scores + (size_t)r * KEY_CHUNK + s * TILE, f_mul(acc[s][r], f_set(scale)));
}

// Pairs [0, count) of S tiles' keys, from `keys` on, times the rows' pairs from `first` on.
template <CacheFormat FORMAT, bool HIGH, int N, int S>
BRISE_INLINE void dot_pairs(const CacheLayer& cache, const Row* rows, const uint8_t* const (&keys)[S], int first, int count, I (&acc)[S][N]) {
  const int32_t* q = rows[0].pairs + first * QUERY_ROWS;
  for (int i = 0; i < count; i++, q += QUERY_ROWS) {
    P pairs[S];
#pragma GCC unroll 8
    for (int s = 0; s < S; s++) {
      const uint8_t* p = keys[s] + (size_t)i * PAIRS_BYTES<FORMAT>;
      pairs[s] = load_pairs<FORMAT, HIGH>(p);
      // A tile's values lie where its keys do, and are about as long.
      if (!HIGH && (FORMAT == CacheFormat::I16 || i % 2 == 0)) prefetch_l2(cache.values + (p - cache.keys));
    }
#pragma GCC unroll 12
    for (int r = 0; r < N; r++)
#pragma GCC unroll 8
      for (int s = 0; s < S; s++) acc[s][r] = dot2(acc[s][r], pairs[s], q[r]);
  }
}

template <CacheFormat FORMAT, int N, int S>
BRISE_INLINE void score_rows(const CacheLayer& cache, const Row* rows, const size_t* tile, float* scores) {
  I acc[S][N];
  const uint8_t* keys[S];
  for (int s = 0; s < S; s++) {
    keys[s] = cache.keys + tile[s] * cache.key_tile_bytes();
    for (int r = 0; r < N; r++) acc[s][r] = i_set(0);
  }
  dot_pairs<FORMAT, false, N, S>(cache, rows, keys, 0, (int)cache.key_columns() / 2, acc);
  for (int s = 0; s < S; s++) {
    const F by = f_load(cache.key_scales + tile[s] * TILE);
    for (int r = 0; r < N; r++)
      f_store(scores + (size_t)r * KEY_CHUNK + s * TILE, f_mul(f_from_i(acc[s][r]), f_mul(by, f_set(rows[r].scale))));
  }
}

// The same for Q4: sum of q k is, for each group, scale * sum of q code + minimum * sum of q.
template <int N, int S>
BRISE_INLINE void score_rows_q4(const CacheLayer& cache, const Row* rows, const size_t* tile, float* scores) {
  const int groups = cache.groups();
  F total[S][N];
  for (int s = 0; s < S; s++)
    for (int r = 0; r < N; r++) total[s][r] = f_zero();
  for (int g = 0; g < groups; g++) {
    I acc[S][N];
    const uint8_t* keys[S];
    for (int s = 0; s < S; s++) {
      keys[s] = cache.keys + (tile[s] * (size_t)groups + (size_t)g) * 16 * TILE;
      for (int r = 0; r < N; r++) acc[s][r] = i_set(0);
    }
    dot_pairs<CacheFormat::Q4, false, N, S>(cache, rows, keys, 16 * g, 8, acc);
    dot_pairs<CacheFormat::Q4, true, N, S>(cache, rows, keys, 16 * g + 8, 8, acc);
    for (int s = 0; s < S; s++) {
      const uint16_t* line = cache.key_lines + (tile[s] * (size_t)groups + (size_t)g) * 2 * TILE;
      const F by = f_load_f16(line), minimum = f_load_f16(line + TILE);
      prefetch_l2(cache.value_lines + (line - cache.key_lines));
      for (int r = 0; r < N; r++)
        total[s][r] = f_fma(by, f_from_i(acc[s][r]), f_fma(minimum, f_set(rows[r].group_sums[g]), total[s][r]));
    }
  }
  for (int s = 0; s < S; s++)
    for (int r = 0; r < N; r++) f_store(scores + (size_t)r * KEY_CHUNK + s * TILE, f_mul(total[s][r], f_set(rows[r].scale)));
}

// Prefetches keys of the next chunk: part k of 16 of the tile in place t.
BRISE_INLINE void ask_ahead(const CacheLayer& cache, const Chunk& chunk, int t, int k) {
  if (t >= chunk.tiles_ahead) return;
  const size_t size = cache.key_tile_bytes(), part = size / TILE;
  for (size_t i = 0; i < part; i += 64) prefetch_l2(cache.keys + chunk.ahead[t] * size + (size_t)k * part + i);
  if (cache.format == CacheFormat::Q4 && k < cache.groups())
    prefetch_l2(cache.key_lines + (chunk.ahead[t] * (size_t)cache.groups() + (size_t)k) * 2 * TILE);
}

// Sums over the chunk's keys of p * v, 16 C numbers of the head from `column` on.
template <int N, int C>
BRISE_INLINE void weigh_rows_f32(const CacheLayer& cache, const Chunk& chunk, int column, F (&acc)[N][C]) {
  for (int t = 0; t < chunk.tiles; t++) {
    const int keys = chunk.keys(t);
    const float* p = chunk.scores + t * TILE;
    const float* values = (const float*)cache.values + chunk.tile[t] * TILE * (size_t)cache.stride + (size_t)column;
    for (int k = 0; k < keys; k++) {
      if (!column) ask_ahead(cache, chunk, t, k);
      F v[C];
      for (int c = 0; c < C; c++) v[c] = f_load(values + (size_t)k * (size_t)cache.stride + (size_t)(c * LANES));
#pragma GCC unroll 12
      for (int r = 0; r < N; r++) {
        const F weight = f_set(p[(size_t)r * KEY_CHUNK + k]);
        for (int c = 0; c < C; c++) acc[r][c] = f_fma(v[c], weight, acc[r][c]);
      }
    }
  }
}

// The same of whole numbers, by whole weights. Of Q4, C is 2: both halves of a group, whose codes share their bytes.
template <CacheFormat FORMAT, int N, int C>
BRISE_INLINE void weigh_rows(const CacheLayer& cache, const Chunk& chunk, int column, F (&total)[N][C]) {
  constexpr bool IS_Q4 = FORMAT == CacheFormat::Q4;
  const size_t pair = IS_Q4 ? (size_t)cache.groups() * 32 : (size_t)cache.stride * 2 * cache.element();  // bytes of two keys' values
  const int passes = cache.stride / (C * LANES) ? cache.stride / (C * LANES) : 1, pass = column / (C * LANES);  // each asks for its share
  const uint8_t* values = cache.values + (IS_Q4 ? (size_t)column : (size_t)column * 2 * cache.element());
  for (int from = 0; from < chunk.tiles; from += TILES_OF_SUM<FORMAT>) {
    const int to = from + TILES_OF_SUM<FORMAT> < chunk.tiles ? from + TILES_OF_SUM<FORMAT> : chunk.tiles;
    I acc[N][C];
    for (int r = 0; r < N; r++)
      for (int c = 0; c < C; c++) acc[r][c] = i_set(0);
    for (int t = from; t < to; t++) {
      const uint8_t* p = values + chunk.tile[t] * (TILE / 2) * pair;
      const int16_t* weights = chunk.weights + t * TILE;
      for (int k = 0; k < TILE; k += 2, p += pair) {
        if (t % passes == pass) ask_ahead(cache, chunk, t, k), ask_ahead(cache, chunk, t, k + 1);
        P v[C];
#pragma GCC unroll 8
        for (int c = 0; c < C; c++) v[c] = IS_Q4 && c ? load_pairs<FORMAT, true>(p) : load_pairs<FORMAT>(p + (size_t)c * PAIRS_BYTES<FORMAT>);
#pragma GCC unroll 12
        for (int r = 0; r < N; r++) {
          int32_t weight;
          std::memcpy(&weight, weights + (size_t)r * KEY_CHUNK + k, 4);
#pragma GCC unroll 8
          for (int c = 0; c < C; c++) acc[r][c] = dot2(acc[r][c], v[c], weight);
        }
      }
    }
    for (int r = 0; r < N; r++)
      for (int c = 0; c < C; c++) total[r][c] = f_add(total[r][c], f_from_i(acc[r][c]));
  }
}

BRISE_INLINE size_t tile_of(const CacheLayer& cache, const AttendUnit& unit, int key) {
  return cache.tile(unit.pages[key / cache.page_size], unit.kv_head, key % cache.page_size);
}

// Replaces scores of keys [begin, end) by weights exp(s - max); returns their max and sum. Masked ones become 0.
template <CacheFormat FORMAT>
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
    const F below = f_sub(f_load(s + i), f_set(max));
    const F weight = FORMAT == CacheFormat::F32 ? f_exp(below) : f_exp_below(below);  // of a masked score: exactly 0
    f_store(s + i, weight);
    total = f_add(total, weight);
  }
  sum = f_sum(total);
}

template <CacheFormat FORMAT, int N>
void score_chunk(const CacheLayer& cache, const Chunk& chunk, const Row* rows, float scale) {
  constexpr int S = FORMAT == CacheFormat::F32 ? side_by_side(N) : whole_side_by_side(N, FORMAT == CacheFormat::Q4 ? 2 : 1);
  const auto score = [&](auto width, int t) {
    constexpr int W = decltype(width)::value;
    if constexpr (FORMAT == CacheFormat::F32) score_rows_f32<N, W>(cache, rows, chunk.tile + t, scale, chunk.scores + t * TILE);
    else if constexpr (FORMAT == CacheFormat::Q4) score_rows_q4<N, W>(cache, rows, chunk.tile + t, chunk.scores + t * TILE);
    else score_rows<FORMAT, N, W>(cache, rows, chunk.tile + t, chunk.scores + t * TILE);
  };
  int t = 0;
  for (; t + S <= chunk.tiles; t += S) score(Number<S>{}, t);
  for (; t < chunk.tiles; t++) score(Number<1>{}, t);
}

// Multiplies the scales of Q4's numbers (of a group, in `lines`) into the weights: into the chunk's `scaled`, and the largest of each row;
// the minima into a sum for each row.
template <int N>
void scale_weights_q4(const CacheLayer& cache, const uint16_t* lines, const Chunk& chunk, int group, float* minima, float* top) {
  F sum[N], most[N];
  for (int r = 0; r < N; r++) sum[r] = most[r] = f_zero();
  for (int t = 0; t < chunk.tiles; t++) {
    const uint16_t* line = lines + (chunk.tile[t] * (size_t)cache.groups() + (size_t)group) * 2 * TILE;
    F by = f_load_f16(line), minimum = f_load_f16(line + TILE);
    if (chunk.keys(t) < TILE) by = first_lanes(by, chunk.keys(t)), minimum = first_lanes(minimum, chunk.keys(t));
    for (int r = 0; r < N; r++) {
      const F p = f_load(chunk.scores + (size_t)r * KEY_CHUNK + t * TILE), weight = f_mul(p, by);
      f_store(chunk.scaled + (size_t)r * KEY_CHUNK + t * TILE, weight);
      most[r] = f_max(most[r], weight);
      sum[r] = f_fma(p, minimum, sum[r]);
    }
  }
  for (int r = 0; r < N; r++) minima[r] = f_sum(sum[r]), top[r] = f_top(most[r]);
}

// The same for a scale of each token.
template <int N>
void scale_weights(const float* scales, const Chunk& chunk, float* top) {
  F most[N];
  for (int r = 0; r < N; r++) most[r] = f_zero();
  for (int t = 0; t < chunk.tiles; t++) {
    F by = f_load(scales + chunk.tile[t] * TILE);
    if (chunk.keys(t) < TILE) by = first_lanes(by, chunk.keys(t));
    for (int r = 0; r < N; r++) {
      const F weight = f_mul(f_load(chunk.scores + (size_t)r * KEY_CHUNK + t * TILE), by);
      f_store(chunk.scaled + (size_t)r * KEY_CHUNK + t * TILE, weight);
      most[r] = f_max(most[r], weight);
    }
  }
  for (int r = 0; r < N; r++) top[r] = f_top(most[r]);
}

// A row's scaled weights, the largest of them `top`, as whole numbers of BITS bits; returns their unit, a power of two: a single
// key's value comes out as it was stored.
template <int BITS>
BRISE_INLINE float round_weights(const float* scaled, int tiles, float top, int16_t* out) {
  int32_t bits;
  std::memcpy(&bits, &top, 4);
  const int exponent = (bits >> 23) - 127 < -100 ? -100 : (bits >> 23) - 127;  // the unit and its inverse must be floats
  const auto power = [](int n) {
    const int32_t p = (n + 127) << 23;
    float out;
    std::memcpy(&out, &p, 4);
    return out;
  };
  const F inverse = f_set(power(BITS - 1 - exponent));
  for (int t = 0; t < tiles; t++) i_store_i16(out + t * TILE, i_round(f_mul(f_load(scaled + t * TILE), inverse)));
  return power(exponent + 1 - BITS);
}

// Adds the chunk's weighted values to the rows' outputs; keep and take are the weights of the old and the new part.
template <CacheFormat FORMAT, int N>
void weigh_chunk(const CacheLayer& cache, const Chunk& chunk, Row* rows, const float* keep, const float* take) {
  constexpr bool IS_Q4 = FORMAT == CacheFormat::Q4, IS_F32 = FORMAT == CacheFormat::F32;
  float minima[N], top[N], unit[N];
  const auto round = [&] {
    for (int r = 0; r < N; r++) {
      const size_t at = (size_t)r * KEY_CHUNK;
      unit[r] = round_weights<WEIGHT_BITS<FORMAT>>(chunk.scaled + at, chunk.tiles, top[r], chunk.weights + at);
    }
  };
  if constexpr (!IS_Q4 && !IS_F32) scale_weights<N>(cache.value_scales, chunk, top), round();
  const auto weigh = [&](auto width, int column) {
    constexpr int W = decltype(width)::value;
    F acc[N][W];
    for (int r = 0; r < N; r++)
      for (int c = 0; c < W; c++) acc[r][c] = f_zero();
    if constexpr (IS_F32) weigh_rows_f32<N, W>(cache, chunk, column, acc);
    else weigh_rows<FORMAT, N, W>(cache, chunk, column, acc);
    for (int r = 0; r < N; r++)
      for (int c = 0; c < W && column + c * LANES < cache.stride; c++) {
        float* out = rows[r].out + column + c * LANES;
        if constexpr (!IS_F32) acc[r][c] = f_mul(acc[r][c], f_set(unit[r]));
        if constexpr (IS_Q4) acc[r][c] = f_add(acc[r][c], f_set(minima[r]));
        f_store(out, f_fma(f_load(out), f_set(keep[r]), f_mul(acc[r][c], f_set(take[r]))));
      }
  };
  // I16 has a float sum beside each integer one.
  constexpr int C = IS_F32 ? side_by_side(N) : IS_Q4 ? 2 : whole_side_by_side(N, FORMAT == CacheFormat::I16 ? 2 : 1);
  int column = 0;
  for (; column + (IS_Q4 ? 1 : C * LANES) <= cache.stride; column += C * LANES) {
    if constexpr (IS_Q4) scale_weights_q4<N>(cache, cache.value_lines, chunk, column / 32, minima, top), round();
    weigh(Number<C>{}, column);
  }
  if constexpr (!IS_Q4 && C > 1)
    for (; column < cache.stride; column += LANES) weigh(Number<1>{}, column);
}

// Softmax weights of one chunk of keys for N rows, in place of their scores, and the factors for the sums so far and
// for those of this chunk.
template <CacheFormat FORMAT, int N>
BRISE_INLINE void weigh_keys(const CacheLayer& cache, const AttendShape& shape, Row* rows, const Chunk& chunk, float (&keep)[N],
                             float (&take)[N]) {
  score_chunk<FORMAT, N>(cache, chunk, rows, shape.scale);
  for (int r = 0; r < N; r++) {
    float max, sum;
    soften<FORMAT>(rows[r], chunk.begin, chunk.end, chunk.scores + (size_t)r * KEY_CHUNK, max, sum);
    const float joint = max > rows[r].max ? max : rows[r].max;
    keep[r] = rows[r].max == MINUS_INFINITY ? 0.0f : std::exp(rows[r].max - joint);
    take[r] = max == MINUS_INFINITY ? 0.0f : std::exp(max - joint);
    rows[r].sum = rows[r].sum * keep[r] + sum * take[r];
    rows[r].max = joint;
  }
}

// One chunk of keys for N rows: scores, weights, weighted values, merged into the rows' running state.
template <CacheFormat FORMAT, int N>
void chunk_rows(const CacheLayer& cache, const AttendShape& shape, Row* rows, const Chunk& chunk) {
  float keep[N], take[N];
  weigh_keys<FORMAT, N>(cache, shape, rows, chunk, keep, take);
  weigh_chunk<FORMAT, N>(cache, chunk, rows, keep, take);
}

// Calls f(chunk) for the chunks of keys that any of N rows sees.
template <int N, class Call>
BRISE_INLINE void each_chunk(const CacheLayer& cache, const AttendUnit& unit, const Row* rows, float* scores, Call&& f) {
  int first = rows[0].first, last = rows[0].position;
  for (int r = 1; r < N; r++) {
    if (rows[r].first < first) first = rows[r].first;
    if (rows[r].position > last) last = rows[r].position;
  }
  Chunk chunk;
  chunk.scores = scores;
  chunk.scaled = scores + (size_t)QUERY_ROWS * KEY_CHUNK;
  chunk.weights = (int16_t*)(scores + (size_t)QUERY_ROWS * 2 * KEY_CHUNK);
  const auto find = [&](int begin, size_t* tile) {  // how many tiles from `begin` on
    int t = 0;
    for (int key = begin; key <= last && t < KEY_CHUNK / TILE; key += TILE) tile[t++] = tile_of(cache, unit, key);
    return t;
  };
  const int start = first / KEY_CHUNK * KEY_CHUNK;
  chunk.tiles_ahead = find(start, chunk.ahead);
  for (int begin = start; begin <= last; begin += KEY_CHUNK) {
    chunk.begin = begin;
    chunk.end = last + 1 < begin + KEY_CHUNK ? last + 1 : begin + KEY_CHUNK;
    chunk.tiles = chunk.tiles_ahead;
    std::memcpy(chunk.tile, chunk.ahead, sizeof chunk.tile);
    chunk.tiles_ahead = find(begin + KEY_CHUNK, chunk.ahead);
    f(chunk);
  }
}

// Calls f<N>(rows) for n rows, in as few parts as the registers allow.
template <class Call>
BRISE_INLINE void in_rows(int n, Row* rows, Call&& f) {
  while (n > 0) {  // whatever the split, each row's sums run over the same chunks in the same order
    const int take = n >= QUERY_ROWS ? QUERY_ROWS : n >= 8 && QUERY_ROWS >= 8 ? 8 : n >= 6 && QUERY_ROWS >= 6 ? 6
                     : n >= 4 ? 4 : n >= 3 ? 3 : n >= 2 ? 2 : 1;
    switch (take) {
      case 12: if constexpr (QUERY_ROWS >= 12) f.template operator()<12>(rows); break;
      case 8: if constexpr (QUERY_ROWS >= 8) f.template operator()<8>(rows); break;
      case 6: if constexpr (QUERY_ROWS >= 6) f.template operator()<6>(rows); break;
      case 4: f.template operator()<4>(rows); break;
      case 3: f.template operator()<3>(rows); break;
      case 2: f.template operator()<2>(rows); break;
      default: f.template operator()<1>(rows);
    }
    rows += take;
    n -= take;
  }
}

template <CacheFormat FORMAT>
void attend_n(int n, const CacheLayer& cache, const AttendShape& shape, const AttendUnit& unit, Row* rows, float* scores) {
  in_rows(n, rows, [&]<int N>(Row* some) {
    each_chunk<N>(cache, unit, some, scores, [&](const Chunk& chunk) { chunk_rows<FORMAT, N>(cache, shape, some, chunk); });
  });
}

// Scratch of a unit: scores, scaled and whole weights of a chunk (2.5 KEY_CHUNK floats a row), the rows' outputs, their queries as
// pairs and the sums of those in groups.
struct Scratch {
  float *scores, *outputs, *group_sums;
  int32_t* pairs;
  size_t width, groups;
  Scratch(float* base, const CacheLayer& cache, int width) : scores(base), width((size_t)width), groups((size_t)cache.groups()) {
    outputs = scores + (size_t)QUERY_ROWS * (2 * KEY_CHUNK + KEY_CHUNK / 2);
    group_sums = outputs + (size_t)QUERY_ROWS * (size_t)width;
    pairs = (int32_t*)(group_sums + (size_t)QUERY_ROWS * groups);
  }
};

size_t attend_scratch(int head_dim) {
  const size_t stride = (size_t)(head_dim + TILE - 1) / TILE * TILE, groups = (size_t)(head_dim + 31) / 32;
  return (size_t)QUERY_ROWS * (2 * KEY_CHUNK + KEY_CHUNK / 2 + stride + groups + 16 * groups);
}

// Row r of a unit: a query that sees keys [first, position].
BRISE_INLINE Row make_row(const CacheLayer& cache, const Scratch& room, int r, const float* q, float scale, int position, int first) {
  int32_t* pairs = room.pairs + r;
  float* sums = room.group_sums + (size_t)r * room.groups;
  float unit = 0.0f;
  if (cache.format != CacheFormat::F32) {
    unit = whole_scale(q, cache.head_dim);
    const float inverse = inverse_of(unit);
    for (int g = 0; g < (int)room.groups; g++) {
      int16_t part[32] = {};
      int sum = 0;
      for (int i = 0; i < 32 && 32 * g + i < cache.head_dim; i++) sum += part[i] = (int16_t)std::nearbyint(q[32 * g + i] * inverse);
      for (int i = 0; i < 16; i++) std::memcpy(pairs + (size_t)(16 * g + i) * QUERY_ROWS, part + 2 * i, 4);
      sums[g] = (float)sum;
    }
  }
  return {q, room.outputs + (size_t)r * room.width, position, first, MINUS_INFINITY, 0.0f, pairs, unit * scale, sums};
}

void attend(const CacheLayer& cache, const AttendShape& shape, const AttendUnit& unit, float* scratch) {
  const int share = shape.heads / shape.kv_heads;
  const Scratch room(scratch, cache, cache.stride);
  const int total = (unit.end - unit.begin) * share;
  for (int done = 0; done < total; done += QUERY_ROWS) {
    Row rows[QUERY_ROWS];
    const int n = total - done < QUERY_ROWS ? total - done : QUERY_ROWS;
    std::memset(room.outputs, 0, sizeof(float) * (size_t)(n * cache.stride));
    for (int r = 0; r < n; r++) {
      const int token = unit.begin + (done + r) / share, head = unit.kv_head * share + (done + r) % share;
      const int position = unit.positions[token];
      const float* q = unit.q + ((size_t)token * shape.heads + head) * shape.head_dim;
      rows[r] = make_row(cache, room, r, q, shape.scale, unit.reach ? unit.reach[token] : position,
                         shape.window && position >= shape.window ? position - shape.window + 1 : 0);
    }
    with_cache(cache.format, [&]<CacheFormat FORMAT>() { attend_n<FORMAT>(n, cache, shape, unit, rows, room.scores); });
    for (int r = 0; r < n; r++) {
      const int token = unit.begin + (done + r) / share, head = unit.kv_head * share + (done + r) % share;
      float* out = unit.out + ((size_t)token * shape.heads + head) * shape.head_dim;
      for (int e = 0; e < shape.head_dim; e++) out[e] = rows[r].out[e] / rows[r].sum;
    }
  }
}

}  // namespace BRISE_ISA
