// The Python bindings of the native backend. Sizes are checked here and in bind_step.h, once; kernels trust them.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/function.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "bind_recording.h"
#include "bind_step.h"
#include "program.h"
#include "vulkan/placed.h"

namespace nb = nanobind;
using namespace brise;

namespace {

struct RecordedProgram : Recorded<Program> {
  explicit RecordedProgram(const Backend& backend) : backend(backend) {}
  Backend backend;
};

std::vector<std::string> isa_names() {
  std::vector<std::string> names;
  for (const Kernels* const* k = available_kernels(); *k; k++) names.emplace_back((*k)->name);
  return names;
}

Backend make_backend(int threads, const std::string& isa) {
  if (threads < 1 || threads > 256) throw std::invalid_argument("threads is " + std::to_string(threads) + ", allowed are 1 to 256");
  for (const Kernels* const* k = available_kernels(); *k; k++)
    if (isa.empty() || isa == (*k)->name) return {std::make_shared<Pool>(threads), *k};
  throw std::invalid_argument("instruction set '" + isa + "' is not in this build or not on this processor");
}

// Name, block columns and block bytes of every weight format.
std::vector<std::tuple<std::string, int, int>> formats() {
  std::vector<std::tuple<std::string, int, int>> out;
  for (int i = 0; i < NUM_FORMATS; i++) {
    const StoredFormat stored = stored_format((Format)i);
    out.emplace_back(stored.name, stored.columns, stored.bytes);
  }
  return out;
}

// A weight's size without its numbers; without columns it is a vector, in float32 whatever its format.
std::shared_ptr<Weight> make_shape_only(const std::string& format_name, int rows, int cols) {
  const Format format = format_named(format_name);
  if (cols) check_shape(format_name, format, (size_t)std::max(rows, 0), cols);
  else check_length((size_t)std::max(rows, 0));
  return shape_only(format, rows, cols);
}

size_t weight_bytes(const std::string& format_name, int rows, int cols) {
  const Format format = format_named(format_name);
  if (!cols) return check_length((size_t)std::max(rows, 0)), (size_t)rows * sizeof(float);
  check_shape(format_name, format, (size_t)std::max(rows, 0), cols);
  return packed_bytes(format, rows, cols);
}

std::shared_ptr<Weight> empty_weight(const std::string& format_name, size_t rows, int cols) {
  const Format format = format_named(format_name);
  check_shape(format_name, format, rows, cols);
  return empty_matrix(format, (int)rows, cols);
}

void fill_weight(Backend& backend, Weight& weight, size_t first, Bytes data) {
  check_fill(weight.matrix, weight.memory != nullptr, first, data);
  nb::gil_scoped_release release;
  fill_rows(*backend.pool, weight, data.data(), (int)first, (int)data.shape(0));
}

std::shared_ptr<Weight> pack_bytes(Backend& backend, const std::string& format_name, Bytes data, int cols) {
  const std::shared_ptr<Weight> out = empty_weight(format_name, data.shape(0), cols);
  fill_weight(backend, *out, 0, data);
  return out;
}

// x (rows, cols) into out (rows, bytes of a row). `importance`: none or one number for each column.
void quantize_rows(Backend& backend, const std::string& format_name, Rows x, Floats importance, Output out) {
  const Format format = format_named(format_name);
  const int cols = (int)std::min<size_t>(x.shape(1), MAX_COLUMNS + 1);
  check_shape(format_name, format, x.shape(0), cols);
  if (block_columns(format) == 1) throw std::invalid_argument(format_name + " has no blocks");
  if (importance.shape(0) && importance.shape(0) != x.shape(1))
    throw std::invalid_argument("importance of " + std::to_string(importance.shape(0)) + " columns for rows of " + std::to_string(cols));
  const size_t row_bytes = source_row_bytes(format, cols);
  if (out.shape(0) != x.shape(0) || out.shape(1) != row_bytes) throw std::invalid_argument("the result has another shape");
  nb::gil_scoped_release release;
  backend.pool->each((int)x.shape(0), [&](int row) {
    encode_row(*backend.kernels, format, x.data() + (size_t)row * (size_t)cols, importance.shape(0) ? importance.data() : nullptr,
               cols, out.data() + (size_t)row * row_bytes);
  });
}

// data (rows, bytes of a row) into out (rows, 4 or 2 bytes a column).
void decode_blocks(const std::string& format_name, Bytes data, int cols, bool is_bf16, int threads, Output out) {
  const Format format = format_named(format_name);
  check_shape(format_name, format, data.shape(0), cols);
  if (block_columns(format) == 1) throw std::invalid_argument(format_name + " has no blocks");
  if (threads < 1 || threads > 256) throw std::invalid_argument("threads is " + std::to_string(threads) + ", allowed are 1 to 256");
  if (data.shape(1) != source_row_bytes(format, cols) || out.shape(0) != data.shape(0) || out.shape(1) != (size_t)cols * (is_bf16 ? 2 : 4))
    throw std::invalid_argument("rows of " + std::to_string(data.shape(1)) + " bytes into rows of " + std::to_string(out.shape(1)) + " for " + std::to_string(cols) + " columns");
  const Kernels& kernels = **available_kernels();
  nb::gil_scoped_release release;
  decode_rows(kernels, format, data.data(), data.shape(0), cols, is_bf16, threads, out.data());
}

std::shared_ptr<Weight> pack_vector(Floats data) {
  check_length(data.shape(0));
  auto out = std::make_shared<Weight>();
  out->vector.assign(data.data(), data.data() + data.shape(0));
  return out;
}

void make_loaded_stack(Stack* self, std::shared_ptr<ExpertStore> store, int count, const std::string& format, int rows, int cols, Stack::Load load) {
  if (rows > MAX_ROWS || cols > MAX_COLUMNS) throw std::invalid_argument("a matrix of " + std::to_string(rows) + " rows and " + std::to_string(cols) + " columns");
  new (self) Stack(std::move(store), count, format_named(format), rows, cols, std::move(load));
}

template <bool quiet>
void run_program(RecordedProgram& self, Ints tokens, Ints positions, Ints starts, Ints rows, IntTable pages, Ints slots, const Cache* cache,
                 std::optional<Rows> features, std::optional<Ints> feature_rows, std::optional<Ints> adapters, std::optional<Ints> reach) {
  Program& program = self.finished();
  const Use use(self.is_used);  // released after the GIL is taken again
  Step step = checked_step(*self.recording, cache, tokens, positions, starts, rows, pages, slots, features, feature_rows, adapters, reach);
  step.quiet = quiet;
  program.check(cache, step.num_tokens);
  nb::gil_scoped_release release;
  program.run(step, cache);
}

nb::ndarray<nb::numpy, const float, nb::ndim<2>> read_value(RecordedProgram& self, int id, size_t rows) {
  Program& program = self.finished();
  const Use use(self.is_used);
  const std::shared_ptr<Memory> memory = program.memory(id);
  const size_t width = (size_t)self.recording->width(id);
  if (!memory || rows > memory->size() / (width * sizeof(float)))
    throw std::invalid_argument("the last step has not " + std::to_string(rows) + " rows of value " + std::to_string(id));
  // The array owns a share of the memory: a larger step takes new memory.
  nb::capsule owner(new std::shared_ptr<Memory>(memory), [](void* p) noexcept { delete (std::shared_ptr<Memory>*)p; });
  return {memory->data(), {rows, width}, owner};
}

// Rows of a matrix as numbers, from `first` as many as `out` has.
void weight_rows(const Weight& weight, size_t first, FloatOutput out) {
  const Matrix& m = weight.matrix;
  if (weight.is_shape_only || out.shape(1) != (size_t)m.cols || first > (size_t)m.rows || out.shape(0) > (size_t)m.rows - first)
    throw std::invalid_argument("rows " + std::to_string(first) + " to " + std::to_string(first + out.shape(0)) + " of " + std::to_string(out.shape(1)) +
                                " columns of a matrix of " + std::to_string(weight.is_shape_only ? 0 : m.rows) + " and " + std::to_string(m.cols));
  nb::gil_scoped_release release;
  if (weight.placed) return vk::unpack_rows(weight, (int)first, (int)out.shape(0), out.data());
  for (size_t row = 0; row < out.shape(0); row++) unpack_row(m, (int)(first + row), out.data() + row * (size_t)m.cols);
}

// What a placed weight has in memory: tiles, or the numbers of a vector. The array shares it.
nb::ndarray<nb::numpy, const uint8_t, nb::ndim<1>> weight_bytes_of(const std::shared_ptr<Weight>& weight) {
  if (weight->is_shape_only) throw std::invalid_argument("a shape-only weight has no bytes");
  const Matrix& m = weight->matrix;
  const bool is_vector = !weight->vector.empty();
  if (weight->placed && !is_vector) {
    auto* tiles = new std::vector<uint8_t>((size_t)m.tiles() * m.tile_bytes);
    nb::capsule own(tiles, [](void* p) noexcept { delete (std::vector<uint8_t>*)p; });
    {
      nb::gil_scoped_release release;
      vk::read_tiles(*weight, 0, m.tiles(), tiles->data());
    }
    return {tiles->data(), {tiles->size()}, own};
  }
  const uint8_t* data = is_vector ? (const uint8_t*)weight->vector.data() : m.data;
  const size_t bytes = is_vector ? weight->vector.size() * sizeof(float) : (size_t)m.tiles() * m.tile_bytes;
  nb::capsule owner(new std::shared_ptr<Weight>(weight), [](void* p) noexcept { delete (std::shared_ptr<Weight>*)p; });
  return {data, {bytes}, owner};
}

// Strings that follow one another, each as 8 bytes of its length and its bytes: where they begin, counted from the first. There are
// fewer than `count` if the data end before the length of one.
std::vector<int64_t> string_starts(Raw data, size_t first, size_t count) {
  std::vector<int64_t> out;
  const size_t size = data.shape(0);
  if (first > size) throw std::invalid_argument("strings from byte " + std::to_string(first) + " of " + std::to_string(size));
  for (size_t at = first; out.size() < count && size - at >= 8;) {
    uint64_t length;
    std::memcpy(&length, data.data() + at, 8);
    out.push_back((int64_t)(at - first));
    if (length > size - at - 8) break;
    at += 8 + length;
  }
  return out;
}

void check_span(const MappedFile& file, size_t offset, size_t bytes) {
  if (offset > file.size() || bytes > file.size() - offset)
    throw std::invalid_argument(std::to_string(bytes) + " bytes from " + std::to_string(offset) + " on, of a file of " + std::to_string(file.size()));
}

// A matrix whose tiles lie in the file, with what kernels may read behind them (packed_bytes).
std::shared_ptr<Weight> mapped_matrix(const std::shared_ptr<MappedFile>& file, const std::string& format_name, size_t rows, int cols, size_t offset) {
  const Format format = format_named(format_name);
  check_shape(format_name, format, rows, cols);
  check_span(*file, offset, packed_bytes(format, (int)rows, cols));
  if (offset % 64) throw std::invalid_argument("tiles at " + std::to_string(offset) + ", wanted a multiple of 64");
  auto out = std::make_shared<Weight>();
  out->matrix = {format, (int)rows, cols, tile_bytes(format, cols), file->data() + offset};
  out->file = file;
  return out;
}

std::shared_ptr<Weight> mapped_vector(const MappedFile& file, size_t length, size_t offset) {
  check_length(length);
  check_span(file, offset, length * sizeof(float));
  auto out = std::make_shared<Weight>();
  out->vector.resize(length);
  std::memcpy(out->vector.data(), file.data() + offset, length * sizeof(float));
  return out;
}

// The sum of each span (offset, bytes), by all threads. Each byte is read, so afterwards the file is in memory.
std::vector<uint64_t> file_sums(const MappedFile& file, Backend& backend, const std::vector<std::pair<size_t, size_t>>& spans) {
  std::vector<std::pair<size_t, size_t>> pieces;
  for (const auto& [offset, bytes] : spans) {
    check_span(file, offset, bytes);
    for (size_t at = 0; at < bytes; at += SUM_BYTES) pieces.emplace_back(offset + at, std::min(SUM_BYTES, bytes - at));
  }
  nb::gil_scoped_release release;
  std::vector<uint64_t> sums(pieces.size()), out;
  backend.pool->each((int)pieces.size(), [&](int i) { sums[(size_t)i] = sum_piece(file.data() + pieces[(size_t)i].first, pieces[(size_t)i].second); });
  size_t next = 0;
  for (const auto& [offset, bytes] : spans) {
    uint64_t sum = 0;
    for (size_t at = 0; at < bytes; at += SUM_BYTES) sum = join_sums(sum, sums[next++]);
    out.push_back(sum);
  }
  return out;
}

void make_table(LoraTable* self, const std::vector<std::pair<int, int>>& shapes, int num_slots, int max_rank, int embedding) {
  if (num_slots < 1 || max_rank < 1 || max_rank > MAX_COLUMNS)
    throw std::invalid_argument("a table of " + std::to_string(num_slots) + " adapters of a rank up to " + std::to_string(max_rank) + ", wanted at least 1");
  std::vector<MatrixShape> own;
  for (const auto& [rows, cols] : shapes) {
    check_shape("F32", Format::F32, (size_t)std::max(rows, 0), cols);
    own.push_back({rows, cols, (int)own.size() == embedding});
  }
  new (self) LoraTable(std::move(own), num_slots, max_rank);
}

// Of each target: its number, a, b, scale, gain. Packing holds no lock: steps and other Python threads continue.
void make_adapter(Adapter* self, const LoraTable& table, const std::vector<std::tuple<int, Rows, Rows, float, std::optional<Floats>>>& parts) {
  std::vector<LowRankSource> sources;
  std::vector<bool> seen(table.shapes.size());
  for (const auto& [target, a, b, scale, gain] : parts) {
    const std::string name = "target " + std::to_string(target);
    if (target < 0 || target >= (int)seen.size() || seen[(size_t)target]) throw std::invalid_argument(name + " is not in the table, or twice in the adapter");
    seen[(size_t)target] = true;
    const auto [rows, cols, is_embedding] = table.shapes[(size_t)target];
    if (is_embedding && gain) throw std::invalid_argument(name + " is an embedding, which takes no gain");
    const size_t rank = a.shape(0);
    if (!rank || rank > (size_t)table.max_rank) throw std::invalid_argument(name + " has rank " + std::to_string(rank) + ", allowed are 1 to " + std::to_string(table.max_rank));
    if (a.shape(1) != (size_t)cols || b.shape(0) != (size_t)rows || b.shape(1) != rank || (gain && gain->shape(0) != (size_t)rows))
      throw std::invalid_argument(name + " has " + std::to_string(rows) + " rows and " + std::to_string(cols) + " columns, its adapter does not fit");
    sources.push_back({target, (int)rank, a.data(), b.data(), gain ? gain->data() : nullptr, scale});
  }
  nb::gil_scoped_release release;
  new (self) Adapter(table.shapes, sources);
}

}  // namespace

