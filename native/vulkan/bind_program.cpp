// The Python bindings of what lies and runs on a Vulkan device: weights, adapters, the cache, programs.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>

#include "../bind_recording.h"
#include "../bind_step.h"
#include "program.h"

namespace brise::vk {

namespace {

struct RecordedProgram : Recorded<Program> {
  RecordedProgram(std::shared_ptr<Device> device, const Backend* host) : device(std::move(device)), pool(host ? host->pool : nullptr), kernels(host ? host->kernels : nullptr) {}
  std::shared_ptr<Device> device;
  std::shared_ptr<Pool> pool;  // for experts that stay in a file
  const Kernels* kernels;
};

void run(RecordedProgram& self, Ints tokens, Ints positions, Ints starts, Ints rows, IntTable pages, Ints slots, const Cache* cache, std::optional<Rows> features,
         std::optional<Ints> feature_rows, std::optional<Ints> adapters, std::optional<Ints> reach) {
  Program& program = self.finished();
  const Use use(self.is_used);
  const Step step = checked_step(*self.recording, cache, tokens, positions, starts, rows, pages, slots, features, feature_rows, adapters, reach);
  program.check(cache, step.num_tokens);
  nb::gil_scoped_release release;
  program.run(step, cache);
}

void begin(RecordedProgram& self, Ints tokens, Ints positions, Ints starts, Ints rows, IntTable pages, Ints slots, const Cache* cache, IntTable grids) {
  Program& program = self.finished();
  const Use use(self.is_used);
  const Step step = checked_step(*self.recording, cache, tokens, positions, starts, rows, pages, slots, {}, {}, {}, {});
  if (grids.shape(0) && grids.shape(1) != 2) throw std::invalid_argument("grids have " + std::to_string(grids.shape(1)) + " sides, wanted rows and columns");
  std::vector<std::array<int, 2>> sides;
  for (size_t i = 0; i < grids.shape(0); i++) sides.push_back({grids.data()[2 * i], grids.data()[2 * i + 1]});
  program.check(cache, step.num_tokens);
  nb::gil_scoped_release release;
  program.set_grids(std::move(sides));
  program.begin(step, cache);
}

bool proceed(RecordedProgram& self) {
  Program& program = self.finished();
  const Use use(self.is_used);
  nb::gil_scoped_release release;
  return program.proceed();
}

nb::ndarray<nb::numpy, float, nb::ndim<2>> read(RecordedProgram& self, int id, size_t rows) {
  Program& program = self.finished();
  const Use use(self.is_used);
  const size_t width = (size_t)self.recording->width(id);
  if (rows > MAX_ROWS) throw std::invalid_argument("the last step has not " + std::to_string(rows) + " rows");
  auto* data = new std::vector<float>(rows * width);
  nb::capsule owner(data, [](void* p) noexcept { delete (std::vector<float>*)p; });
  {
    nb::gil_scoped_release release;
    program.read(id, rows, data->data());
  }
  return {data->data(), {rows, width}, owner};
}

std::pair<size_t, size_t> pair_of(const Room& room) { return {room.device, room.host}; }

void check_sizes(int num_tokens, int num_rows) {
  if (num_tokens < 0 || num_rows < 0 || num_tokens > MAX_ROWS || num_rows > MAX_ROWS)
    throw std::invalid_argument("a step of " + std::to_string(num_tokens) + " tokens and " + std::to_string(num_rows) + " rows");
}

std::pair<size_t, size_t> planned(const RecordedProgram& self, int num_tokens, int num_rows) {
  check_sizes(num_tokens, num_rows);
  return pair_of(self.finished().planned(num_tokens, num_rows));
}

size_t largest(const RecordedProgram& self, int num_tokens, int num_rows) {
  check_sizes(num_tokens, num_rows);
  return self.finished().largest(num_tokens, num_rows);
}

CacheShape cache_shape(int layers, int pages, int page_size, int kv_heads, int head_dim, const std::string& format, int sides) {
  return {layers, pages, page_size, kv_heads, head_dim, cache_format_named(format), sides};
}

Format checked_stack(const std::string& name, int count, int rows, int cols) {
  if (count < 1) throw std::invalid_argument("a stack of " + std::to_string(count) + " matrices, wanted at least 1");
  const Format format = format_named(name);
  check_shape(name, format, (size_t)std::max(rows, 0), cols);
  return format;
}

void make_cache(Cache* self, std::shared_ptr<Device> device, int layers, int pages, int page_size, int kv_heads, int head_dim, const std::string& format, int sides) {
  if (page_size < TILE || page_size % TILE) throw std::invalid_argument("page_size is " + std::to_string(page_size) + ", it must be a multiple of 16");
  if (layers < 1 || pages < 1 || kv_heads < 1 || head_dim < 1) throw std::invalid_argument("a cache needs at least one layer, page, head and number");
  if (sides != 1 && sides != 2) throw std::invalid_argument("a cache has 1 or 2 sides, got " + std::to_string(sides));
  new (self) Cache(std::move(device), cache_shape(layers, pages, page_size, kv_heads, head_dim, format, sides));
}

}  // namespace

void bind_program(nb::module_& m, nb::class_<Device>& device) {
  using nb::arg;
  device
      .def("empty", [](std::shared_ptr<Device> self, const std::string& name, size_t rows, int cols) {
        const Format format = format_named(name);
        check_shape(name, format, rows, cols);
        return empty_matrix(self, format, (int)rows, cols);
      }, arg("format"), arg("rows"), arg("cols"))
      .def("empty_stack", [](std::shared_ptr<Device> self, const std::string& name, int count, int rows, int cols) {
        const Format format = checked_stack(name, count, rows, cols);
        return empty_stack(self, format, count, rows, cols);
      }, arg("format"), arg("count"), arg("rows"), arg("cols"))
      .def("stack_bytes", [](const Device& self, const std::string& name, int count, int rows, int cols) {
        const Format format = checked_stack(name, count, rows, cols);
        return stack_bytes(self, format, count, rows, cols);
      }, arg("format"), arg("count"), arg("rows"), arg("cols"))
      .def("fill", [](const Device&, Backend& backend, const Weight& weight, size_t first, Bytes data) {
        check_fill(weight.matrix, weight.placed != nullptr, first, data);
        nb::gil_scoped_release release;
        fill_rows(*backend.pool, weight, data.data(), (int)first, (int)data.shape(0));
      }, arg("backend"), arg("weight"), arg("first"), arg("data"))
      .def("vector", [](std::shared_ptr<Device> self, Floats data) {
        check_length(data.shape(0));
        return place_vector(self, data.data(), data.shape(0));
      }, arg("data"))
      .def("place", [](std::shared_ptr<Device> self, const Weight& weight) {
        nb::gil_scoped_release release;
        return place(self, weight);
      }, arg("weight"))
      .def("place_adapter", [](std::shared_ptr<Device> self, brise::Adapter& adapter) {
        if (adapter.placed()) throw std::invalid_argument("the adapter lies on a GPU already");
        nb::gil_scoped_release release;
        place_adapter(self, adapter);
      }, arg("adapter"))
      .def("weight_bytes", [](const Device& self, const std::string& name, int rows, int cols) {
        const Format format = format_named(name);
        if (cols) check_shape(name, format, (size_t)std::max(rows, 0), cols);
        else check_length((size_t)std::max(rows, 0));
        return weight_bytes(self, format, rows, cols);
      }, arg("format"), arg("rows"), arg("cols"))
      .def("cache_bytes", [](const Device& self, int layers, int pages, int page_size, int kv_heads, int head_dim, const std::string& format, int sides) {
        return Cache::bytes(self, cache_shape(layers, pages, page_size, kv_heads, head_dim, format, sides));
      }, arg("layers"), arg("pages"), arg("page_size"), arg("kv_heads"), arg("head_dim"), arg("format"), arg("sides") = 2)
      .def("program", [](std::shared_ptr<Device> self, const Backend* host) { return new RecordedProgram(self, host); }, arg("host").none() = nb::none(), nb::rv_policy::take_ownership);
  nb::class_<Cache>(m, "VulkanCache")
      .def("__init__", &make_cache, arg("device"), arg("layers"), arg("pages"), arg("page_size"), arg("kv_heads"), arg("head_dim"), arg("format"), arg("sides") = 2)
      .def_ro("num_pages", &Cache::pages)
      .def_ro("page_size", &Cache::page_size)
      .def_prop_ro("nbytes", &Cache::nbytes);
  nb::class_<RecordedProgram> program(m, "VulkanProgram");
  bind_recording(program);
  bind_run(program, "run", &run);
  bind_run(program, "run_quietly", &run);
  program
      .def("merge_patches", recorded<RecordedProgram>(&Recording::merge_patches))
      .def("mean_patches", recorded<RecordedProgram>(&Recording::mean_patches))
      .def("begin_group", recorded<RecordedProgram>(&Recording::begin_group))
      .def("end_group", recorded<RecordedProgram>(&Recording::end_group))
      .def("begin", &begin, arg("tokens"), arg("positions"), arg("query_starts"), arg("rows"), arg("page_table"), arg("slots"), arg("cache").none(), arg("grids"))
      .def("proceed", &proceed)
      .def("finish", [](RecordedProgram& self, const std::vector<int>& outputs) {
        self.recording->finish(outputs);
        self.program = std::make_unique<Program>(self.device, self.recording, self.pool, self.kernels);
      }, arg("outputs"))
      .def("set_input", [](RecordedProgram& self, int id, Rows x) {
        Program& p = self.finished();
        const Use use(self.is_used);
        if (x.shape(1) != (size_t)self.recording->width(id) || x.shape(0) > MAX_ROWS) throw std::invalid_argument("input has another width, or too many rows");
        nb::gil_scoped_release release;
        p.set_input(id, x.data(), x.shape(0));
      }, arg("id"), arg("x"))
      .def("read", &read, arg("id"), arg("rows"))
      .def("cancel", [](RecordedProgram& self) { self.finished().cancel(); })
      .def_prop_ro("longest_part_s", [](const RecordedProgram& self) { return self.program ? self.program->longest_part() : 0.0; })
      .def_prop_ro("work_bytes", [](const RecordedProgram& self) { return pair_of(self.program ? self.program->work_room() : Room()); })
      .def("planned_bytes", &planned, arg("num_tokens"), arg("num_rows"))
      .def("largest_bytes", &largest, arg("num_tokens"), arg("num_rows"));
}

}  // namespace brise::vk
