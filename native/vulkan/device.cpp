// A Vulkan device: chosen, opened, and its memory and pipelines.
#include "device.h"

#include <algorithm>
#include <cctype>
#include <cstring>

#include "loader.h"

namespace brise::vk {

namespace {

std::string lower(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(), [](unsigned char c) { return (char)std::tolower(c); });
  return text;
}

std::string names(const std::vector<Facts>& devices) {
  std::string out;
  for (const Facts& facts : devices) out += (out.empty() ? "vulkan:" : ", vulkan:") + std::to_string(facts.number) + " is " + facts.name;
  return out;
}

bool is_number(const std::string& text) {
  return !text.empty() && text.size() < 6 && std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
}

// The best that brise can use, else the first, so that the error says what it lacks.
int best(const std::vector<Facts>& devices) {
  const char* const order[] = {"discrete", "integrated", "virtual", "other", "cpu"};
  for (const char* type : order)
    for (const Facts& facts : devices)
      if (facts.type == type && facts.missing.empty()) return facts.number;
  return 0;
}

int choose(const std::vector<Facts>& devices, const std::string& selector) {
  if (devices.empty()) throw Error(Fault::NO_DEVICE, "Vulkan has no device on this machine");
  if (selector.empty()) return best(devices);
  if (is_number(selector)) {
    const int number = std::stoi(selector);
    if (number < (int)devices.size()) return number;
    throw Error(Fault::NOT_CHOSEN, "there is no Vulkan device " + selector + "; " + names(devices));
  }
  std::vector<Facts> matches;
  for (const Facts& facts : devices)
    if (lower(facts.name).find(lower(selector)) != std::string::npos) matches.push_back(facts);
  if (matches.size() == 1) return matches[0].number;
  if (matches.empty()) throw Error(Fault::NOT_CHOSEN, "no Vulkan device has '" + selector + "' in its name; " + names(devices));
  throw Error(Fault::NOT_CHOSEN, "'" + selector + "' is in the name of several Vulkan devices: " + names(matches));
}

// Bindings of a module are decorations: OpDecorate (71) target Binding (33) number.
int count_bindings(std::span<const uint32_t> words) {
  int out = 0;
  for (size_t i = 5; i < words.size() && words[i] >> 16; i += words[i] >> 16)
    if ((words[i] & 0xffff) == 71 && words[i] >> 16 == 4 && words[i + 2] == 33) out = std::max(out, (int)words[i + 3] + 1);
  return out;
}

}  // namespace

std::shared_ptr<Device> Device::open(const std::string& selector) {
  std::shared_ptr<Device> out(new Device);
  out->loader_ = Loader::open();
  const std::vector<api::PhysicalDevice> handles = out->loader_->devices();
  std::vector<Facts> devices;
  for (size_t i = 0; i < handles.size(); i++) devices.push_back(out->loader_->facts(handles[i], (int)i));
  const int number = choose(devices, selector);
  out->facts_ = devices[(size_t)number];
  out->physical_ = handles[(size_t)number];
  if (!out->facts_.missing.empty())
    throw Error(out->facts_.name + " (Vulkan " + out->facts_.api + ", driver " + (out->facts_.driver.empty() ? "unknown" : out->facts_.driver + " " + out->facts_.driver_version) +
                    ") lacks " + out->facts_.missing, out->facts_.name, out->facts_.missing);
  out->create();
  return out;
}