namespace brise::vk {
void bind(nb::module_& m);  // vulkan/bindings.cpp
}

NB_MODULE(_native, m) {
  brise::vk::bind(m);
  m.doc() = "Kernels and the recorded program of brise's native backend.";
  m.def("isa_names", &isa_names);
  m.def("formats", &formats);
  m.def("cache_bytes", [](int layers, int pages, int page_size, int kv_heads, int head_dim, const std::string& format, int sides) {
    return Cache::bytes(layers, pages, page_size, kv_heads, head_dim, cache_format_named(format), sides);
  }, nb::arg("layers"), nb::arg("pages"), nb::arg("page_size"), nb::arg("kv_heads"), nb::arg("head_dim"), nb::arg("format"), nb::arg("sides") = 2);
  nb::class_<Backend>(m, "Backend")
      .def("__init__", [](Backend* self, int threads, const std::string& isa) { new (self) Backend(make_backend(threads, isa)); })
      .def_prop_ro("isa", [](const Backend& b) { return std::string(b.kernels->name); })
      .def_prop_ro("threads", [](const Backend& b) { return b.pool->size(); })
      .def("fill", &fill_weight, nb::arg("weight"), nb::arg("first"), nb::arg("data"))
      .def("pack", &pack_bytes, nb::arg("format"), nb::arg("data"), nb::arg("cols"))
      .def("quantize", &quantize_rows, nb::arg("format"), nb::arg("x"), nb::arg("importance"), nb::arg("out"))
      .def("program", [](const Backend& b) { return new RecordedProgram(b); }, nb::rv_policy::take_ownership);
  nb::class_<Weight>(m, "Weight")
      .def("rows", &weight_rows, nb::arg("first"), nb::arg("out"))
      .def_prop_ro("nbytes", &Weight::nbytes)
      .def("bytes", &weight_bytes_of)
      .def_prop_ro("shape", [](const Weight& w) {  // format, rows, columns; a vector has no format and no columns
        if (!w.vector.empty()) return std::make_tuple(std::string(), (int)w.vector.size(), 0);
        return std::make_tuple(std::string(stored_format(w.matrix.format).name), w.matrix.rows, w.matrix.cols);
      });
  m.def("string_starts", [](Raw data, size_t first, size_t count) {
    auto* starts = new std::vector<int64_t>(string_starts(data, first, count));
    nb::capsule owner(starts, [](void* p) noexcept { delete (std::vector<int64_t>*)p; });
    return nb::ndarray<nb::numpy, int64_t, nb::ndim<1>>(starts->data(), {starts->size()}, owner);
  }, nb::arg("data"), nb::arg("first"), nb::arg("count"));
  m.def("checksum", [](Raw data) {
    nb::gil_scoped_release release;
    return sum_bytes(data.data(), data.shape(0));
  }, nb::arg("data"));
  nb::class_<MappedFile>(m, "MappedFile")
      .def(nb::init<int>(), nb::arg("descriptor"))
      .def_prop_ro("nbytes", &MappedFile::size)
      .def("matrix", &mapped_matrix, nb::arg("format"), nb::arg("rows"), nb::arg("cols"), nb::arg("offset"))
      .def("vector", &mapped_vector, nb::arg("length"), nb::arg("offset"))
      .def("checksums", &file_sums, nb::arg("backend"), nb::arg("spans"));
  m.def("vector", &pack_vector);
  m.def("decode", &decode_blocks, nb::arg("format"), nb::arg("data"), nb::arg("cols"), nb::arg("is_bf16"), nb::arg("threads"), nb::arg("out"));
  m.def("empty", &empty_weight, nb::arg("format"), nb::arg("rows"), nb::arg("cols"));
  m.def("shape_only", &make_shape_only, nb::arg("format"), nb::arg("rows"), nb::arg("cols"));
  m.def("weight_bytes", &weight_bytes, nb::arg("format"), nb::arg("rows"), nb::arg("cols"));
  nb::class_<ExpertStore>(m, "ExpertStore")
      .def("__init__", [](ExpertStore* self, int64_t budget) {
        if (budget < 0) throw std::invalid_argument("a store of " + std::to_string(budget) + " bytes");
        new (self) ExpertStore((size_t)budget);
      })
      .def_prop_ro("budget", &ExpertStore::budget)
      .def_prop_ro("nbytes", &ExpertStore::nbytes, nb::call_guard<nb::gil_scoped_release>())
      .def_prop_ro("num_loads", &ExpertStore::num_loads, nb::call_guard<nb::gil_scoped_release>());
  nb::class_<Stack>(m, "Stack")
      .def(nb::init<std::vector<std::shared_ptr<const Weight>>>(), nb::arg("matrices"))
      .def("__init__", &make_loaded_stack, nb::arg("store"), nb::arg("count"), nb::arg("format"), nb::arg("rows"), nb::arg("cols"), nb::arg("load"))
      .def_ro("count", &Stack::count)
      .def_prop_ro("matrix_bytes", &Stack::matrix_bytes);
  nb::class_<LoraTable>(m, "LoraTable")
      .def("__init__", &make_table, nb::arg("shapes"), nb::arg("num_slots"), nb::arg("max_rank"), nb::arg("embedding") = -1)
      .def_ro("num_slots", &LoraTable::num_slots)
      .def_ro("max_rank", &LoraTable::max_rank)
      .def("put", &LoraTable::put, nb::arg("slot"), nb::arg("adapter").none());
  nb::class_<Adapter>(m, "Adapter")
      .def("__init__", &make_adapter, nb::arg("table"), nb::arg("parts"))
      .def_prop_ro("nbytes", &Adapter::nbytes);
  nb::class_<Cache>(m, "Cache")
      .def("__init__", [](Cache* self, int layers, int pages, int page_size, int kv_heads, int head_dim, const std::string& format, int sides) {
        if (page_size < TILE || page_size % TILE) throw std::invalid_argument("page_size is " + std::to_string(page_size) + ", it must be a multiple of 16");
        if (layers < 1 || pages < 1 || kv_heads < 1 || head_dim < 1) throw std::invalid_argument("a cache needs at least one layer, page, head and number");
        if (sides != 1 && sides != 2) throw std::invalid_argument("a cache has 1 or 2 sides, got " + std::to_string(sides));
        new (self) Cache(layers, pages, page_size, kv_heads, head_dim, cache_format_named(format), sides);
      }, nb::arg("layers"), nb::arg("pages"), nb::arg("page_size"), nb::arg("kv_heads"), nb::arg("head_dim"), nb::arg("format"), nb::arg("sides") = 2)
      .def_ro("num_pages", &Cache::pages)
      .def_ro("page_size", &Cache::page_size)
      .def_prop_ro("nbytes", &Cache::nbytes);
  nb::class_<RecordedProgram> program(m, "Program");
  bind_recording(program);
  bind_run(program, "run", &run_program<false>);
  bind_run(program, "run_quietly", &run_program<true>);
  program
      .def("finish", [](RecordedProgram& p, const std::vector<int>& outputs) {
        p.recording->finish(outputs);
        p.program = std::make_unique<Program>(p.backend.pool, p.backend.kernels, p.recording);
      })
      .def("set_input", [](RecordedProgram& self, int id, Rows x) {
        Program& p = self.finished();
        const Use use(self.is_used);
        if (x.shape(1) != (size_t)self.recording->width(id) || x.shape(0) > MAX_ROWS) throw std::invalid_argument("input has another width, or too many rows");
        p.set_input(id, x.data(), x.shape(0), std::make_shared<Rows>(x));
      })
      .def("read", &read_value)
      .def_prop_ro("work_bytes", [](const RecordedProgram& p) { return p.program ? p.program->work_bytes() : 0; })
      .def("planned_bytes", [](const RecordedProgram& p, int num_tokens, int num_rows) {
        if (num_tokens < 0 || num_rows < 0 || num_tokens > MAX_ROWS || num_rows > MAX_ROWS)
          throw std::invalid_argument("a step of " + std::to_string(num_tokens) + " tokens and " + std::to_string(num_rows) + " rows");
        return p.finished().planned_bytes(num_tokens, num_rows);
      }, nb::arg("num_tokens"), nb::arg("num_rows"));
}
