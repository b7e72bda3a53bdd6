// Running a recorded program: phases, units, row chains.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "program.h"

namespace brise {

namespace {
// Work space grows in steps, so that a context that creeps up does not reallocate at every step.
void reserve(std::unique_ptr<Memory>& memory, size_t bytes) {
  if (!memory || memory->size() < bytes) memory = std::make_unique<Memory>(bytes);
}
}  // namespace

void Program::make_room(const Step& step) {
  for (auto& value : values_) {
    Buffer& buffer = buffers_[(size_t)value.buffer];
    reserve(buffer.memory, sizeof(float) * (size_t)value.width * (size_t)std::max(rows_of(value.per_output_row, step), 1));
  }
  for (auto& value : values_) value.data = (float*)buffers_[(size_t)value.buffer].memory->data();
  const size_t rows = (size_t)std::max(step.num_tokens, step.num_rows);
  reserve(quantized_, (rows + TOKEN_BLOCK) * (size_t)max_groups_ * sizeof(QBlock));
  for (auto& scratch : scratch_)
    if (max_head_dim_) reserve(scratch, kernels_->attend_scratch(max_head_dim_) * sizeof(float));
}

// Query blocks are as long as one pass of the kernel takes rows, so that there are many units to share out.
void Program::make_units(const Step& step) {
  units_.clear();
  if (!unit_heads_) return;
  const int share = unit_heads_ / unit_kv_heads_, most = std::max(1, kernels_->max_query_rows / share);
  for (int s = 0; s < step.num_sequences; s++)
    for (int begin = step.query_starts[s]; begin < step.query_starts[s + 1]; begin += most)
      for (int head = 0; head < unit_kv_heads_; head++)
        units_.push_back({s, begin, std::min(begin + most, step.query_starts[s + 1]), head});
  std::reverse(units_.begin(), units_.end());  // the longest contexts first: the ends of the units then differ little
}

void Program::run(const Step& step) {
  make_room(step);
  make_units(step);
  for (size_t i = 0; i < phases_.size(); i++) counters_[i].next.store(0, std::memory_order_relaxed);
  pool_->run([&](int thread) {
    for (size_t i = 0; i < phases_.size(); i++) {
      run_phase(i, thread, step);
      if (i + 1 < phases_.size()) pool_->barrier();
    }
  });
}

void Program::run_phase(size_t index, int thread, const Step& step) {
  const Phase& phase = phases_[index];
  std::atomic<int>& next = counters_[index].next;
  const Op& first = ops_[(size_t)phase.ops[0]];
  if (phase.kind == PhaseKind::LINEAR) return run_linear(first, next, step);
  if (phase.kind == PhaseKind::ROWS) {
    const int rows = rows_of(phase.per_output_row, step);
    for (int row; (row = next.fetch_add(1, std::memory_order_relaxed)) < rows;)
      for (int op : phase.ops) run_row(ops_[(size_t)op], row, step);
    return;
  }
  const CacheLayer cache = step.cache->layer(first.layer);
  for (int i; (i = next.fetch_add(1, std::memory_order_relaxed)) < (int)units_.size();) {
    const Unit& unit = units_[(size_t)i];
    const AttendUnit work = {values_[(size_t)first.in[0]].data, values_[(size_t)first.out[0]].data, step.positions,
                             step.page_table + (size_t)unit.sequence * (size_t)step.pages_per_sequence,
                             unit.begin, unit.end, unit.kv_head};
    kernels_->attend(cache, first.shape, work, (float*)scratch_[(size_t)thread]->data());
  }
}

void Program::run_row(const Op& op, int row, const Step& step) {
  const auto at = [&](int id) { return values_[(size_t)id].data + (size_t)row * (size_t)values_[(size_t)id].width; };
  const int n = op.out.empty() ? width(op.in[0]) : width(op.out[0]);
  float* out = op.out.empty() ? nullptr : at(op.out[0]);
  switch (op.kind) {
    case Kind::EMBED: unpack_row(op.weights[0]->matrix, step.tokens[row], out); break;
    case Kind::TAKE_ROWS:
      std::memcpy(out, values_[(size_t)op.in[0]].data + (size_t)step.rows[row] * (size_t)n, sizeof(float) * (size_t)n);
      break;
    case Kind::RMS_NORM:
      for (int h = 0; h < op.heads; h++)
        kernels_->rms_norm(at(op.in[0]) + h * (n / op.heads), op.weights[0]->vector.data(), n / op.heads, (float)op.a, out + h * (n / op.heads));
      break;
    case Kind::BIAS: kernels_->add(at(op.in[0]), op.weights[0]->vector.data(), n, out); break;
    case Kind::ADD: kernels_->add(at(op.in[0]), at(op.in[1]), n, out); break;
    case Kind::SILU_MUL: kernels_->silu_mul(at(op.in[0]), at(op.in[1]), n, out); break;
    case Kind::ROPE_TABLE:
      for (int i = 0; i < n / 2; i++) {
        const double angle = step.positions[row] * op.turns[(size_t)i];
        out[i] = (float)(std::cos(angle) * op.a);
        out[i + n / 2] = (float)(std::sin(angle) * op.a);
      }
      break;
    case Kind::ROPE:
      for (int h = 0; h < op.heads; h++)
        kernels_->rope(at(op.in[0]) + h * (n / op.heads), at(op.in[1]), width(op.in[1]), n / op.heads, op.interleaved, out + h * (n / op.heads));
      break;
    case Kind::SCALE:
      kernels_->scale(at(op.in[0]), (float)(1.0 + op.a * std::log1p(std::floor(step.positions[row] / op.b))), n, out);
      break;
    case Kind::WRITE_CACHE: kernels_->write_cache(step.cache->layer(op.layer), step.slots[row], at(op.in[0]), at(op.in[1])); break;
    case Kind::QUANTIZE: {
      const int groups = n / 32, block = std::min(rows_of(values_[(size_t)op.in[0]].per_output_row, step), TOKEN_BLOCK);
      const QRows rows = {(QBlock*)quantized_->data(), groups, block};
      kernels_->quantize_row(at(op.in[0]), n, rows.first(row), block);
      break;
    }
    default: break;
  }
}

// Units are groups of tiles of one matrix, all tokens: activations stay in cache while the tiles go by.
void Program::run_linear(const Op& op, std::atomic<int>& next, const Step& step) {
  const Value& x = values_[(size_t)op.in[0]];
  const int tokens = rows_of(x.per_output_row, step);
  if (!tokens) return;
  const QRows quantized = {(QBlock*)quantized_->data(), x.width / 32, std::min(tokens, TOKEN_BLOCK)};
  int total = 0;
  for (const auto& w : op.weights) total += w->matrix.tiles();
  // Eight units a thread even out the load; whole groups of four tiles feed the one-token kernel.
  const int share = total / (pool_->size() * 8);
  const int chunk = tokens == 1 ? std::clamp(share / 4 * 4, 4, 64) : std::clamp(share, 1, 8);
  const auto units = [chunk](const Matrix& w) { return (w.tiles() + chunk - 1) / chunk; };
  int all = 0;
  for (const auto& w : op.weights) all += units(w->matrix);
  for (int unit; (unit = next.fetch_add(1, std::memory_order_relaxed)) < all;) {
    size_t which = 0;
    while (unit >= units(op.weights[which]->matrix)) unit -= units(op.weights[which++]->matrix);
    const Matrix& w = op.weights[which]->matrix;
    const int begin = unit * chunk, end = std::min(begin + chunk, w.tiles());
    float* out = values_[(size_t)op.out[which]].data;
    if (w.is_float()) kernels_->linear_f(w, x.data, begin, end, 0, tokens, out, (size_t)w.rows);
    else kernels_->linear_q(w, quantized, begin, end, 0, tokens, out, (size_t)w.rows);
  }
}

}  // namespace brise
