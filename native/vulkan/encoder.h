// Ops as dispatches in command buffers; shaders/README.md says what each shader binds.
#pragma once

#include <algorithm>
#include <set>

#include "program.h"

namespace brise::vk {

// What a slow integrated device does in a second, until a step has been timed: bytes, operations of int8 dots, of floats.
constexpr double BYTES = 20e9, DOTS = 400e9, FLOATS = 100e9;

inline int blocks(int n, int of) { return (n + of - 1) / of; }
std::string lower(const char* name);

// The shape of a linear's workgroups, and its specialization constants (shaders/README.md).
struct Shape {
  int rows, tokens;
  std::vector<int32_t> constants;
};
Shape linear_shape(int cols, int tokens);

// Most units of places of so many experts (shaders/README.md): of one place each, or of 4 and more that are sorted by expert.
constexpr size_t most_units(size_t places, size_t experts) { return std::max(places, places / 4 + experts); }

class Encoder {
 public:
  Encoder(const Program& program, const Step& step, const Cache* cache, Program::Recorded& out);
  void encode();

 private:
  // A word of push constants.
  struct Word {
    Word(int value) : bits((uint32_t)value) {}
    Word(size_t value) : bits((uint32_t)value) {}
    Word(float value);
    uint32_t bits;
  };
  using Words = std::initializer_list<Word>;

  void begin_part();
  void end_part();
  void leave_to_host(size_t index);  // an op: a part ends, and the next one begins after it
  // Begins a submission of its own if the current one would take too long with `seconds` more.
  void spend(double seconds);
  // How many dispatches a piece of work of so many seconds is cut into.
  int pieces(double seconds, int most) const;
  // A barrier if what follows needs one: it reads `in` and writes `out`.
  void use(const std::vector<const Buffer*>& in, const std::vector<const Buffer*>& out);
  void dispatch(const std::string& shader, std::initializer_list<Binding> bindings, Words push, std::array<int, 3> groups, const std::vector<int32_t>& constants = {});
  void by_row(const std::string& shader, std::initializer_list<Binding> in, int out, Words push, int groups);

  void encode(const Op& op, size_t index);
  void encode_group(size_t first, size_t last);
  void patches(const Op& op);
  void embed(const Op& op);
  void adapt_embedding(const Op& op);
  void put_rows(const Op& op);
  void quantize(const Op& op);
  void linear(const Op& op);
  void heads_linear(const Op& op);
  void experts(const Op& op, int out);
  void experts_of(const Op& op, int out, int first, int tokens);
  struct StackRows;
  void stack(const std::vector<std::shared_ptr<const Weight>>& matrices, const Buffer* from, const Buffer* to, const StackRows& rows);
  void adapters_down(const Op& op);
  void adapters_up(const Op& op);
  void write_cache(const Op& op);
  void attend(const Op& op, size_t index);
  void attend_units(const Op& op, const StepInputs::Units& units, int units_at);
  void attend_decoded(const Op& op, int chunks, int most);
  double attend_seconds(const Op& op, double keys) const;
  static int value_dim(const Op& op);
  int all_rows_of(int value) const { return recording_.value(value).per_output_row ? step_.num_rows : step_.num_tokens; }
  int rows_of(int value) const { return pass_rows_ < 0 ? all_rows_of(value) : pass_rows_; }
  int width(int value) const { return recording_.value(value).width; }
  const Buffer* at(int value) const { return &program_.buffer(value); }
  Binding rows_at(int value) const;  // those of the pass, in a group
  const Buffer* step_buffer() const { return program_.step_.get(); }
  int table_at(int value) const;

  const Program& program_;
  const Recording& recording_;
  const StepInputs& inputs_;
  const Step& step_;
  const Cache* const cache_;
  Program::Recorded& out_;
  Commands* commands_ = nullptr;
  std::set<const Buffer*> read_, written_;  // since the last barrier
  std::set<const Buffer*> current_in_, current_out_;  // of what is being recorded
  int pass_first_ = 0, pass_rows_ = -1;     // of a group; -1 outside of one
  double seconds_ = 0;                      // of the current submission, estimated
};

}  // namespace brise::vk
