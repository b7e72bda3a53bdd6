// Codes and scales for groups of weights, by weighted least squares.
//
// Sixteen groups are fitted at a time, one in each lane: every sum runs within a lane, in one order and without fused
// products, so that all instruction sets give the same bytes. Bound: compute, about 25 passes over a group.
// A group is fitted by a line x ~ scale * code + base (or scale * code): codes from a candidate scale, the best line
// for those codes, and again. K formats then round the lines' numbers to a few bits times one number of the block;
// neighbours of the rounded ones are tried against that block's number, and it against them.
#pragma once

#include "formats.h"
#include "kernels.h"
#include "simd.h"

namespace BRISE_ISA {

using namespace brise;

constexpr float NO_SCALE = 1e-30f;  // smaller ranges count as 0: their inverse would overflow
constexpr float NEVER = 3e38f;

// Sixteen groups of N numbers and their weights, transposed.
template <int N>
struct Groups {
  F x[N], w[N];
  F sum_w, sum_x, sum_xx;  // weighted

  // Rows of N, `count` of them; the others are 0.
  Groups(const float* from, const float* importance, int count) {
    alignas(64) float column[N][LANES] = {};
    const auto put = [&](const float* rows, F* to) {
      for (int g = 0; g < count; g++)
        for (int i = 0; i < N; i++) column[i][g] = rows[g * N + i];
      for (int i = 0; i < N; i++) to[i] = f_load(column[i]);
    };
    put(from, x);
    for (int i = 0; i < N; i++) w[i] = f_set(1.0f);
    if (importance) put(importance, w);
    sum_w = sum_x = sum_xx = f_zero();
    for (int i = 0; i < N; i++) {
      const F wx = f_mul(w[i], x[i]);
      sum_w = f_add(sum_w, w[i]);
      sum_x = f_add(sum_x, wx);
      sum_xx = f_add(sum_xx, f_mul(wx, x[i]));
    }
  }
};

// What a code may be: a whole number from low to high.
struct Whole {
  float low, high;
  BRISE_INLINE F nearest(F v) const { return f_whole(f_clamp(v, low, high)); }
};

// One of sixteen numbers of a table (formats.h), ascending.
struct Listed {
  int8_t numbers[LANES];
  explicit Listed(const int8_t* table) {
    for (int i = 0; i < LANES; i++) {  // insertion
      int at = i;
      for (; at > 0 && numbers[at - 1] > table[i]; at--) numbers[at] = numbers[at - 1];
      numbers[at] = table[i];
    }
  }
  BRISE_INLINE F nearest(F v) const {
    F code = f_set((float)numbers[0]);
    for (int i = 1; i < LANES; i++) code = f_if_less(f_set(0.5f * (float)(numbers[i - 1] + numbers[i])), v, f_set((float)numbers[i]), code);
    return code;
  }
};

// x ~ scale * code + base.
struct Line {
  F scale, base;
};

BRISE_INLINE F inverse_of(F v) { return f_if_less(f_abs(v), f_set(NO_SCALE), f_zero(), f_div(f_set(1.0f), v)); }
BRISE_INLINE F through_f16(F v) {
  uint16_t half[LANES];
  f_store_f16(half, f_clamp(v, -65504.0f, 65504.0f));
  return f_load_f16(half);
}

struct Sums {
  F q, qq, xq;  // weighted
};

template <int N, class Codes>
BRISE_INLINE Sums sums_of(const Groups<N>& g, F inverse, F offset, const Codes& codes) {
  Sums s = {f_zero(), f_zero(), f_zero()};
  for (int i = 0; i < N; i++) {
    const F q = codes.nearest(f_add(f_mul(g.x[i], inverse), offset)), wq = f_mul(g.w[i], q);
    s.q = f_add(s.q, wq);
    s.qq = f_add(s.qq, f_mul(wq, q));
    s.xq = f_add(s.xq, f_mul(wq, g.x[i]));
  }
  return s;
}

template <int N, class Codes>
BRISE_INLINE F error_of(const Groups<N>& g, Line line, const Codes& codes) {
  const F inverse = inverse_of(line.scale), offset = f_sub(f_zero(), f_mul(line.base, inverse));
  F error = f_zero();
  for (int i = 0; i < N; i++) {
    const F q = codes.nearest(f_add(f_mul(g.x[i], inverse), offset));
    const F off = f_sub(f_sub(g.x[i], f_mul(line.scale, q)), line.base);
    error = f_add(error, f_mul(f_mul(g.w[i], off), off));
  }
  return error;
}

// The best line for the codes that `inverse` and `offset` give, if it is better than `best`. With `below` the base
// may not be above 0: formats that store how much to subtract.
template <int N>
BRISE_INLINE void improve_line(const Groups<N>& g, F inverse, F offset, float high, bool below, Line& best, F& error) {
  const Sums s = sums_of(g, inverse, offset, Whole{0.0f, high});
  const F product = f_mul(g.sum_w, s.qq), determinant = f_sub(product, f_mul(s.q, s.q));
  const F is_line = f_sub(determinant, f_mul(product, f_set(1e-6f)));  // not with one code for all
  const F by = f_if_less(f_zero(), is_line, f_div(f_set(1.0f), f_max(determinant, f_set(NO_SCALE))), f_zero());
  F scale = f_mul(f_sub(f_mul(g.sum_w, s.xq), f_mul(g.sum_x, s.q)), by);
  F base = f_mul(f_sub(f_mul(s.qq, g.sum_x), f_mul(s.q, s.xq)), by);
  F worse = f_if_less(f_zero(), is_line, f_zero(), f_set(NEVER));
  if (below) {  // through the origin instead
    const F through = f_if_less(s.qq, f_set(NO_SCALE), f_zero(), f_div(s.xq, f_max(s.qq, f_set(NO_SCALE))));
    const F is_above = f_sub(f_if_less(f_zero(), is_line, base, f_set(1.0f)), f_zero());
    scale = f_if_less(f_zero(), is_above, through, scale);
    base = f_if_less(f_zero(), is_above, f_zero(), base);
    worse = f_zero();
  }
  worse = f_if_less(f_zero(), scale, worse, f_set(NEVER));
  // The residual of least squares.
  const F left = f_add(f_sub(f_sub(g.sum_xx, f_mul(scale, s.xq)), f_mul(base, g.sum_x)), worse);
  best.scale = f_if_less(left, error, scale, best.scale);
  best.base = f_if_less(left, error, base, best.base);
  error = f_min(left, error);
}

template <int N>
Line fit_line(const Groups<N>& g, float high, bool below) {
  F low = g.x[0], top = g.x[0];
  for (int i = 1; i < N; i++) {
    low = f_min(low, g.x[i]);
    top = f_max(top, g.x[i]);
  }
  if (below) low = f_min(low, f_zero());
  // One code for all, at the mean.
  const F mean = f_div(g.sum_x, f_max(g.sum_w, f_set(NO_SCALE)));
  Line best = {f_zero(), below ? f_min(mean, f_zero()) : mean};
  F error = f_add(f_sub(g.sum_xx, f_mul(f_mul(f_set(2.0f), best.base), g.sum_x)), f_mul(f_mul(best.base, best.base), g.sum_w));
  const F one = inverse_of(f_sub(top, low));
  for (int step = -6; step <= 12; step++) {  // wider steps clip outliers
    const F inverse = f_mul(one, f_set(high * (1.0f + 0.02f * (float)step) + 0.1f));
    // Both ends are clipped alike.
    const F middle = f_mul(f_add(top, low), f_set(0.5f));
    improve_line(g, inverse, f_sub(f_set(0.5f * high), f_mul(middle, inverse)), high, below, best, error);
    improve_line(g, inverse, f_sub(f_zero(), f_mul(low, inverse)), high, below, best, error);
  }
  for (int step = 0; step < 3; step++) {
    const F inverse = inverse_of(best.scale);
    improve_line(g, inverse, f_sub(f_zero(), f_mul(best.base, inverse)), high, below, best, error);
  }
  return best;
}

// The best scale without a base: sum of w (x - scale q)^2 is sum of w x^2 less the gain (w x q)^2 / (w q q).
template <int N, class Codes>
BRISE_INLINE void improve_scale(const Groups<N>& g, F inverse, const Codes& codes, F& best, F& gain) {
  const Sums s = sums_of(g, inverse, f_zero(), codes);
  const F scale = f_if_less(s.qq, f_set(NO_SCALE), f_zero(), f_div(s.xq, f_max(s.qq, f_set(NO_SCALE))));
  const F more = f_mul(scale, s.xq);
  best = f_if_less(gain, more, scale, best);
  gain = f_max(gain, more);
}

template <int N, class Codes>
F fit_scale(const Groups<N>& g, float low, const Codes& codes) {
  F top = f_zero(), size = f_zero();
  for (int i = 0; i < N; i++) {
    const F a = f_abs(g.x[i]);
    top = f_if_less(size, a, g.x[i], top);
    size = f_max(size, a);
  }
  const F one = inverse_of(top);
  F best = f_zero(), gain = f_zero();
  for (int step = -5; step <= 12; step++) {  // the largest number becomes `low`, of which there is one more
    const float by = low * (1.0f + 0.025f * (float)step);
    improve_scale(g, f_mul(one, f_set(by)), codes, best, gain);
    improve_scale(g, f_mul(one, f_set(-by)), codes, best, gain);
  }
  for (int step = 0; step < 3; step++) improve_scale(g, inverse_of(best), codes, best, gain);
  return best;
}

template <int N, class Codes>
void put_codes(const Groups<N>& g, Line line, const Codes& codes, Fitted& out) {
  const F inverse = inverse_of(line.scale), offset = f_sub(f_zero(), f_mul(line.base, inverse));
  for (int i = 0; i < N; i++) {
    int8_t lanes[LANES];
    i_store_i8(lanes, i_round(codes.nearest(f_add(f_mul(g.x[i], inverse), offset))));
    for (int group = 0; group < LANES; group++) out.codes[group * N + i] = lanes[group];
  }
}

// Formats with 16-bit scales of their own for each group.
template <int N, class Codes>
void fit_plain(const Groups<N>& g, Line line, const Codes& codes, Fitted& out) {
  line = {through_f16(line.scale), through_f16(line.base)};
  f_store_f16(out.d, line.scale);
  f_store_f16(out.m, line.base);
  put_codes(g, line, codes, out);
}

template <int N>
void fit_to_base(const Groups<N>& g, float high, Fitted& out) {
  fit_plain(g, fit_line(g, high, false), Whole{0.0f, high}, out);
}

template <int N, class Codes>
void fit_to_scale(const Groups<N>& g, float low, const Codes& codes, Fitted& out) {
  fit_plain(g, Line{fit_scale(g, low, codes), f_zero()}, codes, out);
}

// Scales that are powers of two: the exponent under which the group's largest number is one of the table's, or one of the two beside it.
inline void fit_exponents(const Groups<32>& g, const Listed& codes, Fitted& out) {
  F size = f_zero();
  for (int i = 0; i < 32; i++) size = f_max(size, f_abs(g.x[i]));
  alignas(64) float top[LANES], scale[LANES];
  f_store(top, size);
  F best = f_zero(), error = f_set(NEVER), exponent = f_zero();
  for (int step = -1; step <= 1; step++) {
    alignas(64) float e[LANES];
    for (int i = 0; i < LANES; i++) {
      const int near = nearest_exponent(top[i]) + step, kept = near < 0 ? 0 : near > 254 ? 254 : near;
      e[i] = (float)kept;
      scale[i] = exponent_to_float((uint8_t)kept);
    }
    const F s = f_load(scale), off = error_of(g, {s, f_zero()}, codes);
    best = f_if_less(off, error, s, best);
    exponent = f_if_less(off, error, f_load(e), exponent);
    error = f_min(off, error);
  }
  f_store(scale, exponent);
  for (int i = 0; i < LANES; i++) {
    out.d[i] = (uint16_t)scale[i];
    out.m[i] = 0;
  }
  put_codes(g, {best, f_zero()}, codes, out);
}

// Blocks of BLOCK groups with two 16-bit numbers: line = (d * scale, -m * min), scale and min from 0 to `most`.
template <int N, int BLOCK>
struct LineBlocks {
  const Groups<N>& g;
  const float high, most;
  alignas(64) float d[LANES], m[LANES], scale[LANES], min[LANES], error[LANES];

