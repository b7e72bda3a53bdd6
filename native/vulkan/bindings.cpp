// The Python bindings of Vulkan devices. Sizes are checked here and in commands.cpp.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <chrono>

#include "device.h"

namespace nb = nanobind;

namespace brise::vk {

namespace {

using Array = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Output = nb::ndarray<nb::numpy, uint8_t, nb::ndim<1>>;

nb::dict facts_of(const Facts& facts) {
  nb::dict out;
  out["number"] = facts.number;
  out["name"] = facts.name;
  out["type"] = facts.type;
  out["driver"] = facts.driver;
  out["driver_version"] = facts.driver_version;
  out["api"] = facts.api;
  out["missing"] = facts.missing;
  out["is_shared"] = facts.is_shared;
  out["has_budget"] = facts.has_budget;
  out["subgroup"] = facts.subgroup;
  out["shared_memory"] = facts.shared_memory;
  out["max_invocations"] = facts.max_invocations;
  out["offset_alignment"] = facts.offset_alignment;
  out["memory"] = facts.memory;
  out["max_binding"] = facts.max_binding;
  out["max_allocation"] = facts.max_allocation;
  return out;
}

Output array_of(size_t bytes) {
  uint8_t* data = new uint8_t[bytes];
  return Output(data, {bytes}, nb::capsule(data, [](void* p) noexcept { delete[] (uint8_t*)p; }));
}

// Each array becomes a buffer of its own; the shader runs once; all come back.
std::vector<Output> run_once(Device& device, const std::string& shader, const std::vector<Array>& arrays, nb::bytes push, std::array<uint32_t, 3> groups,
                             const std::vector<int32_t>& constants) {
  std::vector<Output> out;
  for (const Array& array : arrays) out.push_back(array_of(array.size()));
  const void* const push_data = push.data();
  const size_t push_bytes = push.size();
  nb::gil_scoped_release release;
  std::vector<std::shared_ptr<Buffer>> buffers;
  std::vector<Binding> bindings;
  for (const Array& array : arrays) {
    buffers.push_back(device.allocate(array.size()));
    bindings.push_back({buffers.back().get()});
    device.upload(*buffers.back(), 0, array.data(), array.size());
  }
  const Pipeline& pipeline = device.pipeline(shader, constants);
  Commands commands(device);
  commands.begin();
  commands.barrier();
  commands.dispatch(pipeline, bindings, push_data, push_bytes, groups);
  commands.barrier();
  commands.end();
  commands.submit();
  commands.wait();
  for (size_t i = 0; i < out.size(); i++) device.download(*buffers[i], 0, out[i].data(), out[i].size());
  return out;
}

// Seconds of each of `runs` readings of a buffer of `bytes`, which is as much as one binding takes or less. A submission has several
// readings, so that its own cost is small beside them.
std::vector<double> read_seconds(Device& device, size_t bytes, int runs) {
  constexpr int READINGS = 4;
  constexpr uint32_t GROUPS = 4096, LOCAL = 256;
  const Facts& facts = device.facts();
  const size_t size = std::min(bytes, facts.max_binding) / 16 * 16;
  if (!size || runs < 1) throw std::invalid_argument("a reading of nothing");
  nb::gil_scoped_release release;
  const uint32_t local = std::min(LOCAL, facts.max_invocations), groups = std::min(GROUPS, facts.max_groups[0]);
  const std::shared_ptr<Buffer> data = device.allocate(size), out = device.allocate((size_t)groups * local * 4);
  const Pipeline& pipeline = device.pipeline("read_all", {(int32_t)local});
  const Binding bindings[] = {{data.get()}, {out.get()}};
  const uint32_t count = (uint32_t)(size / 16);
  Commands commands(device);
  commands.begin();
  commands.fill(*data, 0, size, 0x5bd1e995);
  commands.barrier();
  commands.dispatch(pipeline, bindings, &count, sizeof count, {groups, 1, 1});
  commands.end();
  commands.submit();
  commands.wait();
  commands.begin(false);
  for (int i = 0; i < READINGS; i++) {
    commands.barrier();
    commands.dispatch(pipeline, bindings, &count, sizeof count, {groups, 1, 1});
  }
  commands.end();
  std::vector<double> seconds;
  for (int run = 0; run < runs; run++) {
    const auto start = std::chrono::steady_clock::now();
    commands.submit();
    commands.wait();
    seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() / READINGS);
  }
  return seconds;
}

// The error of brise.errors for each fault, with what a user can do.
nb::object python_error(const Error& error) {
  const nb::object errors = nb::module_::import_("brise.errors");
  using namespace nb::literals;
  switch (error.fault) {
    case Fault::NO_LOADER:
      return errors.attr("DeviceError")(error.what(), "hint"_a = "install the Vulkan loader and the driver of the card, on Debian libvulkan1 and mesa-vulkan-drivers or NVIDIA's");
    case Fault::NO_DEVICE: return errors.attr("DeviceError")(error.what(), "hint"_a = "install the card's Vulkan driver, or take --device cpu");
    case Fault::NOT_CHOSEN: return errors.attr("DeviceError")(error.what(), "hint"_a = "choose one of them by its number, or take --device vulkan for the best");
    case Fault::TOO_OLD:
      return errors.attr("DeviceLacksError")(error.what(), error.device, error.missing, "hint"_a = "a newer driver may have it; without it take --device cpu");
    case Fault::OUT_OF_MEMORY:
      return errors.attr("DeviceMemoryError")(error.what(), error.asked, error.free, error.budget,
                                              "hint"_a = "other programs may hold the rest; `brise plan --device vulkan --memory` says what fits");
    case Fault::LOST: return errors.attr("DeviceLostError")(error.what(), "hint"_a = "start brise again, or with --device auto to go on with the CPU");
    case Fault::CANCELLED: return nb::module_::import_("brise.models.ops").attr("StepCancelledError")(error.what());
    default: return errors.attr("DeviceError")(error.what());
  }
}

void translate(const std::exception_ptr& pointer, void*) {
  try {
    std::rethrow_exception(pointer);
  } catch (const Error& error) {
    const nb::object made = python_error(error);
    PyErr_SetObject((PyObject*)Py_TYPE(made.ptr()), made.ptr());
  }
}

}  // namespace

