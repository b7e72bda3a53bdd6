// Ops as dispatches: see encoder.h.
#include "encoder.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "cache_layout.h"

namespace brise::vk {

std::string lower(const char* name) {
  std::string out(name);
  std::transform(out.begin(), out.end(), out.begin(), [](unsigned char c) { return (char)std::tolower(c); });
  return out;
}

Shape linear_shape(int cols, int tokens) {
  if (tokens > 8) return {128, 16, {128, 1, 16}};
  const int chunks = blocks(cols, 256), slots = blocks(chunks, blocks(chunks, 8)), tiles = std::max(1, 128 / (16 * slots)), own = tokens > 2 ? 4 : tokens;
  return {16 * tiles, own, {16 * slots * tiles, slots, own}};
}

Encoder::Word::Word(float value) { std::memcpy(&bits, &value, 4); }

Encoder::Encoder(const Program& program, const Step& step, const Cache* cache, Program::Recorded& out)
    : program_(program), recording_(*program.recording_), inputs_(program.inputs_), step_(step), cache_(cache), out_(out) {}

void Encoder::encode() {
  begin_part();
  commands_->copy(*program_.step_host_, 0, *program_.step_, 0, 4 * inputs_.words());
  written_.insert(step_buffer());
  const std::vector<Op>& ops = recording_.ops();
  for (size_t i = 0, end; i < ops.size(); i = end) {
    end = i + 1;
    while (ops[i].group >= 0 && end < ops.size() && ops[end].group == ops[i].group) end++;
    if (ops[i].group < 0) encode(ops[i], i);
    else encode_group(i, end);
  }
  commands_->barrier();
  size_t end = 0;
  for (int id : program_.outputs_) {
    const size_t bytes = (size_t)rows_of(id) * (size_t)width(id) * sizeof(float);
    if (end + bytes <= program_.output_host_->bytes) commands_->copy(*at(id), 0, *program_.output_host_, end, bytes);
    end += bytes;
  }
  commands_->barrier();
  end_part();
}

// All ops for PASS_ROWS rows after the other: what only they read has no more rows than that.
void Encoder::encode_group(size_t first, size_t last) {
  const int rows = all_rows_of(recording_.ops()[first].in[0]);
  for (pass_first_ = 0; pass_first_ < rows; pass_first_ += PASS_ROWS) {
    pass_rows_ = std::min(PASS_ROWS, rows - pass_first_);
    for (size_t i = first; i < last; i++) encode(recording_.ops()[i], i);
  }
  pass_first_ = 0, pass_rows_ = -1;
}

Binding Encoder::rows_at(int value) const {
  const Value& v = recording_.value(value);
  return {at(value), v.is_local ? 0 : (size_t)pass_first_ * (size_t)v.width * sizeof(float)};
}

void Encoder::begin_part() {
  out_.parts.push_back(std::make_unique<Commands>(*program_.device_));
  out_.host_ops.push_back(-1);
  commands_ = out_.parts.back().get();
  commands_->begin(false);
  commands_->barrier();
  read_ = current_in_, written_ = current_out_;
  seconds_ = 0;
}

void Encoder::end_part() {
  out_.seconds += seconds_;
  commands_->end();
}

void Encoder::leave_to_host(size_t index) {
  commands_->barrier();
  end_part();
  out_.host_ops.back() = (int)index;
  current_in_.clear(), current_out_.clear();
  begin_part();
}

void Encoder::spend(double seconds) {
  if (seconds_ > 0 && (seconds_ + seconds) * program_.slowness_ > PART_SECONDS) {
    end_part();
    begin_part();
  }
  seconds_ += seconds;
}

int Encoder::pieces(double seconds, int most) const {
  return std::clamp((int)std::min(std::ceil(seconds * program_.slowness_ / PART_SECONDS), 1e6), 1, std::max(most, 1));
}

void Encoder::use(const std::vector<const Buffer*>& in, const std::vector<const Buffer*>& out) {
  const auto is_written = [this](const Buffer* b) { return written_.count(b) > 0; };
  const auto is_used = [&](const Buffer* b) { return is_written(b) || read_.count(b) > 0; };
  if (std::any_of(in.begin(), in.end(), is_written) || std::any_of(out.begin(), out.end(), is_used)) {
    commands_->barrier();
    read_.clear(), written_.clear();
  }
  current_in_ = {in.begin(), in.end()}, current_out_ = {out.begin(), out.end()};
  read_.insert(in.begin(), in.end());
  written_.insert(out.begin(), out.end());
}

void Encoder::dispatch(const std::string& shader, std::initializer_list<Binding> bindings, Words push, std::array<int, 3> groups, const std::vector<int32_t>& constants) {
  std::vector<uint32_t> words;
  for (const Word& word : push) words.push_back(word.bits);
  const std::vector<Binding> bound(bindings);
  commands_->dispatch(program_.device_->pipeline(shader, constants), bound, words.data(), 4 * words.size(), {(uint32_t)groups[0], (uint32_t)groups[1], (uint32_t)groups[2]});
}

// A shader of rows, whose last binding is its output.
void Encoder::by_row(const std::string& shader, std::initializer_list<Binding> in, int out, Words push, int groups) {
  const int rows = rows_of(out);
  std::vector<Binding> bound(in);
  std::vector<const Buffer*> read;
  for (const Binding& binding : bound) read.push_back(binding.buffer);
  use(read, {at(out)});
  spend(rows * (double)width(out) * 12 / BYTES);
  bound.push_back(rows_at(out));
  std::vector<uint32_t> words;
  for (const Word& word : push) words.push_back(word.bits);
  commands_->dispatch(program_.device_->pipeline(shader, {}), bound, words.data(), 4 * words.size(), {(uint32_t)groups, (uint32_t)rows, 1});
}

void Encoder::encode(const Op& op, size_t index) {
  const auto in = [&](size_t i) { return rows_at(op.in[i]); };
  const int out = op.out.empty() ? -1 : op.out[0], n = out < 0 ? 0 : width(out), many = blocks(n, 256);
  if (out >= 0 && !rows_of(out)) return;  // a chunk of a prompt that gives no logits
  const auto vector = [&](size_t i) { return Binding{op.weights[i]->placed->ranges[0].buffer.get()}; };
  const Binding inputs{step_buffer()};
  switch (op.kind) {
    case Kind::INPUT:
    case Kind::ROPE_TABLE: return;  // uploaded before the step, and with it
    case Kind::EMBED: return embed(op);
    case Kind::TAKE_ROWS: return by_row("take_rows", {in(0), inputs}, out, {inputs_.rows_at, n}, many);
    case Kind::PUT_ROWS: return put_rows(op);
    case Kind::RMS_NORM: return by_row("rms_norm", {in(0), vector(0)}, out, {n / op.heads, op.heads, (float)op.a}, op.heads);
    case Kind::LAYER_NORM: return by_row("layer_norm", {in(0), vector(0), vector(1)}, out, {n, (float)op.a}, 1);
    case Kind::BIAS: return by_row("bias", {in(0), vector(0)}, out, {n}, many);
    case Kind::ADD: return by_row("add", {in(0), in(1)}, out, {n}, many);
    case Kind::SCALE: return by_row("scale", {in(0)}, out, {n, (float)op.a}, many);
    case Kind::SCALE_QUERIES: return by_row("scale_queries", {in(0), inputs}, out, {n, inputs_.made_at[index]}, many);
    case Kind::ROPE: {
      const int head_dim = n / op.heads, dim = width(op.in[1]);
      const bool is_input = recording_.value(op.in[1]).is_input;  // else it was made on the host
      return by_row("rope", {in(0), is_input ? in(1) : inputs}, out, {op.heads, head_dim, dim, is_input ? 0 : table_at(op.in[1]), (int)op.interleaved}, blocks(op.heads * (head_dim - dim / 2), 256));
    }
    case Kind::SILU_MUL: return by_row("silu_mul", {in(0), in(1)}, out, {n}, many);
    case Kind::GELU_MUL: return by_row("gelu_mul", {in(0), in(1)}, out, {n}, many);
    case Kind::GELU: return by_row("gelu", {in(0)}, out, {n}, many);
    case Kind::GELU_TANH: return by_row("gelu_tanh", {in(0)}, out, {n}, many);
    case Kind::COLUMNS: return by_row("columns", {in(0)}, out, {op.heads, width(op.in[0]) / op.heads, op.first, op.first + n / op.heads}, many);
    case Kind::CONCAT: return by_row("concat", {in(0), in(1)}, out, {op.heads, width(op.in[0]) / op.heads, width(op.in[1]) / op.heads}, many);
    case Kind::WRITE_CACHE: return write_cache(op);
    case Kind::QUANTIZE: return quantize(op);
    case Kind::LINEAR: return linear(op);
    case Kind::HEADS_LINEAR: return heads_linear(op);
    case Kind::ROUTE: return by_row("route", {in(0)}, out, {n, op.experts.per_token, (float)op.a}, 1);
    case Kind::EXPERTS: return;  // with the sum, which has the rows that they become
    case Kind::SUM_EXPERTS: return op.experts.is_resident() ? experts(recording_.ops()[index - 1], out) : leave_to_host(index - 1);
    case Kind::ATTEND: return attend(op, index);
    case Kind::MERGE_PATCHES:
    case Kind::MEAN_PATCHES: return patches(op);
    default: throw std::invalid_argument("an op without a shader");  // Program has refused it
  }
}

// Where the rows of numbers of a ROPE_TABLE begin in the step's buffer.
int Encoder::table_at(int value) const {
  for (size_t i = 0; i < recording_.ops().size(); i++)
    if (recording_.ops()[i].kind == Kind::ROPE_TABLE && recording_.ops()[i].out[0] == value) return inputs_.made_at[i];
  throw std::invalid_argument("value " + std::to_string(value) + " is no table of rotations");
}

void Encoder::embed(const Op& op) {
  const Weight& table = *op.weights[0];
  const Matrix& m = table.matrix;
  const int out = op.out[0];
  use({step_buffer()}, {at(out)});
  spend(rows_of(out) * (double)m.cols * 8 / BYTES);
  for (const auto& range : table.placed->ranges)
    dispatch("embed_" + lower(stored_format(m.format).name), {{range.buffer.get()}, {step_buffer()}, {at(out)}},
             {inputs_.tokens_at, range.first_row, range.rows, m.cols, range.offset / 4}, {blocks(m.cols, 2048), rows_of(out), 1});
  if (op.lora.index >= 0) adapt_embedding(op);
}

// Adds scale * A^T b, where b is the token's row of B; the adapter has B as its first matrix and A^T as its second.
void Encoder::adapt_embedding(const Op& op) {
  const Buffer *h = program_.lora_.get(), *out = at(op.out[0]);
  const int n = width(op.out[0]);
  size_t begin = 0;  // in h, in bytes
  for (const auto& run : program_.adapters_.of(op.lora)) {
    const auto* part = run.adapter->at(op.lora.targets[0]);
    if (!part) continue;
    const auto& placed = run.adapter->placed()->parts[(size_t)op.lora.targets[0]];
    const Matrix &b = part->a, &a = part->b;
    const int tokens = run.end - run.begin, rank = b.cols;
    const size_t bytes = (size_t)tokens * (size_t)rank * sizeof(float);
    use({step_buffer()}, {h});
    dispatch("embed_" + lower(stored_format(b.format).name), {placed.a, {step_buffer()}, {h, begin, bytes}},
             {inputs_.tokens_at + run.begin, 0, b.rows, rank, 0}, {blocks(rank, 2048), tokens, 1});
    use({h}, {out});
    const Shape shape = linear_shape(rank, tokens);
    dispatch("low_rank_" + lower(stored_format(a.format).name), {placed.b, {h}, {out}, placed.gain},
             {n, rank, tokens, 0, begin / 4, rank, run.begin * n, n, part->scale, 0}, {blocks(tokens, shape.tokens), blocks(n, shape.rows), 1}, shape.constants);
    begin += round_up(bytes, 256);
  }
}

// Without features the rows stay, and are copied if the value has memory of its own.
void Encoder::put_rows(const Op& op) {
  const int out = op.out[0], n = width(out);
  const bool has_features = inputs_.feature_rows_at >= 0;
  if (!has_features && at(op.in[0]) == at(out)) return;
  by_row("put_rows", {{at(op.in[0])}, {step_buffer()}, {step_buffer()}}, out, {has_features ? inputs_.feature_rows_at : -1, inputs_.features_at, n}, blocks(n, 256));
}

// A dispatch for each image.
void Encoder::patches(const Op& op) {
  const int x = op.in[0], out = op.out[0], n = width(out), square = op.size * op.size;
  use({at(x)}, {at(out)});
  spend(step_.num_tokens * (double)width(x) * 8 / BYTES);
  int first = 0;
  for (const auto& [rows, columns] : program_.grids_) {
    dispatch(op.kind == Kind::MERGE_PATCHES ? "merge_patches" : "mean_patches", {{at(x)}, {at(out)}}, {width(x), columns, op.size, first, first / square},
             {blocks(n, 256), rows * columns / square, 1});
    first += rows * columns;
  }
}

void Encoder::quantize(const Op& op) {
  const int x = op.in[0], n = width(x), rows = rows_of(x);
  const Buffer* to = program_.quantized_.get();
  use({at(x)}, {to});
  spend(rows * (double)n * 6 / BYTES);
  dispatch("quantize", {rows_at(x), {to}}, {n, rows, 0, n, 0}, {blocks(n, 256), rows, 1});
}

void Encoder::linear(const Op& op) {
  const int x = op.in[0], tokens = rows_of(x);
  const bool is_adapted = op.lora.index >= 0 && !program_.adapters_.of(op.lora).empty();
  if (is_adapted) adapters_down(op);
  for (size_t which = 0; which < op.weights.size(); which++) {
    const Matrix& m = op.weights[which]->matrix;
    const int out = op.out[which];
    const Binding from = m.is_float() ? rows_at(x) : Binding{program_.quantized_.get()}, to = rows_at(out);
    const Shape shape = linear_shape(m.cols, tokens);
    const std::string shader = "linear_" + lower(stored_format(m.format).name);
    use({from.buffer}, {to.buffer});
    for (const auto& range : op.weights[which]->placed->ranges) {
      const int tiles = blocks(range.rows, TILE);
      const double work = 2.0 * tokens * range.rows * m.cols, seconds = std::max((double)tiles * (double)m.tile_bytes / BYTES, work / (m.is_float() ? FLOATS : DOTS));
      const int step = blocks(blocks(tiles, pieces(seconds, tiles)) * TILE, shape.rows) * shape.rows;  // whole workgroups
      for (int first = 0; first < range.rows; first += step) {
        const int rows = std::min(step, range.rows - first);
        spend(seconds * rows / range.rows);
        const size_t weights_at = (range.offset + (size_t)(first / TILE) * m.tile_bytes) / 4;
        const std::array<int, 3> groups = {blocks(tokens, shape.tokens), blocks(rows, shape.rows), 1};
        if (m.is_float())
          dispatch(shader, {{range.buffer.get()}, from, to}, {rows, m.cols, tokens, weights_at, 0, m.cols, range.first_row + first, width(out)}, groups, shape.constants);
        else
          dispatch(shader, {{range.buffer.get()}, from, to}, {rows, m.cols, tokens, weights_at, 0, range.first_row + first, width(out)}, groups, shape.constants);
      }
    }
  }
  if (is_adapted) adapters_up(op);
}

// h = A x, as on the CPU: a row of h has the op's targets one after the other.
void Encoder::adapters_down(const Op& op) {
  const int x = op.in[0], cols = width(x), rank = recording_.lora().table->max_rank, ld = (int)(program_.lora_row_bytes() / sizeof(float));
  const Buffer* h = program_.lora_.get();
  use({at(x)}, {h});
  for (const auto& run : program_.adapters_.of(op.lora))
    for (size_t which = 0; which < op.lora.targets.size(); which++) {
      const int target = op.lora.targets[which], tokens = run.end - run.begin;
      const auto* part = target < 0 ? nullptr : run.adapter->at(target);
      if (!part) continue;
      const Shape shape = linear_shape(cols, tokens);
      dispatch("linear_" + lower(stored_format(part->a.format).name), {run.adapter->placed()->parts[(size_t)target].a, {at(x)}, {h}},
               {part->a.rows, cols, tokens, 0, run.begin * cols, cols, run.begin * ld + (int)which * rank, ld},
               {blocks(tokens, shape.tokens), blocks(part->a.rows, shape.rows), 1}, shape.constants);
    }
}

// y = (y + scale * B h) * gain
void Encoder::adapters_up(const Op& op) {
  const int max_rank = recording_.lora().table->max_rank, ld = (int)(program_.lora_row_bytes() / sizeof(float));
  const Buffer* h = program_.lora_.get();
  for (size_t which = 0; which < op.lora.targets.size(); which++) {
    const int target = op.lora.targets[which], out = op.out[which], n = width(out);
    if (target < 0) continue;
    use({h}, {at(out)});
    for (const auto& run : program_.adapters_.of(op.lora)) {
      const auto* part = run.adapter->at(target);
      if (!part) continue;
      const auto& placed = run.adapter->placed()->parts[(size_t)target];
      const int tokens = run.end - run.begin, rank = part->b.cols;
      const Shape shape = linear_shape(rank, tokens);
      dispatch("low_rank_" + lower(stored_format(part->b.format).name), {placed.b, {h}, {at(out)}, placed.gain},
               {n, rank, tokens, 0, run.begin * ld + (int)which * max_rank, ld, run.begin * n, n, part->scale, (int)!part->gain.empty()},
               {blocks(tokens, shape.tokens), blocks(n, shape.rows), 1}, shape.constants);
    }
  }
}

void Encoder::write_cache(const Op& op) {
  const int rows = rows_of(op.in[0]);
  spend(rows * (double)width(op.in[0]) * 8 / BYTES);
  for (size_t side = 0; side < op.in.size(); side++) {
    const Buffer* to = &cache_->side(op.layer, (int)side);
    use({at(op.in[side]), step_buffer()}, {to});
    dispatch(std::string("write_cache_") + cache_->format_name(), {{at(op.in[side])}, {step_buffer()}, {to}},
             {inputs_.slots_at, cache_->kv_heads, cache_->head_dim, cache_->page_size, cache_->scales_at()}, {cache_->kv_heads, rows, 1});
  }
}

// Of latents the first `rank` numbers of a key are its value.
int Encoder::value_dim(const Op& op) { return op.shape.rank ? op.shape.rank : op.shape.head_dim; }

double Encoder::attend_seconds(const Op& op, double keys) const { return 4.0 * op.shape.heads * op.shape.head_dim * keys / FLOATS; }

void Encoder::attend(const Op& op, size_t index) {
  attend_units(op, inputs_.prefill(), inputs_.prefill_at);
  // A token whose parts are too many for the scratch space is attended over in one dispatch: the numbers are the same.
  const int chunks = out_.key.chunks[index];
  const size_t bytes = (size_t)op.shape.heads * (size_t)chunks * (size_t)(value_dim(op) + 2) * sizeof(float);
  if (bytes > program_.partial_->bytes) attend_units(op, inputs_.decode(), inputs_.decode_at);
  else attend_decoded(op, chunks, (int)(program_.partial_->bytes / bytes));
}

void Encoder::attend_units(const Op& op, const StepInputs::Units& units, int units_at) {
  const Buffer *keys = &cache_->side(op.layer, 0), *values = &cache_->side(op.layer, op.shape.rank ? 0 : 1), *q = at(op.in[0]), *out = at(op.out[0]);
  const AttendShape& s = op.shape;
  const AttendCut cut = attend_cut(s.heads / s.kv_heads, s.head_dim, false);
  use({q, step_buffer(), keys, values}, {out});
  const int num = (int)units.size();
  if (!num) return;
  const double seconds = attend_seconds(op, inputs_.keys(units, 0, num, s.window));
  const int step = blocks(num, pieces(seconds, num));
  for (int first = 0; first < num; first += step) {
    const int count = std::min(step, num - first);
    spend(attend_seconds(op, inputs_.keys(units, first, first + count, s.window)));
    dispatch(std::string("attend_") + cache_->format_name(), {{q}, {step_buffer()}, {keys}, {values}, {out}},
             {inputs_.positions_at, inputs_.reach_at, inputs_.pages_at, inputs_.pages_per_sequence, units_at + 4 * first, s.heads, s.kv_heads, cache_->page_size, s.window,
              cache_->scales_at(), cache_->scales_at(), 1, s.scale},
             {count, s.kv_heads * cut.parts, 1}, {cut.rows, s.head_dim, value_dim(op)});
  }
}

// The chunks of 512 keys of each token apart, then their merge; `most` tokens at a time.
void Encoder::attend_decoded(const Op& op, int chunks, int most) {
  const Buffer *keys = &cache_->side(op.layer, 0), *values = &cache_->side(op.layer, op.shape.rank ? 0 : 1), *q = at(op.in[0]), *out = at(op.out[0]), *partial = program_.partial_.get();
  const AttendShape& s = op.shape;
  const AttendCut cut = attend_cut(s.heads / s.kv_heads, s.head_dim, true);
  for (int first = 0, num = inputs_.decode_units; first < num; first += most) {
    const int count = std::min(most, num - first), units_at = inputs_.decode_at + 4 * first;
    use({q, step_buffer(), keys, values}, {partial});
    spend(attend_seconds(op, inputs_.keys(inputs_.decode(), first, first + count, s.window)));
    dispatch(std::string("attend_chunks_") + cache_->format_name(), {{q}, {step_buffer()}, {keys}, {values}, {partial}},
             {inputs_.positions_at, inputs_.reach_at, inputs_.pages_at, inputs_.pages_per_sequence, units_at, s.heads, s.kv_heads, cache_->page_size, s.window,
              cache_->scales_at(), cache_->scales_at(), chunks, s.scale},
             {chunks, s.kv_heads * cut.parts, count}, {cut.rows, s.head_dim, value_dim(op)});
    use({partial, step_buffer()}, {out});
    dispatch("attend_merge", {{partial}, {step_buffer()}, {out}}, {inputs_.positions_at, inputs_.reach_at, units_at, s.heads, s.window, chunks, value_dim(op)}, {s.heads, count, 1});
  }
}

}  // namespace brise::vk
