// Checks of cache.h and attend.h: the paged cache in its formats, and attention over it.
//
// The cache is read back by its layout (kernels.h) and compared with what was written; attention is then
// compared with softmax sums in double over the numbers read back. Memory that nothing was written to is NaN.
#include <algorithm>
#include <initializer_list>

#include "checks.h"

namespace checks {

using namespace brise;

namespace {

struct Setup {
  CacheFormat format;
  int head_dim, kv_heads, share, page_size;
  int context, tokens;  // queries are the last `tokens` of `context` positions
  int window;
  float loudness;       // of queries: large ones make softmax nearly a maximum
};

// One sequence in the pages of a pool, in any order, with pages between that are not its own.
struct Paged {
  explicit Paged(const Setup& setup, Random& random) : setup(setup) {
    const int used = (setup.context + setup.page_size - 1) / setup.page_size, pool = used + 3;
    std::vector<int32_t> order(pool);
    for (int i = 0; i < pool; i++) order[i] = i;
    for (int i = pool - 1; i > 0; i--) std::swap(order[i], order[random.below(i + 1)]);
    pages.assign(order.begin(), order.begin() + used);
    const int stride = (setup.head_dim + 15) / 16 * 16;
    layer = {setup.format, setup.page_size, setup.kv_heads, setup.head_dim, stride, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr};
    const size_t slots = (size_t)pool * setup.page_size * setup.kv_heads;
    const bool is_q4 = setup.format == CacheFormat::Q4;
    keys.assign(is_q4 ? slots * layer.groups() * 16 : slots * layer.key_columns() * layer.element(), 0xff);
    values.assign(is_q4 ? slots * layer.groups() * 16 : slots * stride * layer.element(), 0xff);
    key_lines.assign(slots * layer.groups() * 2, 0x7e00);
    value_lines.assign(slots * layer.groups() * 2, 0x7e00);
    key_scales.assign(slots, NAN);
    value_scales.assign(slots, NAN);
    layer.keys = keys.data(), layer.values = values.data();
    layer.key_scales = key_scales.data(), layer.value_scales = value_scales.data();
    layer.key_lines = key_lines.data(), layer.value_lines = value_lines.data();
  }
  int slot(int position) const { return pages[position / setup.page_size] * setup.page_size + position % setup.page_size; }
  // Number of the slot of one head among all slots of all heads: [page][head][token of the page].
  size_t place(int position, int head) const {
    return ((size_t)pages[position / setup.page_size] * setup.kv_heads + head) * setup.page_size + position % setup.page_size;
  }
  double number(const std::vector<uint8_t>& memory, size_t index, float scale) const {
    if (setup.format == CacheFormat::Q8) return (int8_t)memory[index] * (double)scale;
    if (setup.format == CacheFormat::I16) return ((const int16_t*)memory.data())[index] * (double)scale;
    return ((const float*)memory.data())[index];
  }
  // Number e of a head in Q4, from its byte and its group's line; its size is that of the terms it is summed from.
  void push_q4(uint8_t byte, const std::vector<uint16_t>& lines, size_t at, int e, std::vector<double>& to, std::vector<double>& sizes) const {
    const uint16_t* line = &lines[(at / 16 * layer.groups() + e / 32) * 32 + at % 16];
    const double term = half_value(line[0]) * (e % 32 < 16 ? byte & 15 : byte >> 4), minimum = half_value(line[16]);
    to.push_back(term + minimum);
    sizes.push_back(term + std::fabs(minimum));
  }
  // The contents of the cache, as (context, kv_heads, head_dim) like what was written.
  void read() {
    for (int position = 0; position < setup.context; position++)
      for (int head = 0; head < setup.kv_heads; head++) {
        const size_t at = place(position, head);
        for (int e = 0; e < setup.head_dim && setup.format == CacheFormat::Q4; e++) {
          const size_t groups = layer.groups(), byte = e / 32 * 16 + e % 16;
          push_q4(keys[((at / 16 * groups * 16 + byte) / 2 * 16 + at % 16) * 2 + byte % 2], key_lines, at, e, k, k_size);
          push_q4(values[(at / 2 * groups * 16 + byte) * 2 + at % 2], value_lines, at, e, v, v_size);
        }
        for (int e = 0; e < setup.head_dim && setup.format != CacheFormat::Q4; e++) {
          const bool is_f32 = setup.format == CacheFormat::F32;
          const size_t pair = (at / 16 * layer.key_columns() + e) / 2;
          k.push_back(number(keys, is_f32 ? (at / 16 * setup.head_dim + e) * 16 + at % 16 : (pair * 16 + at % 16) * 2 + e % 2, key_scales[at]));
          v.push_back(number(values, is_f32 ? at * layer.stride + e : (at / 2 * layer.stride + e) * 2 + at % 2, value_scales[at]));
          k_size.push_back(std::fabs(k.back()));
          v_size.push_back(std::fabs(v.back()));
        }
      }
  }

