// x times W transposed, for tiles of 16 rows.
//
// With a few tokens the bound is memory: every weight is read once, in the order in which it lies, and lines are
// prefetched. With many tokens the bound is the int8 dot product: 12 int and 12 float accumulators fill the registers,
// and a tile is unpacked once for 12 tokens. The order of sums for an output does not depend on the number of tokens:
// a token's numbers are the same alone, in a batch and in a prefill.
#pragma once

#include "formats.h"
#include "simd.h"

namespace BRISE_ISA {

using namespace brise;

// 4 KiB is about 300 ns of one core's share of the memory's bandwidth. Into L2 only: prefetching into L1 occupies its
// few miss buffers, and made decode slower than no prefetching (docs/dev/LOG.md).
constexpr int PREFETCH_BYTES = 4096;

BRISE_INLINE int32_t four(const int8_t* q) {
  int32_t v;
  std::memcpy(&v, q, 4);
  return v;
}

// Bits [at, at + n) of every byte, moved to bit `to`.
template <int AT, int TO> BRISE_INLINE B move_bits(B v) {
  if constexpr (AT > TO) return b_right<AT - TO>(v);
  else return b_left<TO - AT>(v);
}

// The codes of quad Q of a block whose planes begin at p.
template <class L, int Q> BRISE_INLINE B codes(const uint8_t* p) {
  B v;
  if constexpr (L::LOW == 8) v = b_load(p + 64 * Q);
  else if constexpr (L::LOW == 4) v = b_and(b_right<Q / 4 * 4>(b_load(p + 64 * (Q % 4))), b_set(0x0f));
  else v = b_and(b_right<2 * (Q % 4)>(b_load(p + 64 * (Q / 4))), b_set(0x03));
  if constexpr (L::HIGH == 1)
    v = b_or(v, b_and(move_bits<Q, L::LOW>(b_load(p + L::LOW_BYTES)), b_set(1 << L::LOW)));
  if constexpr (L::HIGH == 2)
    v = b_or(v, b_and(move_bits<2 * (Q % 4), L::LOW>(b_load(p + L::LOW_BYTES + 64 * (Q / 4))), b_set(3 << L::LOW)));
  return v;
}

// What the dot product takes in place of the codes: the table's number where the format has one.
template <class L> BRISE_INLINE B numbers(B codes) {
  if constexpr (L::TABLE == Table::NONE) return codes;
  else return b_look_up(b_table(L::NUMBERS), codes);
}

template <class L> BRISE_INLINE I dot(I acc, B w, int32_t x) {
  if constexpr (L::TABLE != Table::NONE) return dot4_table(acc, w, x);
  else if constexpr (L::LOW == 8) return dot4_wide(acc, w, x);
  else return dot4(acc, w, x);
}

// Quads Q to LAST - 1 of a block times T tokens, into sum.
template <class L, int T, int Q, int LAST>
BRISE_INLINE void dots(I (&sum)[T], const uint8_t* p, const QBlock* x) {
  if constexpr (Q < LAST) {
    const B w = numbers<L>(codes<L, Q>(p + L::SCALE_BYTES));
#pragma GCC unroll 12
    for (int t = 0; t < T; t++) sum[t] = dot<L>(sum[t], w, four(x[t].q + 4 * Q));
    dots<L, T, Q + 1, LAST>(sum, p, x);
  }
}

// Scale and minimum of a group; H is the half for formats with scales for 16 columns.
template <class L, int H> BRISE_INLINE void scales(const uint8_t* head, const uint8_t* p, F& scale, F& min) {
  if constexpr (L::SCALE == Scale::D || L::SCALE == Scale::DM) scale = f_load_f16((const uint16_t*)p);
  if constexpr (L::SCALE == Scale::DM) min = f_load_f16((const uint16_t*)(p + 32));
  if constexpr (L::SCALE == Scale::E) scale = f_load_e8(p);
  if constexpr (L::SCALE == Scale::K32) scale = f_mul(f_load_f16((const uint16_t*)head), f_load_i8((const int8_t*)p));
  if constexpr (L::SCALE == Scale::K) {
    scale = f_mul(f_load_f16((const uint16_t*)head), f_load_u8(p));
    min = f_mul(f_load_f16((const uint16_t*)(head + 32)), f_sub(f_zero(), f_load_u8(p + 16)));
  }
  if constexpr (L::SCALE == Scale::K16)
    scale = f_mul(f_load_f16((const uint16_t*)head), f_load_i8((const int8_t*)p + 16 * H));
  if constexpr (L::SCALE == Scale::K16M) {
    uint8_t s[16], m[16];
    for (int i = 0; i < 16; i++) s[i] = p[16 * H + i] & 15, m[i] = p[16 * H + i] >> 4;
    scale = f_mul(f_load_f16((const uint16_t*)head), f_load_u8(s));
    min = f_mul(f_load_f16((const uint16_t*)(head + 32)), f_sub(f_zero(), f_load_u8(m)));
  }
}

// One scale group: all of a block, or half H of it.
template <class L, int T, int H>
BRISE_INLINE void group(F (&acc)[T], const uint8_t* head, const uint8_t* p, const QBlock* x) {
  constexpr int OFFSET = L::TABLE == Table::NONE ? L::OFFSET : TABLE_OFFSET;
  I sum[T];
#pragma GCC unroll 12
  for (int t = 0; t < T; t++) sum[t] = i_set(-OFFSET * (L::HALVES ? x[t].half[H] : x[t].count));
  if constexpr (L::HALVES) dots<L, T, 4 * H, 4 * H + 4>(sum, p, x);
  else dots<L, T, 0, 8>(sum, p, x);
  F scale = f_zero(), min = f_zero();
  scales<L, H>(head, p, scale, min);
#pragma GCC unroll 12
  for (int t = 0; t < T; t++) {
    acc[t] = f_fma(f_from_i(sum[t]), f_mul(scale, f_set(x[t].scale)), acc[t]);
    if constexpr (L::HAS_MIN) acc[t] = f_fma(min, f_set(L::HALVES ? x[t].half_sum[H] : x[t].sum), acc[t]);
  }
}

template <int R, int T>
BRISE_INLINE void store_tiles(const F (&acc)[R][T], int row, int rows, float* out, size_t ld) {
  for (int r = 0; r < R; r++)
    for (int t = 0; t < T; t++) {
      const int n = rows - (row + r * TILE);
      if (n >= TILE) {
        f_store(out + t * ld + row + r * TILE, acc[r][t]);
      } else if (n > 0) {
        float part[TILE];
        f_store(part, acc[r][t]);
        std::memcpy(out + t * ld + row + r * TILE, part, sizeof(float) * (size_t)n);
      }
    }
}

// One tile, T tokens whose blocks begin at x. Several tiles side by side were no faster with one token and slower with a few:
// one stream is what the processor's own prefetching follows best (docs/dev/LOG.md).
template <class L, int T>
void block_q(const Matrix& w, int tile, const QBlock* x, int width, float* out, size_t ld) {
  const uint8_t *p = w.data + (size_t)tile * w.tile_bytes, *head = p;
  F acc[1][T];
  for (int t = 0; t < T; t++) acc[0][t] = f_zero();
  const int groups = w.cols / 32;
  for (int g = 0; g < groups; g++, x += width, p += L::BLOCK_BYTES) {
    if (L::IS_K && g % 8 == 0) head = p, p += L::HEAD_BYTES;
#pragma GCC unroll 12
    for (int line = 0; line < L::BLOCK_BYTES; line += 64) prefetch_l2(p + PREFETCH_BYTES + line);
    group<L, T, 0>(acc[0], head, p, x);
    if constexpr (L::HALVES) group<L, T, 1>(acc[0], head, p, x);
  }
  store_tiles<1, T>(acc, tile * TILE, w.rows, out, ld);
}

// The n <= T tokens of a piece, all at once.
template <class L, int T>
void piece_q(const Matrix& w, int tile, const QBlock* x, int width, int n, float* out, size_t ld) {
  if constexpr (T > 1)
    if (n < T) return piece_q<L, T - 1>(w, tile, x, width, n, out, ld);
  block_q<L, T>(w, tile, x, width, out, ld);
}

// Pieces of 12 tokens, then of 8, then all that are left at once, so that a few tokens read a tile from memory once and unpack
// it once. Of two pieces the second finds the unit's tiles in L2.
template <class L>
void run_q(const Matrix& w, const QRows& x, int tile0, int tile1, int t0, int t1, float* out, size_t ld) {
  constexpr int MOST = MAX_TOKENS >= 12 ? 8 : MAX_TOKENS;
  for (int t = t0; t < t1;) {
    const int room = TOKEN_BLOCK - t % TOKEN_BLOCK, left = t1 - t < room ? t1 - t : room;
    const int n = left >= MAX_TOKENS ? MAX_TOKENS : left < MOST ? left : MOST;
    const QBlock* first = x.first(t);
    for (int tile = tile0; tile < tile1; tile++) {
      if (n == MAX_TOKENS) block_q<L, MAX_TOKENS>(w, tile, first, x.width, out + (size_t)t * ld, ld);
      else piece_q<L, MOST>(w, tile, first, x.width, n, out + (size_t)t * ld, ld);
    }
    t += n;
  }
}

void linear_q(const Matrix& w, const QRows& x, int tile0, int tile1, int t0, int t1, float* out, size_t ld) {
  with_layout(w.format, [&](auto layout) { run_q<decltype(layout)>(w, x, tile0, tile1, t0, t1, out, ld); });
}

// Weights that are not quantized: float32 activations, one multiply-add per weight.
template <Format FORMAT> BRISE_INLINE F load_weights(const uint8_t* tile, size_t column) {
  if constexpr (FORMAT == Format::F32) return f_load((const float*)tile + column * TILE);
  else if constexpr (FORMAT == Format::F16) return f_load_f16((const uint16_t*)tile + column * TILE);
  else return f_load_bf16((const uint16_t*)tile + column * TILE);
}

// What is done with sums: they are the outputs, or an adapter's part of them.
struct Store {
  template <int R, int T> BRISE_INLINE void take(const F (&acc)[R][T], int row, int rows, float* out, size_t ld) const {
    store_tiles<R, T>(acc, row, rows, out, ld);
  }
};

// out = (out + scale * sum) * gain; `gain` is as long as whole tiles, or null.
struct AddLowRank {
  F scale;
  const float* gain;
  BRISE_INLINE F sum(F y, F acc, int row) const {
    const F added = f_fma(scale, acc, y);
    return gain ? f_mul(added, f_load(gain + row)) : added;
  }
  template <int R, int T> BRISE_INLINE void take(const F (&acc)[R][T], int row, int rows, float* out, size_t ld) const {
    for (int r = 0; r < R; r++, row += TILE)
      for (int t = 0; t < T; t++) {
        float* y = out + (size_t)t * ld + row;
        if (rows - row >= TILE) {
          f_store(y, sum(f_load(y), acc[r][t], row));
        } else {
          float part[TILE] = {};
          std::memcpy(part, y, sizeof(float) * (size_t)(rows - row));
          f_store(part, sum(f_load(part), acc[r][t], row));
          std::memcpy(y, part, sizeof(float) * (size_t)(rows - row));
        }
      }
  }
};

// R tiles from `tile` for T tokens: each sum runs over the columns from first to last.
template <Format FORMAT, int R, int T, class Taker>
void block_f(const Matrix& w, int tile, const float* x, size_t ldx, float* out, size_t ld, const Taker& taker) {
  const uint8_t* p[R];
  for (int r = 0; r < R; r++) p[r] = w.data + (size_t)(tile + r) * w.tile_bytes;
  F acc[R][T];
  for (int r = 0; r < R; r++)
    for (int t = 0; t < T; t++) acc[r][t] = f_zero();
  for (int c = 0; c < w.cols; c++) {
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) {
      const F weights = load_weights<FORMAT>(p[r], (size_t)c);
#pragma GCC unroll 8
      for (int t = 0; t < T; t++) acc[r][t] = f_fma(weights, f_set(x[(size_t)t * ldx + (size_t)c]), acc[r][t]);
    }
  }
  taker.template take<R, T>(acc, tile * TILE, w.rows, out, ld);
}

