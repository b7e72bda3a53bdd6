// Execution of a recorded program: phases, units, row chains.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "program.h"

namespace brise {

namespace {
// Work space only grows, so that a step reallocates only if it is larger than all before it.
template <class Pointer>
size_t reserve(Pointer& memory, size_t bytes) {  // returns the size
  if (!memory || memory->size() < bytes) memory = std::make_unique<Memory>(bytes);
  return memory->size();
}

void copy(const float* from, int n, float* to) {
  if (from != to) std::memcpy(to, from, sizeof(float) * (size_t)n);
}
}  // namespace

Program::Room Program::room(int num_tokens, int num_rows) const {
  Room room{std::vector<size_t>(buffers_.size())};
  for (const auto& value : values_) {
    if (value.is_input) continue;
    const int rows = std::max(value.per_output_row ? num_rows : num_tokens, 1);
    size_t& bytes = room.buffers[(size_t)value.buffer];
    bytes = std::max(bytes, sizeof(float) * (size_t)value.width * (size_t)rows);
  }
  const size_t rows = (size_t)std::max(num_tokens, num_rows);
  room.quantized = (rows + TOKEN_BLOCK) * (size_t)recording_->max_groups() * sizeof(QBlock);
  room.experts = experts_.bytes(num_tokens);
  room.lora = lora_.bytes((int)rows);
  room.scratch = recording_->max_head_dim() ? kernels_->attend_scratch(recording_->max_head_dim()) * sizeof(float) : 0;
  return room;
}

size_t Program::planned_bytes(int num_tokens, int num_rows) const {
  const Room wanted = room(num_tokens, num_rows);
  size_t sum = wanted.quantized + wanted.experts + wanted.lora + wanted.scratch * scratch_.size();
  for (const size_t bytes : wanted.buffers) sum += bytes;
  return sum;
}

void Program::make_room() {
  const Room wanted = room(step_.num_tokens, step_.num_rows);
  size_t sum = reserve(quantized_, wanted.quantized) + experts_.reserve(step_.num_tokens) + lora_.reserve(std::max(step_.num_tokens, step_.num_rows));
  for (size_t i = 0; i < buffers_.size(); i++)
    if (wanted.buffers[i]) sum += reserve(buffers_[i].memory, wanted.buffers[i]);
  for (auto& scratch : scratch_)
    if (wanted.scratch) sum += reserve(scratch, wanted.scratch);
  for (size_t id = 0; id < values_.size(); id++) {
    const Value& value = values_[id];
    const Buffer& buffer = buffers_[(size_t)value.buffer];
    data_[id] = value.is_input ? const_cast<float*>(buffer.lent) : (float*)buffer.memory->data();  // an input is never written
  }
  work_bytes_ = sum;
}

// A query block has as many rows as one pass of the kernel takes, so that there are many units to distribute.
void Program::make_units() {
  blocks_.clear();
  if (!recording_->heads()) return;
  if (recording_->is_latent()) {
    for (int s = 0; s < step_.num_sequences; s++) {
      const int last = step_.query_starts[s + 1] * recording_->heads();
      for (int begin = step_.query_starts[s] * recording_->heads(); begin < last; begin += std::min(kernels_->max_query_rows, last - begin))
        blocks_.push_back({s, begin, std::min(kernels_->max_query_rows, last - begin) + begin, 0});
    }
    return std::reverse(blocks_.begin(), blocks_.end());
  }
  const int share = recording_->heads() / recording_->kv_heads(), most = std::max(1, kernels_->max_query_rows / share);
  for (int s = 0; s < step_.num_sequences; s++)
    for (int head = 0; head < recording_->kv_heads(); head++)  // one head after the other: its keys stay in a core's cache
      for (int begin = step_.query_starts[s]; begin < step_.query_starts[s + 1]; begin += most)
        blocks_.push_back({s, begin, std::min(begin + most, step_.query_starts[s + 1]), head});
  std::reverse(blocks_.begin(), blocks_.end());  // the longest contexts first, so that threads finish at about the same time
}

void Program::run(const Step& step, const Cache* cache) {
  lora_.begin(step);
  step_ = step;
  cache_ = cache;
  experts_.end_groups();  // an error may have ended the last step between them
  make_room();
  make_units();
  size_t first = 0;
  for (size_t i = 0; i < phases_.size(); i++) {
    if (!needs_loading(phases_[i])) continue;
    run_phases(first, i);
    // Experts that are not all in memory run as many at a time as there is room for. They are loaded here, between runs
    // of the pool, where an error can be thrown and packing may use the pool itself.
    const Experts& op = ops_[(size_t)phases_[i].ops[0]].experts;
    for (experts_.begin_groups(op); experts_.next_group(op);) run_phases(i, i + 3);
    experts_.end_groups();
    first = i + 3;
  }
  run_phases(first, phases_.size());
  lora_.end();
}

bool Program::needs_loading(const Phase& phase) const {
  return phase.kind == PhaseKind::EXPERTS && phase.stage == ExpertWork::UP && !ops_[(size_t)phase.ops[0]].experts.is_resident();
}

void Program::run_phases(size_t first, size_t last) {
  first_ = first;
  last_ = last;
  if (first == last) return;
  step_.quiet ? pool_->run_quietly(*this) : pool_->run(*this);
}

void Program::begin(uint32_t run) {
  for (size_t i = first_; i < last_; i++) {
    if (phases_[i].kind == PhaseKind::LINEAR) lora_.begin_phase(ops_[(size_t)phases_[i].ops[0]].lora);
    progress_[i].begin(run, num_units(phases_[i]));
  }
}

void Program::work(int thread, uint32_t run) {
  for (size_t i = first_; i < last_; i++) {
    for (int unit; (unit = progress_[i].claim(run)) >= 0; progress_[i].finish()) run_unit(phases_[i], unit, thread);
    Pool::wait(progress_[i], run);
  }
}

// The number of tiles of one matrix in a unit of a linear. Eight units per thread balance the load. A few tokens read each
// tile once, in long runs; more read a unit's tiles again and again, which therefore fit in L2.
int Program::chunk_of(const Op& op) const {
  int total = 0;
  for (const auto& w : op.weights) total += w->matrix.tiles();
  const int share = total / (pool_->size() * 8);
  return rows_of(values_[(size_t)op.in[0]].per_output_row) <= 8 ? std::clamp(share / 4 * 4, 4, 64) : std::clamp(share, 1, 8);
}

int Program::num_units(const Phase& phase) const {
  if (phase.kind == PhaseKind::ROWS) return rows_of(phase.per_output_row);
  if (phase.kind == PhaseKind::ATTEND) return (int)blocks_.size();
  if (phase.kind == PhaseKind::EXPERTS) return experts_.num_units(ops_[(size_t)phase.ops[0]].experts, phase.stage, pool_->size());
  const Op& op = ops_[(size_t)phase.ops[0]];
  if (!rows_of(values_[(size_t)op.in[0]].per_output_row)) return 0;
  const int chunk = chunk_of(op);
  int units = lora_.num_downs(op.lora);
  for (const auto& w : op.weights) units += (w->matrix.tiles() + chunk - 1) / chunk;
  return units;
}

void Program::run_unit(const Phase& phase, int unit, int thread) {
  const Op& first = ops_[(size_t)phase.ops[0]];
  if (phase.kind == PhaseKind::LINEAR) return run_linear(first, unit);
  if (phase.kind == PhaseKind::EXPERTS) return run_experts(first, phase.stage, unit);
  if (phase.kind == PhaseKind::ATTEND) return run_attend(first, unit, (float*)scratch_[(size_t)thread]->data());
  for (int op : phase.ops) run_row(ops_[(size_t)op], unit);
}

void Program::run_experts(const Op& op, ExpertWork::Stage stage, int unit) {
  const float *x = data_[(size_t)op.in[0]], *gates = data_[(size_t)op.in[1]];
  switch (stage) {
    case ExpertWork::PLAN: return experts_.plan(op.experts, gates);
    case ExpertWork::GATHER: return experts_.gather(*kernels_, op.experts, x, unit);
    case ExpertWork::UP: return experts_.up(*kernels_, op.experts, unit, pool_->size());
    case ExpertWork::ACTIVATE: return experts_.activate(*kernels_, op.experts, unit);
    default: return experts_.down(*kernels_, op.experts, unit, pool_->size());
  }
}

void Program::run_attend(const Op& op, int unit, float* scratch) {
  const Block& block = blocks_[(size_t)unit];
  const AttendUnit work = {data_[(size_t)op.in[0]], data_[(size_t)op.out[0]], step_.positions, step_.reach,
                           step_.page_table + (size_t)block.sequence * (size_t)step_.pages_per_sequence,
                           block.begin, block.end, block.kv_head};
  (op.shape.rank ? kernels_->attend_latent : kernels_->attend)(cache_->layer(op.layer), op.shape, work, scratch);
}

void Program::run_row(const Op& op, int row) {
  const auto at = [&](int id) { return data_[(size_t)id] + (size_t)row * (size_t)values_[(size_t)id].width; };
  const int n = op.out.empty() ? recording_->width(op.in[0]) : recording_->width(op.out[0]);
  float* out = op.out.empty() ? nullptr : at(op.out[0]);
  switch (op.kind) {
    case Kind::EMBED:
      unpack_row(op.weights[0]->matrix, step_.tokens[row], out);
      lora_.embed(*kernels_, op.lora, row, step_.tokens[row], out);
      break;
    case Kind::TAKE_ROWS:
      std::memcpy(out, data_[(size_t)op.in[0]] + (size_t)step_.rows[row] * (size_t)n, sizeof(float) * (size_t)n);
      break;
    case Kind::RMS_NORM:
      for (int h = 0; h < op.heads; h++)
        kernels_->rms_norm(at(op.in[0]) + h * (n / op.heads), op.weights[0]->vector.data(), n / op.heads, (float)op.a, out + h * (n / op.heads));
      break;
    case Kind::LAYER_NORM: kernels_->layer_norm(at(op.in[0]), op.weights[0]->vector.data(), op.weights[1]->vector.data(), n, (float)op.a, out); break;
    case Kind::BIAS: kernels_->add(at(op.in[0]), op.weights[0]->vector.data(), n, out); break;
    case Kind::ADD: kernels_->add(at(op.in[0]), at(op.in[1]), n, out); break;
    case Kind::GELU: kernels_->gelu(at(op.in[0]), n, out); break;
    case Kind::GELU_TANH: kernels_->gelu_tanh(at(op.in[0]), n, out); break;
    case Kind::PUT_ROWS: {
      const int feature = step_.features ? step_.feature_rows[row] : -1;
      copy(feature < 0 ? at(op.in[0]) : step_.features + (size_t)feature * (size_t)n, n, out);
      break;
    }
    case Kind::COLUMNS:
      for (int h = 0, one = n / op.heads, all = recording_->width(op.in[0]) / op.heads; h < op.heads; h++) copy(at(op.in[0]) + h * all + op.first, one, out + h * one);
      break;
    case Kind::CONCAT: {
      const int x = recording_->width(op.in[0]) / op.heads, y = recording_->width(op.in[1]) / op.heads;
      for (int h = 0; h < op.heads; h++) {
        copy(at(op.in[0]) + h * x, x, out + h * (x + y));
        copy(at(op.in[1]) + h * y, y, out + h * (x + y) + x);
      }
      break;
    }
    case Kind::ROUTE: brise::route(at(op.in[0]), n, op.experts.per_token, op.a, out); break;
    case Kind::SUM_EXPERTS: experts_.sum(*kernels_, op.experts, row, out); break;
    case Kind::SILU_MUL: kernels_->silu_mul(at(op.in[0]), at(op.in[1]), n, out); break;
    case Kind::GELU_MUL: kernels_->gelu_mul(at(op.in[0]), at(op.in[1]), n, out); break;
    case Kind::ROPE_TABLE:
      for (int i = 0; i < n / 2; i++) {
        const double angle = step_.positions[row] * op.inv_freq[(size_t)i];
        out[i] = (float)(std::cos(angle) * op.a);
        out[i + n / 2] = (float)(std::sin(angle) * op.a);
      }
      break;
    case Kind::ROPE:
      for (int h = 0; h < op.heads; h++)
        kernels_->rope(at(op.in[0]) + h * (n / op.heads), at(op.in[1]), recording_->width(op.in[1]), n / op.heads, op.interleaved, out + h * (n / op.heads));
      break;
    case Kind::SCALE: kernels_->scale(at(op.in[0]), (float)op.a, n, out); break;
    case Kind::SCALE_QUERIES:
      kernels_->scale(at(op.in[0]), (float)(1.0 + op.a * std::log1p(std::floor(step_.positions[row] / op.b))), n, out);
      break;
    case Kind::WRITE_CACHE: kernels_->write_cache(cache_->layer(op.layer), step_.slots[row], at(op.in[0]), op.in.size() > 1 ? at(op.in[1]) : nullptr); break;
    case Kind::QUANTIZE: {
      const int groups = n / 32, block = std::min(rows_of(values_[(size_t)op.in[0]].per_output_row), TOKEN_BLOCK);
      const QRows rows = {(QBlock*)quantized_->data(), groups, block};
      kernels_->quantize_row(at(op.in[0]), n, rows.first(row), block);
      break;
    }
    default: break;
  }
}

// The units of a linear: its adapters' h first, then the base's tiles.
void Program::run_linear(const Op& op, int unit) {
  const int downs = lora_.num_downs(op.lora), chunk = chunk_of(op);
  const Value& x = values_[(size_t)op.in[0]];
  if (unit < downs) return lora_.down(*kernels_, op.lora, unit, data_[(size_t)op.in[0]], (size_t)x.width);
  unit -= downs;
  const auto units = [chunk](const Matrix& w) { return (w.tiles() + chunk - 1) / chunk; };
  size_t which = 0;
  while (unit >= units(op.weights[which]->matrix)) unit -= units(op.weights[which++]->matrix);
  const int begin = unit * chunk, end = std::min(begin + chunk, op.weights[which]->matrix.tiles());
  run_tiles(op, which, begin, end);
  if (op.kind == Kind::LINEAR) lora_.up(*kernels_, op.lora, which, begin, end, data_[(size_t)op.out[which]], (size_t)values_[(size_t)op.out[which]].width);
}

// Runs all tokens on a group of tiles: activations stay in cache while the tiles are read. The matrix of a head reads
// and writes that head's part of a row; its part of a quantized row is as many groups further on.
void Program::run_tiles(const Op& op, size_t which, int begin, int end) {
  const Value& x = values_[(size_t)op.in[0]];
  const int tokens = rows_of(x.per_output_row);
  const Matrix& w = op.weights[which]->matrix;
  const bool by_head = op.kind == Kind::HEADS_LINEAR;
  const Value& y = values_[(size_t)op.out[by_head ? 0 : which]];
  const size_t head = by_head ? which : 0;
  float* out = data_[(size_t)op.out[by_head ? 0 : which]] + head * (size_t)w.rows;
  if (w.is_float())
    return kernels_->linear_f(w, data_[(size_t)op.in[0]] + head * (size_t)w.cols, (size_t)x.width, begin, end, 0, tokens, out, (size_t)y.width);
  const int side = std::min(tokens, TOKEN_BLOCK);
  const QRows quantized = {(QBlock*)quantized_->data() + head * (size_t)(w.cols / 32 * side), x.width / 32, side};
  kernels_->linear_q(w, quantized, begin, end, 0, tokens, out, (size_t)y.width);
}

}  // namespace brise
