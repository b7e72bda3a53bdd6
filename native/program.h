// A model's list of ops, recorded once and replayed for every step without Python.
//
// Recording gives every op's result a value number. `finish` groups the ops into phases, each done before the next:
//   rows    a chain of row-local ops; a thread takes rows and runs the whole chain on each
//   linear  linears of one input, cut into groups of weight tiles
//   attend  attention, cut into (sequence, kv head, query block)
//   experts the stages of a mixture's experts (experts.h)
// and gives values memory, reusing it where a value is dead. Threads claim the units of a phase (threads.h).
#pragma once

#include <atomic>
#include <climits>
#include <memory>
#include <string>
#include <vector>

#include "experts.h"
#include "kernels.h"
#include "lora.h"
#include "mapped.h"
#include "threads.h"

namespace brise {

// Zero pages that take no memory until they are touched. `large` asks for 2 MiB pages: right for memory that is read
// from end to end, like weights; a cache is touched in scattered places, and would take 2 MiB for each.
class Memory {
 public:
  explicit Memory(size_t bytes, bool large = false);
  ~Memory();
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  uint8_t* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  uint8_t* data_;
  size_t size_;
};

struct Weight {
  Matrix matrix;                 // 2-D weights
  std::vector<float> vector;     // 1-D weights
  std::shared_ptr<Memory> memory;
  std::shared_ptr<const MappedFile> file;  // instead of memory of its own
  bool is_shape_only = false;    // has a size but no memory: a program over it can be planned, not run
  size_t nbytes() const;
};

class Cache {
 public:
  // `sides` is 2, keys and values, or 1 for latents, which are both.
  Cache(int layers, int pages, int page_size, int kv_heads, int head_dim, CacheFormat format, int sides);
  CacheLayer layer(int index) const;
  int layers, pages, page_size, kv_heads, head_dim;
  CacheFormat format;
  int sides;
  size_t nbytes() const { return memory_.size(); }
  static size_t bytes(int layers, int pages, int page_size, int kv_heads, int head_dim, CacheFormat format, int sides);

 private:
  size_t layer_bytes_;
  Memory memory_;
};

// One step's arrays, as models/batch.py describes them.
struct Step {
  const int32_t *tokens, *positions, *query_starts, *rows, *page_table, *slots;
  int num_tokens, num_sequences, num_rows, pages_per_sequence;
  const Cache* cache;
  const float* features;        // (num_features, width), or null: no image in this step
  const int32_t* feature_rows;  // (num_tokens,), -1: none
  const int32_t* adapters;      // (num_tokens,), -1: none; or null: none at all
  const int32_t* reach = nullptr;  // (num_tokens,): the last position that a token sees; null: its own
  bool quiet = false;              // nobody waits for it: it runs at the lowest priority
};

enum class Kind { INPUT, EMBED, TAKE_ROWS, RMS_NORM, LAYER_NORM, BIAS, ADD, ROPE_TABLE, ROPE, SCALE, SCALE_QUERIES, SILU_MUL, GELU_MUL, GELU, GELU_TANH, PUT_ROWS, COLUMNS, CONCAT, WRITE_CACHE, QUANTIZE, LINEAR, HEADS_LINEAR, ATTEND, ROUTE, EXPERTS, SUM_EXPERTS };

struct Op {
  Kind kind;
  std::vector<int> in{}, out{};
  std::vector<std::shared_ptr<const Weight>> weights{};
  std::vector<double> inv_freq{};  // ROPE_TABLE
  double a = 0, b = 0;            // eps; factor; beta, period; attention_factor
  int heads = 1, layer = 0;
  int first = 0;                  // COLUMNS
  bool interleaved = false;
  AttendShape shape{};
  LoraTargets lora{};             // LINEAR, EMBED
  Experts experts{};              // EXPERTS, SUM_EXPERTS; its per_token also ROUTE
};

class Program : public Job {
 public:
  Program(std::shared_ptr<Pool> pool, const Kernels* kernels) : pool_(std::move(pool)), kernels_(kernels) {}
  ~Program() override { pool_->forget(*this); }

