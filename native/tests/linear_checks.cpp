// Checks of linear.h: every weight format, numbers of tokens and rows around every block size of the kernels.
//
// Expected values are sums in double over unpack_row and the int8 activations (tests/backends compares unpack_row with
// gguf's own decoder). They are compared once, with tokens one at a time; every other split of tokens, rows
// and tiles must then give the same bits.
#include <initializer_list>

#include "checks.h"

namespace checks {

using namespace brise;

namespace {

constexpr int TOKENS = 25, ROWS = 79;  // two token blocks and one; five tiles, so that one is left of four
constexpr float MARK = Guarded::MARK;

// The offsets of the f16 scales in a format's block; -1: there is none.
struct Source {
  const char* name;
  Format format;
  int first, second;
};
constexpr Source SOURCES[] = {
    {"Q4_0", Format::Q4_0, 0, -1},  {"Q4_1", Format::Q4_1, 0, 2},    {"Q5_0", Format::Q5_0, 0, -1},
    {"Q5_1", Format::Q5_1, 0, 2},   {"Q8_0", Format::Q8_0, 0, -1},   {"Q2_K", Format::Q2_K, 80, 82},
    {"Q3_K", Format::Q3_K, 108, -1}, {"Q4_K", Format::Q4_K, 0, 2},   {"Q5_K", Format::Q5_K, 0, 2},
    {"Q6_K", Format::Q6_K, 208, -1}, {"IQ4_NL", Format::IQ4_NL, 0, -1}, {"IQ4_XS", Format::IQ4_XS, 0, -1},
    {"MXFP4", Format::MXFP4, -1, -1}, {"F16", Format::F16, -1, -1},   {"BF16", Format::BF16, -1, -1},
    {"F32", Format::F32, -1, -1},
};

struct Packed {
  std::vector<uint8_t> bytes;
  Matrix matrix;
};

// Rows of a checkpoint and activations; `alone` is what tokens one at a time gave.
struct Case {
  const Kernels& kernels;
  Format format;
  int cols;
  std::vector<uint8_t> source;
  std::vector<float> x, alone;
};

void put_half(uint8_t* p, float value) {
  const uint16_t bits = nearest_half(value);
  std::memcpy(p, &bits, 2);
}

// Any bytes are a legal block, except for the scales, which must be finite. Rows 3 and 4 have only the largest and the
// smallest codes: with constant activations they take sums to the ends of their range.
void fill_blocks(Random& random, const Source& source, std::vector<uint8_t>& bytes) {
  const size_t size = source_row_bytes(source.format, block_columns(source.format)), row = bytes.size() / ROWS;
  for (size_t i = 0; i < bytes.size(); i++) bytes[i] = i / row == 3 ? 0xff : i / row == 4 ? 0 : (uint8_t)random.bits();
  for (size_t at = 0; at < bytes.size(); at += size) {
    if (source.first < 0) bytes[at] = (uint8_t)(118 + random.below(8));  // the exponent of MXFP4
    else put_half(&bytes[at + source.first], random.normal() * 0.02f);
    if (source.second >= 0) put_half(&bytes[at + source.second], random.normal() * 0.02f);
  }
}

void fill_floats(Random& random, Format format, std::vector<uint8_t>& bytes) {
  const size_t size = format == Format::F32 ? 4 : 2;
  for (size_t at = 0; at < bytes.size(); at += size) {
    const float value = random.normal();
    if (format == Format::F16) put_half(&bytes[at], value);
    else std::memcpy(&bytes[at], (const uint8_t*)&value + (4 - size), size);  // BF16: the upper half
  }
}

// Token 1 is constant, token 2 has every other sign flipped, token 3 is zero, token 4 has one large number.
std::vector<float> activations(Random& random, int cols) {
  std::vector<float> x = random.normals((size_t)TOKENS * cols);
  for (int c = 0; c < cols; c++) {
    x[1 * cols + c] = 1.0f;
    x[2 * cols + c] = c % 2 ? -1.0f : 1.0f;
    x[3 * cols + c] = 0.0f;
    if (c == cols / 2) x[4 * cols + c] = 1000.0f;
  }
  return x;
}

Packed pack(const Case& one, int rows) {
  const size_t row_bytes = source_row_bytes(one.format, one.cols), size = tile_bytes(one.format, one.cols);
  Packed out{std::vector<uint8_t>((size_t)(rows + TILE - 1) / TILE * size, 0xee), {one.format, rows, one.cols, size, nullptr}};
  out.matrix.data = out.bytes.data();
  for (int row = 0; row < rows; row += TILE)
    pack_tile(one.format, one.source.data() + row * row_bytes, row_bytes, rows - row < TILE ? rows - row : TILE, one.cols,
              out.bytes.data() + row / TILE * size);
  return out;
}

// Activations of tokens [first, first + tokens) in the kernels' layout.
struct Activations {
  std::vector<QBlock> blocks;
  QRows rows;
  const float* x;
};

Activations quantize(const Case& one, int first, int tokens) {
  Activations out{{}, {nullptr, one.cols / 32, tokens < TOKEN_BLOCK ? tokens : TOKEN_BLOCK}, &one.x[(size_t)first * one.cols]};
  if (one.format >= Format::F16) return out;
  const int width = out.rows.width;
  out.blocks.resize((size_t)((tokens + width - 1) / width * width * out.rows.groups));
  out.rows.blocks = out.blocks.data();
  for (int t = 0; t < tokens; t++) one.kernels.quantize_row(out.x + (size_t)t * one.cols, one.cols, out.rows.first(t), width);
  return out;
}

struct Range {
  int tile0, tile1, t0, t1;
};

void run(const Case& one, const Matrix& w, const Activations& x, Range range, float* out, size_t ld) {
  if (w.is_float()) one.kernels.linear_f(w, x.x, (size_t)one.cols, range.tile0, range.tile1, range.t0, range.t1, out, ld);
  else one.kernels.linear_q(w, x.rows, range.tile0, range.tile1, range.t0, range.t1, out, ld);
}

// A group adds a product and a minimum, at most 2.5 times the row's largest weight times the activation each, and
// is rounded with them and with the sum so far: (2 groups + 16) u. Floats: a rounding for each column.
double bound(const Case& one, double largest, double sum) {
  if (one.format >= Format::F16) return (one.cols + 1) * U * largest * sum;
  return (2.0 * one.cols / 32 + 16) * U * 2.5 * largest * sum;
}

// Fills `alone` and compares it with the sums in double.
void check_values(Tally& tally, Case& one) {
  const Packed packed = pack(one, ROWS);
  one.alone.assign((size_t)TOKENS * ROWS, MARK);
  std::vector<float> weights((size_t)one.cols);
  std::vector<double> x((size_t)TOKENS * one.cols);
  for (int t = 0; t < TOKENS; t++) {
    const Activations token = quantize(one, t, 1);
    run(one, packed.matrix, token, {0, packed.matrix.tiles(), 0, 1}, &one.alone[(size_t)t * ROWS], ROWS);
    for (int c = 0; c < one.cols; c++) {
      double& number = x[(size_t)t * one.cols + c];
      if (packed.matrix.is_float()) number = token.x[c];
      else number = token.blocks[c / 32].q[c % 32] * (double)token.blocks[c / 32].scale;
    }
  }
  for (int row = 0; row < ROWS; row++) {
    unpack_row(packed.matrix, row, weights.data());
    for (int t = 0; t < TOKENS; t++) {
      double expected = 0, sum = 0, largest = 0;
      for (int c = 0; c < one.cols; c++) {
        const double w = weights[c], v = x[(size_t)t * one.cols + c];
        expected += w * v, sum += std::fabs(v), largest = std::fmax(largest, std::fabs(w));
      }
      tally.begin("cols %d token %d row %d", one.cols, t, row);
      tally.near(one.alone[(size_t)t * ROWS + row], expected, bound(one, largest, sum));
    }
  }
}

// Runs tokens [first, first + tokens) together, cut at tile `cut` and at the first token block; bits must not change.
void check_company(Tally& tally, const Case& one, int rows, int first, int tokens, int cut) {
  const Packed packed = pack(one, rows);
  const Activations x = quantize(one, first, tokens);
  const size_t ld = (size_t)rows + 3;
  std::vector<float> out(ld * tokens + 16, MARK);
  const int tiles = packed.matrix.tiles(), tile = cut < tiles ? cut : tiles;
  const int middle = cut && tokens > TOKEN_BLOCK ? TOKEN_BLOCK : tokens;
  for (Range range : {Range{0, tile, 0, middle}, {tile, tiles, 0, middle}, {0, tile, middle, tokens}, {tile, tiles, middle, tokens}})
    if (range.tile0 < range.tile1 && range.t0 < range.t1) run(one, packed.matrix, x, range, out.data(), ld);
  tally.begin("cols %d rows %d tokens %d from %d, cut at tile %d", one.cols, rows, tokens, first, cut);
  bool clean = true;
  for (size_t i = 0; i < out.size(); i++)
    if (i / ld >= (size_t)tokens || i % ld >= (size_t)rows) clean = clean && out[i] == MARK;
  tally.holds(clean, "inside its memory");
  for (int t = 0; t < tokens; t++) tally.same_bits(&out[t * ld], &one.alone[(size_t)(first + t) * ROWS], rows);
}

void check_format(Report& report, const Kernels& kernels, const Source& source, std::initializer_list<int> columns) {
  const bool is_float = source.format >= Format::F16;
  Tally tally(report, kernels.name, std::string(is_float ? "linear_f " : "linear_q ") + source.name);
  Random random(7 + (uint64_t)source.format);
  for (int cols : columns) {
    Case one{kernels, source.format, cols, std::vector<uint8_t>(source_row_bytes(source.format, cols) * ROWS),
             activations(random, cols), {}};
    if (is_float) fill_floats(random, source.format, one.source);
    else fill_blocks(random, source, one.source);
    check_values(tally, one);
    for (int rows : {1, 15, 16, 17, 33, ROWS})
      for (int tokens : {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 24, 25})
        check_company(tally, one, rows, random.below(TOKENS - tokens + 1), tokens, random.below(4));
  }
}

// An adapter's part: out + scale * b h times a gain, where the sums are linear_f's for a single token; the bits are the
// same in any batch, and nothing beyond the outputs is touched.
void check_low_rank(Report& report, const Kernels& kernels, const Source& source) {
  Tally tally(report, kernels.name, std::string("add_low_rank ") + source.name);
  Random random(11);
  for (int rank : {1, 16, 23}) {
    Case one{kernels, source.format, rank, std::vector<uint8_t>(source_row_bytes(source.format, rank) * ROWS), random.normals((size_t)TOKENS * rank), {}};
    fill_floats(random, source.format, one.source);
    const Packed packed = pack(one, ROWS);
    const std::vector<float> base = random.normals((size_t)TOKENS * ROWS), gain = random.normals((size_t)packed.matrix.tiles() * TILE);
    std::vector<float> sums((size_t)TOKENS * ROWS);
    kernels.linear_f(packed.matrix, one.x.data(), (size_t)rank, 0, packed.matrix.tiles(), 0, TOKENS, sums.data(), ROWS);
    for (const float* by : {(const float*)nullptr, gain.data()}) {
      std::vector<float> alone = base, together((size_t)TOKENS * (ROWS + 3), MARK);
      for (int t = 0; t < TOKENS; t++) {
        kernels.add_low_rank(packed.matrix, &one.x[(size_t)t * rank], (size_t)rank, 0.75f, by, 0, packed.matrix.tiles(), 0, 1, &alone[(size_t)t * ROWS], ROWS);
        std::copy_n(&base[(size_t)t * ROWS], ROWS, &together[(size_t)t * (ROWS + 3)]);
      }
      kernels.add_low_rank(packed.matrix, one.x.data(), (size_t)rank, 0.75f, by, 0, 2, 0, TOKENS, together.data(), ROWS + 3);
      kernels.add_low_rank(packed.matrix, one.x.data(), (size_t)rank, 0.75f, by, 2, packed.matrix.tiles(), 0, TOKENS, together.data(), ROWS + 3);
      for (int t = 0; t < TOKENS; t++) {
        tally.begin("rank %d token %d", rank, t);
        for (int row = 0; row < ROWS; row++) {
          const size_t i = (size_t)t * ROWS + (size_t)row;
          const double expected = (base[i] + 0.75 * sums[i]) * (by ? by[row] : 1.0);
          tally.near(alone[i], expected, 3 * U * (std::fabs(base[i]) + std::fabs(sums[i])) * (by ? std::fabs(by[row]) : 1.0), row);
        }
        tally.same_bits(&together[(size_t)t * (ROWS + 3)], &alone[(size_t)t * ROWS], ROWS);
        for (int i = 0; i < 3; i++) tally.holds(together[(size_t)t * (ROWS + 3) + ROWS + i] == MARK, "inside its memory");
      }
    }
  }
}

// One column, one token of 1: each output is a weight, so that all 65,536 of a format are read.
void check_all_numbers(Report& report, const Kernels& kernels, Format format, double (*value)(uint16_t)) {
  Tally tally(report, kernels.name, format == Format::F16 ? "all of F16" : "all of BF16");
  const Matrix numbers = {format, 0x10000, 1, tile_bytes(format, 1), nullptr};
  std::vector<uint16_t> weights(0x10000);
  for (uint32_t i = 0; i < 0x10000; i++) weights[i] = (uint16_t)i;
  Matrix w = numbers;
  w.data = (const uint8_t*)weights.data();
  const float one = 1.0f;
  std::vector<float> out(0x10000), row(1);
  kernels.linear_f(w, &one, 1, 0, w.tiles(), 0, 1, out.data(), 0x10000);
  for (uint32_t i = 0; i < 0x10000; i++) {
    unpack_row(w, (int)i, row.data());
    tally.equal(out[i], value((uint16_t)i), (long)i);
    tally.equal(row[0], value((uint16_t)i), (long)i);
  }
}

// One block a row, whose first number is 1 and whose others are 0: an output is the row's scale, the subnormal ones included.
void check_all_exponents(Report& report, const Kernels& kernels) {
  Tally tally(report, kernels.name, "all of E8M0");
  std::vector<uint8_t> source(256 * 17), bytes(256 / TILE * tile_bytes(Format::MXFP4, 32));
  for (int e = 0; e < 256; e++) source[(size_t)e * 17] = (uint8_t)e, source[(size_t)e * 17 + 1] = 1;
  const Matrix w = {Format::MXFP4, 256, 32, tile_bytes(Format::MXFP4, 32), bytes.data()};
  for (int row = 0; row < 256; row += TILE) pack_tile(Format::MXFP4, &source[(size_t)row * 17], 17, TILE, 32, bytes.data() + row / TILE * w.tile_bytes);
  float x[32] = {1.0f, 127.0f};  // so that the activations' scale is 1
  QBlock block;
  kernels.quantize_row(x, 32, &block, 1);
  std::vector<float> out(256), row(32);
  kernels.linear_q(w, {&block, 1, 1}, 0, w.tiles(), 0, 1, out.data(), 256);
  for (int e = 0; e < 256; e++) {
    unpack_row(w, e, row.data());
    tally.equal(out[(size_t)e], std::ldexp(1.0, e - 128), e);
    tally.equal(row[0], std::ldexp(1.0, e - 128), e);
  }
}

}  // namespace

void check_linear(Report& report, const Kernels& kernels) {
  for (const Source& source : SOURCES) {
    if (source.format >= Format::F16) check_format(report, kernels, source, {1, 7, 64, 130});
    else if (block_columns(source.format) == 256) check_format(report, kernels, source, {256, 512});
    else check_format(report, kernels, source, {32, 64, 160});
  }
  for (const Source& source : SOURCES)
    if (source.format == Format::BF16 || source.format == Format::F32) check_low_rank(report, kernels, source);
  check_all_numbers(report, kernels, Format::F16, half_value);
  check_all_numbers(report, kernels, Format::BF16, bfloat_value);
  check_all_exponents(report, kernels);
}

}  // namespace checks
