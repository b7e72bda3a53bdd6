// Experts of a mixture: which tokens each one gets, the stages that run them, and where their weights are.
//
// A place is a pair of a token and one of its experts. Places are sorted by expert, then by token, so that the tokens
// of an expert are contiguous for its linears. Stages, each done before the next:
//   PLAN      lists places; one unit
//   GATHER    copies rows of x to their places; a unit is a block of places of one expert
//   UP        w1 and w3; a unit is a group of weight tiles of one expert
//   ACTIVATE  silu(gate) * up; by block
//   DOWN      w2; by tiles
// The sum over a token's places, experts ascending, is a row op after them. A place's numbers do not depend on the
// other places: a token's result is the same alone, in a batch and in a prefill, in whatever order experts are run.
//
// Experts may not fit into memory: then a stack loads its matrices when a token needs them, through a store that keeps
// the most recently used ones within a budget. UP, ACTIVATE and DOWN then run for as many experts at a time as the store holds.
#pragma once

#include <functional>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "kernels.h"

namespace brise {

class Memory;
struct Weight;
class ExpertStore;

// The matrices of all experts: one format, one shape. All in memory, or loaded through a store.
class Stack {
 public:
  using Load = std::function<std::shared_ptr<const Weight>(int)>;
  explicit Stack(std::vector<std::shared_ptr<const Weight>> matrices);
  Stack(std::shared_ptr<ExpertStore> store, int count, Format format, int rows, int cols, Load load);

  bool is_resident() const { return !store; }
  bool is_float() const { return format >= Format::F16; }
  size_t matrix_bytes() const;
  std::shared_ptr<const Weight> load(int index) const;

  int count, rows, cols;
  Format format;
  std::vector<std::shared_ptr<const Weight>> matrices;  // if resident
  std::shared_ptr<ExpertStore> store;                   // if not
  int id = 0;                                           // in the store

 private:
  Load load_;
};

// Packed matrices of stacks that do not stay in memory: the most recently used ones, within `budget` bytes.
class ExpertStore {
 public:
  using Wanted = std::pair<const Stack*, int>;
  explicit ExpertStore(size_t budget) : budget_(budget) {}
  ExpertStore(const ExpertStore&) = delete;
  ExpertStore& operator=(const ExpertStore&) = delete;

  size_t budget() const { return budget_; }
  size_t nbytes();
  size_t num_loads();
  bool has(const Wanted& wanted);
  // All of them at once; they must fit the budget. Loading takes the GIL, so the caller must not hold it.
  std::vector<std::shared_ptr<const Weight>> hold(const std::vector<Wanted>& wanted);
  int new_id();

 private:
  using Key = std::pair<int, int>;  // of a stack, and of a matrix
  struct Entry {
    Key key;
    std::shared_ptr<const Weight> weight;
    size_t bytes;
  };
  void make_place(size_t bytes);

  const size_t budget_;
  size_t used_ = 0, num_loads_ = 0;
  int num_stacks_ = 0;
  std::mutex mutex_;
  std::list<Entry> recent_;  // most recently used first
  std::map<Key, std::list<Entry>::iterator> by_key_;
};

// The weights of one op, and how many experts a token has at most.
struct Experts {
  std::shared_ptr<const Stack> w1, w2, w3;
  int per_token = 0;
  bool is_resident() const { return w1->is_resident() && w2->is_resident() && w3->is_resident(); }
  int width() const { return w1->cols; }   // of x
  int hidden() const { return w1->rows; }  // of an expert
};

// Plan and work space of the running op; the ops of a program run one after the other.
class ExpertWork {
 public:
  enum Stage { PLAN, GATHER, UP, ACTIVATE, DOWN, NUM_STAGES };

  void include(const Experts& op) { ops_.push_back(op); }  // the work space is that of the largest op
  size_t bytes(int tokens) const;
  size_t reserve(int tokens);

  int num_units(const Experts& op, Stage stage, int threads) const;
  void plan(const Experts& op, const float* gates);
  void gather(const Kernels& kernels, const Experts& op, const float* x, int unit);
  void up(const Kernels& kernels, const Experts& op, int unit, int threads);
  void activate(const Kernels& kernels, const Experts& op, int unit);
  void down(const Kernels& kernels, const Experts& op, int unit, int threads);
  void sum(const Kernels& kernels, const Experts& op, int token, float* out);

  // Experts of the plan in groups that fit their store, those that are in it first. `next` loads a group; false if
  // there is none left.
  void begin_groups(const Experts& op);
  bool next_group(const Experts& op);
  void end_groups();

 private:
  struct Block { int active, begin, end; };  // places of one expert, counted from its first
  struct Room { int places, padded, experts; };
  static Room room(const Experts& op, int tokens);
  int chunk(const Experts& op, const Stack& w, int threads) const;
  int most_experts(const Experts& op) const;
  int num_places(int active) const { return begin_[(size_t)active + 1] - begin_[(size_t)active]; }
  const Matrix& matrix(const Experts& op, int which, int member) const;
  QRows quantized(QBlock* blocks, int groups, int active) const;
  void linear(const Kernels& kernels, const Matrix& w, const float* floats, QBlock* blocks, int active, int begin, int end, float* out) const;
  void make_blocks();

  std::vector<Experts> ops_;
  std::unique_ptr<Memory> x_, x_blocks_, gate_, up_, hidden_blocks_, out_;
  // The plan. Active experts are those with tokens, ascending.
  std::vector<int> active_, begin_, padded_;      // expert; its first place, and its first row of QBlocks
  std::vector<int> token_;                        // of each place
  std::vector<float> weight_;                     // gate of each place
  std::vector<int> places_, num_own_;             // of each token: places_[token * per_token ...]
  std::vector<int> group_;                        // the active experts that run now
  std::vector<Block> blocks_;
  std::vector<int> order_;                        // of begin_groups
  size_t next_ = 0;
  int tokens_ = 0;                                // of the step
  bool in_groups_ = false;
  std::vector<std::shared_ptr<const Weight>> held_;  // w1, w2, w3 of each member of the group
};

// Gates of one token: softmax over the best `per_token` logits, times scale; zero for the others.
void route(const float* logits, int count, int per_token, double scale, float* gates);

}  // namespace brise
