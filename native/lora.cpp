// Adapters: see lora.h.
#include "lora.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

#include "program.h"

namespace brise {

namespace {

constexpr int RUN_TOKENS = 64;  // at most: threads share the tokens of a prompt

std::invalid_argument error(const std::string& what) { return std::invalid_argument(what); }

// The narrowest format that stores every number exactly.
Format lossless(const float* x, size_t n) {
  uint32_t low = 0;
  for (size_t i = 0; i < n; i++) {
    uint32_t bits;
    std::memcpy(&bits, x + i, 4);
    low |= bits & 0xffff;
  }
  return low ? Format::F32 : Format::BF16;
}

Matrix shaped(Format format, int rows, int cols) { return {format, rows, cols, tile_bytes(format, cols), nullptr}; }

size_t bytes_of(const Matrix& m) { return (size_t)m.tiles() * m.tile_bytes; }

void pack(const float* x, Matrix& m, uint8_t* tiles) {
  std::vector<uint16_t> rounded;
  const uint8_t* source = (const uint8_t*)x;
  if (m.format == Format::BF16) {
    rounded.resize((size_t)m.rows * (size_t)m.cols);
    for (size_t i = 0; i < rounded.size(); i++) {
      uint32_t bits;
      std::memcpy(&bits, x + i, 4);
      rounded[i] = (uint16_t)(bits >> 16);
    }
    source = (const uint8_t*)rounded.data();
  }
  const size_t row_bytes = source_row_bytes(m.format, m.cols);
  for (int tile = 0; tile < m.tiles(); tile++)
    pack_tile(m.format, source + (size_t)tile * TILE * row_bytes, row_bytes, std::min(TILE, m.rows - tile * TILE), m.cols, tiles + (size_t)tile * m.tile_bytes);
  m.data = tiles;
}

std::vector<float> transposed(const float* x, int rows, int cols) {
  std::vector<float> out((size_t)rows * (size_t)cols);
  for (int r = 0; r < rows; r++)
    for (int c = 0; c < cols; c++) out[(size_t)c * (size_t)rows + (size_t)r] = x[(size_t)r * (size_t)cols + (size_t)c];
  return out;
}

}  // namespace

Adapter::Adapter(const std::vector<MatrixShape>& shapes, const std::vector<LowRankSource>& sources) : parts_(shapes.size()) {
  size_t bytes = 0;
  for (const auto& source : sources) {
    const auto [rows, cols, is_embedding] = shapes[(size_t)source.target];
    LowRank& part = parts_[(size_t)source.target];
    const Format a = lossless(source.a, (size_t)source.rank * (size_t)cols), b = lossless(source.b, (size_t)source.rank * (size_t)rows);
    part.a = is_embedding ? shaped(b, rows, source.rank) : shaped(a, source.rank, cols);
    part.b = is_embedding ? shaped(a, cols, source.rank) : shaped(b, rows, source.rank);
    part.scale = source.scale;
    if (source.gain) {
      part.gain.assign((size_t)part.b.tiles() * TILE, 1.0f);
      std::copy(source.gain, source.gain + rows, part.gain.begin());
    }
    bytes += bytes_of(part.a) + bytes_of(part.b);
  }
  memory_ = std::make_shared<Memory>(bytes, true);
  uint8_t* next = memory_->data();
  for (const auto& source : sources) {
    LowRank& part = parts_[(size_t)source.target];
    const bool is_embedding = shapes[(size_t)source.target].is_embedding;
    pack(is_embedding ? source.b : source.a, part.a, next);
    next += bytes_of(part.a);
    pack(is_embedding ? transposed(source.a, part.b.cols, part.b.rows).data() : source.b, part.b, next);
    next += bytes_of(part.b);
  }
}

void Adapter::move_to(std::shared_ptr<const vk::PlacedAdapter> placed, size_t bytes) {
  placed_ = std::move(placed);
  placed_bytes_ = bytes;
  for (auto& part : parts_) part.a.data = part.b.data = nullptr;
  memory_.reset();
}

size_t Adapter::nbytes() const {
  size_t sum = memory_ ? memory_->size() : placed_bytes_;
  for (const auto& part : parts_) sum += part.gain.size() * sizeof(float);
  return sum;
}

LoraTable::LoraTable(std::vector<MatrixShape> shapes, int slots, int max_rank)
    : shapes(std::move(shapes)), num_slots(slots), max_rank(max_rank), slots_((size_t)slots) {}

void LoraTable::put(int slot, std::shared_ptr<const Adapter> adapter) {
  if (slot < 0 || slot >= num_slots) throw error("slot " + std::to_string(slot) + " of a table of adapters, allowed are 0 to " + std::to_string(num_slots - 1));
  if (adapter && adapter->num_targets() != shapes.size()) throw error("the adapter was packed for another table");
  std::lock_guard lock(mutex_);
  slots_[(size_t)slot].swap(adapter);
}

std::vector<std::shared_ptr<const Adapter>> LoraTable::slots() const {
  std::lock_guard lock(mutex_);
  return slots_;
}

LoraWork::LoraWork(const LoraTargets::Table& program)
    : table_(program.table), runs_(program.table, RUN_TOKENS, false), widest_(program.widest), downs_(std::make_unique<Units[]>((size_t)program.num_ops + 1)) {}

size_t LoraWork::bytes(int rows) const { return width() * (size_t)std::max(rows, 1) * sizeof(float); }

size_t LoraWork::reserve(int rows) {
  const size_t wanted = bytes(rows);
  if (wanted && (!h_ || h_->size() < wanted)) h_ = std::make_unique<Memory>(wanted);
  return h_ ? h_->size() : 0;
}

void AdapterRuns::begin(const Step& step) {
  end();
  if (!step.adapters) return;
  if (table_) slots_ = table_->slots();
  const auto slot_of = [&](int token) {
    const int slot = step.adapters[token];
    const bool is_known = slot >= -1 && slot < (int)slots_.size() && (slot < 0 || slots_[(size_t)slot]);
    if (is_known && (slot < 0 || (slots_[(size_t)slot]->placed() != nullptr) == is_placed_)) return slot;
    const std::string what = "adapters[" + std::to_string(token) + "] is " + std::to_string(slot);
    end();
    if (is_known) throw error(what + (is_placed_ ? ", which does not lie on the GPU" : ", which lies on a GPU"));
    if (!table_) throw error(what + ", and the program has no table of adapters");
    throw error(what + (slot >= 0 && slot < table_->num_slots ? ", which is empty" : ", allowed are -1 to " + std::to_string(table_->num_slots - 1)));
  };
  for (int token = 0; token < step.num_tokens; token++) {
    const int slot = slot_of(token);
    of_token_.push_back(slot < 0 ? nullptr : slots_[(size_t)slot].get());
  }
  const auto split = [most = most_](int rows, const auto& adapter_of, std::vector<Run>& out) {
    for (int begin = 0, next; begin < rows; begin = next) {
      const Adapter* adapter = adapter_of(begin);
      for (next = begin + 1; next < rows && next - begin < most && adapter_of(next) == adapter;) next++;
      if (adapter) out.push_back({adapter, begin, next});
    }
  };
  split(step.num_tokens, [&](int row) { return of_token_[(size_t)row]; }, runs_);
  split(step.num_rows, [&](int row) { return of_token_[(size_t)step.rows[row]]; }, output_runs_);
}

void AdapterRuns::end() {
  runs_.clear();
  output_runs_.clear();
  of_token_.clear();
  slots_.clear();
}

void LoraWork::begin_phase(const LoraTargets& op) {
  if (op.index >= 0) downs_[(size_t)op.index].begin(1, num_downs(op));
}

// A row of h has the op's targets one after the other.
void LoraWork::down(const Kernels& kernels, const LoraTargets& op, int unit, const float* x, size_t ldx) {
  const AdapterRuns::Run& run = runs_.of(op)[(size_t)unit / op.targets.size()];
  const size_t which = (size_t)unit % op.targets.size();
  const int target = op.targets[which];
  if (const Adapter::LowRank* part = target < 0 ? nullptr : run.adapter->at(target))
    kernels.linear_f(part->a, x, ldx, 0, part->a.tiles(), run.begin, run.end, (float*)h_->data() + which * (size_t)table_->max_rank, width());
  downs_[(size_t)op.index].finish();
}

void LoraWork::up(const Kernels& kernels, const LoraTargets& op, size_t which, int begin, int end, float* y, size_t ld) {
  if (op.index < 0 || runs_.of(op).empty() || op.targets[which] < 0) return;
  Pool::wait(downs_[(size_t)op.index], 1);
  const float* h = (const float*)h_->data() + which * (size_t)table_->max_rank;
  for (const AdapterRuns::Run& run : runs_.of(op))
    if (const Adapter::LowRank* part = run.adapter->at(op.targets[which]))
      kernels.add_low_rank(part->b, h, width(), part->scale, part->gain.empty() ? nullptr : part->gain.data(), begin, end, run.begin, run.end, y, ld);
}

void LoraWork::embed(const Kernels& kernels, const LoraTargets& op, int row, int token, float* out) {
  const Adapter* adapter = op.targets.empty() ? nullptr : runs_.of_token(row);
  const Adapter::LowRank* part = adapter ? adapter->at(op.targets[0]) : nullptr;
  if (!part) return;
  float* h = (float*)h_->data() + (size_t)row * width();
  unpack_row(part->a, token, h);
  kernels.add_low_rank(part->b, h, width(), part->scale, nullptr, 0, part->b.tiles(), 0, 1, out, (size_t)part->b.rows);
}

}  // namespace brise