  void first(Line line) {
    f_store(scale, line.scale);
    f_store(min, f_sub(f_zero(), line.base));
    for (int block = 0; block < LANES; block += BLOCK) {
      float top = 0.0f, low = 0.0f;
      for (int i = block; i < block + BLOCK; i++) {
        top = scale[i] > top ? scale[i] : top;
        low = min[i] > low ? min[i] : low;
      }
      for (int i = block; i < block + BLOCK; i++) {
        d[i] = top / most;
        m[i] = low / most;
      }
    }
    store_through_f16();
    f_store(scale, f_clamp(f_whole(f_mul(f_load(scale), inverse_of(f_load(d)))), 0.0f, most));
    f_store(min, f_clamp(f_whole(f_mul(f_load(min), inverse_of(f_load(m)))), 0.0f, most));
  }

  void store_through_f16() {
    f_store(d, through_f16(f_load(d)));
    f_store(m, through_f16(f_load(m)));
  }

  Line line(F s, F n) const { return {f_mul(f_load(d), s), f_sub(f_zero(), f_mul(f_load(m), n))}; }
  Line line() const { return line(f_load(scale), f_load(min)); }

  // Each group's best scale and min among the neighbours of what it has.
  void settle() {
    const F s0 = f_load(scale), n0 = f_load(min);
    F best_s = s0, best_n = n0, best = error_of(g, line(s0, n0), Whole{0.0f, high});
    for (int ds = -1; ds <= 1; ds++)
      for (int dn = -1; dn <= 1; dn++) {
        if (!ds && !dn) continue;
        const F s = f_clamp(f_add(s0, f_set((float)ds)), 0.0f, most), n = f_clamp(f_add(n0, f_set((float)dn)), 0.0f, most);
        const F e = error_of(g, line(s, n), Whole{0.0f, high});
        best_s = f_if_less(e, best, s, best_s);
        best_n = f_if_less(e, best, n, best_n);
        best = f_min(best, e);
      }
    f_store(scale, best_s);
    f_store(min, best_n);
    f_store(error, best);
  }