  Setup setup;
  std::vector<int32_t> pages;
  std::vector<uint8_t> keys, values;
  std::vector<float> key_scales, value_scales;
  std::vector<uint16_t> key_lines, value_lines;
  std::vector<double> k, v, k_size, v_size;
  CacheLayer layer;
};

// The largest difference between a stored number and the one written: half a step, and what float loses of it. `top` and `norm`
// are of its token and head.
double storage_bound(CacheFormat format, double top, double norm, bool is_key) {
  if (format == CacheFormat::F32) return 0;
  const double step = format == CacheFormat::Q8 ? top / 127 : is_key ? std::fmax(norm / 46300, top / 32767) : top / 8191;
  return 0.5 * step * (1 + 1e-5) + 64 * U * top + (top < 1e-30 ? top : 0);
}

// Q4 is defined to the bit: tests/ops holds the NumPy definition to the kernels, this is the same by other means.
void check_groups(Tally& tally, const float* x, int n, const double* got, long at) {
  float low = x[0], top = x[0];
  for (int i = 1; i < n; i++) low = std::fmin(low, x[i]), top = std::fmax(top, x[i]);
  const float scale = (float)half_value(nearest_half(std::fmin((top - low) / 15.0f, 65504.0f)));
  const float minimum = (float)half_value(nearest_half(std::fmin(std::fmax(low, -65504.0f), 65504.0f)));
  for (int i = 0; i < n; i++) {
    const float steps = scale > 0 ? (x[i] - minimum) / scale : 0.0f;
    const double code = std::nearbyint(std::fmin(std::fmax(steps, 0.0f), 15.0f));
    tally.near(got[i], code * scale + minimum, 0, at + i);
  }
}

void check_stored(Tally& tally, CacheFormat format, int head_dim, const std::vector<float>& from,
                  const std::vector<double>& got, bool is_key) {
  for (size_t at = 0; at < from.size(); at += (size_t)head_dim) {
    for (int g = 0; g < head_dim && format == CacheFormat::Q4; g += 32)
      check_groups(tally, &from[at + g], std::min(32, head_dim - g), &got[at + g], (long)at + g);
    if (format == CacheFormat::Q4) continue;
    double top = 0, squares = 0;
    for (int e = 0; e < head_dim; e++) top = std::fmax(top, std::fabs(from[at + e])), squares += (double)from[at + e] * from[at + e];
    for (size_t i = at; i < at + (size_t)head_dim; i++)
      tally.near(got[i], from[i], storage_bound(format, top, std::sqrt(squares), is_key), (long)i);
  }
}

// Writes all tokens, the last first, reads them back and compares.
void check_written(Tally& tally, const Kernels& kernels, Paged& cache, const std::vector<float>& k,
                   const std::vector<float>& v) {
  const Setup& s = cache.setup;
  const size_t width = (size_t)s.kv_heads * s.head_dim;
  for (int p = s.context - 1; p >= 0; p--) kernels.write_cache(cache.layer, cache.slot(p), &k[p * width], &v[p * width]);
  cache.read();
  check_stored(tally, s.format, s.head_dim, k, cache.k, true);
  check_stored(tally, s.format, s.head_dim, v, cache.v, false);
}

struct Expected {
  std::vector<double> out;
  double bound;
};

// Softmax over the keys a query sees, in double. The bound is derived in tests/tolerances.py; exp is off by 5 u.
Expected softmax_sum(const Paged& cache, const float* q, int position, int head, float scale) {
  const Setup& s = cache.setup;
  const int first = s.window ? std::max(0, position - s.window + 1) : 0, keys = position - first + 1;
  const size_t width = (size_t)s.kv_heads * s.head_dim, start = first * width + (size_t)head * s.head_dim;
  std::vector<double> score(keys);
  double top = -INFINITY, sum = 0, largest = 0, largest_value = 0, longest = 0;
  for (int i = 0; i < keys; i++) {
    double size = 0, squares = 0;
    for (int e = 0; e < s.head_dim; e++) {
      const double key = cache.k[start + i * width + e], product = q[e] * key;
      score[i] += product * scale, size += std::fabs(q[e]) * cache.k_size[start + i * width + e] * scale, squares += key * key;
    }
    top = std::fmax(top, score[i]), largest = std::fmax(largest, size), longest = std::fmax(longest, std::sqrt(squares));
  }
  Expected out{std::vector<double>(s.head_dim), 0};
  for (double& one : score) sum += one = std::exp(one - top);
  for (int i = 0; i < keys; i++)
    for (int e = 0; e < s.head_dim; e++) {
      const double v = cache.v[start + i * width + e];
      out.out[e] += score[i] / sum * v, largest_value = std::fmax(largest_value, cache.v_size[start + i * width + e]);
    }
  out.bound = largest_value * (2 * (s.head_dim + 3) * U * largest + (2 * keys + 16) * U);
  if (s.format == CacheFormat::F32) return out;
  const double unit = std::ldexp(1.0, s.format == CacheFormat::I16 ? -12 : -14);  // of weights, by the largest
  out.bound += largest_value * (2 * query_rounding(q, s.head_dim, longest * scale) +
                                unit / sum * std::fmin(keys / 2.0, SIGMAS * std::sqrt(keys / 12.0)));
  return out;
}

struct Asked {
  const Kernels& kernels;
  const Paged& cache;
  AttendShape shape;
  std::vector<float> q;
  std::vector<int32_t> positions;
};

// All queries, `together` tokens a unit; work space is exactly as large as planned.
std::vector<float> attend(Tally& tally, const Asked& asked, int together) {
  const Setup& s = asked.cache.setup;
  Guarded out(asked.q.size()), scratch(asked.kernels.attend_scratch(s.head_dim), 1);
  for (size_t i = 0; i < scratch.size(); i++) scratch[i] = NAN;
  for (int begin = 0; begin < s.tokens; begin += together)
    for (int head = s.kv_heads - 1; head >= 0; head--) {
      const AttendUnit unit = {asked.q.data(), out.data(), asked.positions.data(), nullptr, asked.cache.pages.data(), begin,
                               std::min(begin + together, s.tokens), head};
      asked.kernels.attend(asked.cache.layer, asked.shape, unit, scratch.data());
      const int next = (head - 1) * s.share * s.head_dim;
      if (head > 0) tally.holds(out[(size_t)begin * s.kv_heads * s.share * s.head_dim + next] == Guarded::MARK, "one head");
    }
  tally.holds(out.intact() && scratch.intact(), "inside its memory");
  return {out.data(), out.data() + out.size()};
}

void check_setup(Tally& stored, Tally& tally, const Kernels& kernels, const Setup& s, Random& random) {
  Paged cache(s, random);
  const size_t numbers = (size_t)s.context * s.kv_heads * s.head_dim;
  const std::vector<float> k = random.normals(numbers), v = random.normals(numbers);
  const int heads = s.kv_heads * s.share;
  const float scale = (float)(1 / std::sqrt((double)s.head_dim));
  Asked asked{kernels, cache, {heads, s.kv_heads, s.head_dim, s.window, scale},
              random.normals((size_t)s.tokens * heads * s.head_dim), {}};
  for (float& x : asked.q) x *= s.loudness;
  for (int t = 0; t < s.tokens; t++) asked.positions.push_back(s.context - s.tokens + t);
  for (Tally* one : {&stored, &tally})
    one->begin("head_dim %d kv_heads %d share %d page %d context %d tokens %d window %d", s.head_dim, s.kv_heads, s.share,
               s.page_size, s.context, s.tokens, s.window);
  check_written(stored, kernels, cache, k, v);
  const std::vector<float> alone = attend(tally, asked, 1);
  for (int row = 0; row < s.tokens * heads; row++) {
    const size_t at = (size_t)row * s.head_dim;
    const Expected expected = softmax_sum(cache, &asked.q[at], asked.positions[row / heads], row % heads / s.share, scale);
    for (int e = 0; e < s.head_dim; e++) tally.near(alone[at + e], expected.out[e], expected.bound, row);
  }
  for (int together : {3, 5, s.tokens}) tally.same_bits(attend(tally, asked, together).data(), alone.data(), alone.size());
}

// Small contexts with all shapes; then contexts around KEY_CHUNK with windows that begin on either side of it.
std::vector<Setup> setups(CacheFormat format) {
  std::vector<Setup> out;
  for (int head_dim : {16, 24, 64, 80, 128})
    for (int share : {1, 3, 4, 8})
      for (int window : {0, 9})
        out.push_back({format, head_dim, head_dim < 64 ? 2 : 1, share, 16 << (share % 3), 37, 13, window, 1.0f});
  for (int context : {1, 15, 16, 17, 31, 32, 33, 48, 49})
    out.push_back({format, 24, 1, 2, 16, context, std::min(context, 5), 0, 1.0f});
  for (int context : {512, 513, 523, 1040})
    for (int window : {0, 1, 12, 513}) out.push_back({format, 16, 1, 1, 32, context, 13, window, 1.0f});
  for (int window : {2, 7, 30}) out.push_back({format, 16, 1, 1, 16, 512 + window + 5, 24, window, 1.0f});
  out.push_back({format, 24, 1, 3, 16, 1550, 5, 0, 3.0f});
  out.push_back({format, 64, 1, 4, 64, 530, 4, 0, 30.0f});
  return out;
}

// Vectors that all point one way, as long as whole numbers get, and queries along them: no sum leaves int32. Values are the largest.
void check_largest_sums(Report& report, const Kernels& kernels) {
  for (CacheFormat format : {CacheFormat::I16, CacheFormat::Q8, CacheFormat::Q4}) {
    Tally tally(report, kernels.name, "largest sums");
    for (int head_dim : {1, 7, 16, 64, 128, 576}) {
      Random random(7);
      const Setup setup = {format, head_dim, 1, 1, 16, 1100, 1, 0, 1.0f};
      Paged cache(setup, random);
      const std::vector<float> ones((size_t)head_dim, 3.0f);
      for (int p = 0; p < setup.context; p++) kernels.write_cache(cache.layer, cache.slot(p), ones.data(), ones.data());
      tally.begin("head_dim %d", head_dim);
      const Asked asked{kernels, cache, {1, 1, head_dim, 0, 1.0f}, ones, {setup.context - 1}};
      for (float x : attend(tally, asked, 1)) tally.near(x, 3.0, 6e-4, head_dim);  // 2^-14 of a value, 2^-13 of a weight
    }
  }
}

// Numbers so small that the inverse of their scale is no float, tokens of zeros and of numbers beyond float16.
void check_odd_sizes(Report& report, const Kernels& kernels, CacheFormat format) {
  Tally tally(report, kernels.name, format == CacheFormat::Q4 ? "odd Q4" : format == CacheFormat::Q8 ? "odd Q8" : "odd I16");
  Random random(9);
  const Setup setup = {format, 24, 2, 1, 16, 21, 1, 0, 1.0f};
  Paged cache(setup, random);
  std::vector<float> k = random.normals(21 * 48), v = random.normals(21 * 48);
  const float factors[] = {0.0f, 1e-30f, 1e-36f, 1e-38f, 1e-40f, 1e-43f, 1e30f};
  for (size_t i = 0; i < k.size(); i++) k[i] *= factors[i / 48 % 7], v[i] *= factors[i / 48 % 7];
  check_written(tally, kernels, cache, k, v);
}

}  // namespace

void check_attention(Report& report, const Kernels& kernels) {
  struct Named { const char* name; CacheFormat format; };
  for (Named one : {Named{"f32", CacheFormat::F32}, {"f16", CacheFormat::I16}, {"q8", CacheFormat::Q8}, {"q4", CacheFormat::Q4}}) {
    Tally stored(report, kernels.name, std::string("write_cache ") + one.name);
    Tally tally(report, kernels.name, std::string("attend ") + one.name);
    Random random(8);
    for (const Setup& setup : setups(one.format)) check_setup(stored, tally, kernels, setup, random);
  }
  check_largest_sums(report, kernels);
  for (CacheFormat format : {CacheFormat::I16, CacheFormat::Q8, CacheFormat::Q4}) check_odd_sizes(report, kernels, format);
}

}  // namespace checks
