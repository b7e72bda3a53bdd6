// A recording as phases, and what a program is asked between steps: see program.h.
#include "program.h"

#include <stdexcept>

namespace brise {

namespace {

std::invalid_argument error(const std::string& what) { return std::invalid_argument(what); }

bool is_row_op(Kind kind) {
  return kind != Kind::LINEAR && kind != Kind::HEADS_LINEAR && kind != Kind::ATTEND && kind != Kind::EXPERTS && kind != Kind::INPUT;
}

}  // namespace

Program::Program(std::shared_ptr<Pool> pool, const Kernels* kernels, std::shared_ptr<const Recording> recording)
    : pool_(std::move(pool)), kernels_(kernels), recording_(std::move(recording)), ops_(recording_->ops()), values_(recording_->values()),
      data_(values_.size()), buffers_(recording_->num_buffers()), lora_(recording_->lora()) {
  for (const auto& op : ops_) {
    for (const auto& w : op.weights)
      if (w->placed) throw error("a weight of the program lies on a GPU");
    if (op.kind == Kind::EXPERTS) experts_.include(op.experts);
  }
  make_phases();
  scratch_.resize((size_t)pool_->size() + 1);  // one for a caller that helps with a quiet run
}

void Program::make_phases() {
  for (int i = 0; i < (int)ops_.size(); i++) {
    const Op& op = ops_[(size_t)i];
    if (op.kind == Kind::INPUT) continue;
    if (op.kind == Kind::EXPERTS) {
      for (int stage = 0; stage < ExpertWork::NUM_STAGES; stage++)
        phases_.push_back({PhaseKind::EXPERTS, false, {i}, (ExpertWork::Stage)stage});
      continue;
    }
    if (!is_row_op(op.kind)) {
      phases_.push_back({op.kind == Kind::ATTEND ? PhaseKind::ATTEND : PhaseKind::LINEAR, false, {i}});
      continue;
    }
    const bool per_output_row = values_[(size_t)(op.out.empty() ? op.in[0] : op.out[0])].per_output_row;
    if (phases_.empty() || phases_.back().kind != PhaseKind::ROWS || phases_.back().per_output_row != per_output_row)
      phases_.push_back({PhaseKind::ROWS, per_output_row, {}});
    phases_.back().ops.push_back(i);
  }
  progress_ = std::make_unique<Units[]>(phases_.size());
}

void Program::check(const Cache* cache, int num_tokens) const {
  for (const auto& value : values_)
    if (value.is_input && buffers_[(size_t)value.buffer].lent_rows < (size_t)num_tokens)
      throw error("an input of " + std::to_string(buffers_[(size_t)value.buffer].lent_rows) + " rows in a step of " + std::to_string(num_tokens) + " tokens");
  recording_->check_step(cache, num_tokens);
}

std::shared_ptr<Memory> Program::memory(int id) const {
  recording_->check_value(id, 0);
  return buffers_[(size_t)values_[(size_t)id].buffer].memory;
}

void Program::set_input(int id, const float* data, size_t rows, std::shared_ptr<const void> owner) {
  recording_->check_value(id, 0);
  if (!values_[(size_t)id].is_input) throw error("value " + std::to_string(id) + " is not an input");
  Buffer& buffer = buffers_[(size_t)values_[(size_t)id].buffer];
  buffer.lent = data;
  buffer.lent_rows = rows;
  buffer.owner = std::move(owner);
}

}  // namespace brise
