// A Vulkan device: buffers, pipelines of the shaders that are built in, and command buffers. The loader is opened when asked for.
#pragma once

#include <array>
#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "functions.h"

namespace brise::vk {

enum class Fault { NO_LOADER, NO_DEVICE, NOT_CHOSEN, TOO_OLD, OUT_OF_MEMORY, LOST, CANCELLED, FAILED };

// What went wrong; of OUT_OF_MEMORY also the bytes asked for, free and of the whole budget, of TOO_OLD what is missing. In Python
// each fault is an error of its own (errors.py).
struct Error : std::runtime_error {
  Error(Fault fault, const std::string& message, size_t asked = 0, size_t free = 0, size_t budget = 0)
      : std::runtime_error(message), fault(fault), asked(asked), free(free), budget(budget) {}
  Error(const std::string& message, const std::string& device, const std::string& missing)
      : std::runtime_error(message), fault(Fault::TOO_OLD), asked(0), free(0), budget(0), device(device), missing(missing) {}
  Fault fault;
  size_t asked, free, budget;
  std::string device, missing;
};

// What a device says of itself, before it is opened. `missing` names what brise needs and it lacks.
struct Facts {
  int number = 0;  // in the loader's order
  std::string name, driver, driver_version, type, api, missing;
  bool has_integer_dot = false, has_budget = false, is_shared = false;  // is_shared: its memory is the host's
  uint32_t subgroup = 0, shared_memory = 0, max_invocations = 0, max_groups[3] = {}, offset_alignment = 0;
  size_t memory = 0, max_binding = 0, max_allocation = 0;
};

struct Budget {
  size_t free, total;
};

class Device;
struct Loader;

// A range of memory of its own; `mapped` is null unless it was allocated for the host. Freed with the last user.
class Buffer {
 public:
  Buffer(Device& device, size_t bytes, bool for_host, std::shared_ptr<Device> owner);
  ~Buffer();
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  const size_t bytes;      // asked for, rounded up to 4
  size_t allocated = 0;    // taken from the heap
  api::Buffer handle = nullptr;
  uint8_t* mapped = nullptr;

 private:
  void allocate();
  [[noreturn]] void refuse(size_t asked, Budget now) const;
  void release();
  Device& device_;
  const std::shared_ptr<Device> owner_;  // null for the device's own
  const bool for_host_;
  api::DeviceMemory memory_ = nullptr;
};

// Whole or part of a buffer; an offset is a multiple of Facts::offset_alignment.
struct Binding {
  const Buffer* buffer;
  size_t offset = 0, bytes = 0;  // bytes 0: up to its end
};

struct Pipeline {
  api::Pipeline handle = nullptr;
  api::PipelineLayout layout = nullptr;
  api::DescriptorSetLayout set = nullptr;
  int bindings = 0;
};

constexpr size_t PUSH_BYTES = 128;  // the least that every device takes
constexpr size_t MAX_BINDINGS = 16;

// SPIR-V words by the name of their module, made by embed.py.
const std::map<std::string, std::span<const uint32_t>>& shaders();

// The devices that the loader knows, those that brise can't use among them. Throws NO_LOADER; none is no error.
std::vector<Facts> list_devices();

// Used by one thread at a time, but for allocation, upload and download, which lock.
class Device : public std::enable_shared_from_this<Device> {
 public:
  // By number, or by a part of the name; "" takes the first discrete one, then an integrated one, then any.
  static std::shared_ptr<Device> open(const std::string& selector);
  ~Device();
  const Facts& facts() const { return facts_; }
  Budget budget() const;                                   // of the heap that buffers come from, this moment
  size_t allocated() const { return allocated_; }          // the sum of vkAllocateMemory, buffers of the host among them
  size_t allocated_for_host() const { return allocated_for_host_; }
  std::shared_ptr<Buffer> allocate(size_t bytes) { return std::make_shared<Buffer>(*this, bytes, false, shared_from_this()); }
  std::shared_ptr<Buffer> allocate_for_host(size_t bytes) { return std::make_shared<Buffer>(*this, bytes, true, shared_from_this()); }
  size_t allocation_bytes(size_t bytes) const;             // what allocate(bytes) takes from the heap
  const Pipeline& pipeline(const std::string& shader, const std::vector<int32_t>& constants);
  // Through a ring of two halves: one is filled while the other is copied. Nothing else may use the buffer meanwhile.
  void upload(const Buffer& to, size_t offset, const void* data, size_t bytes);
  void download(const Buffer& from, size_t offset, void* data, size_t bytes);
  size_t staging_bytes() const { return 2 * STAGING_HALF; }