  int input(int width);
  int embed(std::shared_ptr<const Weight> table);
  int adapted_embed(std::shared_ptr<const Weight> embedding, std::shared_ptr<const LoraTable> table, int target);
  int take_rows(int x);
  std::vector<int> linears(int x, const std::vector<std::shared_ptr<const Weight>>& weights);
  // The same with adapters: targets of the table, -1 for a matrix that takes none.
  std::vector<int> adapted_linears(int x, const std::vector<std::shared_ptr<const Weight>>& weights, std::shared_ptr<const LoraTable> table, std::vector<int> targets);
  int bias(int x, std::shared_ptr<const Weight> b);
  int add(int x, int y);
  int rms_norm(int x, std::shared_ptr<const Weight> w, double eps);
  int layer_norm(int x, std::shared_ptr<const Weight> w, std::shared_ptr<const Weight> b, double eps);
  int rope_table(const std::vector<double>& inv_freq, double attention_factor);
  int rope(int x, int table, int heads, bool interleaved);
  int scale(int x, double factor);
  int scale_queries(int x, double beta, double period);
  int silu_mul(int gate, int up);
  int gelu_mul(int gate, int up);
  int gelu(int x);
  int gelu_tanh(int x);
  int put_rows(int x);
  int heads_linear(int x, const std::vector<std::shared_ptr<const Weight>>& matrices);
  int columns(int x, int heads, int first, int last);
  int concat(int x, int y, int heads);
  int attend_latent(int q, int kv, int layer, int heads, double scale, int rank);
  int attend(int q, int k, int v, int layer, int heads, int kv_heads, double scale, int window);
  int route(int logits, int per_token, double scale);
  int experts(int x, int gates, std::shared_ptr<const Stack> w1, std::shared_ptr<const Stack> w2, std::shared_ptr<const Stack> w3);

  void finish(std::vector<int> outputs);
  void check(const Cache* cache, int num_tokens) const;  // what the recorded ops ask of a step's cache
  int vocabulary() const { return vocabulary_; }
  int feature_width() const { return feature_width_; }  // 0: the program takes no features
  void set_input(int value, const float* data, size_t rows, std::shared_ptr<const void> owner);  // not copied
  void run(const Step& step);
  void begin(uint32_t run) override;
  void work(int thread, uint32_t run) override;
  std::shared_ptr<Memory> memory(int id) const;
  int width(int id) const;
  size_t work_bytes() const { return work_bytes_; }
  size_t planned_bytes(int num_tokens, int num_rows) const;  // work_bytes of a first step of that size

  // Held while a program runs or its values are accessed. Taken and released under the GIL, and refused to a second
  // thread, whose step would replace the first one's arrays.
  class Use {
   public:
    explicit Use(Program& program);
    ~Use() { program_.is_used_ = false; }
    Use(const Use&) = delete;
    Use& operator=(const Use&) = delete;

   private:
    Program& program_;
  };

 private:
  struct Value {
    int width;
    bool per_output_row;  // has R rows, not T
    bool is_input = false;
    int last_use = -1;
    int buffer = -1;
    float* data = nullptr;
  };
  struct Buffer {
    int width;
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

  int push(Op op, int width, bool per_output_row);
  int push_attend(std::vector<int> kept, int q, int layer, const AttendShape& shape, int width);
  void check_recording() const;
  void check_value(int id, int width) const;
  void check_rows(int id, bool per_output_row) const;
  void check_like(int id, int other) const;
  void insert_row_ops();
  void make_phases();
  void make_buffers(const std::vector<int>& outputs);
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
  std::vector<Op> ops_;
  std::vector<Value> values_;
  std::vector<Buffer> buffers_;
  std::vector<Phase> phases_;
  std::unique_ptr<Units[]> progress_;  // by phase
  std::atomic<size_t> first_{0}, last_{0};  // the phases of this run; a late thread of another may look
  ExpertWork experts_;
  LoraWork lora_;
  Step step_{};
  std::unique_ptr<Memory> quantized_;
  std::vector<std::unique_ptr<Memory>> scratch_;
  struct Block { int sequence, begin, end, kv_head; };
  std::vector<Block> blocks_;  // units of attention
  bool is_finished_ = false, is_used_ = false;
  int vocabulary_ = INT_MAX;  // rows of the smallest embedding
  int feature_width_ = 0;
  std::atomic<size_t> work_bytes_{0};
  bool unit_is_latent_ = false;
  int unit_heads_ = 0, unit_kv_heads_ = 0, max_groups_ = 0, max_head_dim_ = 0;
};

size_t packed_bytes(Format format, int rows, int cols);
std::shared_ptr<Weight> shape_only(Format format, int rows, int cols);
// A matrix without its numbers, and rows [first, first + rows) of them as a file has them; `first` begins a tile.
std::shared_ptr<Weight> empty_matrix(Format format, int rows, int cols);
void fill_rows(Pool& pool, Weight& weight, const uint8_t* source, int first, int rows);

}  // namespace brise
