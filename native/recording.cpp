// Recording of ops: see recording.h.
#include "recording.h"

#include <algorithm>
#include <stdexcept>

namespace brise {

namespace {

std::invalid_argument error(const std::string& what) { return std::invalid_argument(what); }

// Ops whose result may overwrite their first argument: each number of a row is read before it is written.
bool may_overwrite(Kind kind) {
  return kind == Kind::RMS_NORM || kind == Kind::LAYER_NORM || kind == Kind::BIAS || kind == Kind::ADD || kind == Kind::ROPE ||
         kind == Kind::SCALE || kind == Kind::SCALE_QUERIES || kind == Kind::SILU_MUL || kind == Kind::GELU_MUL ||
         kind == Kind::GELU || kind == Kind::GELU_TANH || kind == Kind::PUT_ROWS;
}

// Ops that read no other row than they write, and nothing of the step's arrays.
bool may_be_grouped(Kind kind) {
  return kind == Kind::RMS_NORM || kind == Kind::LAYER_NORM || kind == Kind::BIAS || kind == Kind::ADD || kind == Kind::SCALE || kind == Kind::SILU_MUL ||
         kind == Kind::GELU_MUL || kind == Kind::GELU || kind == Kind::GELU_TANH || kind == Kind::LINEAR;
}

}  // namespace

int Recording::push(Op op, int width, bool per_output_row) {
  check_recording();
  if (width < 1) throw error("a value is " + std::to_string(width) + " wide, it must be at least 1");
  if (group_ >= 0 && !may_be_grouped(op.kind)) throw error("an op that reads other rows than it writes stands in a group");
  const int id = (int)values_.size();
  values_.push_back({width, per_output_row, op.kind == Kind::INPUT});
  values_.back().group = op.group = group_;
  op.out.push_back(id);
  ops_.push_back(std::move(op));
  return id;
}

void Recording::check_value(int id, int width) const {
  if (id < 0 || id >= (int)values_.size()) throw error("no value " + std::to_string(id));
  if (width && values_[(size_t)id].width != width)
    throw error("value is " + std::to_string(values_[(size_t)id].width) + " wide, wanted " + std::to_string(width));
}

void Recording::check_recording() const {
  if (is_finished_) throw error("the program is finished already");
}

// There are rows per token and rows per output, in different numbers: an op takes one kind.
void Recording::check_rows(int id, bool per_output_row) const {
  if (values_[(size_t)id].per_output_row != per_output_row)
    throw error(per_output_row ? "value has a row for each token, wanted one for each output" : "value has a row for each output, wanted one for each token");
}

void Recording::check_like(int id, int other) const {
  check_value(other, 0);
  check_value(id, width(other));
  check_rows(id, values_[(size_t)other].per_output_row);
}

int Recording::width(int id) const {
  check_value(id, 0);
  return values_[(size_t)id].width;
}

int Recording::input(int width) { return push({Kind::INPUT}, width, false); }

int Recording::embed(std::shared_ptr<const Weight> table) {
  const int width = table->matrix.cols;
  if (!table->matrix.rows) throw error("an embedding needs a matrix, got a vector");
  vocabulary_ = std::min(vocabulary_, table->matrix.rows);
  Op op{Kind::EMBED};
  op.weights = {std::move(table)};
  return push(std::move(op), width, false);
}

int Recording::adapted_embed(std::shared_ptr<const Weight> embedding, std::shared_ptr<const LoraTable> table, int target) {
  if (!table || target < 0 || target >= (int)table->shapes.size() || !table->shapes[(size_t)target].is_embedding)
    throw error("target " + std::to_string(target) + " is no embedding of the table");
  const MatrixShape& shape = table->shapes[(size_t)target];
  if (embedding->matrix.rows != shape.rows || embedding->matrix.cols != shape.cols)
    throw error("target " + std::to_string(target) + " has " + std::to_string(shape.rows) + " rows and " + std::to_string(shape.cols) + " columns, the embedding has others");
  const int out = embed(std::move(embedding));
  ops_.back().lora = adapted(std::move(table), {target}, false);
  return out;
}

int Recording::take_rows(int x) {
  check_value(x, 0);
  check_rows(x, false);
  return push({Kind::TAKE_ROWS, {x}}, width(x), true);
}

LoraTargets Recording::adapted(std::shared_ptr<const LoraTable> table, std::vector<int> targets, bool per_output_row) {
  if (lora_.table && lora_.table != table) throw error("a program takes adapters of one table");
  lora_.table = std::move(table);
  lora_.widest = std::max(lora_.widest, targets.size());
  return {std::move(targets), lora_.num_ops++, per_output_row};
}

std::vector<int> Recording::linears(int x, const std::vector<std::shared_ptr<const Weight>>& weights) {
  check_recording();
  if (weights.empty()) throw error("linears without a weight");
  for (const auto& w : weights)  // before any value is made: a value without an op would have no memory
    if (w->matrix.cols != width(x))
      throw error("weight has " + std::to_string(w->matrix.cols) + " columns, x is " + std::to_string(width(x)) + " wide");
  Op op{Kind::LINEAR, {x}};
  for (const auto& w : weights) {
    op.out.push_back((int)values_.size());
    values_.push_back({w->matrix.rows, values_[(size_t)x].per_output_row});
    values_.back().group = op.group = group_;
    op.weights.push_back(w);
  }
  ops_.push_back(op);
  return op.out;
}

std::vector<int> Recording::adapted_linears(int x, const std::vector<std::shared_ptr<const Weight>>& weights, std::shared_ptr<const LoraTable> table, std::vector<int> targets) {
  check_value(x, 0);
  if (!table || targets.size() != weights.size()) throw error("a table of adapters and a target for each matrix wanted");
  for (size_t i = 0; i < targets.size(); i++) {
    if (targets[i] < -1 || targets[i] >= (int)table->shapes.size()) throw error("no target " + std::to_string(targets[i]) + " in the table");
    if (targets[i] < 0) continue;
    const auto [rows, cols, is_embedding] = table->shapes[(size_t)targets[i]];
    if (is_embedding) throw error("target " + std::to_string(targets[i]) + " is an embedding");
    if (weights[i]->matrix.rows != rows || weights[i]->matrix.cols != cols)
      throw error("target " + std::to_string(targets[i]) + " has " + std::to_string(rows) + " rows and " + std::to_string(cols) + " columns, the weight has others");
  }
  if (group_ >= 0) throw error("an adapter in a group");
  std::vector<int> out = linears(x, weights);
  ops_.back().lora = adapted(std::move(table), std::move(targets), values_[(size_t)x].per_output_row);
  return out;
}

int Recording::bias(int x, std::shared_ptr<const Weight> b) {
  if (b->vector.empty()) throw error("a bias needs a vector, got a matrix");
  check_value(x, (int)b->vector.size());
  Op op{Kind::BIAS, {x}};
  op.weights = {std::move(b)};
  return push(std::move(op), width(x), values_[(size_t)x].per_output_row);
}

int Recording::add(int x, int y) {
  check_like(y, x);
  return push({Kind::ADD, {x, y}}, width(x), values_[(size_t)x].per_output_row);
}

int Recording::rms_norm(int x, std::shared_ptr<const Weight> w, double eps) {
  check_value(x, 0);
  const int n = (int)w->vector.size();
  if (!n || width(x) % n) throw error("norm of " + std::to_string(n) + " numbers on rows of " + std::to_string(width(x)));
  Op op{Kind::RMS_NORM, {x}};
  op.heads = width(x) / n;
  op.a = eps;
  op.weights = {std::move(w)};
  return push(std::move(op), width(x), values_[(size_t)x].per_output_row);
}

int Recording::layer_norm(int x, std::shared_ptr<const Weight> w, std::shared_ptr<const Weight> b, double eps) {
  if (w->vector.empty() || b->vector.size() != w->vector.size())
    throw error("layer_norm of " + std::to_string(w->vector.size()) + " weights and " + std::to_string(b->vector.size()) + " biases, wanted as many of both");
  check_value(x, (int)w->vector.size());
  Op op{Kind::LAYER_NORM, {x}};
  op.a = eps;
  op.weights = {std::move(w), std::move(b)};
  return push(std::move(op), width(x), values_[(size_t)x].per_output_row);
}

int Recording::rope_table(const std::vector<double>& inv_freq, double attention_factor) {
  Op op{Kind::ROPE_TABLE};
  op.inv_freq = inv_freq;
  op.a = attention_factor;
  return push(std::move(op), (int)inv_freq.size() * 2, false);
}

int Recording::rope(int x, int table, int heads, bool interleaved) {
  check_value(x, 0);
  check_value(table, 0);
  check_rows(x, false);
  check_rows(table, false);
  if (heads < 1 || width(x) % heads || width(table) > width(x) / heads) throw error("rope table wider than a head");
  Op op{Kind::ROPE, {x, table}};
  op.heads = heads;
  op.interleaved = interleaved;
  return push(std::move(op), width(x), false);
}

int Recording::scale(int x, double factor) {
  check_value(x, 0);
  Op op{Kind::SCALE, {x}};
  op.a = factor;
  return push(std::move(op), width(x), values_[(size_t)x].per_output_row);
}

int Recording::scale_queries(int x, double beta, double period) {
  check_value(x, 0);
  check_rows(x, false);
  Op op{Kind::SCALE_QUERIES, {x}};
  op.a = beta;
  op.b = period;
  return push(std::move(op), width(x), false);
}

int Recording::silu_mul(int gate, int up) {
  check_like(up, gate);
  return push({Kind::SILU_MUL, {gate, up}}, width(gate), values_[(size_t)gate].per_output_row);
}

int Recording::gelu_mul(int gate, int up) {
  check_like(up, gate);
  return push({Kind::GELU_MUL, {gate, up}}, width(gate), values_[(size_t)gate].per_output_row);
}

int Recording::gelu(int x) {
  check_value(x, 0);
  return push({Kind::GELU, {x}}, width(x), values_[(size_t)x].per_output_row);
}

int Recording::gelu_tanh(int x) {
  check_value(x, 0);
  return push({Kind::GELU_TANH, {x}}, width(x), values_[(size_t)x].per_output_row);
}

int Recording::put_rows(int x) {
  check_value(x, feature_width_);
  check_rows(x, false);
  feature_width_ = width(x);
  return push({Kind::PUT_ROWS, {x}}, width(x), false);
}

int Recording::columns(int x, int heads, int first, int last) {
  check_value(x, 0);
  if (heads < 1 || width(x) % heads) throw error("a row of " + std::to_string(width(x)) + " as " + std::to_string(heads) + " heads; wanted a divisor");
  if (first < 0 || first >= last || last > width(x) / heads)
    throw error("columns " + std::to_string(first) + " to " + std::to_string(last) + " wanted of a head of " + std::to_string(width(x) / heads));
  Op op{Kind::COLUMNS, {x}};
  op.heads = heads;
  op.first = first;
  return push(std::move(op), heads * (last - first), values_[(size_t)x].per_output_row);
}

int Recording::concat(int x, int y, int heads) {
  check_value(x, 0);
  check_value(y, 0);
  check_rows(y, values_[(size_t)x].per_output_row);
  if (heads < 1 || width(x) % heads || width(y) % heads) throw error(std::to_string(heads) + " heads wanted of both values");
  Op op{Kind::CONCAT, {x, y}};
  op.heads = heads;
  return push(std::move(op), width(x) + width(y), values_[(size_t)x].per_output_row);
}

int Recording::heads_linear(int x, const std::vector<std::shared_ptr<const Weight>>& matrices) {
  check_value(x, 0);
  check_rows(x, false);
  if (matrices.empty()) throw error("heads_linear needs a matrix for each head");
  const Matrix& first = matrices[0]->matrix;
  if (!first.rows || (size_t)width(x) != (size_t)first.cols * matrices.size())
    throw error("rows of " + std::to_string(width(x)) + ", wanted " + std::to_string(matrices.size()) + " heads of " + std::to_string(first.cols));
  if ((size_t)first.rows * matrices.size() > INT_MAX) throw error("heads_linear is too wide, wanted less");
  for (const auto& w : matrices)
    if (w->matrix.rows != first.rows || w->matrix.cols != first.cols || w->matrix.format != first.format) throw error("matrices of one format and shape wanted");
  Op op{Kind::HEADS_LINEAR, {x}};
  op.weights = matrices;
  return push(std::move(op), first.rows * (int)matrices.size(), false);
}

int Recording::attend(int q, int k, int v, int layer, int heads, int kv_heads, double scale, int window) {
  check_recording();
  check_value(q, 0);
  if (layer < 0 || window < 0) throw error("layer " + std::to_string(layer) + " or window " + std::to_string(window) + " is negative");
  if (heads < 1 || kv_heads < 1 || heads % kv_heads || width(q) % heads) throw error("heads do not divide the queries");
  const int head_dim = width(q) / heads;
  check_value(k, kv_heads * head_dim);
  check_value(v, kv_heads * head_dim);
  for (int id : {q, k, v}) check_rows(id, false);
  return push_attend({k, v}, q, layer, {heads, kv_heads, head_dim, window, (float)scale}, width(q));
}

int Recording::attend_latent(int q, int kv, int layer, int heads, double scale, int rank) {
  check_recording();
  check_value(q, 0);
  if (layer < 0) throw error("layer " + std::to_string(layer) + " is negative");
  if (heads < 1 || width(q) % heads) throw error("heads do not divide the queries, wanted a divisor");
  const int head_dim = width(q) / heads;
  check_value(kv, head_dim);
  if (rank < 1 || rank > head_dim) throw error("rank " + std::to_string(rank) + " of a key of " + std::to_string(head_dim) + ", wanted 1 to all of it");
  for (int id : {q, kv}) check_rows(id, false);
  return push_attend({kv}, q, layer, {heads, 1, head_dim, 0, (float)scale, rank}, heads * rank);
}

// Keys and values are written to the cache before any query reads them.
int Recording::push_attend(std::vector<int> kept, int q, int layer, const AttendShape& shape, int width) {
  if (group_ >= 0) throw error("attention in a group");
  if (heads_ && (heads_ != shape.heads || kv_heads_ != shape.kv_heads || is_latent_ != (shape.rank > 0)))
    throw error("layers differ in their heads");
  Op write{Kind::WRITE_CACHE, std::move(kept)};
  write.layer = layer;
  ops_.push_back(std::move(write));
  Op op{Kind::ATTEND, {q}};
  op.layer = layer;
  op.shape = shape;
  heads_ = shape.heads;
  kv_heads_ = shape.kv_heads;
  is_latent_ = shape.rank > 0;
  max_head_dim_ = std::max(max_head_dim_, shape.head_dim);
  return push(std::move(op), width, false);
}

int Recording::route(int logits, int per_token, double scale) {
  check_value(logits, 0);
  if (per_token < 1 || per_token > width(logits))
    throw error(std::to_string(per_token) + " experts a token of " + std::to_string(width(logits)) + "; wanted 1 to as many as there are");
  Op op{Kind::ROUTE, {logits}};
  op.experts.per_token = per_token;
  op.a = scale;
  return push(std::move(op), width(logits), values_[(size_t)logits].per_output_row);
}

int Recording::experts(int x, int gates, std::shared_ptr<const Stack> w1, std::shared_ptr<const Stack> w2, std::shared_ptr<const Stack> w3) {
  check_recording();
  check_value(x, w1->cols);
  check_value(gates, w1->count);
  check_rows(x, false);
  check_rows(gates, false);
  if (w2->count != w1->count || w3->count != w1->count || w3->cols != w1->cols || w3->rows != w1->rows || w2->cols != w1->rows || w2->rows != w1->cols)
    throw error("the stacks of the experts do not fit together, wanted w1 and w3 (X, F, D), w2 (X, D, F)");
  Op op{Kind::EXPERTS, {x, gates}};
  // The gates say how many experts a token has, if they come from `route`: work space is made for no more.
  const auto from = std::find_if(ops_.begin(), ops_.end(), [gates](const Op& o) { return o.kind == Kind::ROUTE && o.out[0] == gates; });
  op.experts = {std::move(w1), std::move(w2), std::move(w3), from == ops_.end() ? width(gates) : from->experts.per_token};
  Op sum{Kind::SUM_EXPERTS};
  sum.experts = op.experts;
  ops_.push_back(std::move(op));
  return push(std::move(sum), width(x), false);
}

std::shared_ptr<const Recording> Recording::of_experts(const Experts& experts) {
  auto out = std::make_shared<Recording>();
  const int x = out->input(experts.width()), gates = out->input(experts.w1->count);
  const int y = out->experts(x, gates, experts.w1, experts.w2, experts.w3);
  for (Op& op : out->ops_)
    if (op.experts.w1) op.experts.per_token = experts.per_token;
  out->finish({y});
  return out;
}

int Recording::merge_patches(int x, int size) {
  check_value(x, 0);
  check_rows(x, false);
  if (size < 1 || size > 64) throw error("squares of " + std::to_string(size) + " patches a side, wanted 1 to 64");
  if (width(x) > INT_MAX / (size * size)) throw error("squares of " + std::to_string(size) + " patches a side of " + std::to_string(width(x)) + " numbers are too wide");
  Op op{Kind::MERGE_PATCHES, {x}};
  op.size = size;
  return push(std::move(op), width(x) * size * size, true);
}

int Recording::mean_patches(int x, int size) {
  const int out = merge_patches(x, size);
  ops_.back().kind = Kind::MEAN_PATCHES;
  values_.back().width = width(x);
  return out;
}

void Recording::begin_group() {
  check_recording();
  if (group_ >= 0) throw error("a group in a group");
  group_ = num_groups_++;
}

void Recording::end_group() {
  if (group_ < 0) throw error("no group to end");
  group_ = -1;
}

// A linear with block formats reads int8 activations: a row op before it quantizes them.
void Recording::insert_row_ops() {
  std::vector<Op> out;
  for (auto& op : ops_) {
    const bool quantized = (op.kind == Kind::LINEAR || op.kind == Kind::HEADS_LINEAR) && std::any_of(op.weights.begin(), op.weights.end(), [](const auto& w) { return !w->matrix.is_float(); });
    if (quantized) {
      out.push_back({Kind::QUANTIZE, {op.in[0]}});
      out.back().group = op.group;
      max_groups_ = std::max(max_groups_, width(op.in[0]) / 32);
    }
    out.push_back(std::move(op));
  }
  ops_ = std::move(out);
}

// Uses come in order: if the last one is in the group, all are.
void Recording::find_local() {
  for (Value& value : values_)
    value.is_local = value.group >= 0 && (value.last_use < 0 || (value.last_use < (int)ops_.size() && ops_[(size_t)value.last_use].group == value.group));
}

// Buffers are reused only by values of the same width: within a phase threads are at different rows, and so a
// row has the same place in every value of a buffer. TAKE_ROWS reads rows other than its own, so its argument's buffer
// is not reused. Nor is that of an input, which is filled before the run.
void Recording::make_buffers(const std::vector<int>& outputs) {
  for (int i = 0; i < (int)ops_.size(); i++)
    for (int id : ops_[(size_t)i].in) values_[(size_t)id].last_use = i;
  for (int id : outputs) values_[(size_t)id].last_use = (int)ops_.size();
  find_local();
  std::vector<int> spare;
  for (int i = 0; i < (int)ops_.size(); i++) {
    const Op& op = ops_[(size_t)i];
    const auto release = [&](size_t first, size_t last) {
      for (size_t j = first; j < last && op.kind != Kind::TAKE_ROWS; j++) {
        const Value& value = values_[(size_t)op.in[j]];
        if (value.last_use == i && !value.is_input && std::find(spare.begin(), spare.end(), value.buffer) == spare.end())
          spare.push_back(value.buffer);
      }
    };
    // Buffers of arguments that the result may overwrite are released before it gets one, the others after it: ROPE
    // needs its table to the end of the row.
    const size_t before = !may_overwrite(op.kind) ? 0 : op.kind == Kind::ROPE ? 1 : op.in.size();
    release(0, before);
    for (int id : op.out) {
      Value& value = values_[(size_t)id];
      const Shape shape{value.width, value.is_local};
      const auto fits = std::find_if(spare.begin(), spare.end(), [&](int b) { return buffer_shapes_[(size_t)b] == shape; });
      if (fits != spare.end() && op.kind != Kind::INPUT) {
        value.buffer = *fits;
        spare.erase(fits);
      } else {
        value.buffer = (int)buffer_shapes_.size();
        buffer_shapes_.push_back(shape);
      }
    }
    release(before, op.in.size());
    for (int id : op.out)  // a result that nobody reads
      if (values_[(size_t)id].last_use < 0 && !values_[(size_t)id].is_input) spare.push_back(values_[(size_t)id].buffer);
  }
}

void Recording::finish(const std::vector<int>& outputs) {
  check_recording();
  if (group_ >= 0) throw error("a group has no end");
  for (int id : outputs) check_value(id, 0);
  insert_row_ops();
  make_buffers(outputs);
  is_finished_ = true;
}

void Recording::check_step(const CacheShape* cache, int num_tokens) const {
  if (is_latent_ && num_tokens > INT_MAX / heads_) throw error("a step of " + std::to_string(num_tokens) + " tokens has too many query rows");
  for (const auto& op : ops_) {
    for (const auto& w : op.weights)
      if (w->is_shape_only) throw error("the program was recorded to be planned: a weight of it has no memory");
    for (const auto& stack : {op.experts.w1, op.experts.w2, op.experts.w3})
      if (stack && stack->is_resident() && stack->matrices[0]->is_shape_only) throw error("the program was recorded to be planned: its experts have no memory");
    if (op.kind == Kind::EXPERTS && num_tokens > INT_MAX / 2 / op.experts.per_token)
      throw error("a step of " + std::to_string(num_tokens) + " tokens with " + std::to_string(op.experts.per_token) + " experts each is too large");
    if (op.kind != Kind::ATTEND) continue;
    if (!cache) throw error("the program has attention, which needs a cache");
    const int sides = op.shape.rank ? 1 : 2;
    if (cache->sides != sides) throw error(sides == 1 ? "latents on a cache of keys and values" : "keys and values on a cache of latents");
    if (op.layer >= cache->layers || op.shape.kv_heads != cache->kv_heads || op.shape.head_dim != cache->head_dim)
      throw error("attention of layer " + std::to_string(op.layer) + " with " + std::to_string(op.shape.kv_heads) + " heads of " +
                  std::to_string(op.shape.head_dim) + " on a cache of " + std::to_string(cache->layers) + " layers with " +
                  std::to_string(cache->kv_heads) + " heads of " + std::to_string(cache->head_dim));
  }
}

}  // namespace brise