void bind_program(nb::module_& m, nb::class_<Device>& device);  // bind_program.cpp

void bind(nb::module_& m) {
  nb::register_exception_translator(translate);
  m.def("vulkan_shaders", [] {
    std::vector<std::string> names;
    for (const auto& [name, words] : shaders()) names.push_back(name);
    return names;
  });
  m.def("vulkan_devices", [] {
    nb::list out;
    for (const Facts& facts : list_devices()) out.append(facts_of(facts));
    return out;
  });
  nb::class_<Buffer>(m, "VulkanBuffer").def_ro("nbytes", &Buffer::bytes).def_ro("allocated", &Buffer::allocated);
  nb::class_<Device> device(m, "VulkanDevice");
  device
      .def(nb::new_([](const std::string& selector) { return Device::open(selector); }), nb::arg("selector") = "")
      .def("facts", [](const Device& device) { return facts_of(device.facts()); })
      .def("budget", [](const Device& device) { return std::make_pair(device.budget().free, device.budget().total); })
      .def_prop_ro("allocated", &Device::allocated)
      .def_prop_ro("allocated_for_host", &Device::allocated_for_host)
      .def_prop_ro("staging_bytes", &Device::staging_bytes)
      .def("allocation_bytes", &Device::allocation_bytes, nb::arg("bytes"))
      .def("allocate", &Device::allocate, nb::arg("bytes"))
      .def("lose", &Device::lose)
      .def("compile", [](Device& device, const std::string& shader, const std::vector<int32_t>& constants) { device.pipeline(shader, constants); },
           nb::arg("shader"), nb::arg("constants") = std::vector<int32_t>())  // for tests of a driver's compiler
      .def("read_seconds", &read_seconds, nb::arg("bytes"), nb::arg("runs"))
      .def("dispatch", &run_once, nb::arg("shader"), nb::arg("buffers"), nb::arg("push"), nb::arg("groups"), nb::arg("constants") = std::vector<int32_t>());
  bind_program(m, device);
}

}  // namespace brise::vk
