// Memory of a program on a device, and its steps: see program.h.
#include "program.h"

#include <algorithm>
#include <chrono>
#include <climits>
#include <cstring>
#include <numeric>
#include <stdexcept>

#include "cache_layout.h"
#include "encoder.h"

namespace brise::vk {

namespace {

// Entries of the page tables that there is always room for: 1 MiB, as 32 sequences of 128k tokens have.
constexpr size_t PAGE_ENTRIES = 1 << 18;
// Outputs up to this size come back with the step's last submission, larger ones through the staging ring.
constexpr size_t OUTPUT_BYTES = 4 << 20;
// The parts of attention in decode: a list of units is cut so that it fits.
constexpr size_t PARTIAL_BYTES = 8 << 20;
constexpr size_t KEPT_RECORDINGS = 8;
constexpr int EXPERT_TOKENS = 512;  // most tokens whose experts are computed at a time
constexpr int MOST_EXPERTS = 1024;  // of the shaders that route

std::invalid_argument error(const std::string& what) { return std::invalid_argument(what); }

// What there is no shader for, or "".
std::string without_shader(const Op& op, const Recording& recording) {
  if (op.kind == Kind::ATTEND && op.shape.rank > ATTEND_MAX_VALUE)
    return "latent attention of rank " + std::to_string(op.shape.rank) + ", it takes up to " + std::to_string(ATTEND_MAX_VALUE);
  if (op.kind == Kind::ROUTE && recording.width(op.in[0]) > MOST_EXPERTS)
    return "router of " + std::to_string(recording.width(op.in[0])) + " experts, it takes up to " + std::to_string(MOST_EXPERTS);
  return "";
}

void check_placed(const Weight& weight, bool in_stack) {
  if (weight.is_shape_only) return;
  if (!weight.placed) throw error("a weight of the program does not lie on the GPU");
  if (in_stack && weight.placed->ranges.size() != 1) throw error("a matrix of a stack lies in " + std::to_string(weight.placed->ranges.size()) + " buffers, wanted 1");
}

}  // namespace

Program::Program(std::shared_ptr<Device> device, std::shared_ptr<const Recording> recording, std::shared_ptr<Pool> pool, const Kernels* kernels)
    : device_(std::move(device)), recording_(std::move(recording)), inputs_(*recording_), adapters_(recording_->lora().table, INT_MAX, true),
      buffers_(recording_->num_buffers()), input_rows_(recording_->values().size()), slowness_(device_->facts().type == "cpu" ? 200 : 4) {
  for (const Op& op : recording_->ops()) {
    if (const std::string what = without_shader(op, *recording_); !what.empty()) throw error("the GPU has no " + what + ": run this model on the CPU");
    for (const auto& w : op.weights) check_placed(*w, op.kind == Kind::HEADS_LINEAR);
    if (op.kind != Kind::EXPERTS) continue;
    if (!op.experts.is_resident()) {
      if (!pool) throw error("the GPU has no experts that stay in a file: run this model on the CPU");
      if (!host_experts_) host_experts_ = std::make_unique<HostExperts>(pool, kernels);
      host_experts_->include(op);
      continue;
    }
    for (const auto& stack : {op.experts.w1, op.experts.w2, op.experts.w3})
      for (const auto& w : stack->matrices) check_placed(*w, true);
  }
  for (size_t id = 0; id < recording_->values().size(); id++)
    if (recording_->value((int)id).last_use == (int)recording_->ops().size()) outputs_.push_back((int)id);
}

void Program::check(const Cache* cache, int num_tokens) const {
  for (size_t id = 0; id < recording_->values().size(); id++)
    if (recording_->value((int)id).is_input && input_rows_[id] < (size_t)num_tokens)
      throw error("an input of " + std::to_string(input_rows_[id]) + " rows in a step of " + std::to_string(num_tokens) + " tokens");
  recording_->check_step(cache, num_tokens);
}

// A row of the adapters' h begins at a multiple of what devices ask of an offset (embeddings bind it there).
size_t Program::lora_row_bytes() const {
  const auto& lora = recording_->lora();
  return lora.table ? round_up(lora.widest * (size_t)lora.table->max_rank * sizeof(float), 256) : 0;
}

int Program::expert_tokens(const Experts& experts, int tokens) const {
  const Facts& facts = device_->facts();
  const size_t own = (size_t)experts.per_token, row = own * (size_t)std::max(experts.width(), experts.hidden()) * sizeof(float);
  const size_t most = std::min({(size_t)EXPERT_TOKENS, std::min(facts.max_binding, facts.max_allocation) / row, facts.max_groups[1] / own});
  return std::min(tokens, (int)std::max<size_t>(most, 1));
}

Program::Sizes Program::sizes(int num_tokens, int num_rows, size_t pages) const {
  Sizes out;
  out.buffers.resize(buffers_.size());
  for (const Value& value : recording_->values()) {
    const size_t all = (size_t)std::max(value.per_output_row ? num_rows : num_tokens, 1), rows = value.is_local ? std::min<size_t>(all, PASS_ROWS) : all;
    size_t& bytes = out.buffers[(size_t)value.buffer];
    bytes = std::max(bytes, sizeof(float) * (size_t)value.width * rows);
  }
  const size_t rows = (size_t)std::max({num_tokens, num_rows, 1});
  for (const Op& op : recording_->ops())
    if (op.kind == Kind::QUANTIZE)
      out.quantized = std::max(out.quantized, (op.group < 0 ? rows : std::min<size_t>(rows, PASS_ROWS)) * (size_t)recording_->width(op.in[0]) / 32 * sizeof(QBlock));
  out.lora = rows * lora_row_bytes();
  out.partial = recording_->heads() ? PARTIAL_BYTES : 0;
  out.step = 4 * inputs_.most_words(num_tokens, num_rows, std::max(pages, PAGE_ENTRIES));
  out.output = OUTPUT_BYTES;
  for (const Op& op : recording_->ops()) {
    if (op.kind != Kind::EXPERTS || !op.experts.is_resident()) continue;
    const size_t own = (size_t)expert_tokens(op.experts, std::max(num_tokens, 1)), places = own * (size_t)op.experts.per_token, count = (size_t)op.experts.w1->count;
    const size_t width = (size_t)op.experts.width(), hidden = (size_t)op.experts.hidden();
    out.quantized = std::max({out.quantized, own * (width / 32) * sizeof(QBlock), places * (hidden / 32) * sizeof(QBlock)});
    out.plan = std::max(out.plan, 3 * (places + most_units(places, count)) * sizeof(int32_t));
    out.gate = out.up = std::max(out.gate, places * hidden * sizeof(float));
    out.down = std::max(out.down, places * width * sizeof(float));
  }
  return out;
}

Room Program::planned(int num_tokens, int num_rows) const {
  const Sizes wanted = sizes(num_tokens, num_rows, 0);
  Room out;
  for (const size_t bytes : wanted.buffers) out.device += device_->allocation_bytes(bytes);
  for (const size_t bytes : {wanted.quantized, wanted.lora, wanted.partial, wanted.step, wanted.plan, wanted.gate, wanted.up, wanted.down})
    if (bytes) out.device += device_->allocation_bytes(bytes);
  for (const size_t bytes : {wanted.step, wanted.output}) out.host += device_->allocation_bytes(bytes);
  if (host_experts_) out.host += host_experts_->planned(num_tokens);
  return out;
}

size_t Program::largest(int num_tokens, int num_rows) const {
  const Sizes wanted = sizes(num_tokens, num_rows, 0);
  const size_t others = std::max({wanted.quantized, wanted.lora, wanted.partial, wanted.step, wanted.plan, wanted.gate, wanted.up, wanted.down});
  return std::accumulate(wanted.buffers.begin(), wanted.buffers.end(), others, [](size_t a, size_t b) { return std::max(a, b); });
}

Room Program::work_room() const {
  Room out;
  const auto add = [](size_t& sum, const std::shared_ptr<Buffer>& buffer) { sum += buffer ? buffer->allocated : 0; };
  for (const auto& buffer : buffers_) add(out.device, buffer);
  for (const auto& buffer : {quantized_, lora_, partial_, step_, plan_, gate_, up_, down_}) add(out.device, buffer);
  for (const auto& buffer : {step_host_, output_host_}) add(out.host, buffer);
  if (host_experts_) out.host += host_experts_->work_bytes();
  return out;
}

// Work space only grows. What is too small is freed before it is allocated anew, and commands that bind it are forgotten.
void Program::make_room(const Sizes& wanted) {
  const auto reserve = [&](std::shared_ptr<Buffer>& buffer, size_t bytes, bool for_host) {
    if (!bytes || (buffer && buffer->bytes >= bytes)) return;
    recorded_.clear();
    buffer.reset();
    buffer = for_host ? device_->allocate_for_host(bytes) : device_->allocate(bytes);
  };
  for (size_t i = 0; i < buffers_.size(); i++) reserve(buffers_[i], wanted.buffers[i], false);
  reserve(quantized_, wanted.quantized, false);
  reserve(lora_, wanted.lora, false);
  reserve(partial_, wanted.partial, false);
  reserve(step_, wanted.step, false);
  reserve(plan_, wanted.plan, false);
  reserve(gate_, wanted.gate, false);
  reserve(up_, wanted.up, false);
  reserve(down_, wanted.down, false);
  reserve(step_host_, wanted.step, true);
  reserve(output_host_, wanted.output, true);
}

void Program::set_input(int id, const float* data, size_t rows) {
  recording_->check_value(id, 0);
  const Value& value = recording_->value(id);
  if (!value.is_input) throw error("value " + std::to_string(id) + " is not an input");
  const size_t bytes = rows * (size_t)value.width * sizeof(float);
  std::shared_ptr<Buffer>& buffer = buffers_[(size_t)value.buffer];
  is_begun_ = false;
  if (!buffer || buffer->bytes < bytes) {
    recorded_.clear();
    buffer.reset();
    buffer = device_->allocate(std::max<size_t>(bytes, 4));
  }
  device_->upload(*buffer, 0, data, bytes);
  input_rows_[(size_t)id] = rows;
}

void Program::check_grids(const Step& step) const {
  int size = 0;
  for (const Op& op : recording_->ops())
    if (op.size) size = op.size;
  if (!size) return;
  int64_t patches = 0;
  for (const auto& [rows, columns] : grids_) {
    if (rows < 1 || columns < 1 || rows > INT_MAX / columns || rows % size || columns % size)
      throw error("an image of " + std::to_string(rows) + " x " + std::to_string(columns) + " patches, wanted multiples of " + std::to_string(size));
    patches += (int64_t)rows * columns;
  }
  if (patches != step.num_tokens || step.num_rows != step.num_tokens / (size * size))
    throw error("images of " + std::to_string(patches) + " patches in a step of " + std::to_string(step.num_tokens) + " and " + std::to_string(step.num_rows) + " rows");
}

// The commands of a step, recorded or known.
Program::Recorded& Program::prepare(const Step& step, const Cache* cache) {
  check_grids(step);
  is_begun_ = has_outputs_ = false;
  num_tokens_ = step.num_tokens, num_rows_ = step.num_rows;
  inputs_.begin(step, cache);
  make_room(sizes(step.num_tokens, step.num_rows, (size_t)step.num_sequences * (size_t)inputs_.pages_per_sequence));
  inputs_.write((uint32_t*)step_host_->mapped);
  const bool has_features = inputs_.feature_rows_at >= 0;
  Key key{step.num_tokens, step.num_rows, step.num_sequences, inputs_.pages_per_sequence, inputs_.decode_units, inputs_.prefill_units, cache ? cache->id : 0,
          step.reach != nullptr, has_features, {}, grids_};
  for (const Op& op : recording_->ops()) key.chunks.push_back(op.kind == Kind::ATTEND ? inputs_.decode_chunks(op.shape.window) : 0);
  // Adapters of a step come and go: its commands serve once. Nor do those serve again whose parts have become too long.
  const auto serves = [&](const Recorded& r) { return r.key == key && (slowness_ < 2 * r.slowness || r.seconds * slowness_ < PART_SECONDS); };
  const auto known = step.adapters ? recorded_.end() : std::find_if(recorded_.begin(), recorded_.end(), serves);
  if (known != recorded_.end()) {
    recorded_.splice(recorded_.begin(), recorded_, known);
  } else {
    Recorded made{std::move(key)};
    made.slowness = slowness_;
    Encoder(*this, step, cache, made).encode();
    recorded_.push_front(std::move(made));
    if (recorded_.size() > KEPT_RECORDINGS) recorded_.pop_back();
  }
  return recorded_.front();
}

void Program::run(const Step& step, const Cache* cache) {
  const struct Adapters {  // held to the end of the step, however it ends
    explicit Adapters(AdapterRuns& runs, const Step& step) : runs(runs) { runs.begin(step); }
    ~Adapters() { runs.end(); }
    AdapterRuns& runs;
  } adapters(adapters_, step);
  const Recorded& recorded = prepare(step, cache);
  try {
    submit(recorded, step);
  } catch (...) {
    recorded_.clear();  // waits for what was submitted
    throw;
  }
  if (step.adapters) recorded_.pop_front();
  has_outputs_ = true;
}

void Program::begin(const Step& step, const Cache* cache) {
  if (recording_->lora().table) throw error("a step with adapters is not run in parts");
  if (host_experts_) throw error("a step with experts that stay in a file is not run in parts");
  prepare(step, cache);
  next_part_ = 0, taken_ = longest_part_ = 0;
  is_begun_ = true;
}

// The queue is empty between two parts: whoever waits for the device meanwhile waits for one part at most.
bool Program::proceed() {
  using Clock = std::chrono::steady_clock;
  if (!is_begun_) throw error("no step was begun, or its inputs have changed");
  const Recorded& recorded = recorded_.front();
  const auto start = Clock::now();
  try {
    if (is_cancelled_.exchange(false)) throw Error(Fault::CANCELLED, "the step was cancelled");
    recorded.parts[next_part_]->submit();
    recorded.parts[next_part_]->wait();
  } catch (...) {
    is_begun_ = false;
    recorded_.clear();
    throw;
  }
  const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
  taken_ += seconds;
  longest_part_ = std::max(longest_part_, seconds);
  if (++next_part_ < recorded.parts.size()) return true;
  learn(recorded, taken_, longest_part_);
  is_begun_ = false;
  has_outputs_ = true;
  return false;
}

// Two submissions are in the queue at a time: the device does not wait for the host, and a step can be cancelled between them.
// Before the CPU runs experts the queue is empty.
void Program::submit(const Recorded& recorded, const Step& step) {
  using Clock = std::chrono::steady_clock;
  const auto& parts = recorded.parts;
  const auto start = Clock::now();
  const auto elapsed = [&] { return std::chrono::duration<double>(Clock::now() - start).count(); };
  std::vector<double> begun(parts.size());
  double taken = 0, longest = 0, on_host = 0;
  size_t done = 0;
  const auto finish = [&](size_t end) {
    for (; done < end; done++) {
      parts[done]->wait();
      const double now = elapsed();
      longest = std::max(longest, now - std::max(taken, begun[done]));
      taken = now;
    }
  };
  for (size_t i = 0; i < parts.size(); i++) {
    if (i >= 2) finish(i - 1);
    if (is_cancelled_.exchange(false)) throw Error(Fault::CANCELLED, "the step was cancelled");
    begun[i] = elapsed();
    parts[i]->submit();
    if (recorded.host_ops[i] < 0) continue;
    finish(i + 1);
    run_on_host(recorded.host_ops[i], step);
    on_host += elapsed() - taken;
  }
  finish(parts.size());
  longest_part_ = longest;
  learn(recorded, taken - on_host, longest);
}

// The sum of the experts is the op after theirs.
void Program::run_on_host(int index, const Step& step) {
  const Op& op = recording_->ops()[(size_t)index];
  host_experts_->run(*device_, op, step, buffer(op.in[0]), buffer(op.in[1]), buffer(recording_->ops()[(size_t)index + 1].out[0]));
}

// Corrects the estimate of seconds.
void Program::learn(const Recorded& recorded, double taken, double longest) {
  // Ops differ in how well their seconds are estimated: the longest part counts where it is far too long.
  const double measured = std::max(taken / recorded.seconds, longest > 2 * PART_SECONDS ? slowness_ * longest / PART_SECONDS : 0);
  if (recorded.seconds > 1e-4) slowness_ = std::clamp(0.5 * (slowness_ + measured), 0.01, 2000.0);
}

void Program::read(int id, size_t rows, float* out) {
  recording_->check_value(id, 0);
  const size_t bytes = rows * (size_t)recording_->width(id) * sizeof(float);
  size_t at = 0;
  for (int other : outputs_) {
    const size_t own = (size_t)(recording_->value(other).per_output_row ? num_rows_ : num_tokens_) * (size_t)recording_->width(other) * sizeof(float);
    if (other == id && bytes > own) break;
    if (other == id && has_outputs_ && at + own <= OUTPUT_BYTES) return (void)std::memcpy(out, output_host_->mapped + at, bytes);
    at += own;
  }
  const Buffer* whole = buffers_[(size_t)recording_->value(id).buffer].get();
  if (!whole || bytes > whole->bytes) throw error("the last step has not " + std::to_string(rows) + " rows of value " + std::to_string(id));
  device_->download(*whole, 0, out, bytes);
}

}  // namespace brise::vk
