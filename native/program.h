// A recording replayed on the CPU, for every step without Python.
//
// The ops are grouped into phases, each done before the next:
//   rows    a chain of row-local ops; a thread takes rows and runs the whole chain on each
//   linear  linears of one input, cut into groups of weight tiles
//   attend  attention, cut into (sequence, kv head, query block)
//   experts the stages of a mixture's experts (experts.h)
// Threads claim the units of a phase (threads.h).
#pragma once

#include <atomic>
#include <memory>
#include <vector>

#include "recording.h"
#include "threads.h"

namespace brise {

class Cache : public CacheShape {
 public:
  Cache(int layers, int pages, int page_size, int kv_heads, int head_dim, CacheFormat format, int sides);
  CacheLayer layer(int index) const;
  size_t nbytes() const { return memory_.size(); }
  static size_t bytes(int layers, int pages, int page_size, int kv_heads, int head_dim, CacheFormat format, int sides);

 private:
  size_t layer_bytes_;
  Memory memory_;
};

class Program : public Job {
 public:
  Program(std::shared_ptr<Pool> pool, const Kernels* kernels, std::shared_ptr<const Recording> recording);  // finished
  ~Program() override { pool_->forget(*this); }

  void check(const Cache* cache, int num_tokens) const;  // what the recorded ops ask of a step's cache
  const Recording& recording() const { return *recording_; }
  void set_input(int value, const float* data, size_t rows, std::shared_ptr<const void> owner);  // not copied
  void run(const Step& step, const Cache* cache);
  void begin(uint32_t run) override;
  void work(int thread, uint32_t run) override;
  std::shared_ptr<Memory> memory(int id) const;
  size_t work_bytes() const { return work_bytes_; }
  size_t planned_bytes(int num_tokens, int num_rows) const;  // work_bytes of a first step of that size

 private:
  struct Buffer {
    std::shared_ptr<Memory> memory{};  // shared with the arrays that Python has of it; none of an input
    const float* lent = nullptr;       // an input, which nothing is written to
    size_t lent_rows = 0;
    std::shared_ptr<const void> owner{};
  };
  enum class PhaseKind { ROWS, LINEAR, ATTEND, EXPERTS };
  struct Phase {
    PhaseKind kind;
    bool per_output_row;
    std::vector<int> ops;
    ExpertWork::Stage stage = ExpertWork::PLAN;
  };

  void make_phases();
  // Bytes of everything that a step of some size needs.
  struct Room {
    std::vector<size_t> buffers;
    size_t quantized = 0, scratch = 0, experts = 0, lora = 0;  // scratch: of each thread
  };
  Room room(int num_tokens, int num_rows) const;
  void make_room();
  void make_units();
  int chunk_of(const Op& op) const;
  int num_units(const Phase& phase) const;
  void run_unit(const Phase& phase, int unit, int thread);
  void run_row(const Op& op, int row);
  void run_linear(const Op& op, int unit);
  void run_tiles(const Op& op, size_t which, int begin, int end);
  void run_attend(const Op& op, int unit, float* scratch);
  void run_experts(const Op& op, ExpertWork::Stage stage, int unit);
  void run_phases(size_t first, size_t last);
  bool needs_loading(const Phase& phase) const;
  int rows_of(bool per_output_row) const { return per_output_row ? step_.num_rows : step_.num_tokens; }

  std::shared_ptr<Pool> pool_;
  const Kernels* kernels_;
  std::shared_ptr<const Recording> recording_;
  const std::vector<Op>& ops_;
  const std::vector<Value>& values_;
  std::vector<float*> data_;  // of each value
  std::vector<Buffer> buffers_;
  std::vector<Phase> phases_;
  std::unique_ptr<Units[]> progress_;  // by phase
  std::atomic<size_t> first_{0}, last_{0};  // the phases of this run; a late thread of another may look
  ExpertWork experts_;
  LoraWork lora_;
  Step step_{};
  const Cache* cache_ = nullptr;
  std::unique_ptr<Memory> quantized_;
  std::vector<std::unique_ptr<Memory>> scratch_;
  struct Block { int sequence, begin, end, kv_head; };
  std::vector<Block> blocks_;  // units of attention
  std::atomic<size_t> work_bytes_{0};
};

}  // namespace brise
