// Vulkan's functions that brise calls, by their names without the prefix vk; device.cpp fills the table from the loader.
#pragma once

#include "api.h"

namespace brise::vk::api {

// Found before there is an instance; of an instance; of a device.
#define BRISE_VK_GLOBAL_FUNCTIONS(X) \
  X(EnumerateInstanceVersion, Result, (uint32_t*)) \
  X(EnumerateInstanceExtensionProperties, Result, (const char*, uint32_t*, ExtensionProperties*)) \
  X(CreateInstance, Result, (const InstanceCreateInfo*, const void*, Instance*))
#define BRISE_VK_INSTANCE_FUNCTIONS(X) \
  X(DestroyInstance, void, (Instance, const void*)) \
  X(EnumeratePhysicalDevices, Result, (Instance, uint32_t*, PhysicalDevice*)) \
  X(EnumerateDeviceExtensionProperties, Result, (PhysicalDevice, const char*, uint32_t*, ExtensionProperties*)) \
  X(GetPhysicalDeviceProperties, void, (PhysicalDevice, PhysicalDeviceProperties*)) \
  X(GetPhysicalDeviceProperties2, void, (PhysicalDevice, PhysicalDeviceProperties2*)) \
  X(GetPhysicalDeviceFeatures2, void, (PhysicalDevice, PhysicalDeviceFeatures2*)) \
  X(GetPhysicalDeviceMemoryProperties2, void, (PhysicalDevice, PhysicalDeviceMemoryProperties2*)) \
  X(GetPhysicalDeviceQueueFamilyProperties, void, (PhysicalDevice, uint32_t*, QueueFamilyProperties*)) \
  X(CreateDevice, Result, (PhysicalDevice, const DeviceCreateInfo*, const void*, Device*)) \
  X(GetDeviceProcAddr, VoidFunction, (Device, const char*))
#define BRISE_VK_DEVICE_FUNCTIONS(X) \
  X(DestroyDevice, void, (Device, const void*)) \
  X(GetDeviceQueue, void, (Device, uint32_t, uint32_t, Queue*)) \
  X(DeviceWaitIdle, Result, (Device)) \
  X(AllocateMemory, Result, (Device, const MemoryAllocateInfo*, const void*, DeviceMemory*)) \
  X(FreeMemory, void, (Device, DeviceMemory, const void*)) \
  X(MapMemory, Result, (Device, DeviceMemory, DeviceSize, DeviceSize, Flags, void**)) \
  X(CreateBuffer, Result, (Device, const BufferCreateInfo*, const void*, Buffer*)) \
  X(DestroyBuffer, void, (Device, Buffer, const void*)) \
  X(GetBufferMemoryRequirements, void, (Device, Buffer, MemoryRequirements*)) \
  X(BindBufferMemory, Result, (Device, Buffer, DeviceMemory, DeviceSize)) \
  X(CreateShaderModule, Result, (Device, const ShaderModuleCreateInfo*, const void*, ShaderModule*)) \
  X(DestroyShaderModule, void, (Device, ShaderModule, const void*)) \
  X(CreateDescriptorSetLayout, Result, (Device, const DescriptorSetLayoutCreateInfo*, const void*, DescriptorSetLayout*)) \
  X(DestroyDescriptorSetLayout, void, (Device, DescriptorSetLayout, const void*)) \
  X(CreatePipelineLayout, Result, (Device, const PipelineLayoutCreateInfo*, const void*, PipelineLayout*)) \
  X(DestroyPipelineLayout, void, (Device, PipelineLayout, const void*)) \
  X(CreateComputePipelines, Result, (Device, PipelineCache, uint32_t, const ComputePipelineCreateInfo*, const void*, Pipeline*)) \
  X(DestroyPipeline, void, (Device, Pipeline, const void*)) \
  X(CreateDescriptorPool, Result, (Device, const DescriptorPoolCreateInfo*, const void*, DescriptorPool*)) \
  X(DestroyDescriptorPool, void, (Device, DescriptorPool, const void*)) \
  X(ResetDescriptorPool, Result, (Device, DescriptorPool, Flags)) \
  X(AllocateDescriptorSets, Result, (Device, const DescriptorSetAllocateInfo*, DescriptorSet*)) \
  X(UpdateDescriptorSets, void, (Device, uint32_t, const WriteDescriptorSet*, uint32_t, const void*)) \
  X(CreateCommandPool, Result, (Device, const CommandPoolCreateInfo*, const void*, CommandPool*)) \
  X(DestroyCommandPool, void, (Device, CommandPool, const void*)) \
  X(AllocateCommandBuffers, Result, (Device, const CommandBufferAllocateInfo*, CommandBuffer*)) \
  X(BeginCommandBuffer, Result, (CommandBuffer, const CommandBufferBeginInfo*)) \
  X(EndCommandBuffer, Result, (CommandBuffer)) \
  X(CmdBindPipeline, void, (CommandBuffer, int32_t, Pipeline)) \
  X(CmdBindDescriptorSets, void, (CommandBuffer, int32_t, PipelineLayout, uint32_t, uint32_t, const DescriptorSet*, uint32_t, const uint32_t*)) \
  X(CmdPushConstants, void, (CommandBuffer, PipelineLayout, Flags, uint32_t, uint32_t, const void*)) \
  X(CmdDispatch, void, (CommandBuffer, uint32_t, uint32_t, uint32_t)) \
  X(CmdDispatchIndirect, void, (CommandBuffer, Buffer, DeviceSize)) \
  X(CmdCopyBuffer, void, (CommandBuffer, Buffer, Buffer, uint32_t, const BufferCopy*)) \
  X(CmdFillBuffer, void, (CommandBuffer, Buffer, DeviceSize, DeviceSize, uint32_t)) \
  X(CmdPipelineBarrier, void, (CommandBuffer, Flags, Flags, Flags, uint32_t, const MemoryBarrier*, uint32_t, const void*, uint32_t, const void*)) \
  X(QueueSubmit, Result, (Queue, uint32_t, const SubmitInfo*, Fence)) \
  X(CreateFence, Result, (Device, const FenceCreateInfo*, const void*, Fence*)) \
  X(DestroyFence, void, (Device, Fence, const void*)) \
  X(ResetFences, Result, (Device, uint32_t, const Fence*)) \
  X(WaitForFences, Result, (Device, uint32_t, const Fence*, Bool32, uint64_t))

using VoidFunction = void (*)();
using GetInstanceProcAddr = VoidFunction (*)(Instance, const char*);

struct Functions {
#define BRISE_VK_POINTER(name, result, arguments) result(*name) arguments = nullptr;
  BRISE_VK_GLOBAL_FUNCTIONS(BRISE_VK_POINTER)
  BRISE_VK_INSTANCE_FUNCTIONS(BRISE_VK_POINTER)
  BRISE_VK_DEVICE_FUNCTIONS(BRISE_VK_POINTER)
#undef BRISE_VK_POINTER
};

}  // namespace brise::vk::api
