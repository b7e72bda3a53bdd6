// Causal attention to one shared vector per token (latent attention): it is the key of all heads, and its first `rank`
// numbers are their value.
//
// Bound: multiply-adds, also in decode, because all heads of a token read the same keys. Query rows are tokens times
// heads, in memory order. Scores are those of attend.h. The cache has keys only, 16 to a register, so a sum of values is
// computed number by number: the key tiles of a chunk times the weights of their keys, with the lanes added at the end.
// Values are numbers in float here, whatever the cache. As in attend.h, the order of sums depends only on the positions of the keys.
#pragma once

#include "attend.h"

namespace BRISE_ISA {

using namespace brise;

// The keys' numbers e of a chunk times N rows' weights; HIGH: in Q4, those in the high halves of bytes; ODD: the second of a pair.
template <CacheFormat FORMAT, int N, bool HIGH, bool ODD>
BRISE_INLINE void weigh_latents(const CacheLayer& cache, const Chunk& chunk, int e, F (&acc)[N]) {
  const float* weights = FORMAT == CacheFormat::F32 ? chunk.scores : chunk.scaled;
  const int pair = FORMAT == CacheFormat::Q4 ? e / 32 * 8 + e % 16 / 2 : e / 2;
  const size_t at = FORMAT == CacheFormat::F32 ? (size_t)e * TILE * sizeof(float) : (size_t)pair * PAIRS_BYTES<FORMAT>;
  for (int t = 0; t < chunk.tiles; t++) {
    const uint8_t* p = cache.keys + chunk.tile[t] * cache.key_tile_bytes() + at;
    F v;
    if constexpr (FORMAT == CacheFormat::F32) {
      v = f_load((const float*)p);
      if (chunk.keys(t) < TILE) v = first_lanes(v, chunk.keys(t));
    } else v = f_from_p<ODD>(load_pairs<FORMAT, HIGH>(p));
#pragma GCC unroll 12
    for (int r = 0; r < N; r++) acc[r] = f_fma(v, f_load(weights + (size_t)r * KEY_CHUNK + t * TILE), acc[r]);
  }
}

template <CacheFormat FORMAT, int N>
void latent_chunk(const CacheLayer& cache, const AttendShape& shape, Row* rows, const Chunk& chunk) {
  float keep[N], take[N], minima[N] = {}, top[N];
  weigh_keys<FORMAT, N>(cache, shape, rows, chunk, keep, take);
  if constexpr (FORMAT == CacheFormat::I16 || FORMAT == CacheFormat::Q8) scale_weights<N>(cache.key_scales, chunk, top);
  for (int e = 0; e < shape.rank; e++) {
    F acc[N];
    for (int r = 0; r < N; r++) acc[r] = f_zero();
    if (FORMAT == CacheFormat::Q4 && e % 32 == 0) scale_weights_q4<N>(cache, cache.key_lines, chunk, e / 32, minima, top);
    if (FORMAT == CacheFormat::Q4 && e % 32 >= 16) e % 2 ? weigh_latents<FORMAT, N, true, true>(cache, chunk, e, acc) : weigh_latents<FORMAT, N, true, false>(cache, chunk, e, acc);
    else e % 2 ? weigh_latents<FORMAT, N, false, true>(cache, chunk, e, acc) : weigh_latents<FORMAT, N, false, false>(cache, chunk, e, acc);
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
  const Scratch room(scratch, cache, shape.rank);  // a value is no longer than its key
  const int n = unit.end - unit.begin;
  Row rows[QUERY_ROWS];
  std::memset(room.outputs, 0, sizeof(float) * (size_t)(n * shape.rank));
  for (int r = 0; r < n; r++) {
    const float* q = unit.q + (size_t)(unit.begin + r) * (size_t)shape.head_dim;
    rows[r] = make_row(cache, room, r, q, shape.scale, unit.positions[(unit.begin + r) / shape.heads], 0);
  }
  with_cache(cache.format, [&]<CacheFormat FORMAT>() { latent_rows<FORMAT>(n, cache, shape, unit, rows, room.scores); });
  for (int r = 0; r < n; r++)
    for (int e = 0; e < shape.rank; e++) unit.out[(size_t)(unit.begin + r) * (size_t)shape.rank + e] = rows[r].out[e] / rows[r].sum;
}

}  // namespace BRISE_ISA
