// Checks of latent.h: attention whose values are the first numbers of its keys, over a cache without values.
//
// The cache is read by its layout (kernels.h); attention is compared with softmax sums in double
// over the numbers read. Memory that nothing was written to is NaN.
#include <algorithm>
#include <initializer_list>

#include "checks.h"

namespace checks {

using namespace brise;

namespace {

struct Latents {
  CacheFormat format;
  int head_dim, rank, heads, page_size;
  int context, tokens;  // queries are the last `tokens` of `context` positions
};

// One sequence in every other page of a pool, from the last to the first.
struct Store {
  explicit Store(const Latents& setup) : setup(setup) {
    const int used = (setup.context + setup.page_size - 1) / setup.page_size, slots = 2 * used * setup.page_size;
    for (int i = 0; i < used; i++) pages.push_back(2 * (used - i) - 1);
    const size_t groups = (size_t)(setup.head_dim + 31) / 32;
    keys.assign((size_t)slots * std::max(groups * 16, (size_t)setup.head_dim * 4), 0xff);
    scales.assign((size_t)slots, NAN);
    lines.assign((size_t)slots * groups * 2, 0x7e00);
    layer = {setup.format, setup.page_size, 1, setup.head_dim, (setup.head_dim + 15) / 16 * 16, keys.data(), nullptr,
             scales.data(), nullptr, lines.data(), nullptr};
  }
  size_t slot(int position) const { return (size_t)(pages[position / setup.page_size] * setup.page_size + position % setup.page_size); }
  // Number e of a position's vector, and the size of the terms it is made of.
  double number(int position, int e, double& size) const {
    const size_t tile = slot(position) / 16, lane = slot(position) % 16;
    const size_t at = setup.format == CacheFormat::F32 ? (tile * (size_t)setup.head_dim + (size_t)e) * 16 + lane
                                                       : ((tile * layer.key_columns() + (size_t)e) / 2 * 16 + lane) * 2 + (size_t)e % 2;
    double out;
    if (setup.format == CacheFormat::Q4) {
      const size_t group = tile * (size_t)layer.groups() + (size_t)(e / 32);
      const uint8_t code = keys[((group * 16 + (size_t)(e % 16)) / 2 * 16 + lane) * 2 + (size_t)e % 2] >> (e % 32 / 16 * 4) & 15;
      const double scale = half_value(lines[group * 32 + lane]), minimum = half_value(lines[group * 32 + 16 + lane]);
      size = std::fabs(scale * code) + std::fabs(minimum);
      return scale * code + minimum;
    }
    if (setup.format == CacheFormat::Q8) out = (int8_t)keys[at] * (double)scales[slot(position)];
    else if (setup.format == CacheFormat::I16) out = ((const int16_t*)keys.data())[at] * (double)scales[slot(position)];
    else out = ((const float*)keys.data())[at];
    size = std::fabs(out);
    return out;
  }

