// A recording replayed on a Vulkan device.
//
// An op is one dispatch, or a few; barriers stand where one reads or writes what another one wrote or reads. A step's arrays go up in
// one copy (step_inputs.h). Commands are recorded for the sizes of a step, and kept for the next step of the same sizes. They are cut
// into submissions that are short enough for a driver that gives up on long ones, and for a person's screen.
#pragma once

#include <array>
#include <atomic>
#include <list>
#include <memory>
#include <stdexcept>
#include <vector>

#include "../recording.h"
#include "host_experts.h"
#include "placed.h"
#include "step_inputs.h"

namespace brise::vk {

// A submission takes about this long, of the 100 ms after which a screen is seen to stand still.
constexpr double PART_SECONDS = 0.05;

// Bytes on the device and on the host.
struct Room {
  size_t device = 0, host = 0;
};

class Program {
 public:
  // The recording is finished. Refuses ops that have no shader. Experts that stay in a file run on `pool`; without one they are refused.
  Program(std::shared_ptr<Device> device, std::shared_ptr<const Recording> recording, std::shared_ptr<Pool> pool = {}, const Kernels* kernels = nullptr);
  void check(const Cache* cache, int num_tokens) const;  // what the ops ask of a step's cache
  void set_input(int value, const float* data, size_t rows);
  // The patches of the images that the next step has: rows and columns of each. Only programs with merge_patches or mean_patches need them.
  void set_grids(std::vector<std::array<int, 2>> grids) { grids_ = std::move(grids); }
  void run(const Step& step, const Cache* cache);
  // The same in parts of about PART_SECONDS: `begin`, then `proceed` while it returns true. The step's arrays are read by `begin` alone.
  void begin(const Step& step, const Cache* cache);
  bool proceed();
  void read(int value, size_t rows, float* out);  // of an output of the last step
  // Ends the step that runs, or the next one, before its next submission: `run` throws Fault::CANCELLED. From any thread.
  void cancel() { is_cancelled_ = true; }
  double longest_part() const { return longest_part_; }  // seconds of the last step's longest submission
  Room work_room() const;
  Room planned(int num_tokens, int num_rows) const;  // after a first step of that size
  size_t largest(int num_tokens, int num_rows) const;  // bytes of its largest buffer on the device

 private:
  friend class Encoder;
  // What recorded commands depend on besides the buffers.
  struct Key {
    int tokens, rows, sequences, pages_per_sequence, decode_units, prefill_units;
    uint64_t cache;  // its id, or 0
    bool has_reach, has_features;
    std::vector<int> chunks;  // by op
    std::vector<std::array<int, 2>> grids;
    bool operator==(const Key&) const = default;
  };
  struct Recorded {
    Key key;
    std::vector<std::unique_ptr<Commands>> parts{};
    std::vector<int> host_ops{};  // of each part: the op that the CPU runs after it, or -1
    double seconds = 0, slowness = 1;  // estimated; the program's when they were recorded
  };
  struct Sizes {
    std::vector<size_t> buffers;
    size_t quantized = 0, lora = 0, partial = 0, step = 0, output = 0;
    size_t plan = 0, gate = 0, up = 0, down = 0;  // of experts
  };

  Sizes sizes(int num_tokens, int num_rows, size_t pages) const;
  void make_room(const Sizes& sizes);
  void check_grids(const Step& step) const;
  Recorded& prepare(const Step& step, const Cache* cache);
  void submit(const Recorded& recorded, const Step& step);
  void run_on_host(int op, const Step& step);
  void learn(const Recorded& recorded, double taken, double longest);
  const Buffer& buffer(int value) const { return *buffers_[(size_t)recording_->value(value).buffer]; }
  size_t lora_row_bytes() const;
  int expert_tokens(const Experts& experts, int tokens) const;  // whose experts are computed at a time

  const std::shared_ptr<Device> device_;
  const std::shared_ptr<const Recording> recording_;
  StepInputs inputs_;
  AdapterRuns adapters_;
  std::unique_ptr<HostExperts> host_experts_;  // null if all experts lie on the device
  std::vector<int> outputs_;  // values that are read after a step
  std::vector<std::shared_ptr<Buffer>> buffers_;
  std::vector<size_t> input_rows_;  // by value
  std::shared_ptr<Buffer> quantized_, lora_, partial_, step_, step_host_, output_host_;
  std::shared_ptr<Buffer> plan_, gate_, up_, down_;  // of experts: shaders/README.md has the plan; rows of places
  std::list<Recorded> recorded_;  // most recently used first
  int num_tokens_ = 0, num_rows_ = 0;  // of the last step
  std::vector<std::array<int, 2>> grids_;
  size_t next_part_ = 0;          // of the step that was begun
  bool is_begun_ = false;
  double taken_ = 0;              // seconds of its parts so far
  bool has_outputs_ = false;      // output_host_ has those of the last step
  double longest_part_ = 0;
  double slowness_;               // seconds that the last submissions took, by those that were estimated; a guess at first
  std::atomic<bool> is_cancelled_ = false;
};

}  // namespace brise::vk