template <Format FORMAT, int R, int T, class Taker>
void tiles_f(const Matrix& w, const float* x, size_t ldx, int tile0, int tile1, float* out, size_t ld, const Taker& taker) {
  int tile = tile0;
  for (; tile + R <= tile1; tile += R) block_f<FORMAT, R, T>(w, tile, x, ldx, out, ld, taker);
  for (; tile < tile1; tile++) block_f<FORMAT, 1, T>(w, tile, x, ldx, out, ld, taker);
}

// Tokens are the outer loop: the activations of a few tokens stay in L1 while the tiles, which fit L2, are read. A
// single token takes several tiles at a time, because one sum waits four cycles for each product.
template <Format FORMAT, class Taker>
void run_f(const Matrix& w, const float* x, size_t ldx, int tile0, int tile1, int t0, int t1, float* out, size_t ld, const Taker& taker) {
  int t = t0;
  for (; t + FLOAT_TOKENS <= t1; t += FLOAT_TOKENS)
    tiles_f<FORMAT, 1, FLOAT_TOKENS>(w, x + (size_t)t * ldx, ldx, tile0, tile1, out + (size_t)t * ld, ld, taker);
  for (; t + 2 <= t1; t += 2) tiles_f<FORMAT, 1, 2>(w, x + (size_t)t * ldx, ldx, tile0, tile1, out + (size_t)t * ld, ld, taker);
  for (; t < t1; t++) tiles_f<FORMAT, GEMV_TILES, 1>(w, x + (size_t)t * ldx, ldx, tile0, tile1, out + (size_t)t * ld, ld, taker);
}

void linear_f(const Matrix& w, const float* x, size_t ldx, int tile0, int tile1, int t0, int t1, float* out, size_t ld) {
  if (w.format == Format::F32) run_f<Format::F32>(w, x, ldx, tile0, tile1, t0, t1, out, ld, Store{});
  else if (w.format == Format::F16) run_f<Format::F16>(w, x, ldx, tile0, tile1, t0, t1, out, ld, Store{});
  else run_f<Format::BF16>(w, x, ldx, tile0, tile1, t0, t1, out, ld, Store{});
}

void add_low_rank(const Matrix& b, const float* h, size_t ldh, float scale, const float* gain, int tile0, int tile1, int t0, int t1, float* out, size_t ld) {
  const AddLowRank add{f_set(scale), gain};
  if (b.format == Format::F32) run_f<Format::F32>(b, h, ldh, tile0, tile1, t0, t1, out, ld, add);
  else run_f<Format::BF16>(b, h, ldh, tile0, tile1, t0, t1, out, ld, add);
}

}  // namespace BRISE_ISA
