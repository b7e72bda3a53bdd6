// Low-rank adapters of a model's matrices, and their part of a step: y = (W x + scale * B (A x)) * gain.
//
// A table has slots, and a step names one for each token. A matrix that takes adapters is a target. An adapter of a
// target is stored without loss as two matrices in tiles: in bfloat16 if that holds every number, else in float32.
//
// The embedding may be a target, too: an adapter adds scale * A^T b to its row of a token, where b is the token's row of B. It is
// stored the other way round, B as a matrix whose rows are read, A^T as one that is multiplied.
//
// A linear's phase begins with the units that compute h = A x (a few tokens of one adapter, one target). A unit of the
// base's tiles then waits for these and adds scale * B h to its own outputs. The wait is short and always ends: units
// are claimed in order, so those it waits for are running already, and wait for nothing. So an adapter costs no phase of
// its own, and a step without adapters costs nothing. A sum runs over the columns of A and B from first to last: a
// token's numbers do not depend on the other tokens and adapters of the step.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "kernels.h"
#include "threads.h"

namespace brise {

class Memory;
struct Step;
namespace vk {
struct PlacedAdapter;  // vulkan/placed.h
}

struct MatrixShape {
  int rows, cols;
  bool is_embedding = false;
};

// The adapter of one target as it is passed in: a (rank, cols), b (rows, rank), gain (rows) or null.
struct LowRankSource {
  int target, rank;
  const float *a, *b, *gain;
  float scale;
};

class Adapter {
 public:
  // The caller has checked that each source fits its shape, and that a target occurs once.
  Adapter(const std::vector<MatrixShape>& shapes, const std::vector<LowRankSource>& sources);
  struct LowRank {
    Matrix a, b;  // of an embedding B and A^T; a.rows is 0 if the adapter does not change the target
    float scale;
    std::vector<float> gain;  // as long as b's tiles, or empty
  };
  const LowRank* at(int target) const { return parts_[(size_t)target].a.rows ? &parts_[(size_t)target] : nullptr; }
  size_t num_targets() const { return parts_.size(); }
  size_t nbytes() const;
  // On a GPU: there its numbers are, and here only its shapes.
  const vk::PlacedAdapter* placed() const { return placed_.get(); }
  void move_to(std::shared_ptr<const vk::PlacedAdapter> placed, size_t bytes);

 private:
  std::vector<LowRank> parts_;  // by target
  std::shared_ptr<Memory> memory_;
  std::shared_ptr<const vk::PlacedAdapter> placed_;
  size_t placed_bytes_ = 0;
};

class LoraTable {
 public:
  LoraTable(std::vector<MatrixShape> shapes, int slots, int max_rank);
  const std::vector<MatrixShape> shapes;
  const int num_slots, max_rank;
  void put(int slot, std::shared_ptr<const Adapter> adapter);  // for the steps that begin from now on
  std::vector<std::shared_ptr<const Adapter>> slots() const;

 private:
  mutable std::mutex mutex_;
  std::vector<std::shared_ptr<const Adapter>> slots_;
};

// Of a linear: the target of each of its matrices, -1 for none. Without an index it takes no adapters.
struct LoraTargets {
  // Of a program: its table, or null; how many targets an op has at most; the number of ops that take adapters.
  struct Table {
    std::shared_ptr<const LoraTable> table{};
    size_t widest = 0;
    int num_ops = 0;
  };
  std::vector<int> targets{};
  int index = -1;  // in LoraWork
  bool per_output_row = false;  // x has a row for each of step.rows, and not for each token
};

// The adapters of the running step, by rows.
class AdapterRuns {
 public:
  struct Run { const Adapter* adapter; int begin, end; };  // adjacent rows with one adapter, at most `most` of them
  AdapterRuns(std::shared_ptr<const LoraTable> table, int most, bool is_placed) : table_(std::move(table)), most_(most), is_placed_(is_placed) {}
  void begin(const Step& step);  // checks step.adapters, and holds those adapters until `end`
  void end();
  const std::vector<Run>& of(const LoraTargets& op) const { return op.per_output_row ? output_runs_ : runs_; }
  const Adapter* of_token(int token) const { return of_token_.empty() ? nullptr : of_token_[(size_t)token]; }

 private:
  const std::shared_ptr<const LoraTable> table_;
  const int most_;
  const bool is_placed_;  // on a GPU
  std::vector<std::shared_ptr<const Adapter>> slots_;
  std::vector<Run> runs_, output_runs_;
  std::vector<const Adapter*> of_token_;  // null: none
};

// The adapters' work space; the linears of a program run one after the other.
class LoraWork {
 public:
  explicit LoraWork(const LoraTargets::Table& program);
  size_t bytes(int rows) const;
  size_t reserve(int rows);
  void begin(const Step& step) { runs_.begin(step); }
  void end() { runs_.end(); }
  void begin_phase(const LoraTargets& op);  // before the first of its units

  int num_downs(const LoraTargets& op) const { return op.index < 0 ? 0 : (int)(runs_.of(op).size() * op.targets.size()); }
  void down(const Kernels& kernels, const LoraTargets& op, int unit, const float* x, size_t ldx);
  // Tiles [begin, end) of the op's matrix `which`, whose rows of y are ld apart.
  void up(const Kernels& kernels, const LoraTargets& op, size_t which, int begin, int end, float* y, size_t ld);

  // Adds to the embedding `out` of a token, the step's row `row`.
  void embed(const Kernels& kernels, const LoraTargets& op, int row, int token, float* out);

 private:
  size_t width() const { return widest_ * (size_t)(table_ ? table_->max_rank : 0); }  // of a row of h

  std::shared_ptr<const LoraTable> table_;
  AdapterRuns runs_;
  std::unique_ptr<Memory> h_;  // (rows, targets of the op, max_rank)
  size_t widest_;              // targets of an op, at most
  std::unique_ptr<Units[]> downs_;  // by op
};

}  // namespace brise
