// The part of Vulkan's binary interface that brise uses, declared here: a machine that builds a wheel has no Vulkan headers. Names and
// numbers are the specification's, without the prefix Vk; tests/backends/vulkan/test_api.py compares all with its headers where they are.
#pragma once

#include <cstddef>
#include <cstdint>

namespace brise::vk::api {

using Flags = uint32_t;
using Bool32 = uint32_t;
using DeviceSize = uint64_t;

#define BRISE_VK_HANDLES(X) \
  X(Instance) X(PhysicalDevice) X(Device) X(Queue) X(CommandBuffer) X(DeviceMemory) X(Buffer) X(Fence) X(ShaderModule) X(Pipeline) \
  X(PipelineCache) X(PipelineLayout) X(DescriptorSetLayout) X(DescriptorPool) X(DescriptorSet) X(CommandPool) X(Semaphore) X(QueryPool)
#define BRISE_VK_HANDLE(name) using name = struct name##Handle*;
BRISE_VK_HANDLES(BRISE_VK_HANDLE)
#undef BRISE_VK_HANDLE

// Enumerations are int32_t in the interface.
enum Result : int32_t {
  SUCCESS = 0, NOT_READY = 1, TIMEOUT = 2, INCOMPLETE = 5,
  ERROR_OUT_OF_HOST_MEMORY = -1, ERROR_OUT_OF_DEVICE_MEMORY = -2, ERROR_INITIALIZATION_FAILED = -3, ERROR_DEVICE_LOST = -4,
  ERROR_LAYER_NOT_PRESENT = -6, ERROR_EXTENSION_NOT_PRESENT = -7, ERROR_FEATURE_NOT_PRESENT = -8, ERROR_INCOMPATIBLE_DRIVER = -9,
  ERROR_TOO_MANY_OBJECTS = -10, ERROR_OUT_OF_POOL_MEMORY = -1000069000,
};

enum StructureType : int32_t {
  APPLICATION_INFO = 0, INSTANCE_CREATE_INFO = 1, DEVICE_QUEUE_CREATE_INFO = 2, DEVICE_CREATE_INFO = 3, SUBMIT_INFO = 4,
  MEMORY_ALLOCATE_INFO = 5, FENCE_CREATE_INFO = 8, QUERY_POOL_CREATE_INFO = 11, BUFFER_CREATE_INFO = 12, SHADER_MODULE_CREATE_INFO = 16,
  PIPELINE_SHADER_STAGE_CREATE_INFO = 18, COMPUTE_PIPELINE_CREATE_INFO = 29, PIPELINE_LAYOUT_CREATE_INFO = 30,
  DESCRIPTOR_SET_LAYOUT_CREATE_INFO = 32, DESCRIPTOR_POOL_CREATE_INFO = 33, DESCRIPTOR_SET_ALLOCATE_INFO = 34, WRITE_DESCRIPTOR_SET = 35,
  COMMAND_POOL_CREATE_INFO = 39, COMMAND_BUFFER_ALLOCATE_INFO = 40, COMMAND_BUFFER_BEGIN_INFO = 42, MEMORY_BARRIER = 46,
  PHYSICAL_DEVICE_VULKAN_1_1_FEATURES = 49, PHYSICAL_DEVICE_VULKAN_1_1_PROPERTIES = 50, PHYSICAL_DEVICE_VULKAN_1_2_FEATURES = 51,
  PHYSICAL_DEVICE_FEATURES_2 = 1000059000, PHYSICAL_DEVICE_PROPERTIES_2 = 1000059001, PHYSICAL_DEVICE_MEMORY_PROPERTIES_2 = 1000059006,
  PHYSICAL_DEVICE_DRIVER_PROPERTIES = 1000196000, PHYSICAL_DEVICE_MEMORY_BUDGET_PROPERTIES_EXT = 1000237000,
  PHYSICAL_DEVICE_SHADER_INTEGER_DOT_PRODUCT_FEATURES = 1000280000,
};

enum PhysicalDeviceType : int32_t { TYPE_OTHER = 0, TYPE_INTEGRATED_GPU = 1, TYPE_DISCRETE_GPU = 2, TYPE_VIRTUAL_GPU = 3, TYPE_CPU = 4 };

constexpr Flags QUEUE_COMPUTE = 0x2;
constexpr Flags MEMORY_DEVICE_LOCAL = 0x1, MEMORY_HOST_VISIBLE = 0x2, MEMORY_HOST_COHERENT = 0x4, MEMORY_HOST_CACHED = 0x8, HEAP_DEVICE_LOCAL = 0x1;
constexpr Flags BUFFER_TRANSFER_SRC = 0x1, BUFFER_TRANSFER_DST = 0x2, BUFFER_STORAGE = 0x20, BUFFER_INDIRECT = 0x100;
constexpr Flags STAGE_COMPUTE = 0x20;                                                                     // of a shader
constexpr Flags PIPELINE_DRAW_INDIRECT = 0x2, PIPELINE_COMPUTE = 0x800, PIPELINE_TRANSFER = 0x1000, PIPELINE_HOST = 0x4000;
constexpr Flags ACCESS_INDIRECT_READ = 0x1, ACCESS_SHADER_READ = 0x20, ACCESS_SHADER_WRITE = 0x40, ACCESS_TRANSFER_READ = 0x800,
                ACCESS_TRANSFER_WRITE = 0x1000, ACCESS_HOST_READ = 0x2000, ACCESS_HOST_WRITE = 0x4000;
constexpr Flags COMMAND_POOL_RESET = 0x2, COMMAND_ONE_TIME = 0x1;
constexpr int32_t DESCRIPTOR_STORAGE_BUFFER = 7, BIND_COMPUTE = 1, SHARING_EXCLUSIVE = 0, LEVEL_PRIMARY = 0;
constexpr uint32_t API_1_2 = 1u << 22 | 2u << 12;
constexpr DeviceSize WHOLE_SIZE = ~(DeviceSize)0;

struct ApplicationInfo {
  StructureType sType = APPLICATION_INFO;
  const void* pNext = nullptr;
  const char* pApplicationName = nullptr;
  uint32_t applicationVersion = 0;
  const char* pEngineName = nullptr;
  uint32_t engineVersion = 0, apiVersion = 0;
};
struct InstanceCreateInfo {
  StructureType sType = INSTANCE_CREATE_INFO;
  const void* pNext = nullptr;
  Flags flags = 0;
  const ApplicationInfo* pApplicationInfo = nullptr;
  uint32_t enabledLayerCount = 0;
  const char* const* ppEnabledLayerNames = nullptr;
  uint32_t enabledExtensionCount = 0;
  const char* const* ppEnabledExtensionNames = nullptr;
};
// Of the 106 limits those that a compute program asks; what lies between is counted in bytes.
struct PhysicalDeviceLimits {
  uint8_t before_maxStorageBufferRange[28];
  uint32_t maxStorageBufferRange, maxPushConstantsSize, maxMemoryAllocationCount;
  uint8_t before_maxComputeSharedMemorySize[176];
  uint32_t maxComputeSharedMemorySize, maxComputeWorkGroupCount[3], maxComputeWorkGroupInvocations, maxComputeWorkGroupSize[3];
  uint8_t before_minStorageBufferOffsetAlignment[80];
  DeviceSize minStorageBufferOffsetAlignment;
  uint8_t before_timestampPeriod[88];
  float timestampPeriod;
  uint8_t rest[76];
};
struct PhysicalDeviceSparseProperties {
  Bool32 flags[5];
};
struct PhysicalDeviceProperties {
  uint32_t apiVersion, driverVersion, vendorID, deviceID;
  PhysicalDeviceType deviceType;
  char deviceName[256];
  uint8_t pipelineCacheUUID[16];
  PhysicalDeviceLimits limits;
  PhysicalDeviceSparseProperties sparseProperties;
};
struct PhysicalDeviceProperties2 {
  StructureType sType = PHYSICAL_DEVICE_PROPERTIES_2;
  void* pNext = nullptr;
  PhysicalDeviceProperties properties = {};
};
struct PhysicalDeviceVulkan11Properties {
  StructureType sType = PHYSICAL_DEVICE_VULKAN_1_1_PROPERTIES;
  void* pNext = nullptr;
  uint8_t deviceUUID[16] = {}, driverUUID[16] = {}, deviceLUID[8] = {};
  uint32_t deviceNodeMask = 0;
  Bool32 deviceLUIDValid = 0;
  uint32_t subgroupSize = 0;
  Flags subgroupSupportedStages = 0, subgroupSupportedOperations = 0;
  Bool32 subgroupQuadOperationsInAllStages = 0;
  int32_t pointClippingBehavior = 0;
  uint32_t maxMultiviewViewCount = 0, maxMultiviewInstanceIndex = 0;
  Bool32 protectedNoFault = 0;
  uint32_t maxPerSetDescriptors = 0;
  DeviceSize maxMemoryAllocationSize = 0;
};
struct PhysicalDeviceDriverProperties {
  StructureType sType = PHYSICAL_DEVICE_DRIVER_PROPERTIES;
  void* pNext = nullptr;
  int32_t driverID = 0;
  char driverName[256] = {}, driverInfo[256] = {};
  uint8_t conformanceVersion[4] = {};
};
// 55 flags in the specification's order; ours are shaderInt64 and shaderInt16.
struct PhysicalDeviceFeatures {
  Bool32 before_shaderInt64[40];
  Bool32 shaderInt64, shaderInt16;
  Bool32 rest[13];
};
struct PhysicalDeviceFeatures2 {
  StructureType sType = PHYSICAL_DEVICE_FEATURES_2;
  void* pNext = nullptr;
  PhysicalDeviceFeatures features = {};
};
struct PhysicalDeviceVulkan11Features {
  StructureType sType = PHYSICAL_DEVICE_VULKAN_1_1_FEATURES;
  void* pNext = nullptr;
  Bool32 storageBuffer16BitAccess = 0;
  Bool32 rest[11] = {};
};
struct PhysicalDeviceVulkan12Features {
  StructureType sType = PHYSICAL_DEVICE_VULKAN_1_2_FEATURES;
  void* pNext = nullptr;
  Bool32 samplerMirrorClampToEdge = 0, drawIndirectCount = 0;
  Bool32 storageBuffer8BitAccess = 0, uniformAndStorageBuffer8BitAccess = 0, storagePushConstant8 = 0;
  Bool32 shaderBufferInt64Atomics = 0, shaderSharedInt64Atomics = 0, shaderFloat16 = 0, shaderInt8 = 0;
  Bool32 rest[38] = {};
};
struct PhysicalDeviceShaderIntegerDotProductFeatures {
  StructureType sType = PHYSICAL_DEVICE_SHADER_INTEGER_DOT_PRODUCT_FEATURES;
  void* pNext = nullptr;
  Bool32 shaderIntegerDotProduct = 0;
};
struct MemoryType {
  Flags propertyFlags;
  uint32_t heapIndex;
};
struct MemoryHeap {
  DeviceSize size;
  Flags flags;
};
struct PhysicalDeviceMemoryProperties {
  uint32_t memoryTypeCount;
  MemoryType memoryTypes[32];
  uint32_t memoryHeapCount;
  MemoryHeap memoryHeaps[16];
};
struct PhysicalDeviceMemoryProperties2 {
  StructureType sType = PHYSICAL_DEVICE_MEMORY_PROPERTIES_2;
  void* pNext = nullptr;
  PhysicalDeviceMemoryProperties memoryProperties = {};
};
struct PhysicalDeviceMemoryBudgetPropertiesEXT {
  StructureType sType = PHYSICAL_DEVICE_MEMORY_BUDGET_PROPERTIES_EXT;
  void* pNext = nullptr;
  DeviceSize heapBudget[16] = {}, heapUsage[16] = {};
};
struct QueueFamilyProperties {
  Flags queueFlags;
  uint32_t queueCount, timestampValidBits, minImageTransferGranularity[3];
};
struct ExtensionProperties {
  char extensionName[256];
  uint32_t specVersion;
};
struct DeviceQueueCreateInfo {
  StructureType sType = DEVICE_QUEUE_CREATE_INFO;
  const void* pNext = nullptr;
  Flags flags = 0;
  uint32_t queueFamilyIndex = 0, queueCount = 0;
  const float* pQueuePriorities = nullptr;
};
struct DeviceCreateInfo {
  StructureType sType = DEVICE_CREATE_INFO;
  const void* pNext = nullptr;
  Flags flags = 0;
  uint32_t queueCreateInfoCount = 0;
  const DeviceQueueCreateInfo* pQueueCreateInfos = nullptr;
  uint32_t enabledLayerCount = 0;
  const char* const* ppEnabledLayerNames = nullptr;
  uint32_t enabledExtensionCount = 0;
  const char* const* ppEnabledExtensionNames = nullptr;
  const PhysicalDeviceFeatures* pEnabledFeatures = nullptr;
};
struct MemoryAllocateInfo {
  StructureType sType = MEMORY_ALLOCATE_INFO;
  const void* pNext = nullptr;
  DeviceSize allocationSize = 0;
  uint32_t memoryTypeIndex = 0;
};
struct MemoryRequirements {
  DeviceSize size, alignment;
  uint32_t memoryTypeBits;
};
struct BufferCreateInfo {
  StructureType sType = BUFFER_CREATE_INFO;
  const void* pNext = nullptr;
  Flags flags = 0;
  DeviceSize size = 0;
  Flags usage = 0;
  int32_t sharingMode = SHARING_EXCLUSIVE;
  uint32_t queueFamilyIndexCount = 0;
  const uint32_t* pQueueFamilyIndices = nullptr;
};
struct ShaderModuleCreateInfo {
  StructureType sType = SHADER_MODULE_CREATE_INFO;
  const void* pNext = nullptr;
  Flags flags = 0;
  size_t codeSize = 0;
  const uint32_t* pCode = nullptr;
};
struct SpecializationMapEntry {
  uint32_t constantID, offset;
  size_t size;
};
struct SpecializationInfo {
  uint32_t mapEntryCount = 0;
  const SpecializationMapEntry* pMapEntries = nullptr;
  size_t dataSize = 0;
  const void* pData = nullptr;
};
struct PipelineShaderStageCreateInfo {
  StructureType sType = PIPELINE_SHADER_STAGE_CREATE_INFO;
  const void* pNext = nullptr;
  Flags flags = 0, stage = 0;
  ShaderModule module = nullptr;
  const char* pName = nullptr;
  const SpecializationInfo* pSpecializationInfo = nullptr;
};
struct ComputePipelineCreateInfo {
  StructureType sType = COMPUTE_PIPELINE_CREATE_INFO;
  const void* pNext = nullptr;
  Flags flags = 0;
  PipelineShaderStageCreateInfo stage = {};
  PipelineLayout layout = nullptr;
  Pipeline basePipelineHandle = nullptr;
  int32_t basePipelineIndex = 0;
};
struct DescriptorSetLayoutBinding {
  uint32_t binding;
  int32_t descriptorType;
  uint32_t descriptorCount;
  Flags stageFlags;
  const void* pImmutableSamplers;
};
struct DescriptorSetLayoutCreateInfo {
  StructureType sType = DESCRIPTOR_SET_LAYOUT_CREATE_INFO;
  const void* pNext = nullptr;
  Flags flags = 0;
  uint32_t bindingCount = 0;
  const DescriptorSetLayoutBinding* pBindings = nullptr;
};
struct PushConstantRange {
  Flags stageFlags;
  uint32_t offset, size;
};
struct PipelineLayoutCreateInfo {
  StructureType sType = PIPELINE_LAYOUT_CREATE_INFO;
  const void* pNext = nullptr;
  Flags flags = 0;
  uint32_t setLayoutCount = 0;
  const DescriptorSetLayout* pSetLayouts = nullptr;
  uint32_t pushConstantRangeCount = 0;
  const PushConstantRange* pPushConstantRanges = nullptr;
};
struct DescriptorPoolSize {
  int32_t type;
  uint32_t descriptorCount;
};
struct DescriptorPoolCreateInfo {
  StructureType sType = DESCRIPTOR_POOL_CREATE_INFO;
  const void* pNext = nullptr;
  Flags flags = 0;
  uint32_t maxSets = 0, poolSizeCount = 0;
  const DescriptorPoolSize* pPoolSizes = nullptr;
};
struct DescriptorSetAllocateInfo {
  StructureType sType = DESCRIPTOR_SET_ALLOCATE_INFO;
  const void* pNext = nullptr;
  DescriptorPool descriptorPool = nullptr;
  uint32_t descriptorSetCount = 0;
  const DescriptorSetLayout* pSetLayouts = nullptr;
};
struct DescriptorBufferInfo {
  Buffer buffer;
  DeviceSize offset, range;
};
struct WriteDescriptorSet {
  StructureType sType = WRITE_DESCRIPTOR_SET;
  const void* pNext = nullptr;
  DescriptorSet dstSet = nullptr;
  uint32_t dstBinding = 0, dstArrayElement = 0, descriptorCount = 0;
  int32_t descriptorType = 0;
  const void* pImageInfo = nullptr;
  const DescriptorBufferInfo* pBufferInfo = nullptr;
  const void* pTexelBufferView = nullptr;
};
struct CommandPoolCreateInfo {
  StructureType sType = COMMAND_POOL_CREATE_INFO;
  const void* pNext = nullptr;
  Flags flags = 0;
  uint32_t queueFamilyIndex = 0;
};
struct CommandBufferAllocateInfo {
  StructureType sType = COMMAND_BUFFER_ALLOCATE_INFO;
  const void* pNext = nullptr;
  CommandPool commandPool = nullptr;
  int32_t level = LEVEL_PRIMARY;
  uint32_t commandBufferCount = 0;
};
struct CommandBufferBeginInfo {
  StructureType sType = COMMAND_BUFFER_BEGIN_INFO;
  const void* pNext = nullptr;
  Flags flags = 0;
  const void* pInheritanceInfo = nullptr;
};
struct MemoryBarrier {
  StructureType sType = MEMORY_BARRIER;
  const void* pNext = nullptr;
  Flags srcAccessMask = 0, dstAccessMask = 0;
};
struct BufferCopy {
  DeviceSize srcOffset, dstOffset, size;
};
struct FenceCreateInfo {
  StructureType sType = FENCE_CREATE_INFO;
  const void* pNext = nullptr;
  Flags flags = 0;
};
struct SubmitInfo {
  StructureType sType = SUBMIT_INFO;
  const void* pNext = nullptr;
  uint32_t waitSemaphoreCount = 0;
  const Semaphore* pWaitSemaphores = nullptr;
  const Flags* pWaitDstStageMask = nullptr;
  uint32_t commandBufferCount = 0;
  const CommandBuffer* pCommandBuffers = nullptr;
  uint32_t signalSemaphoreCount = 0;
  const Semaphore* pSignalSemaphores = nullptr;
};

}  // namespace brise::vk::api