  void check(api::Result result, const char* call) const;  // throws LOST, OUT_OF_MEMORY or FAILED
  const api::Functions& functions() const { return functions_; }
  api::Device handle() const { return device_; }
  uint32_t queue_family() const { return queue_family_; }
  void submit(api::CommandBuffer commands, api::Fence fence);
  bool is_lost() const { return is_lost_; }
  void lose() { is_lost_ = true; }                         // for tests: what follows fails as if the driver had said so

  static constexpr size_t STAGING_HALF = (size_t)16 << 20;

 private:
  friend class Buffer;
  struct Staging;
  Device() = default;
  void create();
  Pipeline make_layout(int bindings);
  api::Pipeline make_pipeline(std::span<const uint32_t> words, api::PipelineLayout layout, const std::vector<int32_t>& constants);
  uint32_t memory_type(uint32_t allowed, bool for_host) const;
  Staging& staging();

  std::shared_ptr<Loader> loader_;
  api::PhysicalDevice physical_ = nullptr;
  api::Functions functions_;
  api::Device device_ = nullptr;
  api::Queue queue_ = nullptr;
  uint32_t queue_family_ = 0;
  api::PhysicalDeviceMemoryProperties memory_ = {};
  uint32_t heap_ = 0;  // the device's heap
  Facts facts_;
  std::map<std::pair<std::string, std::vector<int32_t>>, Pipeline> pipelines_;
  std::unique_ptr<Staging> staging_;
  mutable std::recursive_mutex mutex_;
  std::atomic<size_t> allocated_ = 0, allocated_for_host_ = 0;
  mutable std::atomic<bool> is_lost_ = false;
};

// One command buffer with its descriptor sets and a fence: recorded, submitted, waited for, and recorded or submitted again.
// The device outlives it.
class Commands {
 public:
  explicit Commands(Device& device);
  ~Commands();
  Commands(const Commands&) = delete;
  Commands& operator=(const Commands&) = delete;
  void begin(bool once = true);  // forgets what was recorded
  void dispatch(const Pipeline& pipeline, std::span<const Binding> bindings, const void* push, size_t push_bytes, std::array<uint32_t, 3> groups);
  // The counts of groups are three uint32 in `groups` at `offset`, read when it runs.
  void dispatch_indirect(const Pipeline& pipeline, std::span<const Binding> bindings, const void* push, size_t push_bytes, const Buffer& groups, size_t offset);
  void copy(const Buffer& from, size_t from_offset, const Buffer& to, size_t to_offset, size_t bytes);
  void fill(const Buffer& buffer, size_t offset, size_t bytes, uint32_t value);
  void barrier();                // all before it is done and seen by all after it, the host's reads among them
  void end();
  void submit();                 // waits for its last run first
  void wait();                   // until it has run; throws LOST

 private:
  void bind(const Pipeline& pipeline, std::span<const Binding> bindings, const void* push, size_t push_bytes);
  api::DescriptorSet allocate_set(const Pipeline& pipeline);
  void release();
  Device& device_;
  api::CommandPool pool_ = nullptr;
  api::CommandBuffer buffer_ = nullptr;
  api::Fence fence_ = nullptr;
  std::vector<api::DescriptorPool> set_pools_;
  size_t set_pool_ = 0;          // the one that sets come from
  bool is_submitted_ = false;
};

}  // namespace brise::vk
