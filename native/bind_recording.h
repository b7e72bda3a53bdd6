// The Python methods that record ops: the same for a program of the CPU and of a GPU.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>

#include "recording.h"
#include "threads.h"

namespace brise {

// The threads and the kernels that Python chose.
struct Backend {
  std::shared_ptr<Pool> pool;
  const Kernels* kernels;
};

// What Python records first and runs then; `Run` is null until the recording is finished.
template <class Run>
struct Recorded {
  std::shared_ptr<Recording> recording = std::make_shared<Recording>();
  std::unique_ptr<Run> program{};
  bool is_used = false;
  Run& finished() const {
    if (!program) throw std::invalid_argument("the program is not finished");
    return *program;
  }
};

template <class Self, class Result, class... Args>
auto recorded(Result (Recording::*method)(Args...)) {
  return [method](Self& self, Args... args) { return (self.recording.get()->*method)(std::forward<Args>(args)...); };
}

template <class Self>
void bind_recording(nanobind::class_<Self>& program) {
  using nanobind::arg;
  program.def("input", recorded<Self>(&Recording::input))
      .def("embed", recorded<Self>(&Recording::embed))
      .def("take_rows", recorded<Self>(&Recording::take_rows))
      .def("linears", recorded<Self>(&Recording::linears))
      .def("adapted_embed", recorded<Self>(&Recording::adapted_embed), arg("embedding"), arg("table"), arg("target"))
      .def("adapted_linears", recorded<Self>(&Recording::adapted_linears), arg("x"), arg("weights"), arg("table"), arg("targets"))
      .def("bias", recorded<Self>(&Recording::bias))
      .def("add", recorded<Self>(&Recording::add))
      .def("rms_norm", recorded<Self>(&Recording::rms_norm))
      .def("layer_norm", recorded<Self>(&Recording::layer_norm))
      .def("rope_table", recorded<Self>(&Recording::rope_table))
      .def("rope", recorded<Self>(&Recording::rope))
      .def("scale", recorded<Self>(&Recording::scale))
      .def("scale_queries", recorded<Self>(&Recording::scale_queries))
      .def("silu_mul", recorded<Self>(&Recording::silu_mul))
      .def("gelu_mul", recorded<Self>(&Recording::gelu_mul))
      .def("gelu", recorded<Self>(&Recording::gelu))
      .def("gelu_tanh", recorded<Self>(&Recording::gelu_tanh))
      .def("put_rows", recorded<Self>(&Recording::put_rows))
      .def("heads_linear", recorded<Self>(&Recording::heads_linear))
      .def("columns", recorded<Self>(&Recording::columns))
      .def("concat", recorded<Self>(&Recording::concat))
      .def("attend", recorded<Self>(&Recording::attend))
      .def("attend_latent", recorded<Self>(&Recording::attend_latent))
      .def("route", recorded<Self>(&Recording::route))
      .def("experts", recorded<Self>(&Recording::experts), arg("x"), arg("gates"), arg("w1"), arg("w2"), arg("w3"))
      .def("width", [](const Self& self, int id) { return self.recording->width(id); });
}

template <class Self, class Run>
void bind_run(nanobind::class_<Self>& program, const char* name, Run run) {
  using nanobind::arg;
  const auto none = [](const char* name) { return arg(name).none() = nanobind::none(); };
  program.def(name, run, arg("tokens"), arg("positions"), arg("query_starts"), arg("rows"), arg("page_table"), arg("slots"), arg("cache").none(), none("features"),
              none("feature_rows"), none("adapters"), none("reach"));
}

}  // namespace brise