  Latents setup;
  std::vector<int32_t> pages;
  std::vector<uint8_t> keys;
  std::vector<float> scales;
  std::vector<uint16_t> lines;
  CacheLayer layer;
};

struct Question {
  const Kernels& kernels;
  const Store& store;
  std::vector<float> q;
  std::vector<int32_t> positions;
  float scale;
};

// Softmax over all keys up to the query's, in double. The bound is derived in tests/tolerances.py; exp is off by 5 u.
void check_row(Tally& tally, const Question& asked, int row, const float* got) {
  const Latents& s = asked.store.setup;
  const int keys = asked.positions[row / s.heads] + 1;
  const float* q = &asked.q[(size_t)row * s.head_dim];
  std::vector<double> score(keys);
  double top = -INFINITY, sum = 0, largest = 0, largest_value = 0, longest = 0, part;
  for (int i = 0; i < keys; i++) {
    double size = 0, squares = 0;
    for (int e = 0; e < s.head_dim; e++) {
      const double key = asked.store.number(i, e, part);
      score[i] += q[e] * key * asked.scale, squares += key * key;
      size += std::fabs(q[e]) * part * asked.scale, largest_value = std::fmax(largest_value, part);
    }
    top = std::fmax(top, score[i]), largest = std::fmax(largest, size), longest = std::fmax(longest, std::sqrt(squares));
  }
  for (double& one : score) sum += one = std::exp(one - top);
  double bound = largest_value * (2 * (s.head_dim + 3) * U * largest + (2 * keys + 16) * U);
  if (s.format != CacheFormat::F32) bound += largest_value * 2 * query_rounding(q, s.head_dim, longest * asked.scale);
  for (int e = 0; e < s.rank; e++) {
    double expected = 0;
    for (int i = 0; i < keys; i++) expected += score[i] / sum * asked.store.number(i, e, part);
    tally.near(got[e], expected, bound, row);
  }
}

// All query rows, `together` a unit; work space is exactly as large as planned.
std::vector<float> attend(Tally& tally, const Question& asked, int together) {
  const Latents& s = asked.store.setup;
  const int rows = s.tokens * s.heads;
  Guarded out((size_t)rows * s.rank), scratch(asked.kernels.attend_scratch(s.head_dim), 1);
  for (size_t i = 0; i < scratch.size(); i++) scratch[i] = NAN;
  for (int begin = 0; begin < rows; begin += together) {
    const AttendUnit unit = {asked.q.data(), out.data(), asked.positions.data(), nullptr, asked.store.pages.data(), begin,
                             std::min(begin + together, rows), 0};
    asked.kernels.attend_latent(asked.store.layer, {s.heads, 1, s.head_dim, 0, asked.scale, s.rank}, unit, scratch.data());
    if (unit.end < rows) tally.holds(out[(size_t)unit.end * s.rank] == Guarded::MARK, "its own rows");
  }
  tally.holds(out.intact() && scratch.intact(), "inside its memory");
  return {out.data(), out.data() + out.size()};
}

void check_setup(Tally& tally, const Kernels& kernels, const Latents& s, Random& random) {
  Store store(s);
  const std::vector<float> latents = random.normals((size_t)s.context * s.head_dim);
  for (int p = s.context - 1; p >= 0; p--) kernels.write_cache(store.layer, (int)store.slot(p), &latents[(size_t)p * s.head_dim], nullptr);
  Question asked{kernels, store, random.normals((size_t)s.tokens * s.heads * s.head_dim), {}, (float)(1 / std::sqrt((double)s.head_dim))};
  for (int t = 0; t < s.tokens; t++) asked.positions.push_back(s.context - s.tokens + t);
  tally.begin("head_dim %d rank %d heads %d page %d context %d tokens %d", s.head_dim, s.rank, s.heads, s.page_size, s.context, s.tokens);
  const std::vector<float> alone = attend(tally, asked, 1);
  for (int row = 0; row < s.tokens * s.heads; row++) check_row(tally, asked, row, &alone[(size_t)row * s.rank]);
  for (int together : {2, 3, kernels.max_query_rows}) tally.same_bits(attend(tally, asked, together).data(), alone.data(), alone.size());
}

}  // namespace

void check_latents(Report& report, const Kernels& kernels) {
  struct Named { const char* name; CacheFormat format; };
  for (Named one : {Named{"f32", CacheFormat::F32}, {"f16", CacheFormat::I16}, {"q8", CacheFormat::Q8}, {"q4", CacheFormat::Q4}}) {
    Tally tally(report, kernels.name, std::string("attend_latent ") + one.name);
    Random random(10);
    for (int head_dim : {16, 24, 72, 96})
      for (int heads : {1, 3, 13})
        check_setup(tally, kernels, {one.format, head_dim, head_dim - 8, heads, 16, 37, 3}, random);
    for (int context : {1, 15, 16, 17, 31, 32, 33, 512, 513, 1040})
      check_setup(tally, kernels, {one.format, 24, 20, 2, 32, context, std::min(context, 5)}, random);
    check_setup(tally, kernels, {one.format, 576, 512, 16, 16, 20, 1}, random);
  }
}

}  // namespace checks
