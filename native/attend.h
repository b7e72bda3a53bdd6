// Causal attention over the paged cache, for the queries of one sequence that share one key/value head.
//
// Bound: multiply-adds in prefill, memory in decode at long contexts. Query rows (tokens times the heads that
// share the kv head) are processed in blocks that fill the registers, with 16 keys to a register. For KEY_CHUNK keys
// at a time it computes scores, softmax and the weighted sum of values. Chunks begin at multiples of KEY_CHUNK and are
// merged in order, so that a query's result does not depend on the other queries of its batch.
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

// Running state of one query row: max, sum, and the unnormalized output.
struct Row {
  const float* q;
  float* out;
  int position, first;  // sees keys [first, position], its own position or a later one
  float max, sum;
  const float* group_sums;  // of q, in groups of 32: Q4 needs them
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
  float* scores;   // [row][KEY_CHUNK]
  float* scaled;   // the same for Q4: weights times the values' scales
};

// Scores of S key tiles for N rows: scores[r * KEY_CHUNK + 0..16 S). Prefetches the tiles' values.
template <CacheFormat FORMAT, int N, int S>
BRISE_INLINE void score_rows(const CacheLayer& cache, const Row* rows, const size_t* tile, float scale, float* scores) {
  constexpr size_t ELEMENT = FORMAT == CacheFormat::F32 ? 4 : FORMAT == CacheFormat::F16 ? 2 : 1;
  constexpr int EVERY = 64 / (TILE * ELEMENT);  // a line of values for as many bytes of keys
  F acc[S][N];
  const int head_dim = cache.head_dim;
  const size_t size = (size_t)head_dim * TILE, value_bytes = (size_t)cache.stride * TILE * ELEMENT;
  for (int s = 0; s < S; s++)
    for (int r = 0; r < N; r++) acc[s][r] = f_zero();
  for (int e = 0; e < head_dim; e++) {
    F keys[S];
    for (int s = 0; s < S; s++) {
      keys[s] = load_cache<FORMAT>(cache.keys, tile[s] * size + (size_t)e * TILE);
      if (e % EVERY == 0) prefetch_l2(cache.values + tile[s] * value_bytes + (size_t)e * TILE * ELEMENT);
    }
#pragma GCC unroll 12
    for (int r = 0; r < N; r++)
      for (int s = 0; s < S; s++) acc[s][r] = f_fma(keys[s], f_set(rows[r].q[e]), acc[s][r]);
  }
  for (int s = 0; s < S; s++) {
    F by = f_set(scale);
    if constexpr (FORMAT == CacheFormat::Q8) by = f_mul(by, f_load(cache.key_scales + tile[s] * TILE));
    for (int r = 0; r < N; r++) f_store(scores + (size_t)r * KEY_CHUNK + s * TILE, f_mul(acc[s][r], by));
  }
}

