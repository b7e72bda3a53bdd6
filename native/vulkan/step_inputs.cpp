// The layout of a step's arrays: see step_inputs.h.
#include "step_inputs.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "cache_layout.h"

namespace brise::vk {

namespace {

// A sequence with more new tokens than these is attended over by blocks of queries: the numbers are the same.
constexpr int MOST_DECODED = 4;

}  // namespace

int StepInputs::made_width(const Op& op) const {
  if (op.kind == Kind::ROPE_TABLE) return (int)op.inv_freq.size() * 2;
  return op.kind == Kind::SCALE_QUERIES ? 1 : 0;
}

size_t StepInputs::most_words(int num_tokens, int num_rows, size_t pages) const {
  size_t of_token = 4 + 4;  // tokens, positions, slots, reach; a unit
  if (recording_.feature_width()) of_token += 1 + (size_t)recording_.feature_width();
  for (const Op& op : recording_.ops()) of_token += (size_t)made_width(op);
  return (size_t)num_tokens * of_token + (size_t)num_rows + pages + 1;
}

void StepInputs::begin(const Step& step, const Cache* cache) {
  step_ = &step;
  if (!recording_.heads()) cache = nullptr;
  size_t end = 0;
  const auto place = [&](size_t words) {
    const size_t at = end;
    end += words;
    return (int)at;
  };
  const size_t tokens = (size_t)step.num_tokens;
  tokens_at = place(tokens);
  positions_at = place(tokens);
  slots_at = cache ? place(tokens) : 0;
  reach_at = step.reach ? place(tokens) : -1;
  rows_at = place((size_t)step.num_rows);
  decode_.clear(), prefill_.clear(), sent_.clear();
  if (cache) make_units(cache);
  decode_units = (int)decode_.size(), prefill_units = (int)prefill_.size();
  decode_at = place(decode_.size() * 4);
  prefill_at = place(prefill_.size() * 4);
  made_at.assign(recording_.ops().size(), 0);
  for (size_t i = 0; i < made_at.size(); i++) made_at[i] = place(tokens * (size_t)made_width(recording_.ops()[i]));
  feature_rows_at = -1;
  if (step.features && recording_.feature_width()) {
    feature_rows_.assign(step.feature_rows, step.feature_rows + tokens);
    for (int32_t& row : feature_rows_) {
      if (row < 0) continue;
      sent_.push_back(row);
      row = (int32_t)sent_.size() - 1;
    }
    feature_rows_at = place(tokens);
    features_at = place(tokens * (size_t)recording_.feature_width());
  }
  pages_per_sequence = (int)std::bit_ceil((unsigned)std::max(cache ? step.pages_per_sequence : 0, 16));
  pages_at = place((cache ? (size_t)step.num_sequences : 0) * (size_t)pages_per_sequence);
  words_ = std::max<size_t>(end, 1);
}

void StepInputs::make_units(const Cache* cache) {
  const int most = attend_cut(recording_.heads() / recording_.kv_heads(), cache->head_dim, false).tokens;
  for (int s = 0; s < step_->num_sequences; s++) {
    const int first = step_->query_starts[s], last = step_->query_starts[s + 1];
    const bool is_decoded = last - first <= MOST_DECODED;
    for (int begin = first; begin < last;) {
      const int end = is_decoded ? begin + 1 : std::min(begin + most, last);
      (is_decoded ? decode_ : prefill_).push_back({s, begin, end, 0});
      begin = end;
    }
  }
}

int StepInputs::chunks_of(const Unit& unit, int window) const {
  const int position = step_->positions[unit.begin], last = step_->reach ? step_->reach[unit.begin] : position;
  const int first = window ? std::max(0, position - window + 1) : 0;
  return last / ATTEND_CHUNK - first / ATTEND_CHUNK + 1;
}

int StepInputs::decode_chunks(int window) const {
  int most = 1;
  for (const Unit& unit : decode_) most = std::max(most, chunks_of(unit, window));
  return (int)std::bit_ceil((unsigned)most);
}

double StepInputs::keys(const Units& units, int first, int last, int window) const {
  double sum = 0;
  for (int i = first; i < last; i++) {
    const int end = step_->positions[units[(size_t)i].end - 1] + 1;
    sum += (double)(units[(size_t)i].end - units[(size_t)i].begin) * (window ? std::min(window, end) : end);
  }
  return sum;
}

// In float64, as on the CPU.
void StepInputs::make_rows(const Op& op, float* out) const {
  const size_t half = op.inv_freq.size();
  for (int t = 0; t < step_->num_tokens; t++) {
    if (op.kind == Kind::SCALE_QUERIES) {
      out[t] = (float)(1.0 + op.a * std::log1p(std::floor(step_->positions[t] / op.b)));
      continue;
    }
    float* row = out + (size_t)t * 2 * half;
    for (size_t i = 0; i < half; i++) {
      const double angle = step_->positions[t] * op.inv_freq[i];
      row[i] = (float)(std::cos(angle) * op.a);
      row[i + half] = (float)(std::sin(angle) * op.a);
    }
  }
}

void StepInputs::write(uint32_t* out) const {
  const Step& step = *step_;
  const size_t tokens = (size_t)step.num_tokens;
  const auto copy = [&](int at, const void* from, size_t words) {
    if (words) std::memcpy(out + at, from, 4 * words);
  };
  copy(tokens_at, step.tokens, tokens);
  copy(positions_at, step.positions, tokens);
  if (recording_.heads()) copy(slots_at, step.slots, tokens);
  if (step.reach) copy(reach_at, step.reach, tokens);
  copy(rows_at, step.rows, (size_t)step.num_rows);
  copy(decode_at, decode_.data(), 4 * decode_.size());
  copy(prefill_at, prefill_.data(), 4 * prefill_.size());
  for (size_t i = 0; i < made_at.size(); i++)
    if (made_width(recording_.ops()[i])) make_rows(recording_.ops()[i], (float*)out + made_at[i]);
  if (feature_rows_at >= 0) {
    copy(feature_rows_at, feature_rows_.data(), tokens);
    const size_t width = (size_t)recording_.feature_width();
    for (size_t i = 0; i < sent_.size(); i++) std::memcpy(out + (size_t)features_at + i * width, step.features + (size_t)sent_[i] * width, 4 * width);
  }
  if (recording_.heads())
    for (int s = 0; s < step.num_sequences; s++)
      copy(pages_at + s * pages_per_sequence, step.page_table + (size_t)s * (size_t)step.pages_per_sequence, (size_t)step.pages_per_sequence);
}

}  // namespace brise::vk
