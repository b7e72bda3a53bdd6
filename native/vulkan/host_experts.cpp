// Experts that stay in a file: see host_experts.h.
#include "host_experts.h"

#include <algorithm>

namespace brise::vk {

void HostExperts::include(const Op& op) { recordings_[&op] = Recording::of_experts(op.experts); }

size_t HostExperts::rows_bytes(const Op& op, int tokens) const {
  return sizeof(float) * (size_t)std::max(tokens, 1) * (size_t)(op.experts.width() + op.experts.w1->count);
}

size_t HostExperts::planned(int tokens) const {
  size_t most = 0;
  for (const auto& [op, recording] : recordings_) most = std::max(most, brise::Program(pool_, kernels_, recording).planned_bytes(tokens, 0) + rows_bytes(*op, tokens));
  return most;
}

void HostExperts::run(Device& device, const Op& op, const Step& step, const Buffer& x, const Buffer& gates, const Buffer& out) {
  const size_t tokens = (size_t)step.num_tokens, width = (size_t)op.experts.width(), count = (size_t)op.experts.w1->count;
  const auto rows = std::make_shared<Memory>(rows_bytes(op, step.num_tokens));
  float *const rows_x = (float*)rows->data(), *const rows_gates = rows_x + tokens * width;
  device.download(x, 0, rows_x, sizeof(float) * tokens * width);
  device.download(gates, 0, rows_gates, sizeof(float) * tokens * count);
  for (size_t token = 0; token < tokens; token++) {  // where logits are no numbers, a router may choose more experts than there is room for
    int own = 0;
    for (float* gate = rows_gates + token * count; gate < rows_gates + (token + 1) * count; gate++)
      if (*gate != 0 && ++own > op.experts.per_token) *gate = 0;
  }
  brise::Program program(pool_, kernels_, recordings_.at(&op));
  program.set_input(0, rows_x, tokens, rows);
  program.set_input(1, rows_gates, tokens, rows);
  Step own{};
  own.num_tokens = step.num_tokens;
  own.quiet = step.quiet;
  program.run(own, nullptr);
  work_bytes_ = std::max(work_bytes_, program.work_bytes() + rows->size());
  device.upload(out, 0, program.memory(2)->data(), sizeof(float) * tokens * width);
}

}  // namespace brise::vk
