// Buffers of a Vulkan device, and the commands that work on them.
#include <algorithm>

#include "device.h"

namespace brise::vk {

namespace {

// A pool holds the sets of some 256 dispatches; more pools follow.
constexpr uint32_t POOL_SETS = 256, POOL_DESCRIPTORS = 8 * POOL_SETS;

std::string megabytes(size_t bytes) {
  const size_t tenths = (bytes + 50'000) / 100'000;
  return std::to_string(tenths / 10) + "." + std::to_string(tenths % 10) + " MB";
}

}  // namespace

Buffer::Buffer(Device& device, size_t size, bool for_host, std::shared_ptr<Device> owner)
    : bytes(std::max<size_t>((size + 3) / 4 * 4, 4)), device_(device), owner_(std::move(owner)), for_host_(for_host) {
  try {
    allocate();
  } catch (...) {
    release();
    throw;
  }
}

Buffer::~Buffer() { release(); }

void Buffer::allocate() {
  const api::Functions& f = device_.functions_;
  api::BufferCreateInfo info;
  info.size = bytes;
  info.usage = api::BUFFER_STORAGE | api::BUFFER_TRANSFER_SRC | api::BUFFER_TRANSFER_DST | api::BUFFER_INDIRECT;
  device_.check(f.CreateBuffer(device_.device_, &info, nullptr, &handle), "vkCreateBuffer");
  api::MemoryRequirements needed;
  f.GetBufferMemoryRequirements(device_.device_, handle, &needed);
  // Some drivers put into the host's memory what no longer fits, without a word.
  const Budget now = device_.budget();
  if (!for_host_ && needed.size > now.free) refuse(needed.size, now);
  api::MemoryAllocateInfo memory;
  memory.allocationSize = needed.size;
  memory.memoryTypeIndex = device_.memory_type(needed.memoryTypeBits, for_host_);
  const api::Result result = f.AllocateMemory(device_.device_, &memory, nullptr, &memory_);
  if (result == api::ERROR_OUT_OF_DEVICE_MEMORY || result == api::ERROR_OUT_OF_HOST_MEMORY || result == api::ERROR_TOO_MANY_OBJECTS) refuse(needed.size, device_.budget());
  device_.check(result, "vkAllocateMemory");
  allocated = needed.size;
  device_.allocated_ += allocated;
  if (for_host_) device_.allocated_for_host_ += allocated;
  device_.check(f.BindBufferMemory(device_.device_, handle, memory_, 0), "vkBindBufferMemory");
  if (for_host_) {
    void* address = nullptr;
    device_.check(f.MapMemory(device_.device_, memory_, 0, api::WHOLE_SIZE, 0, &address), "vkMapMemory");
    mapped = (uint8_t*)address;
  }
}

void Buffer::refuse(size_t asked, Budget now) const {
  throw Error(Fault::OUT_OF_MEMORY, device_.facts().name + " has " + megabytes(now.free) + " free of a budget of " + megabytes(now.total) + ", asked for " + megabytes(asked),
              asked, now.free, now.total);
}

void Buffer::release() {
  const api::Functions& f = device_.functions_;
  if (handle) f.DestroyBuffer(device_.device_, handle, nullptr);
  if (!memory_) return;
  f.FreeMemory(device_.device_, memory_, nullptr);  // unmaps it
  device_.allocated_ -= allocated;
  if (for_host_) device_.allocated_for_host_ -= allocated;
}

size_t Device::allocation_bytes(size_t bytes) const {
  api::BufferCreateInfo info;
  info.size = std::max<size_t>((bytes + 3) / 4 * 4, 4);
  info.usage = api::BUFFER_STORAGE | api::BUFFER_TRANSFER_SRC | api::BUFFER_TRANSFER_DST | api::BUFFER_INDIRECT;
  api::Buffer buffer = nullptr;
  check(functions_.CreateBuffer(device_, &info, nullptr, &buffer), "vkCreateBuffer");
  api::MemoryRequirements needed;
  functions_.GetBufferMemoryRequirements(device_, buffer, &needed);
  functions_.DestroyBuffer(device_, buffer, nullptr);
  return needed.size;
}

Commands::Commands(Device& device) : device_(device) {
  const api::Functions& f = device.functions();
  try {
    api::CommandPoolCreateInfo pool;
    pool.flags = api::COMMAND_POOL_RESET;
    pool.queueFamilyIndex = device.queue_family();
    device.check(f.CreateCommandPool(device.handle(), &pool, nullptr, &pool_), "vkCreateCommandPool");
    api::CommandBufferAllocateInfo info;
    info.commandPool = pool_;
    info.commandBufferCount = 1;
    device.check(f.AllocateCommandBuffers(device.handle(), &info, &buffer_), "vkAllocateCommandBuffers");
    const api::FenceCreateInfo fence;
    device.check(f.CreateFence(device.handle(), &fence, nullptr, &fence_), "vkCreateFence");
  } catch (...) {
    release();
    throw;
  }
}

Commands::~Commands() {
  if (is_submitted_) device_.functions().WaitForFences(device_.handle(), 1, &fence_, 1, UINT64_MAX);
  release();
}

void Commands::release() {
  const api::Functions& f = device_.functions();
  if (fence_) f.DestroyFence(device_.handle(), fence_, nullptr);
  for (api::DescriptorPool pool : set_pools_) f.DestroyDescriptorPool(device_.handle(), pool, nullptr);
  if (pool_) f.DestroyCommandPool(device_.handle(), pool_, nullptr);
}

void Commands::begin(bool once) {
  wait();
  const api::Functions& f = device_.functions();
  for (api::DescriptorPool pool : set_pools_) device_.check(f.ResetDescriptorPool(device_.handle(), pool, 0), "vkResetDescriptorPool");
  set_pool_ = 0;
  api::CommandBufferBeginInfo info;
  info.flags = once ? api::COMMAND_ONE_TIME : 0;
  device_.check(f.BeginCommandBuffer(buffer_, &info), "vkBeginCommandBuffer");
}

void Commands::dispatch(const Pipeline& pipeline, std::span<const Binding> bindings, const void* push, size_t push_bytes, std::array<uint32_t, 3> groups) {
  for (size_t i = 0; i < 3; i++)
    if (groups[i] > device_.facts().max_groups[i])
      throw std::invalid_argument("a dispatch of " + std::to_string(groups[i]) + " groups, allowed are " + std::to_string(device_.facts().max_groups[i]));
  if (!groups[0] || !groups[1] || !groups[2]) return;
  bind(pipeline, bindings, push, push_bytes);
  device_.functions().CmdDispatch(buffer_, groups[0], groups[1], groups[2]);
}

void Commands::dispatch_indirect(const Pipeline& pipeline, std::span<const Binding> bindings, const void* push, size_t push_bytes, const Buffer& groups, size_t offset) {
  if (offset % 4 || offset > groups.bytes || groups.bytes - offset < 12) throw std::invalid_argument("counts of groups past the end of their buffer");
  bind(pipeline, bindings, push, push_bytes);
  device_.functions().CmdDispatchIndirect(buffer_, groups.handle, offset);
}

void Commands::bind(const Pipeline& pipeline, std::span<const Binding> bindings, const void* push, size_t push_bytes) {
  if ((int)bindings.size() < pipeline.bindings)
    throw std::invalid_argument("the shader binds " + std::to_string(pipeline.bindings) + " buffers, got " + std::to_string(bindings.size()));
  if (push_bytes > PUSH_BYTES || push_bytes % 4) throw std::invalid_argument("push constants of " + std::to_string(push_bytes) + " bytes, allowed are multiples of 4 up to 128");
  const Facts& facts = device_.facts();
  const api::Functions& f = device_.functions();
  const size_t count = (size_t)pipeline.bindings;
  api::DescriptorBufferInfo infos[MAX_BINDINGS];
  api::WriteDescriptorSet writes[MAX_BINDINGS];
  const api::DescriptorSet set = allocate_set(pipeline);
  for (size_t i = 0; i < count; i++) {
    const Binding& b = bindings[i];
    if (b.offset >= b.buffer->bytes || b.bytes > b.buffer->bytes - b.offset || b.offset % facts.offset_alignment)
      throw std::invalid_argument("binding " + std::to_string(i) + " begins at byte " + std::to_string(b.offset) + " of " + std::to_string(b.buffer->bytes));
    const size_t bytes = b.bytes ? b.bytes : b.buffer->bytes - b.offset;
    if (bytes > facts.max_binding)
      throw std::invalid_argument("binding " + std::to_string(i) + " has " + std::to_string(bytes) + " bytes, " + facts.name + " takes " + std::to_string(facts.max_binding));
    infos[i] = {b.buffer->handle, b.offset, bytes};
    writes[i] = {};
    writes[i].dstSet = set;
    writes[i].dstBinding = (uint32_t)i;
    writes[i].descriptorCount = 1;
    writes[i].descriptorType = api::DESCRIPTOR_STORAGE_BUFFER;
    writes[i].pBufferInfo = &infos[i];
  }
  f.UpdateDescriptorSets(device_.handle(), (uint32_t)count, writes, 0, nullptr);
  f.CmdBindPipeline(buffer_, api::BIND_COMPUTE, pipeline.handle);
  if (count) f.CmdBindDescriptorSets(buffer_, api::BIND_COMPUTE, pipeline.layout, 0, 1, &set, 0, nullptr);
  if (push_bytes) f.CmdPushConstants(buffer_, pipeline.layout, api::STAGE_COMPUTE, 0, (uint32_t)push_bytes, push);
}

api::DescriptorSet Commands::allocate_set(const Pipeline& pipeline) {
  if (!pipeline.bindings) return nullptr;
  const api::Functions& f = device_.functions();
  for (;; set_pool_++) {
    const bool is_new = set_pool_ == set_pools_.size();
    if (is_new) {
      const api::DescriptorPoolSize size = {api::DESCRIPTOR_STORAGE_BUFFER, POOL_DESCRIPTORS};
      api::DescriptorPoolCreateInfo info;
      info.maxSets = POOL_SETS;
      info.poolSizeCount = 1;
      info.pPoolSizes = &size;
      api::DescriptorPool pool = nullptr;
      device_.check(f.CreateDescriptorPool(device_.handle(), &info, nullptr, &pool), "vkCreateDescriptorPool");
      set_pools_.push_back(pool);
    }
    api::DescriptorSetAllocateInfo info;
    info.descriptorPool = set_pools_[set_pool_];
    info.descriptorSetCount = 1;
    info.pSetLayouts = &pipeline.set;
    api::DescriptorSet out = nullptr;
    const api::Result result = f.AllocateDescriptorSets(device_.handle(), &info, &out);
    if (result >= 0) return out;
    if (is_new || (result != api::ERROR_OUT_OF_POOL_MEMORY && result != api::ERROR_OUT_OF_DEVICE_MEMORY)) device_.check(result, "vkAllocateDescriptorSets");
  }
}

void Commands::copy(const Buffer& from, size_t from_offset, const Buffer& to, size_t to_offset, size_t bytes) {
  if (from_offset > from.bytes || bytes > from.bytes - from_offset || to_offset > to.bytes || bytes > to.bytes - to_offset)
    throw std::invalid_argument("a copy past the end of a buffer");
  if (!bytes) return;
  const api::BufferCopy region = {from_offset, to_offset, bytes};
  device_.functions().CmdCopyBuffer(buffer_, from.handle, to.handle, 1, &region);
}

void Commands::fill(const Buffer& buffer, size_t offset, size_t bytes, uint32_t value) {
  if (offset % 4 || bytes % 4 || offset > buffer.bytes || bytes > buffer.bytes - offset) throw std::invalid_argument("a fill past the end of its buffer, or of parts of a word");
  if (bytes) device_.functions().CmdFillBuffer(buffer_, buffer.handle, offset, bytes, value);
}

void Commands::barrier() {
  constexpr api::Flags STAGES = api::PIPELINE_COMPUTE | api::PIPELINE_TRANSFER | api::PIPELINE_HOST;
  api::MemoryBarrier barrier;
  barrier.srcAccessMask = api::ACCESS_SHADER_WRITE | api::ACCESS_TRANSFER_WRITE | api::ACCESS_HOST_WRITE;
  barrier.dstAccessMask = api::ACCESS_SHADER_READ | api::ACCESS_SHADER_WRITE | api::ACCESS_TRANSFER_READ | api::ACCESS_TRANSFER_WRITE | api::ACCESS_HOST_READ |
                          api::ACCESS_HOST_WRITE | api::ACCESS_INDIRECT_READ;
  device_.functions().CmdPipelineBarrier(buffer_, STAGES, STAGES | api::PIPELINE_DRAW_INDIRECT, 0, 1, &barrier, 0, nullptr, 0, nullptr);
}

void Commands::end() { device_.check(device_.functions().EndCommandBuffer(buffer_), "vkEndCommandBuffer"); }

void Commands::submit() {
  wait();
  device_.check(device_.functions().ResetFences(device_.handle(), 1, &fence_), "vkResetFences");
  device_.submit(buffer_, fence_);
  is_submitted_ = true;
}

void Commands::wait() {
  if (!is_submitted_) return;
  const api::Result result = device_.functions().WaitForFences(device_.handle(), 1, &fence_, 1, UINT64_MAX);
  is_submitted_ = false;
  device_.check(result, "vkWaitForFences");
}

}  // namespace brise::vk
