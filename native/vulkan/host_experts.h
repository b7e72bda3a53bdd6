// Experts that stay in a file: the CPU runs them between two submissions of a program.
//
// The hidden rows and the gates come from the device, the sum of the experts goes back. Work space is made for one op and freed after
// it: a layer takes none from the next one.
#pragma once

#include <map>
#include <memory>

#include "../program.h"
#include "device.h"

namespace brise::vk {

class HostExperts {
 public:
  HostExperts(std::shared_ptr<Pool> pool, const Kernels* kernels) : pool_(std::move(pool)), kernels_(kernels) {}
  void include(const Op& op);
  // Nothing else uses the buffers meanwhile.
  void run(Device& device, const Op& op, const Step& step, const Buffer& x, const Buffer& gates, const Buffer& out);
  size_t planned(int tokens) const;  // bytes of the largest op in a step of that size
  size_t work_bytes() const { return work_bytes_; }  // of the largest op so far

 private:
  size_t rows_bytes(const Op& op, int tokens) const;

  const std::shared_ptr<Pool> pool_;
  const Kernels* const kernels_;
  std::map<const Op*, std::shared_ptr<const Recording>> recordings_;
  size_t work_bytes_ = 0;
};

}  // namespace brise::vk
