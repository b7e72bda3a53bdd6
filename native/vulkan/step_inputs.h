// The arrays of a step as one buffer of 32-bit words, and where each of them begins in it.
#pragma once

#include <vector>

#include "../recording.h"
#include "placed.h"

namespace brise::vk {

class StepInputs {
 public:
  // Tokens of one sequence whose attention is one unit of work, as shaders read it.
  struct Unit {
    int32_t sequence, begin, end, unused;
  };
  using Units = std::vector<Unit>;
  explicit StepInputs(const Recording& recording) : recording_(recording) {}
  // Lays the step out; `words` is how many there are.
  void begin(const Step& step, const Cache* cache);
  size_t words() const { return words_; }
  // The same of a step of that size whose page table has `pages` entries.
  size_t most_words(int num_tokens, int num_rows, size_t pages) const;
  void write(uint32_t* out) const;  // words() of them

  // Where they begin, in words.
  int tokens_at = 0, positions_at = 0, slots_at = 0, reach_at = -1, rows_at = 0, decode_at = 0, prefill_at = 0, feature_rows_at = -1, features_at = 0, pages_at = 0;
  std::vector<int> made_at{};  // by op: of ROPE_TABLE and SCALE_QUERIES, rows of numbers
  int pages_per_sequence = 1;  // a power of two, so that commands serve for longer
  int decode_units = 0, prefill_units = 0;
  // Chunks of 512 keys of the unit with the most, rounded up to a power of two; window 0: all keys.
  int decode_chunks(int window) const;

  const Units& decode() const { return decode_; }
  const Units& prefill() const { return prefill_; }
  double keys(const Units& units, int first, int last, int window) const;  // that the tokens of those units see, in all

 private:
  int chunks_of(const Unit& unit, int window) const;
  int made_width(const Op& op) const;
  void make_units(const Cache* cache);
  void make_rows(const Op& op, float* out) const;

  const Recording& recording_;
  const Step* step_ = nullptr;
  size_t words_ = 0;
  Units decode_, prefill_;
  std::vector<int32_t> feature_rows_;  // of each token, in the features that are sent
  std::vector<int> sent_;              // rows of the step's features
};

}  // namespace brise::vk
