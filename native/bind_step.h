// The arrays that Python passes, and what a step's must hold. Sizes are checked here, once; kernels and shaders trust them.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <algorithm>
#include <optional>
#include <stdexcept>
#include <string>

#include "recording.h"

namespace brise {

namespace nb = nanobind;

using Bytes = nb::ndarray<const uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Ints = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using IntTable = nb::ndarray<const int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Floats = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Output = nb::ndarray<uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using FloatOutput = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Raw = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Rows = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

// Kernels count rows, and columns times the rows of a tile, in int.
constexpr int MAX_ROWS = 1 << 30, MAX_COLUMNS = 1 << 26;

inline Format format_named(const std::string& name) {
  for (int i = 0; i < NUM_FORMATS; i++)
    if (name == stored_format((Format)i).name) return (Format)i;
  throw std::invalid_argument("no kernel for weight format '" + name + "'");
}

inline CacheFormat cache_format_named(const std::string& name) {
  if (name == "f32") return CacheFormat::F32;
  if (name == "f16") return CacheFormat::I16;
  if (name == "q8") return CacheFormat::Q8;
  if (name == "q4") return CacheFormat::Q4;
  throw std::invalid_argument("no cache format '" + name + "'; there are f32, f16, q8, q4");
}

inline void check_shape(const std::string& format_name, Format format, size_t rows, int cols) {
  if (cols < 1 || cols % block_columns(format))
    throw std::invalid_argument(format_name + " needs a multiple of " + std::to_string(block_columns(format)) + " columns, got " + std::to_string(cols));
  if (!rows || rows > MAX_ROWS || cols > MAX_COLUMNS)
    throw std::invalid_argument("a matrix of " + std::to_string(rows) + " rows and " + std::to_string(cols) + " columns; there may be 1 to " +
                                std::to_string(MAX_ROWS) + " and " + std::to_string(MAX_COLUMNS));
}

inline void check_length(size_t rows) {
  if (!rows || rows > MAX_ROWS) throw std::invalid_argument("a vector of " + std::to_string(rows) + " numbers");
}

// A part that does not end with the matrix ends with a tile: the rest of a tile is filled with zeros.
inline void check_fill(const Matrix& m, bool has_memory, size_t first, Bytes data) {
  const size_t rows = data.shape(0), most = has_memory ? (size_t)m.rows : 0;
  if (!rows || first % TILE || first > most || rows > most - first || (rows % TILE && first + rows != most))
    throw std::invalid_argument("rows " + std::to_string(first) + " to " + std::to_string(first + rows) + " of a matrix of " + std::to_string(most) +
                                "; they must begin and end at multiples of " + std::to_string(TILE) + " or with the matrix");
  const size_t row_bytes = source_row_bytes(m.format, m.cols);
  if (data.shape(1) != row_bytes)
    throw std::invalid_argument("a row of " + std::to_string(m.cols) + " columns has " + std::to_string(row_bytes) + " bytes, got " + std::to_string(data.shape(1)));
}

inline void range(const char* what, Ints values, int limit) {
  for (size_t i = 0; i < values.shape(0); i++)
    if (values.data()[i] < 0 || values.data()[i] >= limit)
      throw std::invalid_argument(std::string(what) + "[" + std::to_string(i) + "] is " + std::to_string(values.data()[i]) + ", allowed are 0 to " + std::to_string(limit - 1));
}

// Refuses a batch that would make a kernel read or write out of bounds.
inline void check_step(Ints tokens, int vocabulary, Ints positions, Ints starts, Ints rows, IntTable pages, Ints slots, const CacheShape* cache, const std::optional<Ints>& reach) {
  const size_t T = tokens.shape(0), S = starts.shape(0) ? starts.shape(0) - 1 : 0;
  for (const size_t size : {T, S, rows.shape(0), pages.shape(1)})
    if (size > MAX_ROWS) throw std::invalid_argument("a step of " + std::to_string(size) + " rows, allowed are " + std::to_string(MAX_ROWS));
  if (positions.shape(0) != T) throw std::invalid_argument("positions and tokens differ in length");
  if (!starts.shape(0) || starts.data()[0] != 0 || starts.data()[S] != (int)T) throw std::invalid_argument("query_starts must go from 0 to the number of tokens");
  for (size_t s = 0; s < S; s++)
    if (starts.data()[s] > starts.data()[s + 1]) throw std::invalid_argument("query_starts must not fall");
  range("tokens", tokens, vocabulary);
  range("rows", rows, (int)T);
  range("positions", positions, 1 << 30);
  if (reach) {
    if (reach->shape(0) != T) throw std::invalid_argument("reach and tokens differ in length");
    range("reach", *reach, 1 << 30);
    for (size_t t = 0; t < T; t++)
      if (reach->data()[t] < positions.data()[t]) throw std::invalid_argument("reach[" + std::to_string(t) + "] is before the token's position");
  }
  if (!cache) return;
  if (pages.shape(0) != S) throw std::invalid_argument("page_table has not one row for each sequence");
  if (slots.shape(0) != T) throw std::invalid_argument("slots and tokens differ in length");
  range("slots", slots, cache->pages * cache->page_size);
  for (size_t s = 0; s < S; s++) {
    const int begin = starts.data()[s], end = starts.data()[s + 1];
    int last = -1;
    for (int t = begin; t < end; t++) last = std::max(last, (int)(reach ? reach->data()[t] : positions.data()[t]));
    const int needed = last < 0 ? 0 : last / cache->page_size + 1;
    if (needed > (int)pages.shape(1)) throw std::invalid_argument("page_table is too short for position " + std::to_string(last));
    for (int p = 0; p < needed; p++) {
      const int page = pages.data()[s * pages.shape(1) + (size_t)p];
      if (page < 0 || page >= cache->pages) throw std::invalid_argument("page_table has page " + std::to_string(page) + " of " + std::to_string(cache->pages));
    }
  }
}

// A program without put_rows reads no features; one op of a model, run alone, is such a program.
inline void check_features(const Recording& program, size_t tokens, const std::optional<Rows>& features, const std::optional<Ints>& feature_rows) {
  if (features.has_value() != feature_rows.has_value()) throw std::invalid_argument("features and feature_rows come together");
  if (!features || !program.feature_width()) return;
  if (features->shape(1) != (size_t)program.feature_width() || features->shape(0) > MAX_ROWS)
    throw std::invalid_argument("features of " + std::to_string(features->shape(1)) + " numbers, wanted " + std::to_string(program.feature_width()));
  if (feature_rows->shape(0) != tokens) throw std::invalid_argument("feature_rows and tokens differ in length");
  for (size_t t = 0; t < tokens; t++)
    if (feature_rows->data()[t] < -1 || feature_rows->data()[t] >= (int)features->shape(0))
      throw std::invalid_argument("feature_rows[" + std::to_string(t) + "] is " + std::to_string(feature_rows->data()[t]) + ", allowed are -1 to " + std::to_string((int)features->shape(0) - 1));
}

inline Step checked_step(const Recording& recording, const CacheShape* cache, Ints tokens, Ints positions, Ints starts, Ints rows, IntTable pages, Ints slots,
                         const std::optional<Rows>& features, const std::optional<Ints>& feature_rows, const std::optional<Ints>& adapters, const std::optional<Ints>& reach) {
  check_step(tokens, recording.vocabulary(), positions, starts, rows, pages, slots, cache, reach);
  check_features(recording, tokens.shape(0), features, feature_rows);
  if (adapters && adapters->shape(0) != tokens.shape(0)) throw std::invalid_argument("adapters and tokens differ in length");
  return {tokens.data(), positions.data(), starts.data(), rows.data(), pages.data(), slots.data(),
          (int)tokens.shape(0), (int)starts.shape(0) - 1, (int)rows.shape(0), (int)pages.shape(1),
          features ? features->data() : nullptr, feature_rows ? feature_rows->data() : nullptr, adapters ? adapters->data() : nullptr, reach ? reach->data() : nullptr};
}

// Held while a program runs or its values are accessed. Taken and released under the GIL, and refused to a second thread,
// whose step would replace the first one's arrays.
class Use {
 public:
  explicit Use(bool& is_used) : is_used_(is_used) {
    if (is_used) throw std::invalid_argument("the program runs in another thread");
    is_used = true;
  }
  ~Use() { is_used_ = false; }
  Use(const Use&) = delete;
  Use& operator=(const Use&) = delete;

 private:
  bool& is_used_;
};

}  // namespace brise
