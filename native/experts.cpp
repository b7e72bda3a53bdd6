// Experts: see experts.h.
#include "experts.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <stdexcept>
#include <string>

#include "program.h"

namespace brise {

namespace {

std::invalid_argument error(const std::string& what) { return std::invalid_argument(what); }

std::string shape_of(const Stack& w) {
  return std::to_string(w.count) + " matrices of " + std::to_string(w.rows) + " rows and " + std::to_string(w.cols) + " columns";
}

size_t at_least(std::unique_ptr<Memory>& memory, size_t bytes) {
  if (bytes && (!memory || memory->size() < bytes)) memory = std::make_unique<Memory>(bytes);
  return memory ? memory->size() : 0;
}

float* floats(const std::unique_ptr<Memory>& memory) { return memory ? (float*)memory->data() : nullptr; }
QBlock* blocks(const std::unique_ptr<Memory>& memory) { return memory ? (QBlock*)memory->data() : nullptr; }

// The number of rows of QBlocks that n places take: whole blocks of 12 once there is more than one.
int padded(int n) { return n <= TOKEN_BLOCK ? n : (n + TOKEN_BLOCK - 1) / TOKEN_BLOCK * TOKEN_BLOCK; }

}  // namespace

Stack::Stack(std::vector<std::shared_ptr<const Weight>> given) : matrices(std::move(given)) {
  if (matrices.empty() || !matrices[0]) throw error("a stack without matrices");
  const Matrix& first = matrices[0]->matrix;
  count = (int)matrices.size(), rows = first.rows, cols = first.cols, format = first.format;
  for (const auto& w : matrices)
    if (!w || !w->matrix.rows || w->matrix.rows != rows || w->matrix.cols != cols || w->matrix.format != format)
      throw error("the matrices of a stack have one shape and one format");
}

Stack::Stack(std::shared_ptr<ExpertStore> store, int count, Format format, int rows, int cols, Load load)
    : count(count), rows(rows), cols(cols), format(format), store(std::move(store)), load_(std::move(load)) {
  if (count < 1 || rows < 1 || cols < 1 || cols % block_columns(format)) throw error("no stack has " + shape_of(*this));
  if (matrix_bytes() > this->store->budget())
    throw error("the store holds " + std::to_string(this->store->budget()) + " bytes, one matrix takes " + std::to_string(matrix_bytes()));
  id = this->store->new_id();
}

size_t Stack::matrix_bytes() const { return packed_bytes(format, rows, cols); }

std::shared_ptr<const Weight> Stack::load(int index) const {
  std::shared_ptr<const Weight> weight = load_(index);
  if (!weight || weight->matrix.rows != rows || weight->matrix.cols != cols || weight->matrix.format != format)
    throw error("a matrix was loaded that is not one of " + shape_of(*this));
  return weight;
}

size_t ExpertStore::nbytes() {
  std::lock_guard lock(mutex_);
  return used_;
}

size_t ExpertStore::num_loads() {
  std::lock_guard lock(mutex_);
  return num_loads_;
}

int ExpertStore::new_id() {
  std::lock_guard lock(mutex_);
  return num_stacks_++;
}

bool ExpertStore::has(const Wanted& wanted) {
  std::lock_guard lock(mutex_);
  return by_key_.count({wanted.first->id, wanted.second}) > 0;
}

std::vector<std::shared_ptr<const Weight>> ExpertStore::hold(const std::vector<Wanted>& wanted) {
  std::lock_guard lock(mutex_);
  // Entries that are present move to the front first, so that making place for the others cannot evict them.
  size_t all = 0;
  for (const auto& [stack, index] : wanted) {
    all += stack->matrix_bytes();
    if (const auto found = by_key_.find({stack->id, index}); found != by_key_.end()) recent_.splice(recent_.begin(), recent_, found->second);
  }
  if (all > budget_) throw error("the store holds " + std::to_string(budget_) + " bytes, an expert takes " + std::to_string(all));
  std::vector<std::shared_ptr<const Weight>> out;
  for (const auto& [stack, index] : wanted) {
    const Key key = {stack->id, index};
    if (by_key_.find(key) == by_key_.end()) {
      make_place(stack->matrix_bytes());
      recent_.push_front({key, stack->load(index), stack->matrix_bytes()});
      by_key_[key] = recent_.begin();
      used_ += recent_.front().bytes;
      num_loads_++;
    }
    out.push_back(by_key_.at(key)->weight);
  }
  return out;
}

void ExpertStore::make_place(size_t bytes) {
  while (!recent_.empty() && used_ + bytes > budget_) {
    used_ -= recent_.back().bytes;
    by_key_.erase(recent_.back().key);
    recent_.pop_back();
  }
}

ExpertWork::Room ExpertWork::room(const Experts& op, int tokens) {
  const int places = tokens * op.per_token, experts = std::min(op.w1->count, places);
  // Only an expert with more than 12 places is padded, by 11 at most.
  return {places, places + (TOKEN_BLOCK - 1) * std::min(experts, places / (TOKEN_BLOCK + 1)), experts};
}

size_t ExpertWork::bytes(int tokens) const {
  size_t x = 0, x_blocks = 0, hidden = 0, hidden_blocks = 0, out = 0;
  for (const auto& op : ops_) {
    const auto [places, rows, experts] = room(op, tokens);
    const size_t width = (size_t)op.width(), inner = (size_t)op.hidden();
    if (op.w1->is_float() || op.w3->is_float()) x = std::max(x, (size_t)places * width * sizeof(float));
    if (!op.w1->is_float() || !op.w3->is_float()) x_blocks = std::max(x_blocks, (size_t)rows * (width / 32) * sizeof(QBlock));
    if (!op.w2->is_float()) hidden_blocks = std::max(hidden_blocks, (size_t)rows * (inner / 32) * sizeof(QBlock));
    hidden = std::max(hidden, (size_t)places * inner * sizeof(float));
    out = std::max(out, (size_t)places * width * sizeof(float));
  }
  return x + x_blocks + 2 * hidden + hidden_blocks + out;
}

// Scratch space that a unit would otherwise have to allocate.
size_t ExpertWork::reserve(int tokens) {
  tokens_ = tokens;
  size_t sum = 0;
  for (const auto& op : ops_) {
    const auto [places, rows, experts] = room(op, tokens);
    const size_t width = (size_t)op.width(), inner = (size_t)op.hidden();
    if (op.w1->is_float() || op.w3->is_float()) at_least(x_, (size_t)places * width * sizeof(float));
    if (!op.w1->is_float() || !op.w3->is_float()) at_least(x_blocks_, (size_t)rows * (width / 32) * sizeof(QBlock));
    if (!op.w2->is_float()) at_least(hidden_blocks_, (size_t)rows * (inner / 32) * sizeof(QBlock));
    at_least(gate_, (size_t)places * inner * sizeof(float));
    at_least(up_, (size_t)places * inner * sizeof(float));
    at_least(out_, (size_t)places * width * sizeof(float));
    active_.reserve((size_t)experts), group_.reserve((size_t)experts);
    begin_.reserve((size_t)experts + 1), padded_.reserve((size_t)experts + 1);
    token_.reserve((size_t)places), weight_.reserve((size_t)places), places_.reserve((size_t)places);
    num_own_.reserve((size_t)tokens), blocks_.reserve((size_t)(places / TOKEN_BLOCK + experts));
  }
  for (auto* memory : {&x_, &x_blocks_, &gate_, &up_, &hidden_blocks_, &out_}) sum += *memory ? (*memory)->size() : 0;
  return sum;
}

int ExpertWork::most_experts(const Experts& op) const { return in_groups_ ? (int)group_.size() : room(op, tokens_).experts; }

// The number of tiles of one matrix in a unit: eight units per thread, whole groups of four tiles where experts have one token.
int ExpertWork::chunk(const Experts& op, const Stack& w, int threads) const {
  const int tiles = (w.rows + TILE - 1) / TILE, share = (int)std::min<int64_t>((int64_t)tiles * most_experts(op) / (threads * 8), 64);
  return room(op, tokens_).places <= op.w1->count ? std::clamp(share / 4 * 4, 4, 64) : std::clamp(share, 1, 8);
}

namespace {
int units_of(const Stack& w, int chunk) { return ((w.rows + TILE - 1) / TILE + chunk - 1) / chunk; }
}  // namespace

int ExpertWork::num_units(const Experts& op, Stage stage, int threads) const {
  const int experts = most_experts(op);
  switch (stage) {
    case PLAN: return 1;
    case GATHER:
    case ACTIVATE: return in_groups_ ? (int)blocks_.size() : room(op, tokens_).places / TOKEN_BLOCK + experts;
    case UP: return experts * (units_of(*op.w1, chunk(op, *op.w1, threads)) + units_of(*op.w3, chunk(op, *op.w3, threads)));
    case DOWN: return experts * units_of(*op.w2, chunk(op, *op.w2, threads));
    default: return 0;
  }
}

void ExpertWork::plan(const Experts& op, const float* gates) {
  const int count = op.w1->count, tokens = tokens_;
  active_.clear(), begin_.clear(), padded_.clear(), token_.clear(), weight_.clear();
  num_own_.assign((size_t)tokens, 0);
  places_.assign((size_t)tokens * (size_t)op.per_token, 0);
  int rows = 0;
  for (int e = 0; e < count; e++) {
    const int first = (int)token_.size();
    for (int t = 0; t < tokens; t++) {
      const float gate = gates[(size_t)t * (size_t)count + (size_t)e];
      if (gate == 0.0f) continue;
      places_[(size_t)t * (size_t)op.per_token + (size_t)num_own_[(size_t)t]++] = (int)token_.size();
      token_.push_back(t);
      weight_.push_back(gate);
    }
    if ((int)token_.size() == first) continue;
    active_.push_back(e);
    begin_.push_back(first);
    padded_.push_back(rows);
    rows += padded((int)token_.size() - first);
  }
  begin_.push_back((int)token_.size());
  group_.resize(active_.size());
  std::iota(group_.begin(), group_.end(), 0);
  make_blocks();
}

void ExpertWork::make_blocks() {
  blocks_.clear();
  for (int active : group_)
    for (int first = 0, n = num_places(active); first < n; first += TOKEN_BLOCK)
      blocks_.push_back({active, first, std::min(first + TOKEN_BLOCK, n)});
}

QRows ExpertWork::quantized(QBlock* all, int groups, int active) const {
  return {all + (size_t)padded_[(size_t)active] * (size_t)groups, groups, std::min(num_places(active), TOKEN_BLOCK)};
}

void ExpertWork::gather(const Kernels& kernels, const Experts& op, const float* x, int unit) {
  if (unit >= (int)blocks_.size()) return;
  const auto [active, begin, end] = blocks_[(size_t)unit];
  const int width = op.width();
  const bool floats_too = op.w1->is_float() || op.w3->is_float(), quantized_too = !op.w1->is_float() || !op.w3->is_float();
  for (int i = begin; i < end; i++) {
    const size_t place = (size_t)begin_[(size_t)active] + (size_t)i;
    const float* row = x + (size_t)token_[place] * (size_t)width;
    if (floats_too) std::memcpy(floats(x_) + place * (size_t)width, row, sizeof(float) * (size_t)width);
    if (!quantized_too) continue;
    const QRows rows = quantized(blocks(x_blocks_), width / 32, active);
    kernels.quantize_row(row, width, rows.first(i), rows.width);
  }
}

const Matrix& ExpertWork::matrix(const Experts& op, int which, int member) const {
  if (in_groups_) return held_[(size_t)member * 3 + (size_t)which]->matrix;
  const Stack& stack = which == 0 ? *op.w1 : which == 1 ? *op.w2 : *op.w3;
  return stack.matrices[(size_t)active_[(size_t)group_[(size_t)member]]]->matrix;
}

// All places of one expert times tiles [begin, end) of one of its matrices.
void ExpertWork::linear(const Kernels& kernels, const Matrix& w, const float* x, QBlock* x_blocks, int active, int begin, int end, float* out) const {
  const size_t first = (size_t)begin_[(size_t)active];
  float* own = out + first * (size_t)w.rows;
  if (w.is_float()) return kernels.linear_f(w, x + first * (size_t)w.cols, (size_t)w.cols, begin, end, 0, num_places(active), own, (size_t)w.rows);
  kernels.linear_q(w, quantized(x_blocks, w.cols / 32, active), begin, end, 0, num_places(active), own, (size_t)w.rows);
}

void ExpertWork::up(const Kernels& kernels, const Experts& op, int unit, int threads) {
  const int chunk1 = chunk(op, *op.w1, threads), chunk3 = chunk(op, *op.w3, threads), first = units_of(*op.w1, chunk1);
  const int own = first + units_of(*op.w3, chunk3), member = unit / own;
  if (member >= (int)group_.size()) return;
  const bool is_gate = unit % own < first;
  const Matrix& w = matrix(op, is_gate ? 0 : 2, member);
  const int size = is_gate ? chunk1 : chunk3, begin = (is_gate ? unit % own : unit % own - first) * size;
  linear(kernels, w, floats(x_), blocks(x_blocks_), group_[(size_t)member], begin, std::min(begin + size, w.tiles()), floats(is_gate ? gate_ : up_));
}

void ExpertWork::activate(const Kernels& kernels, const Experts& op, int unit) {
  if (unit >= (int)blocks_.size()) return;
  const auto [active, begin, end] = blocks_[(size_t)unit];
  const int n = op.hidden();
  for (int i = begin; i < end; i++) {
    const size_t at = ((size_t)begin_[(size_t)active] + (size_t)i) * (size_t)n;
    kernels.silu_mul(floats(gate_) + at, floats(up_) + at, n, floats(gate_) + at);
    if (op.w2->is_float()) continue;
    const QRows rows = quantized(blocks(hidden_blocks_), n / 32, active);
    kernels.quantize_row(floats(gate_) + at, n, rows.first(i), rows.width);
  }
}

void ExpertWork::down(const Kernels& kernels, const Experts& op, int unit, int threads) {
  const int size = chunk(op, *op.w2, threads), own = units_of(*op.w2, size), member = unit / own;
  if (member >= (int)group_.size()) return;
  const Matrix& w = matrix(op, 1, member);
  const int begin = unit % own * size;
  linear(kernels, w, floats(gate_), blocks(hidden_blocks_), group_[(size_t)member], begin, std::min(begin + size, w.tiles()), floats(out_));
}

// Products and sums are rounded separately, as in the reference. A place belongs to one token, so it is scaled in place.
void ExpertWork::sum(const Kernels& kernels, const Experts& op, int token, float* out) {
  const int n = op.width(), *places = places_.data() + (size_t)token * (size_t)op.per_token;
  std::fill(out, out + n, 0.0f);
  for (int i = 0; i < num_own_[(size_t)token]; i++) {
    float* y = floats(out_) + (size_t)places[i] * (size_t)n;
    kernels.scale(y, weight_[(size_t)places[i]], n, y);
    kernels.add(out, y, n, out);
  }
}

void ExpertWork::begin_groups(const Experts& op) {
  order_.resize(active_.size());
  std::iota(order_.begin(), order_.end(), 0);
  const auto is_here = [&](int active) {
    const int e = active_[(size_t)active];
    for (const auto& w : {op.w1, op.w2, op.w3})
      if (!w->is_resident() && !w->store->has({w.get(), e})) return false;
    return true;
  };
  std::stable_partition(order_.begin(), order_.end(), is_here);
  next_ = 0;
  in_groups_ = true;
}

bool ExpertWork::next_group(const Experts& op) {
  held_.clear();
  if (next_ == order_.size()) return false;
  size_t one = 0;
  ExpertStore* store = nullptr;
  for (const auto& w : {op.w1, op.w2, op.w3})
    if (!w->is_resident()) one += w->matrix_bytes(), store = w->store.get();
  const size_t members = std::min(std::max<size_t>(store->budget() / one, 1), order_.size() - next_);
  group_.assign(order_.begin() + (ptrdiff_t)next_, order_.begin() + (ptrdiff_t)(next_ + members));
  next_ += members;
  std::vector<ExpertStore::Wanted> wanted;
  for (int active : group_)
    for (const auto& w : {op.w1, op.w2, op.w3})
      if (!w->is_resident()) wanted.push_back({w.get(), active_[(size_t)active]});
  std::vector<std::shared_ptr<const Weight>> loaded = store->hold(wanted);
  size_t taken = 0;
  for (int active : group_)
    for (const auto& w : {op.w1, op.w2, op.w3})
      held_.push_back(w->is_resident() ? w->matrices[(size_t)active_[(size_t)active]] : loaded[taken++]);
  make_blocks();
  return true;
}

void ExpertWork::end_groups() {
  held_.clear();
  in_groups_ = false;
}

void route(const float* logits, int count, int per_token, double scale, float* gates) {
  std::fill(gates, gates + count, 0.0f);
  double top = 0, sum = 0;
  for (int i = 0; i < per_token; i++) {
    int best = -1;  // accepts a NaN, so that there are always `per_token`
    for (int e = 0; e < count; e++)
      if (gates[e] == 0.0f && (best < 0 || logits[e] > logits[best])) best = e;
    if (i == 0) top = logits[best];
    gates[best] = 1.0f;
  }
  for (int e = 0; e < count; e++)
    if (gates[e] != 0.0f) sum += std::exp(logits[e] - top);
  for (int e = 0; e < count; e++)
    if (gates[e] != 0.0f) gates[e] = (float)(std::exp(logits[e] - top) / sum * scale);
}

}  // namespace brise