void Device::create() {
  functions_ = loader_->functions;
  queue_family_ = loader_->compute_family(physical_);
  const float priority = 1;
  api::DeviceQueueCreateInfo queue;
  queue.queueFamilyIndex = queue_family_;
  queue.queueCount = 1;
  queue.pQueuePriorities = &priority;
  FeatureChain chain(true);
  chain.dot.shaderIntegerDotProduct = 1;
  std::vector<const char*> extensions = {"VK_KHR_shader_integer_dot_product"};
  if (facts_.has_budget) extensions.push_back("VK_EXT_memory_budget");
  // A device that does not keep all of Vulkan says so by an extension that must then be enabled.
  if (has_extension(functions_, physical_, "VK_KHR_portability_subset")) extensions.push_back("VK_KHR_portability_subset");
  api::DeviceCreateInfo info;
  info.pNext = &chain.head;
  info.queueCreateInfoCount = 1;
  info.pQueueCreateInfos = &queue;
  info.enabledExtensionCount = (uint32_t)extensions.size();
  info.ppEnabledExtensionNames = extensions.data();
  check(functions_.CreateDevice(physical_, &info, nullptr, &device_), "vkCreateDevice");
#define BRISE_VK_LOAD(name, result, arguments) \
  if (!(functions_.name = (decltype(functions_.name))functions_.GetDeviceProcAddr(device_, "vk" #name))) throw Error(Fault::FAILED, "the driver has no vk" #name);
  BRISE_VK_DEVICE_FUNCTIONS(BRISE_VK_LOAD)
#undef BRISE_VK_LOAD
  functions_.GetDeviceQueue(device_, queue_family_, 0, &queue_);
  api::PhysicalDeviceMemoryProperties2 memory;
  functions_.GetPhysicalDeviceMemoryProperties2(physical_, &memory);
  memory_ = memory.memoryProperties;
  heap_ = device_heap(memory_);
}

Device::~Device() {
  if (!device_) return;
  if (functions_.DeviceWaitIdle) functions_.DeviceWaitIdle(device_);
  staging_.reset();
  for (auto& [key, pipeline] : pipelines_) {
    functions_.DestroyPipeline(device_, pipeline.handle, nullptr);
    functions_.DestroyPipelineLayout(device_, pipeline.layout, nullptr);
    functions_.DestroyDescriptorSetLayout(device_, pipeline.set, nullptr);
  }
  if (functions_.DestroyDevice) functions_.DestroyDevice(device_, nullptr);
}

void Device::check(api::Result result, const char* call) const {
  if (result >= 0) return;
  if (result == api::ERROR_DEVICE_LOST) {
    is_lost_ = true;
    throw Error(Fault::LOST, facts_.name + " was lost: " + call + " failed");
  }
  if (result == api::ERROR_OUT_OF_DEVICE_MEMORY || result == api::ERROR_OUT_OF_HOST_MEMORY) {
    const Budget now = budget();
    throw Error(Fault::OUT_OF_MEMORY, std::string(call) + " found no memory on " + facts_.name, 0, now.free, now.total);
  }
  throw Error(Fault::FAILED, std::string(call) + " failed with " + std::to_string(result) + " on " + facts_.name);
}

Budget Device::budget() const {
  const size_t size = memory_.memoryHeaps[heap_].size, taken = allocated_ - (facts_.is_shared ? 0 : (size_t)allocated_for_host_);
  if (!facts_.has_budget) return {size > taken ? size - taken : 0, size};
  api::PhysicalDeviceMemoryBudgetPropertiesEXT budget;
  api::PhysicalDeviceMemoryProperties2 memory;
  memory.pNext = &budget;
  functions_.GetPhysicalDeviceMemoryProperties2(physical_, &memory);
  const size_t total = budget.heapBudget[heap_], used = budget.heapUsage[heap_];
  return {total > used ? total - used : 0, total};
}

// The first type of the device's heap is the driver's best. The host's memory is one that it may read and write without flushes,
// kept in its caches if there is such, and not the device's own.
uint32_t Device::memory_type(uint32_t allowed, bool for_host) const {
  constexpr api::Flags COHERENT = api::MEMORY_HOST_VISIBLE | api::MEMORY_HOST_COHERENT;
  int best = -1, best_score = -1;
  for (uint32_t i = 0; i < memory_.memoryTypeCount; i++) {
    const api::Flags flags = memory_.memoryTypes[i].propertyFlags;
    if (!(allowed >> i & 1)) continue;
    int score;
    if (for_host) {
      if ((flags & COHERENT) != COHERENT) continue;
      score = 2 * !!(flags & api::MEMORY_HOST_CACHED) + !(flags & api::MEMORY_DEVICE_LOCAL);
    } else {
      score = 2 * !!(flags & api::MEMORY_DEVICE_LOCAL) + (memory_.memoryTypes[i].heapIndex == heap_);
    }
    if (score > best_score) best = (int)i, best_score = score;
  }
  if (best < 0) throw Error(Fault::FAILED, facts_.name + " has no memory for " + (for_host ? "the host" : "buffers"));
  return (uint32_t)best;
}

const Pipeline& Device::pipeline(const std::string& shader, const std::vector<int32_t>& constants) {
  const std::lock_guard lock(mutex_);
  const auto known = pipelines_.find({shader, constants});
  if (known != pipelines_.end()) return known->second;
  const auto words = shaders().find(shader);
  if (words == shaders().end()) throw std::invalid_argument("no shader '" + shader + "'");
  Pipeline out = make_layout(count_bindings(words->second));
  try {
    out.handle = make_pipeline(words->second, out.layout, constants);
  } catch (...) {
    functions_.DestroyPipelineLayout(device_, out.layout, nullptr);
    functions_.DestroyDescriptorSetLayout(device_, out.set, nullptr);
    throw;
  }
  return pipelines_[{shader, constants}] = out;
}

Pipeline Device::make_layout(int bindings) {
  if (bindings > (int)MAX_BINDINGS) throw std::invalid_argument("a shader of " + std::to_string(bindings) + " bindings, allowed are " + std::to_string(MAX_BINDINGS));
  Pipeline out;
  out.bindings = bindings;
  std::vector<api::DescriptorSetLayoutBinding> list;
  for (int i = 0; i < bindings; i++) list.push_back({(uint32_t)i, api::DESCRIPTOR_STORAGE_BUFFER, 1, api::STAGE_COMPUTE, nullptr});
  api::DescriptorSetLayoutCreateInfo set;
  set.bindingCount = (uint32_t)bindings;
  set.pBindings = list.data();
  check(functions_.CreateDescriptorSetLayout(device_, &set, nullptr, &out.set), "vkCreateDescriptorSetLayout");
  const api::PushConstantRange push = {api::STAGE_COMPUTE, 0, PUSH_BYTES};
  api::PipelineLayoutCreateInfo layout;
  layout.setLayoutCount = 1;
  layout.pSetLayouts = &out.set;
  layout.pushConstantRangeCount = 1;
  layout.pPushConstantRanges = &push;
  const api::Result result = functions_.CreatePipelineLayout(device_, &layout, nullptr, &out.layout);
  if (result < 0) functions_.DestroyDescriptorSetLayout(device_, out.set, nullptr);
  check(result, "vkCreatePipelineLayout");
  return out;
}

api::Pipeline Device::make_pipeline(std::span<const uint32_t> words, api::PipelineLayout layout, const std::vector<int32_t>& constants) {
  api::ShaderModuleCreateInfo module;
  module.codeSize = words.size_bytes();
  module.pCode = words.data();
  std::vector<api::SpecializationMapEntry> entries;
  for (size_t i = 0; i < constants.size(); i++) entries.push_back({(uint32_t)i, (uint32_t)(4 * i), 4});
  api::SpecializationInfo special;
  special.mapEntryCount = (uint32_t)entries.size();
  special.pMapEntries = entries.data();
  special.dataSize = 4 * constants.size();
  special.pData = constants.data();
  api::ComputePipelineCreateInfo info;
  info.stage.stage = api::STAGE_COMPUTE;
  info.stage.pName = "main";
  info.stage.pSpecializationInfo = &special;
  info.layout = layout;
  check(functions_.CreateShaderModule(device_, &module, nullptr, &info.stage.module), "vkCreateShaderModule");
  api::Pipeline out = nullptr;
  const api::Result result = functions_.CreateComputePipelines(device_, nullptr, 1, &info, nullptr, &out);
  functions_.DestroyShaderModule(device_, info.stage.module, nullptr);
  check(result, "vkCreateComputePipelines");
  return out;
}

void Device::submit(api::CommandBuffer commands, api::Fence fence) {
  const std::lock_guard lock(mutex_);
  if (is_lost_) check(api::ERROR_DEVICE_LOST, "vkQueueSubmit");
  api::SubmitInfo info;
  info.commandBufferCount = 1;
  info.pCommandBuffers = &commands;
  check(functions_.QueueSubmit(queue_, 1, &info, fence), "vkQueueSubmit");
}

struct Device::Staging {
  explicit Staging(Device& device) : memory(device, 2 * STAGING_HALF, true, nullptr), halves{Commands(device), Commands(device)} {}
  Buffer memory;
  Commands halves[2];
};

Device::Staging& Device::staging() {
  if (!staging_) staging_ = std::make_unique<Staging>(*this);
  return *staging_;
}

void Device::upload(const Buffer& to, size_t offset, const void* data, size_t bytes) {
  if (offset > to.bytes || bytes > to.bytes - offset) throw std::invalid_argument("an upload past the end of its buffer");
  const std::lock_guard lock(mutex_);
  Staging& ring = staging();
  for (size_t done = 0, i = 0; done < bytes; done += STAGING_HALF, i ^= 1) {
    const size_t part = std::min(STAGING_HALF, bytes - done);
    Commands& commands = ring.halves[i];
    commands.wait();
    std::memcpy(ring.memory.mapped + i * STAGING_HALF, (const uint8_t*)data + done, part);
    commands.begin();
    commands.barrier();
    commands.copy(ring.memory, i * STAGING_HALF, to, offset + done, part);
    commands.barrier();
    commands.end();
    commands.submit();
  }
  for (Commands& commands : ring.halves) commands.wait();
}

void Device::download(const Buffer& from, size_t offset, void* data, size_t bytes) {
  if (offset > from.bytes || bytes > from.bytes - offset) throw std::invalid_argument("a download past the end of its buffer");
  const std::lock_guard lock(mutex_);
  Staging& ring = staging();
  for (size_t done = 0; done < bytes; done += STAGING_HALF) {
    const size_t part = std::min(STAGING_HALF, bytes - done);
    Commands& commands = ring.halves[0];
    commands.begin();
    commands.barrier();
    commands.copy(from, offset + done, ring.memory, 0, part);
    commands.barrier();
    commands.end();
    commands.submit();
    commands.wait();
    std::memcpy((uint8_t*)data + done, ring.memory.mapped, part);
  }
}

}  // namespace brise::vk
