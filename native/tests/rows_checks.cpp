// Checks of rows.h: norm, activation, sums, rope and the quantization of activations.
#include <initializer_list>

#include "checks.h"

namespace checks {

using namespace brise;

namespace {

// Every tail of a register, around four registers, and a model's width.
std::vector<int> lengths() {
  std::vector<int> out;
  for (int n = 0; n <= 33; n++) out.push_back(n);
  for (int n : {63, 64, 65, 576}) out.push_back(n);
  return out;
}

// Calls body(n, x, y, out) with random x and y; no two of the three are aligned alike.
template <class Body>
void each_length(Tally& tally, Random& random, Body&& body) {
  for (int n : lengths())
    for (size_t shift = 0; shift < 4; shift++) {
      Guarded x(n, shift), y(n, shift + 1), out(n, 3 - shift);
      x.fill(random.normals(n));
      y.fill(random.normals(n));
      tally.begin("n %d shift %zu", n, shift);
      body(n, x, y, out);
      tally.holds(x.intact() && y.intact() && out.intact(), "inside its memory");
    }
}

void check_add(Report& report, const Kernels& kernels) {
  Tally tally(report, kernels.name, "add");
  Random random(1);
  each_length(tally, random, [&](int n, Guarded& x, Guarded& y, Guarded& out) {
    kernels.add(x.data(), y.data(), n, out.data());
    for (int i = 0; i < n; i++) tally.equal(out[i], (float)((double)x[i] + y[i]), i);
    kernels.add(x.data(), y.data(), n, x.data());
    tally.same_bits(x.data(), out.data(), n);
  });
}

void check_scale(Report& report, const Kernels& kernels) {
  Tally tally(report, kernels.name, "scale");
  Random random(2);
  each_length(tally, random, [&](int n, Guarded& x, Guarded&, Guarded& out) {
    kernels.scale(x.data(), 1.7f, n, out.data());
    for (int i = 0; i < n; i++) tally.equal(out[i], (float)((double)x[i] * 1.7f), i);
    kernels.scale(x.data(), 1.7f, n, x.data());
    tally.same_bits(x.data(), out.data(), n);
  });
}

void check_silu_mul(Report& report, const Kernels& kernels) {
  Tally tally(report, kernels.name, "silu_mul");
  Random random(3);
  const float edges[] = {0.0f, -0.0f, 1e-30f, -20.0f, 20.0f, -86.9f, -87.1f, 87.1f, -88.5f, 88.5f, -1000.0f, 1000.0f};
  each_length(tally, random, [&](int n, Guarded& gate, Guarded& up, Guarded& out) {
    for (int i = 0; i < n; i++) gate[i] = random.below(3) ? gate[i] * 8 : edges[random.below(12)];
    kernels.silu_mul(gate.data(), up.data(), n, out.data());
    for (int i = 0; i < n; i++) {
      const double product = (double)gate[i] * up[i], expected = product / (1 + std::exp(-(double)gate[i]));
      // exp by a polynomial 5 u, then four operations; doubled. Below -87 e^gate may become 0.
      tally.near(out[i], expected, 18 * U * std::fabs(expected) + 2e-38 * std::fabs(product), i);
    }
    kernels.silu_mul(gate.data(), up.data(), n, gate.data());
    tally.same_bits(gate.data(), out.data(), n);
  });
}

void check_gelu(Report& report, const Kernels& kernels) {
  Tally tally(report, kernels.name, "gelu");
  Random random(11);
  each_length(tally, random, [&](int n, Guarded& x, Guarded&, Guarded& out) {
    for (int i = 0; i < n; i++) x[i] *= random.below(4) ? 2.0f : 100.0f;
    kernels.gelu(x.data(), n, out.data());
    for (int i = 0; i < n; i++)  // as in tests/tolerances.py
      tally.near(out[i], 0.5 * x[i] * (1 + std::erf(x[i] / std::sqrt(2.0))), 7 * U * std::fabs(x[i]), i);
    kernels.gelu(x.data(), n, x.data());
    tally.same_bits(x.data(), out.data(), n);
  });
}

void check_gelu_tanh(Report& report, const Kernels& kernels) {
  Tally tally(report, kernels.name, "gelu_tanh");
  Random random(12);
  const float edges[] = {0.0f, -0.0f, 1e-30f, -1e-30f, -10.5f, 10.5f, -1000.0f, 1000.0f, -1e30f, 1e30f};
  each_length(tally, random, [&](int n, Guarded& x, Guarded& up, Guarded& out) {
    for (int i = 0; i < n; i++) x[i] = random.below(3) ? x[i] * 3 : edges[random.below(10)];
    const auto expected = [&](int i) { return 0.5 * x[i] * (1 + std::tanh(std::sqrt(2 / 3.14159265358979324) * (x[i] + 0.044715 * std::pow((double)x[i], 3)))); };
    kernels.gelu_tanh(x.data(), n, out.data());
    for (int i = 0; i < n; i++) tally.near(out[i], expected(i), 14 * U * std::fabs(x[i]), i);  // as in tests/tolerances.py
    kernels.gelu_mul(x.data(), up.data(), n, out.data());
    for (int i = 0; i < n; i++) tally.near(out[i], expected(i) * up[i], 15 * U * std::fabs((double)x[i] * up[i]), i);
    kernels.gelu_mul(x.data(), up.data(), n, x.data());
    tally.same_bits(x.data(), out.data(), n);
    kernels.gelu_tanh(up.data(), n, out.data());
    kernels.gelu_tanh(up.data(), n, up.data());
    tally.same_bits(up.data(), out.data(), n);
  });
}

void check_rms_norm(Report& report, const Kernels& kernels) {
  Tally tally(report, kernels.name, "rms_norm");
  Random random(4);
  each_length(tally, random, [&](int n, Guarded& x, Guarded& w, Guarded& out) {
    for (float eps : {1e-5f, 1.0f}) {
      kernels.rms_norm(x.data(), w.data(), n, eps, out.data());
      double sum = 0;
      for (int i = 0; i < n; i++) sum += (double)x[i] * x[i];
      const double inverse = 1 / std::sqrt(sum / n + eps);
      for (int i = 0; i < n; i++) {
        const double expected = x[i] * inverse * w[i];
        tally.near(out[i], expected, (n / 2.0 + 6) * U * std::fabs(expected), i);  // as in tests/tolerances.py
      }
    }
    kernels.rms_norm(x.data(), w.data(), n, 1.0f, x.data());
    tally.same_bits(x.data(), out.data(), n);
  });
}

void check_layer_norm(Report& report, const Kernels& kernels) {
  Tally tally(report, kernels.name, "layer_norm");
  Random random(12);
  each_length(tally, random, [&](int n, Guarded& x, Guarded& w, Guarded& out) {
    for (float shift : {0.0f, 3.0f}) {
      for (int i = 0; i < n; i++) x[i] += shift;
      kernels.layer_norm(x.data(), w.data(), w.data(), n, 1e-5f, out.data());
      double sum = 0, squares = 0, top = 0;
      for (int i = 0; i < n; i++) sum += x[i];
      for (int i = 0; i < n; i++) {
        squares += (x[i] - sum / n) * (x[i] - sum / n);
        top = std::fmax(top, std::fabs(x[i]));
      }
      const double inverse = 1 / std::sqrt(squares / n + 1e-5f);
      for (int i = 0; i < n; i++) {
        const double scaled = (x[i] - sum / n) * inverse * w[i];
        // as in tests/tolerances.py
        const double allowed = (n + 4) * U * top * inverse;
        tally.near(out[i], scaled + w[i], allowed * (std::fabs(w[i]) + std::fabs(scaled)) + (n / 2.0 + 8) * U * std::fabs(scaled) + U * std::fabs(scaled + w[i]), i);
      }
    }
    kernels.layer_norm(x.data(), w.data(), w.data(), n, 1e-5f, x.data());
    tally.same_bits(x.data(), out.data(), n);
  });
}

void check_rope(Report& report, const Kernels& kernels) {
  Tally tally(report, kernels.name, "rope");
  Random random(5);
  struct Size { int dim, head_dim; };
  for (Size size : {Size{2, 2}, {8, 16}, {16, 16}, {24, 80}, {64, 64}, {80, 80}, {128, 128}, {6, 7}})
    for (bool interleaved : {false, true})
      for (size_t shift = 0; shift < 4; shift++) {
        Guarded x(size.head_dim, shift), table(size.dim, 3 - shift), out(size.head_dim, shift ^ 1);
        x.fill(random.normals(x.size()));
        table.fill(random.normals(table.size()));
        kernels.rope(x.data(), table.data(), size.dim, size.head_dim, interleaved, out.data());
        tally.begin("dim %d of %d interleaved %d", size.dim, size.head_dim, interleaved);
        const int half = size.dim / 2;
        for (int i = 0; i < half; i++) {
          const int a = interleaved ? 2 * i : i, b = interleaved ? 2 * i + 1 : i + half;
          const double c = table[i], s = table[half + i];
          tally.near(out[a], x[a] * c - x[b] * s, 3 * U * (std::fabs(x[a] * c) + std::fabs(x[b] * s)), a);
          tally.near(out[b], x[b] * c + x[a] * s, 3 * U * (std::fabs(x[b] * c) + std::fabs(x[a] * s)), b);
        }
        for (int i = size.dim; i < size.head_dim; i++) tally.equal(out[i], x[i], i);
        kernels.rope(x.data(), table.data(), size.dim, size.head_dim, interleaved, x.data());
        tally.same_bits(x.data(), out.data(), x.size());
        tally.holds(x.intact() && table.intact() && out.intact(), "inside its memory");
      }
}

// One block against 32 activations: the numbers it stands for, and that its sums are those of its bytes.
void check_block(Tally& tally, const float* x, const QBlock& block) {
  double top = 0, reached = 0;
  int32_t half[2] = {0, 0};
  for (int i = 0; i < 32; i++) {
    top = std::fmax(top, std::fabs(x[i]));
    reached = std::fmax(reached, std::abs((int)block.q[i]));
    half[i / 16] += block.q[i];
  }
  const bool tiny = top < 1e-30;  // 127 / top may not be a float: all may become 0
  tally.near(block.scale, top / 127, U * top / 127 + 0x1p-149);
  tally.holds(reached == (top == 0 ? 0 : 127) || (tiny && reached <= 127), "the whole range");
  for (int i = 0; i < 32; i++)  // half a step, and 127 roundings of the scale and its inverse
    tally.near(block.q[i] * (double)block.scale, x[i], (0.5 + 127 * 4 * U) * block.scale + (tiny ? top : 0), i);
  tally.equal(block.half[0], half[0]);
  tally.equal(block.half[1], half[1]);
  tally.equal(block.count, half[0] + half[1]);
  tally.equal(block.sum, block.scale * (float)block.count);
  for (int h = 0; h < 2; h++) tally.equal(block.half_sum[h], block.scale * (float)half[h]);
}

void check_quantize_row(Report& report, const Kernels& kernels) {
  Tally tally(report, kernels.name, "quantize_row");
  Random random(6);
  for (int cols : {32, 64, 256, 576})
    for (int width : {1, 2, 5, 12})
      for (size_t shift = 0; shift < 4; shift++) {
        Guarded x(cols, shift);
        x.fill(random.normals(cols));
        const float factors[] = {1.0f, 1e-6f, 1e6f, 0.0f, 1e-33f, 1e-38f, 1e-42f};
        for (int i = 0; i < cols; i++) x[i] *= factors[(i / 32 + shift) % 7];
        std::vector<QBlock> blocks((size_t)(cols / 32 * width));
        std::memset((void*)blocks.data(), 0x55, blocks.size() * sizeof(QBlock));
        const QBlock untouched = blocks[0];
        kernels.quantize_row(x.data(), cols, blocks.data(), width);
        for (size_t b = 0; b < blocks.size(); b++) {
          tally.begin("cols %d width %d block %zu", cols, width, b);
          if (b % width == 0) check_block(tally, x.data() + b / width * 32, blocks[b]);
          else tally.holds(std::memcmp(&blocks[b], &untouched, sizeof untouched) == 0, "alone");
        }
      }
}

}  // namespace

void check_rows(Report& report, const Kernels& kernels) {
  check_add(report, kernels);
  check_scale(report, kernels);
  check_silu_mul(report, kernels);
  check_gelu_tanh(report, kernels);
  check_gelu(report, kernels);
  check_rms_norm(report, kernels);
  check_layer_norm(report, kernels);
  check_rope(report, kernels);
  check_quantize_row(report, kernels);
}

}  // namespace checks