  // The best d and m of each block for the codes, scales and mins that there are.
  void solve() {
    const Line now = line();
    const F inverse = inverse_of(now.scale);
    const Sums s = sums_of(g, inverse, f_sub(f_zero(), f_mul(now.base, inverse)), Whole{0.0f, high});
    alignas(64) float q[LANES], qq[LANES], xq[LANES], sw[LANES], sx[LANES];
    f_store(q, s.q);
    f_store(qq, s.qq);
    f_store(xq, s.xq);
    f_store(sw, g.sum_w);
    f_store(sx, g.sum_x);
    for (int block = 0; block < LANES; block += BLOCK) {
      double aa = 0, ab = 0, bb = 0, ay = 0, by = 0;  // a: what d multiplies, b: what m does
      for (int i = block; i < block + BLOCK; i++) {
        const double a = scale[i], b = -min[i];
        aa += a * a * qq[i];
        ab += a * b * q[i];
        bb += b * b * sw[i];
        ay += a * xq[i];
        by += b * sx[i];
      }
      const double determinant = aa * bb - ab * ab;
      double new_d = aa > 0 ? ay / aa : 0, new_m = m[block];
      if (determinant > 1e-6 * aa * bb) {
        new_d = (bb * ay - ab * by) / determinant;
        new_m = (aa * by - ab * ay) / determinant;
      } else if (bb > 0 && aa > 0) {
        new_d = d[block];
      }
      if (new_d <= 0 || new_m < 0) continue;
      for (int i = block; i < block + BLOCK; i++) {
        d[i] = (float)new_d;
        m[i] = (float)new_m;
      }
    }
    store_through_f16();
  }
};

template <int N, int BLOCK>
void fit_line_blocks(const Groups<N>& g, float high, float most, Fitted& out) {
  LineBlocks<N, BLOCK> now{g, high, most, {}, {}, {}, {}, {}};
  now.first(fit_line(g, high, true));
  now.settle();
  auto best = now;
  for (int round = 0; round < 2; round++) {
    now.solve();
    now.settle();
    for (int block = 0; block < LANES; block += BLOCK) {
      double before = 0, after = 0;
      for (int i = block; i < block + BLOCK; i++) {
        before += best.error[i];
        after += now.error[i];
      }
      for (int i = block; i < block + BLOCK && after < before; i++) {
        best.d[i] = now.d[i];
        best.m[i] = now.m[i];
        best.scale[i] = now.scale[i];
        best.min[i] = now.min[i];
        best.error[i] = now.error[i];
      }
    }
  }
  f_store_f16(out.d, f_load(best.d));
  f_store_f16(out.m, f_load(best.m));
  for (int i = 0; i < LANES; i++) {
    out.scale[i] = (int8_t)best.scale[i];
    out.min[i] = (int8_t)best.min[i];
  }
  put_codes(g, best.line(), Whole{0.0f, high}, out);
}

// Blocks of BLOCK groups with one 16-bit number: x ~ d * scale * code, scale from -most - 1 to most.
template <int N, int BLOCK, class Codes>
void fit_scale_blocks(const Groups<N>& g, float low, const Codes& codes, float most, Fitted& out) {
  alignas(64) float scale[LANES], d[LANES], xq[LANES], qq[LANES], error[LANES], best_d[LANES], best_scale[LANES] = {};
  double best[LANES];
  f_store(scale, fit_scale(g, low, codes));
  for (int block = 0; block < LANES; block += BLOCK) {
    float top = 0.0f;
    for (int i = block; i < block + BLOCK; i++) top = std::fabs(scale[i]) > std::fabs(top) ? scale[i] : top;
    for (int i = block; i < block + BLOCK; i++) d[i] = top / (-most - 1.0f), best[i] = NEVER;
  }
  f_store(d, through_f16(f_load(d)));
  f_store(best_d, f_load(d));
  F s = f_clamp(f_whole(f_mul(f_load(scale), inverse_of(f_load(d)))), -most - 1.0f, most);
  for (int round = 0; round < 3; round++) {
    const F by = f_load(d);
    F chosen = s, least = error_of(g, {f_mul(by, s), f_zero()}, codes);
    for (int step = -2; step <= 2; step++) {
      if (!step) continue;
      const F other = f_clamp(f_add(s, f_set((float)step)), -most - 1.0f, most);
      const F e = error_of(g, {f_mul(by, other), f_zero()}, codes);
      chosen = f_if_less(e, least, other, chosen);
      least = f_min(least, e);
    }
    s = chosen;
    const Sums sums = sums_of(g, inverse_of(f_mul(by, s)), f_zero(), codes);
    f_store(xq, sums.xq);
    f_store(qq, sums.qq);
    f_store(scale, s);
    f_store(error, least);
    for (int block = 0; block < LANES; block += BLOCK) {
      double total = 0, over = 0, under = 0;
      for (int i = block; i < block + BLOCK; i++) {
        total += error[i];
        over += (double)scale[i] * xq[i];
        under += (double)scale[i] * scale[i] * qq[i];
      }
      for (int i = block; i < block + BLOCK; i++) {
        if (total < best[i]) best[i] = total, best_d[i] = d[i], best_scale[i] = scale[i];
        if (under > 0) d[i] = (float)(over / under);
      }
    }
    f_store(d, through_f16(f_load(d)));
  }
  f_store_f16(out.d, f_load(best_d));
  for (int i = 0; i < LANES; i++) out.scale[i] = (int8_t)best_scale[i];
  put_codes(g, {f_mul(f_load(best_d), f_load(best_scale)), f_zero()}, codes, out);
}

void fit(Format format, const float* x, const float* importance, int groups, Fitted& out) {
  switch (format) {
    case Format::Q4_0: return fit_to_scale(Groups<32>(x, importance, groups), -8.0f, Whole{-8.0f, 7.0f}, out);
    case Format::Q5_0: return fit_to_scale(Groups<32>(x, importance, groups), -16.0f, Whole{-16.0f, 15.0f}, out);
    case Format::Q8_0: return fit_to_scale(Groups<32>(x, importance, groups), -127.0f, Whole{-127.0f, 127.0f}, out);
    case Format::Q4_1: return fit_to_base(Groups<32>(x, importance, groups), 15.0f, out);
    case Format::Q5_1: return fit_to_base(Groups<32>(x, importance, groups), 31.0f, out);
    case Format::IQ4_NL: return fit_to_scale(Groups<32>(x, importance, groups), -127.0f, Listed(IQ4_NUMBERS), out);
    case Format::MXFP4: return fit_exponents(Groups<32>(x, importance, groups), Listed(FP4_NUMBERS), out);
    case Format::Q2_K: return fit_line_blocks<16, 16>(Groups<16>(x, importance, groups), 3.0f, 15.0f, out);
    case Format::Q4_K: return fit_line_blocks<32, 8>(Groups<32>(x, importance, groups), 15.0f, 63.0f, out);
    case Format::Q5_K: return fit_line_blocks<32, 8>(Groups<32>(x, importance, groups), 31.0f, 63.0f, out);
    case Format::Q3_K: return fit_scale_blocks<16, 16>(Groups<16>(x, importance, groups), -4.0f, Whole{-4.0f, 3.0f}, 31.0f, out);
    case Format::Q6_K: return fit_scale_blocks<16, 16>(Groups<16>(x, importance, groups), -32.0f, Whole{-32.0f, 31.0f}, 127.0f, out);
    case Format::IQ4_XS: return fit_scale_blocks<32, 8>(Groups<32>(x, importance, groups), -127.0f, Listed(IQ4_NUMBERS), 31.0f, out);
    default: return;
  }
}

}  // namespace BRISE_ISA
