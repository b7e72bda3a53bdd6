// Stacks of matrices as dispatches: a linear for each head, and experts. shaders/README.md says what each shader binds.
#include "encoder.h"

namespace brise::vk {

// The rows of x that go through a stack, and which of its matrices takes which.
struct Encoder::StackRows {
  double count;      // in all
  double matrices;   // that are read, about
  int tokens;        // of heads, each with a row for each matrix
  int units, units_at, list_at;  // of experts, in the plan; units_at is -1 of heads
  int own;           // rows of a workgroup
  int share;         // of experts: how many rows of out have one row of x
  size_t x_at = 0;   // where the rows of floats begin
};

void Encoder::stack(const std::vector<std::shared_ptr<const Weight>>& matrices, const Buffer* from, const Buffer* to, const StackRows& rows) {
  const Matrix& m = matrices[0]->matrix;
  const Shape shape = linear_shape(m.cols, rows.own);
  const std::string shader = "stack_" + lower(stored_format(m.format).name);
  const int count = (int)matrices.size(), tiles = blocks(m.rows, TILE);
  const Buffer* plan = rows.units_at < 0 ? from : program_.plan_.get();
  use({from, plan}, {to});
  for (int begin = 0, end = 0; begin < count; begin = end) {  // those that lie in one buffer
    const auto& range = matrices[(size_t)begin]->placed->ranges[0];
    const auto is_next = [&](int i) {
      const auto& other = matrices[(size_t)i]->placed->ranges[0];
      return other.buffer == range.buffer && other.offset == range.offset + (size_t)(i - begin) * range.bytes;
    };
    for (end = begin + 1; end < count && is_next(end);) end++;
    const double part = (double)(end - begin) / count, work = 2.0 * rows.count * part * m.rows * m.cols;
    const double seconds = std::max(rows.matrices * part * tiles * (double)m.tile_bytes / BYTES, work / (m.is_float() ? FLOATS : DOTS));
    const int step = blocks(blocks(tiles, pieces(seconds, tiles)) * TILE, shape.rows) * shape.rows;  // whole workgroups
    for (int first = 0; first < m.rows; first += step) {
      const int own = std::min(step, m.rows - first);
      spend(seconds * own / m.rows);
      const int across = rows.units_at < 0 ? blocks(rows.tokens, shape.tokens) : rows.units;
      dispatch(shader, {{range.buffer.get()}, {from}, {to}, {plan}},
               {own, m.cols, rows.tokens, (range.offset + (size_t)(first / TILE) * m.tile_bytes) / 4, range.bytes / 4, begin, end - begin, count, rows.share,
                m.is_float() ? rows.x_at : 0, first, m.rows, rows.units_at, rows.list_at},
               {across, blocks(own, shape.rows), rows.units_at < 0 ? end - begin : 1}, shape.constants);
    }
  }
}

void Encoder::heads_linear(const Op& op) {
  const int tokens = rows_of(op.in[0]), heads = (int)op.weights.size();
  const Buffer* from = op.weights[0]->matrix.is_float() ? at(op.in[0]) : program_.quantized_.get();
  stack(op.weights, from, at(op.out[0]), {(double)tokens * heads, (double)heads, tokens, 0, -1, 0, tokens, 1});
}

// Tokens are taken in parts: work space does not grow with a long step, and no number depends on it.
void Encoder::experts(const Op& op, int out) {
  const int tokens = rows_of(out), most = program_.expert_tokens(op.experts, tokens);
  for (int first = 0; first < tokens; first += most) experts_of(op, out, first, std::min(most, tokens - first));
}

void Encoder::experts_of(const Op& op, int out, int first, int tokens) {
  const Experts& e = op.experts;
  const int own = e.per_token, places = tokens * own, count = e.w1->count, width = e.width(), hidden = e.hidden();
  const Buffer *x = at(op.in[0]), *gates = at(op.in[1]), *plan = program_.plan_.get(), *quantized = program_.quantized_.get();
  const Buffer *gate = program_.gate_.get(), *up = program_.up_.get(), *down = program_.down_.get();
  const bool is_sorted = places > count;
  const int most = !is_sorted ? 1 : places > 8 * count ? 16 : 4;
  use({gates}, {plan});
  spend(places * (double)count * 4 / BYTES);
  dispatch("expert_places", {{gates}, {plan}}, {count, own, first, places, (int)!is_sorted}, {1, tokens, 1});
  if (is_sorted) {
    use({plan}, {plan});
    dispatch("expert_units", {{plan}}, {places, most}, {count, 1, 1});
  }
  const auto quantize = [&](const Buffer* from, int rows, int cols, size_t begin) {
    use({from}, {quantized});
    spend(rows * (double)cols * 6 / BYTES);
    dispatch("quantize", {{from}, {quantized}}, {cols, rows, begin, cols, 0}, {blocks(cols, 256), rows, 1});
  };
  const size_t x_at = (size_t)first * (size_t)width;
  StackRows rows{(double)places, (double)std::min(places, count), tokens, is_sorted ? places / most + count : places, 3 * places, 2 * places, most, own, x_at};
  if (!e.w1->is_float() || !e.w3->is_float()) quantize(x, tokens, width, x_at);
  stack(e.w1->matrices, e.w1->is_float() ? x : quantized, gate, rows);
  stack(e.w3->matrices, e.w3->is_float() ? x : quantized, up, rows);
  use({gate, up}, {gate});
  spend(places * (double)hidden * 12 / BYTES);
  dispatch("silu_mul", {{gate}, {up}, {gate}}, {hidden}, {blocks(hidden, 256), places, 1});
  if (!e.w2->is_float()) quantize(gate, places, hidden, 0);
  rows.share = 1, rows.x_at = 0;
  stack(e.w2->matrices, e.w2->is_float() ? gate : quantized, down, rows);
  use({down, plan}, {at(out)});
  spend(places * (double)width * 4 / BYTES);
  dispatch("sum_experts", {{down}, {plan}, {at(out)}}, {width, own, first, places}, {blocks(width, 256), tokens, 1});
}

}  // namespace brise::vk
