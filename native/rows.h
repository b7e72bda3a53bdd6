// Row-local kernels: norm, rope, activation, quantization. All are bound by L1/L2 bandwidth and take little time
// compared with the linears. A tail shorter than 16 goes through a padded copy, so that every length works.
#pragma once

#include <limits>

#include "kernels.h"
#include "simd.h"

namespace BRISE_ISA {

using namespace brise;

// out[0..n) = f(lanes of a, lanes of b); reads nothing past n.
template <class Call>
BRISE_INLINE void each(const float* a, const float* b, int n, float* out, Call&& f) {
  int i = 0;
  for (; i + LANES <= n; i += LANES) f_store(out + i, f(f_load(a + i), f_load(b + i)));
  if (i < n) {
    const size_t bytes = sizeof(float) * (size_t)(n - i);
    float pa[LANES] = {}, pb[LANES] = {};
    std::memcpy(pa, a + i, bytes);
    std::memcpy(pb, b + i, bytes);
    f_store(pa, f(f_load(pa), f_load(pb)));
    std::memcpy(out + i, pa, bytes);
  }
}

void add(const float* x, const float* y, int n, float* out) {
  each(x, y, n, out, [](F a, F b) { return f_add(a, b); });
}

void scale(const float* x, float factor, int n, float* out) {
  const F by = f_set(factor);
  each(x, x, n, out, [by](F a, F) { return f_mul(a, by); });
}

void silu_mul(const float* gate, const float* up, int n, float* out) {
  const F one = f_set(1.0f);
  each(gate, up, n, out, [one](F g, F u) {
    const F e = f_exp(f_sub(f_zero(), f_abs(g)));  // at most 1: nothing overflows
    return f_mul(f_mul(g, f_div(f_if_less(g, f_zero(), e, one), f_add(one, e))), u);
  });
}

// The C library's erf is fast enough: it is called only between an image and the text model, a few million times.
void gelu(const float* x, int n, float* out) {
  for (int i = 0; i < n; i++) out[i] = 0.5f * x[i] * (1.0f + std::erf(x[i] * 0.70710678f));
}

// x (1 + tanh(z)) / 2 = x / (1 + exp(-2 z)) with z = sqrt(2 / pi) (x + 0.044715 x^3): no difference cancels, and the
// exponential is at most 1.
BRISE_INLINE F gelu_lanes(F x) {
  constexpr float TWICE = 1.5957691216f;  // 2 sqrt(2 / pi)
  const F one = f_set(1.0f), z = f_mul(x, f_fma(f_mul(x, x), f_set(TWICE * 0.044715f), f_set(TWICE)));
  const F e = f_exp(f_sub(f_zero(), f_abs(z)));
  return f_mul(x, f_div(f_if_less(z, f_zero(), e, one), f_add(one, e)));
}

void gelu_tanh(const float* x, int n, float* out) {
  each(x, x, n, out, [](F a, F) { return gelu_lanes(a); });
}

void gelu_mul(const float* gate, const float* up, int n, float* out) {
  each(gate, up, n, out, [](F g, F u) { return f_mul(gelu_lanes(g), u); });
}

void rms_norm(const float* x, const float* w, int n, float eps, float* out) {
  F sum = f_zero();
  int i = 0;
  for (; i + LANES <= n; i += LANES) {
    const F v = f_load(x + i);
    sum = f_fma(v, v, sum);
  }
  float total = f_sum(sum);
  for (; i < n; i++) total += x[i] * x[i];
  const F inverse = f_set(1.0f / std::sqrt(total / (float)n + eps));
  each(x, w, n, out, [inverse](F v, F by) { return f_mul(f_mul(v, inverse), by); });
}

// The variance is summed from differences: that of the mean of squares cancels where the mean is large.
void layer_norm(const float* x, const float* w, const float* b, int n, float eps, float* out) {
  F sum = f_zero();
  int i = 0;
  for (; i + LANES <= n; i += LANES) sum = f_add(f_load(x + i), sum);
  float total = f_sum(sum);
  for (; i < n; i++) total += x[i];
  const float mean = total / (float)n;
  const F means = f_set(mean);
  sum = f_zero();
  for (i = 0; i + LANES <= n; i += LANES) {
    const F v = f_sub(f_load(x + i), means);
    sum = f_fma(v, v, sum);
  }
  total = f_sum(sum);
  for (; i < n; i++) total += (x[i] - mean) * (x[i] - mean);
  const F inverse = f_set(1.0f / std::sqrt(total / (float)n + eps));
  each(x, w, n, out, [means, inverse](F v, F by) { return f_mul(f_mul(f_sub(v, means), inverse), by); });
  add(out, b, n, out);
}

// Rotates the first `dim` numbers of one head; table is dim/2 cosines, then dim/2 sines. x may be out.
void rope(const float* x, const float* table, int dim, int head_dim, bool interleaved, float* out) {
  const int half = dim / 2;
  const float *cosine = table, *sine = table + half;
  for (int i = 0; i < half; i++) {
    const int a = interleaved ? 2 * i : i, b = interleaved ? 2 * i + 1 : i + half;
    const float u = x[a], v = x[b];
    out[a] = u * cosine[i] - v * sine[i];
    out[b] = v * cosine[i] + u * sine[i];
  }
  if (out != x)
    for (int i = dim; i < head_dim; i++) out[i] = x[i];
}

void quantize_row(const float* x, int cols, QBlock* block, int width) {
  for (int c = 0; c < cols; c += 32, block += width) {
    const F a = f_load(x + c), b = f_load(x + c + LANES);
    const float top = f_top(f_max(f_abs(a), f_abs(b)));
    block->scale = top / 127.0f;
    // A subnormal scale has no inverse in float: activations below 1.5e-36 count as 0.
    const F inverse = f_set(block->scale >= std::numeric_limits<float>::min() ? 127.0f / top : 0.0f);
    const I qa = i_round(f_mul(a, inverse)), qb = i_round(f_mul(b, inverse));
    i_store_i8(block->q, qa);
    i_store_i8(block->q + LANES, qb);
    block->half[0] = i_sum(qa);
    block->half[1] = i_sum(qb);
    block->count = block->half[0] + block->half[1];
    block->sum = block->scale * (float)block->count;
    for (int h = 0; h < 2; h++) block->half_sum[h] = block->scale * (float)block->half[h];
  }
}

}  // namespace BRISE_ISA