// The same for Q4: sum of q k is, for each group, scale * sum of q code + minimum * sum of q.
template <int N, int S>
BRISE_INLINE void score_rows_q4(const CacheLayer& cache, const Row* rows, const size_t* tile, float scale, float* scores) {
  const int groups = cache.groups();
  F total[S][N];
  for (int s = 0; s < S; s++)
    for (int r = 0; r < N; r++) total[s][r] = f_zero();
  for (int g = 0; g < groups; g++) {
    const int first = 32 * g, n = cache.head_dim - first;  // numbers of this group: 32 or n
    F acc[S][N];
    for (int s = 0; s < S; s++)
      for (int r = 0; r < N; r++) acc[s][r] = f_zero();
    for (int i = 0; i < 16 && i < n; i++) {
      F low[S], high[S];
      for (int s = 0; s < S; s++) {
        const uint8_t* bytes = cache.keys + ((tile[s] * (size_t)groups + (size_t)g) * 16 + (size_t)i) * TILE;
        low[s] = f_load_u4<false>(bytes), high[s] = f_load_u4<true>(bytes);
        if (i % 4 == 0) prefetch_l2(cache.values + ((tile[s] * (size_t)groups + (size_t)g) * 16 + (size_t)i) * TILE);
      }
#pragma GCC unroll 12
      for (int r = 0; r < N; r++)
        for (int s = 0; s < S; s++) acc[s][r] = f_fma(low[s], f_set(rows[r].q[first + i]), acc[s][r]);
      if (i + 16 >= n) continue;
#pragma GCC unroll 12
      for (int r = 0; r < N; r++)
        for (int s = 0; s < S; s++) acc[s][r] = f_fma(high[s], f_set(rows[r].q[first + i + 16]), acc[s][r]);
    }
    for (int s = 0; s < S; s++) {
      const uint16_t* line = cache.key_lines + (tile[s] * (size_t)groups + (size_t)g) * 2 * TILE;
      const F by = f_load_f16(line), minimum = f_load_f16(line + TILE);
      prefetch_l2(cache.value_lines + (line - cache.key_lines));
      for (int r = 0; r < N; r++)
        total[s][r] = f_fma(by, acc[s][r], f_fma(minimum, f_set(rows[r].group_sums[g]), total[s][r]));
    }
  }
  for (int s = 0; s < S; s++)
    for (int r = 0; r < N; r++) f_store(scores + (size_t)r * KEY_CHUNK + s * TILE, f_mul(total[s][r], f_set(scale)));
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
template <CacheFormat FORMAT, int N, int C>
BRISE_INLINE void weigh_rows(const CacheLayer& cache, const Chunk& chunk, int column, F (&acc)[N][C]) {
  for (int t = 0; t < chunk.tiles; t++) {
    const int keys = chunk.keys(t);
    const float* p = chunk.scores + t * TILE;
    const size_t first = chunk.tile[t] * TILE * (size_t)cache.stride + (size_t)column;
    for (int k = 0; k < keys; k++) {
      if (!column) ask_ahead(cache, chunk, t, k);
      F v[C];
      for (int c = 0; c < C; c++) v[c] = load_cache<FORMAT>(cache.values, first + (size_t)k * (size_t)cache.stride + (size_t)(c * LANES));
#pragma GCC unroll 12
      for (int r = 0; r < N; r++) {
        const F weight = f_set(p[(size_t)r * KEY_CHUNK + k]);
        for (int c = 0; c < C; c++) acc[r][c] = f_fma(v[c], weight, acc[r][c]);
      }
    }
  }
}

// The same for Q4, 16 numbers of the head: half a group's codes by weights times scales, plus the minima.
template <int N, bool HIGH>
BRISE_INLINE void weigh_rows_q4(const CacheLayer& cache, const Chunk& chunk, int column, const float* minima, F (&acc)[N][1]) {
  const size_t groups = (size_t)cache.groups(), group = (size_t)column / 32;
  for (int t = 0; t < chunk.tiles; t++) {
    const int keys = chunk.keys(t);
    const float* p = chunk.scaled + t * TILE;
    const uint8_t* codes = cache.values + (chunk.tile[t] * TILE * groups + group) * 16;
    for (int k = 0; k < keys; k++) {
      if (!column) ask_ahead(cache, chunk, t, k);
      const F v = f_load_u4<HIGH>(codes + (size_t)k * groups * 16);
#pragma GCC unroll 12
      for (int r = 0; r < N; r++) acc[r][0] = f_fma(v, f_set(p[(size_t)r * KEY_CHUNK + k]), acc[r][0]);
    }
  }
  for (int r = 0; r < N; r++) acc[r][0] = f_add(acc[r][0], f_set(minima[r]));
}

BRISE_INLINE size_t tile_of(const CacheLayer& cache, const AttendUnit& unit, int key) {
  return cache.tile(unit.pages[key / cache.page_size], unit.kv_head, key % cache.page_size);
}

// Replaces scores of keys [begin, end) by weights exp(s - max); returns their max and sum. Masked ones become 0.
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

template <CacheFormat FORMAT, int N>
void score_chunk(const CacheLayer& cache, const Chunk& chunk, const Row* rows, float scale) {
  constexpr int S = FORMAT == CacheFormat::Q4 ? side_by_side(2 * N) : side_by_side(N);
  const auto score = [&](auto width, int t) {
    constexpr int W = decltype(width)::value;
    if constexpr (FORMAT == CacheFormat::Q4) score_rows_q4<N, W>(cache, rows, chunk.tile + t, scale, chunk.scores + t * TILE);
    else score_rows<FORMAT, N, W>(cache, rows, chunk.tile + t, scale, chunk.scores + t * TILE);
  };
  int t = 0;
  for (; t + S <= chunk.tiles; t += S) score(Number<S>{}, t);
  for (; t < chunk.tiles; t++) score(Number<1>{}, t);
}

// Multiplies the values' scales and minima into the weights: into the chunk's `scaled` and a sum for each row.
template <int N>
void scale_weights(const CacheLayer& cache, const uint16_t* lines, const Chunk& chunk, int group, float* minima) {
  F sum[N];
  for (int r = 0; r < N; r++) sum[r] = f_zero();
  for (int t = 0; t < chunk.tiles; t++) {
    const uint16_t* line = lines + (chunk.tile[t] * (size_t)cache.groups() + (size_t)group) * 2 * TILE;
    F by = f_load_f16(line), minimum = f_load_f16(line + TILE);
    if (chunk.keys(t) < TILE) by = first_lanes(by, chunk.keys(t)), minimum = first_lanes(minimum, chunk.keys(t));
    for (int r = 0; r < N; r++) {
      const F p = f_load(chunk.scores + (size_t)r * KEY_CHUNK + t * TILE);
      f_store(chunk.scaled + (size_t)r * KEY_CHUNK + t * TILE, f_mul(p, by));
      sum[r] = f_fma(p, minimum, sum[r]);
    }
  }
  for (int r = 0; r < N; r++) minima[r] = f_sum(sum[r]);
}

// Adds the chunk's weighted values to the rows' outputs; keep and take are the weights of the old and the new part.
template <CacheFormat FORMAT, int N>
void weigh_chunk(const CacheLayer& cache, const Chunk& chunk, Row* rows, const float* keep, const float* take) {
  float minima[N];
  const auto weigh = [&](auto width, int column) {
    constexpr int W = decltype(width)::value;
    F acc[N][W];
    for (int r = 0; r < N; r++)
      for (int c = 0; c < W; c++) acc[r][c] = f_zero();
    if constexpr (FORMAT == CacheFormat::Q4) {
      if (column % 32) weigh_rows_q4<N, true>(cache, chunk, column, minima, acc);
      else weigh_rows_q4<N, false>(cache, chunk, column, minima, acc);
    } else weigh_rows<FORMAT, N, W>(cache, chunk, column, acc);
    for (int r = 0; r < N; r++)
      for (int c = 0; c < W; c++) {
        float* out = rows[r].out + column + c * LANES;
        f_store(out, f_fma(f_load(out), f_set(keep[r]), f_mul(acc[r][c], f_set(take[r]))));
      }
  };
  constexpr int C = FORMAT == CacheFormat::Q4 ? 1 : side_by_side(N);
  int column = 0;
  for (; column + C * LANES <= cache.stride; column += C * LANES) {
    if constexpr (FORMAT == CacheFormat::Q4)
      if (column % 32 == 0) scale_weights<N>(cache, cache.value_lines, chunk, column / 32, minima);
    weigh(Number<C>{}, column);
  }
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
    soften(rows[r], chunk.begin, chunk.end, chunk.scores + (size_t)r * KEY_CHUNK, max, sum);
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
  if constexpr (FORMAT == CacheFormat::Q8)  // the weights include the values' scales
    for (int t = 0; t < chunk.tiles; t++)
      for (int r = 0; r < N; r++) {
        float* s = chunk.scores + (size_t)r * KEY_CHUNK + t * TILE;
        f_store(s, f_mul(f_load(s), f_load(cache.value_scales + chunk.tile[t] * TILE)));
      }
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

// Scratch of a unit: scores and scaled weights of a chunk, the rows' outputs, sums of their queries' groups.
struct Scratch {
  float *scores, *outputs, *group_sums;
  Scratch(float* base, int width) {
    scores = base;
    outputs = scores + (size_t)QUERY_ROWS * 2 * KEY_CHUNK;
    group_sums = outputs + (size_t)QUERY_ROWS * (size_t)width;
  }
};

size_t attend_scratch(int head_dim) {
  const size_t stride = (size_t)(head_dim + TILE - 1) / TILE * TILE, groups = (size_t)(head_dim + 31) / 32;
  return (size_t)QUERY_ROWS * (2 * KEY_CHUNK + stride + groups);
}

// Sums of q over groups of 32, into `sums`.
BRISE_INLINE const float* sum_groups(const CacheLayer& cache, const float* q, float* sums) {
  const int n = cache.format == CacheFormat::Q4 ? cache.head_dim : 0;
  for (int first = 0; first < n; first += 32) {
    float sum = 0.0f;
    for (int e = first; e < first + 32 && e < n; e++) sum += q[e];
    sums[first / 32] = sum;
  }
  return sums;
}

void attend(const CacheLayer& cache, const AttendShape& shape, const AttendUnit& unit, float* scratch) {
  const int share = shape.heads / shape.kv_heads;
  const Scratch room(scratch, cache.stride);
  const int total = (unit.end - unit.begin) * share;
  for (int done = 0; done < total; done += QUERY_ROWS) {
    Row rows[QUERY_ROWS];
    const int n = total - done < QUERY_ROWS ? total - done : QUERY_ROWS;
    std::memset(room.outputs, 0, sizeof(float) * (size_t)(n * cache.stride));
    for (int r = 0; r < n; r++) {
      const int token = unit.begin + (done + r) / share, head = unit.kv_head * share + (done + r) % share;
      const int position = unit.positions[token];
      const float* q = unit.q + ((size_t)token * shape.heads + head) * shape.head_dim;
      rows[r] = {q, room.outputs + (size_t)r * cache.stride, unit.reach ? unit.reach[token] : position,
                 shape.window && position >= shape.window ? position - shape.window + 1 : 0, MINUS_INFINITY, 0.0f,
                 sum_groups(cache, q, room.group_sums + (size_t)r * (size_t)cache.groups())};
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
