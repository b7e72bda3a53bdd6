// Causal attention to one shared vector per token (latent attention): it is the key of all heads, and its first `rank`
// numbers are their value.
//
// Bound: multiply-adds, also in decode, because all heads of a token read the same keys. Query rows are tokens times
// heads, in memory order. Scores are those of attend.h. The cache has keys only, 16 to a register, so a sum of values is
// computed number by number: the key tiles of a chunk times the weights of their keys, with the lanes added at the end.
// As in attend.h, the order of sums depends only on the positions of the keys.
#pragma once

#include "attend.h"

namespace BRISE_ISA {

using namespace brise;

// The keys' numbers e of a chunk times N rows' weights; HIGH: in Q4, those in the high halves of bytes.
template <CacheFormat FORMAT, int N, bool HIGH>
BRISE_INLINE void weigh_latents(const CacheLayer& cache, const Chunk& chunk, int e, F (&acc)[N]) {
  const float* weights = FORMAT == CacheFormat::Q4 ? chunk.scaled : chunk.scores;
  for (int t = 0; t < chunk.tiles; t++) {
    F v;
    if constexpr (FORMAT == CacheFormat::Q4) {
      v = f_load_u4<HIGH>(cache.keys + ((chunk.tile[t] * (size_t)cache.groups() + (size_t)(e / 32)) * 16 + (size_t)(e % 16)) * TILE);
    } else {
      v = load_cache<FORMAT>(cache.keys, (chunk.tile[t] * (size_t)cache.head_dim + (size_t)e) * TILE);
      if (chunk.keys(t) < TILE) v = first_lanes(v, chunk.keys(t));
    }
#pragma GCC unroll 12
    for (int r = 0; r < N; r++) acc[r] = f_fma(v, f_load(weights + (size_t)r * KEY_CHUNK + t * TILE), acc[r]);
  }
}

template <CacheFormat FORMAT, int N>
void latent_chunk(const CacheLayer& cache, const AttendShape& shape, Row* rows, const Chunk& chunk) {
  float keep[N], take[N], minima[N] = {};
  weigh_keys<FORMAT, N>(cache, shape, rows, chunk, keep, take);
  if constexpr (FORMAT == CacheFormat::Q8)
    for (int t = 0; t < chunk.tiles; t++)
      for (int r = 0; r < N; r++) {
        float* s = chunk.scores + (size_t)r * KEY_CHUNK + t * TILE;
        f_store(s, f_mul(f_load(s), first_lanes(f_load(cache.key_scales + chunk.tile[t] * TILE), chunk.keys(t))));
      }
  for (int e = 0; e < shape.rank; e++) {
    F acc[N];
    for (int r = 0; r < N; r++) acc[r] = f_zero();
    if (FORMAT == CacheFormat::Q4 && e % 32 == 0) scale_weights<N>(cache, cache.key_lines, chunk, e / 32, minima);
    if (FORMAT == CacheFormat::Q4 && e % 32 >= 16) weigh_latents<FORMAT, N, true>(cache, chunk, e, acc);
    else weigh_latents<FORMAT, N, false>(cache, chunk, e, acc);
    for (int r = 0; r < N; r++) rows[r].out[e] = rows[r].out[e] * keep[r] + (f_sum(acc[r]) + minima[r]) * take[r];
  }
}

template <CacheFormat FORMAT>
void latent_rows(int n, const CacheLayer& cache, const AttendShape& shape, const AttendUnit& unit, Row* rows, float* scores) {
  in_rows(n, rows, [&]<int N>(Row* some) {
    each_chunk<N>(cache, unit, some, scores, [&](const Chunk& chunk) { latent_chunk<FORMAT, N>(cache, shape, some, chunk); });
  });
}

// Rows [begin, end) of the unit are query rows: token * heads + head. There are at most QUERY_ROWS.
void attend_latent(const CacheLayer& cache, const AttendShape& shape, const AttendUnit& unit, float* scratch) {
  const Scratch room(scratch, shape.rank);  // a value is no longer than its key
  const int n = unit.end - unit.begin;
  Row rows[QUERY_ROWS];
  std::memset(room.outputs, 0, sizeof(float) * (size_t)(n * shape.rank));
  for (int r = 0; r < n; r++) {
    const float* q = unit.q + (size_t)(unit.begin + r) * (size_t)shape.head_dim;
    rows[r] = {q, room.outputs + (size_t)r * (size_t)shape.rank, unit.positions[(unit.begin + r) / shape.heads], 0, MINUS_INFINITY,
               0.0f, sum_groups(cache, q, room.group_sums + (size_t)r * (size_t)cache.groups())};
  }
  with_cache(cache.format, [&]<CacheFormat FORMAT>() { latent_rows<FORMAT>(n, cache, shape, unit, rows, room.scores); });
  for (int r = 0; r < n; r++)
    for (int e = 0; e < shape.rank; e++) unit.out[(size_t)(unit.begin + r) * (size_t)shape.rank + e] = rows[r].out[e] / rows[r].sum;
}

}  // namespace BRISE_ISA
