// A model's list of ops, recorded once. A program replays it for every step: on the CPU program.h, on a GPU vulkan/program.h.
//
// Recording checks every op and gives its result a value number. `finish` inserts the ops that quantize activations and
// gives values buffers, one used again where a value is dead.
#pragma once

#include <climits>
#include <memory>
#include <string>
#include <vector>

#include "experts.h"
#include "kernels.h"
#include "lora.h"
#include "mapped.h"

namespace brise {

namespace vk {
struct Placed;  // vulkan/placed.h
}

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
  std::shared_ptr<const vk::Placed> placed;  // or on a GPU; of a vector besides
  bool is_shape_only = false;    // has a size but no memory: a program over it can be planned, not run
  size_t nbytes() const;
};

// `sides` is 2, keys and values, or 1 for latents, which are both.
struct CacheShape {
  int layers, pages, page_size, kv_heads, head_dim;
  CacheFormat format;
  int sides;
};

// One step's arrays, as models/batch.py describes them.
struct Step {
  const int32_t *tokens, *positions, *query_starts, *rows, *page_table, *slots;
  int num_tokens, num_sequences, num_rows, pages_per_sequence;
  const float* features;        // (num_features, width), or null: no image in this step
  const int32_t* feature_rows;  // (num_tokens,), -1: none
  const int32_t* adapters;      // (num_tokens,), -1: none; or null: none at all
  const int32_t* reach = nullptr;  // (num_tokens,): the last position that a token sees; null: its own
  bool quiet = false;              // nobody waits for it: it runs at the lowest priority
};

enum class Kind { INPUT, EMBED, TAKE_ROWS, RMS_NORM, LAYER_NORM, BIAS, ADD, ROPE_TABLE, ROPE, SCALE, SCALE_QUERIES, SILU_MUL, GELU_MUL, GELU, GELU_TANH, PUT_ROWS, COLUMNS, CONCAT, WRITE_CACHE, QUANTIZE, LINEAR, HEADS_LINEAR, ATTEND, ROUTE, EXPERTS, SUM_EXPERTS, MERGE_PATCHES, MEAN_PATCHES };

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
  int size = 0;                   // MERGE_PATCHES, MEAN_PATCHES: of a square's side
  int group = -1;                 // of ops that run for some rows after the other, all of them each time
};

struct Value {
  int width;
  bool per_output_row;  // has R rows, not T
  bool is_input = false;
  int last_use = -1;
  int buffer = -1;
  int group = -1;         // of the op that makes it
  bool is_local = false;  // nothing outside its group reads it: it has the rows of a pass
};

// Rows of a pass of a group: inner values of a feed-forward are wide, and an image has up to 12 100 patches.
constexpr int PASS_ROWS = 512;

class Recording {
 public:
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
  // A finished recording of one op, whose inputs 0 and 1 are x and the gates; value 2 is its result.
  static std::shared_ptr<const Recording> of_experts(const Experts& experts);
  // Squares of size x size neighbours of images, as one row or as their mean; a row for each output.
  int merge_patches(int x, int size);
  int mean_patches(int x, int size);
  // Between them lie ops that read no other row than they write: a program may run them for some rows after the other.
  void begin_group();
  void end_group();
  void finish(const std::vector<int>& outputs);

  // Of a finished recording.
  const std::vector<Op>& ops() const { return ops_; }
  const std::vector<Value>& values() const { return values_; }
  const Value& value(int id) const { return values_[(size_t)id]; }
  int width(int id) const;
  size_t num_buffers() const { return buffer_shapes_.size(); }
  int vocabulary() const { return vocabulary_; }        // rows of the smallest embedding
  int feature_width() const { return feature_width_; }  // 0: the program takes no features
  const LoraTargets::Table& lora() const { return lora_; }
  // Of all attention: heads, kv_heads and whether it is of latents; heads are 0 if there is none.
  int heads() const { return heads_; }
  int kv_heads() const { return kv_heads_; }
  bool is_latent() const { return is_latent_; }
  int max_groups() const { return max_groups_; }      // of 32 columns, in a row that is quantized
  int max_head_dim() const { return max_head_dim_; }
  void check_value(int id, int width) const;
  void check_step(const CacheShape* cache, int num_tokens) const;  // what the ops ask of a step's cache

 private:
  int push(Op op, int width, bool per_output_row);
  int push_attend(std::vector<int> kept, int q, int layer, const AttendShape& shape, int width);
  LoraTargets adapted(std::shared_ptr<const LoraTable> table, std::vector<int> targets, bool per_output_row);
  void check_recording() const;
  void check_rows(int id, bool per_output_row) const;
  void check_like(int id, int other) const;
  void insert_row_ops();
  void find_local();
  void make_buffers(const std::vector<int>& outputs);

  std::vector<Op> ops_;
  std::vector<Value> values_;
  struct Shape {
    int width;
    bool is_local;
    bool operator==(const Shape&) const = default;
  };
  std::vector<Shape> buffer_shapes_;
  LoraTargets::Table lora_;
  bool is_finished_ = false, is_latent_ = false;
  int vocabulary_ = INT_MAX;
  int group_ = -1, num_groups_ = 0;  // of what is recorded now, or -1
  int feature_width_ = 0, heads_ = 0, kv_heads_ = 0, max_groups_ = 0, max_head_dim_ = 0;
};

size_t packed_bytes(Format format, int rows, int cols);
std::shared_ptr<Weight> shape_only(Format format, int rows, int cols);
// A matrix without its numbers, and rows [first, first + rows) of them as a file has them; `first` begins a tile.
std::shared_ptr<Weight> empty_matrix(Format format, int rows, int cols);
void fill_rows(Pool& pool, Weight& weight, const uint8_t* source, int first, int rows);

}  // namespace brise
