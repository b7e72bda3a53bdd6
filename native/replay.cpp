// Running a recorded program: phases, units, row chains.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "program.h"

namespace brise {

namespace {
// Work space grows in steps, so that a context that creeps up does not reallocate at every step.
template <class Pointer>
size_t reserve(Pointer& memory, size_t bytes) {  // the bytes there are
  if (!memory || memory->size() < bytes) memory = std::make_unique<Memory>(bytes);
  return memory->size();
}
}  // namespace

void Program::make_room() {
  for (auto& value : values_) {
    Buffer& buffer = buffers_[(size_t)value.buffer];
    reserve(buffer.memory, sizeof(float) * (size_t)value.width * (size_t)std::max(rows_of(value.per_output_row), 1));
  }
  for (auto& value : values_) value.data = (float*)buffers_[(size_t)value.buffer].memory->data();
  const size_t rows = (size_t)std::max(step_.num_tokens, step_.num_rows);
  size_t sum = reserve(quantized_, (rows + TOKEN_BLOCK) * (size_t)max_groups_ * sizeof(QBlock));
  for (auto& scratch : scratch_)
    if (max_head_dim_) sum += reserve(scratch, kernels_->attend_scratch(max_head_dim_) * sizeof(float));
  for (const auto& buffer : buffers_) sum += buffer.memory->size();
  work_bytes_ = sum;
}

// Query blocks are as long as one pass of the kernel takes rows, so that there are many units to share out.
void Program::make_units() {
  blocks_.clear();
  if (!unit_heads_) return;
  const int share = unit_heads_ / unit_kv_heads_, most = std::max(1, kernels_->max_query_rows / share);
  for (int s = 0; s < step_.num_sequences; s++)
    for (int begin = step_.query_starts[s]; begin < step_.query_starts[s + 1]; begin += most)
      for (int head = 0; head < unit_kv_heads_; head++)
        blocks_.push_back({s, begin, std::min(begin + most, step_.query_starts[s + 1]), head});
  std::reverse(blocks_.begin(), blocks_.end());  // the longest contexts first: the ends then differ little
}

void Program::run(const Step& step) {
  step_ = step;
  pool_->run(*this);
}

void Program::begin(uint32_t run) {
  make_room();
  make_units();
  for (size_t i = 0; i < phases_.size(); i++) progress_[i].begin(run, num_units(phases_[i]));
}

void Program::work(int thread, uint32_t run) {
  for (size_t i = 0; i < phases_.size(); i++) {
    for (int unit; (unit = progress_[i].claim(run)) >= 0; progress_[i].finish()) run_unit(phases_[i], unit, thread);
    Pool::wait(progress_[i], run);
  }
}

// Tiles of one matrix that are a unit of a linear. Eight units a thread even out the load; whole groups of four
// tiles feed the one-token kernel.
int Program::chunk_of(const Op& op) const {
  int total = 0;
  for (const auto& w : op.weights) total += w->matrix.tiles();
  const int share = total / (pool_->size() * 8);
  return rows_of(values_[(size_t)op.in[0]].per_output_row) == 1 ? std::clamp(share / 4 * 4, 4, 64) : std::clamp(share, 1, 8);
}

int Program::num_units(const Phase& phase) const {
  if (phase.kind == PhaseKind::ROWS) return rows_of(phase.per_output_row);
  if (phase.kind == PhaseKind::ATTEND) return (int)blocks_.size();
  const Op& op = ops_[(size_t)phase.ops[0]];
  if (!rows_of(values_[(size_t)op.in[0]].per_output_row)) return 0;
  const int chunk = chunk_of(op);
  int units = 0;
  for (const auto& w : op.weights) units += (w->matrix.tiles() + chunk - 1) / chunk;
  return units;
}

void Program::run_unit(const Phase& phase, int unit, int thread) {
  const Op& first = ops_[(size_t)phase.ops[0]];
  if (phase.kind == PhaseKind::LINEAR) return run_linear(first, unit);
  if (phase.kind == PhaseKind::ATTEND) return run_attend(first, unit, (float*)scratch_[(size_t)thread]->data());
  for (int op : phase.ops) run_row(ops_[(size_t)op], unit);
}

void Program::run_attend(const Op& op, int unit, float* scratch) {
  const Block& block = blocks_[(size_t)unit];
  const AttendUnit work = {values_[(size_t)op.in[0]].data, values_[(size_t)op.out[0]].data, step_.positions,
                           step_.page_table + (size_t)block.sequence * (size_t)step_.pages_per_sequence,
                           block.begin, block.end, block.kv_head};
  kernels_->attend(step_.cache->layer(op.layer), op.shape, work, scratch);
}

void Program::run_row(const Op& op, int row) {
  const auto at = [&](int id) { return values_[(size_t)id].data + (size_t)row * (size_t)values_[(size_t)id].width; };
  const int n = op.out.empty() ? width(op.in[0]) : width(op.out[0]);
  float* out = op.out.empty() ? nullptr : at(op.out[0]);
  switch (op.kind) {
    case Kind::EMBED: unpack_row(op.weights[0]->matrix, step_.tokens[row], out); break;
    case Kind::TAKE_ROWS:
      std::memcpy(out, values_[(size_t)op.in[0]].data + (size_t)step_.rows[row] * (size_t)n, sizeof(float) * (size_t)n);
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
        const double angle = step_.positions[row] * op.turns[(size_t)i];
        out[i] = (float)(std::cos(angle) * op.a);
        out[i + n / 2] = (float)(std::sin(angle) * op.a);
      }
      break;
    case Kind::ROPE:
      for (int h = 0; h < op.heads; h++)
        kernels_->rope(at(op.in[0]) + h * (n / op.heads), at(op.in[1]), width(op.in[1]), n / op.heads, op.interleaved, out + h * (n / op.heads));
      break;
    case Kind::SCALE:
      kernels_->scale(at(op.in[0]), (float)(1.0 + op.a * std::log1p(std::floor(step_.positions[row] / op.b))), n, out);
      break;
    case Kind::WRITE_CACHE: kernels_->write_cache(step_.cache->layer(op.layer), step_.slots[row], at(op.in[0]), at(op.in[1])); break;
    case Kind::QUANTIZE: {
      const int groups = n / 32, block = std::min(rows_of(values_[(size_t)op.in[0]].per_output_row), TOKEN_BLOCK);
      const QRows rows = {(QBlock*)quantized_->data(), groups, block};
      kernels_->quantize_row(at(op.in[0]), n, rows.first(row), block);
      break;
    }
    default: break;
  }
}

// All tokens of a group of tiles: activations stay in cache while the tiles go by.
void Program::run_linear(const Op& op, int unit) {
  const Value& x = values_[(size_t)op.in[0]];
  const int tokens = rows_of(x.per_output_row), chunk = chunk_of(op);
  const auto units = [chunk](const Matrix& w) { return (w.tiles() + chunk - 1) / chunk; };
  size_t which = 0;
  while (unit >= units(op.weights[which]->matrix)) unit -= units(op.weights[which++]->matrix);
  const Matrix& w = op.weights[which]->matrix;
  const int begin = unit * chunk, end = std::min(begin + chunk, w.tiles());
  float* out = values_[(size_t)op.out[which]].data;
  if (w.is_float()) return kernels_->linear_f(w, x.data, begin, end, 0, tokens, out, (size_t)w.rows);
  const QRows quantized = {(QBlock*)quantized_->data(), x.width / 32, std::min(tokens, TOKEN_BLOCK)};
  kernels_->linear_q(w, quantized, begin, end, 0, tokens, out, (size_t)w.rows);
}

}  // namespace brise
