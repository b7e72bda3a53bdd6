// Vulkan's loader and an instance: which devices there are and what they can.
#include "loader.h"

#include <dlfcn.h>

#include <cstring>

namespace brise::vk {

namespace {

constexpr const char* INTEGER_DOT = "VK_KHR_shader_integer_dot_product";
constexpr const char* MEMORY_BUDGET = "VK_EXT_memory_budget";

api::GetInstanceProcAddr open_library() {
#ifdef __APPLE__
  const char* const names[] = {"libvulkan.1.dylib", "libMoltenVK.dylib"};
#else
  const char* const names[] = {"libvulkan.so.1"};
#endif
  std::string reason;
  for (const char* name : names) {
    if (void* library = dlopen(name, RTLD_NOW | RTLD_LOCAL)) {
      if (auto get = (api::GetInstanceProcAddr)dlsym(library, "vkGetInstanceProcAddr")) return get;
      reason = std::string(name) + " has no vkGetInstanceProcAddr";
    } else if (const char* error = dlerror()) {
      reason = error;
    }
  }
  throw Error(Fault::NO_LOADER, "Vulkan's loader can't be opened: " + reason);
}

std::string version(uint32_t v) {
  return std::to_string(v >> 22 & 0x7f) + "." + std::to_string(v >> 12 & 0x3ff) + "." + std::to_string(v & 0xfff);
}

const char* type_name(api::PhysicalDeviceType type) {
  switch (type) {
    case api::TYPE_INTEGRATED_GPU: return "integrated";
    case api::TYPE_DISCRETE_GPU: return "discrete";
    case api::TYPE_VIRTUAL_GPU: return "virtual";
    case api::TYPE_CPU: return "cpu";
    default: return "other";
  }
}

void add(std::string& list, bool is_missing, const char* name) {
  if (is_missing) list += (list.empty() ? "" : ", ") + std::string(name);
}

// What the shaders ask of a workgroup: attend.comp shares 32 KiB, elementwise.comp has 256 invocations. Vulkan grants half of each.
constexpr uint32_t SHARED_BYTES = 32768, INVOCATIONS = 256;

std::string missing_features(const FeatureChain& chain, const api::PhysicalDeviceLimits& limits, bool has_dot_extension, bool has_queue) {
  std::string out;
  add(out, limits.maxComputeSharedMemorySize < SHARED_BYTES, "32 KiB of shared memory");
  add(out, limits.maxComputeWorkGroupInvocations < INVOCATIONS, "workgroups of 256");
  add(out, !has_queue, "a compute queue");
  add(out, !has_dot_extension || !chain.dot.shaderIntegerDotProduct, "shaderIntegerDotProduct");
  return out;
}

}  // namespace

FeatureChain::FeatureChain(bool has_integer_dot) {
  head.pNext = &v11;
  v11.pNext = &v12;
  if (has_integer_dot) v12.pNext = &dot;
}

std::shared_ptr<Loader> Loader::open() {
  const api::GetInstanceProcAddr get = open_library();
  auto out = std::make_shared<Loader>();
  api::Functions& f = out->functions;
#define BRISE_VK_LOAD(name, result, arguments) f.name = (decltype(f.name))get(nullptr, "vk" #name);
  BRISE_VK_GLOBAL_FUNCTIONS(BRISE_VK_LOAD)
#undef BRISE_VK_LOAD
  uint32_t known = 1u << 22;  // a loader of Vulkan 1.0 has no vkEnumerateInstanceVersion
  if (f.EnumerateInstanceVersion) f.EnumerateInstanceVersion(&known);
  if (known < api::API_1_2 || !f.CreateInstance) throw Error("Vulkan's loader has version " + version(known) + ", brise needs 1.2 or later", "the loader", "Vulkan 1.2");
  api::ApplicationInfo application;
  application.pApplicationName = application.pEngineName = "brise";
  application.apiVersion = api::API_1_2;
  api::InstanceCreateInfo info;
  info.pApplicationInfo = &application;
  const api::Result result = f.CreateInstance(&info, nullptr, &out->instance);
  // A loader without one driver answers so.
  if (result == api::ERROR_INCOMPATIBLE_DRIVER) throw Error(Fault::NO_DEVICE, "Vulkan's loader has no driver of any device");
  if (result != api::SUCCESS) throw Error(Fault::FAILED, "vkCreateInstance failed with " + std::to_string(result));
#define BRISE_VK_LOAD(name, result, arguments) \
  if (!(f.name = (decltype(f.name))get(out->instance, "vk" #name))) throw Error(Fault::FAILED, "Vulkan's loader has no vk" #name);
  BRISE_VK_INSTANCE_FUNCTIONS(BRISE_VK_LOAD)
#undef BRISE_VK_LOAD
  return out;
}

Loader::~Loader() {
  if (instance && functions.DestroyInstance) functions.DestroyInstance(instance, nullptr);
}

std::vector<api::PhysicalDevice> Loader::devices() const {
  uint32_t count = 0;
  api::Result result = functions.EnumeratePhysicalDevices(instance, &count, nullptr);
  std::vector<api::PhysicalDevice> out(count);
  if (result == api::SUCCESS && count) result = functions.EnumeratePhysicalDevices(instance, &count, out.data());
  if (result == api::ERROR_INITIALIZATION_FAILED) return {};  // a driver whose device does not answer
  if (result < 0) throw Error(Fault::FAILED, "vkEnumeratePhysicalDevices failed with " + std::to_string(result));
  out.resize(count);
  return out;
}

Facts Loader::facts(api::PhysicalDevice device, int number) const {
  api::PhysicalDeviceProperties plain;
  functions.GetPhysicalDeviceProperties(device, &plain);
  Facts out;
  out.number = number;
  out.name = plain.deviceName;
  out.type = type_name(plain.deviceType);
  out.api = version(plain.apiVersion);
  out.is_shared = plain.deviceType == api::TYPE_INTEGRATED_GPU || plain.deviceType == api::TYPE_CPU;
  out.shared_memory = plain.limits.maxComputeSharedMemorySize;
  out.max_invocations = plain.limits.maxComputeWorkGroupInvocations;
  std::memcpy(out.max_groups, plain.limits.maxComputeWorkGroupCount, sizeof out.max_groups);
  out.offset_alignment = (uint32_t)plain.limits.minStorageBufferOffsetAlignment;
  out.max_binding = plain.limits.maxStorageBufferRange;
  if (plain.apiVersion < api::API_1_2) {  // its later structures can't be asked for
    out.missing = "Vulkan 1.2";
    return out;
  }
  api::PhysicalDeviceVulkan11Properties v11;
  api::PhysicalDeviceDriverProperties driver;
  api::PhysicalDeviceProperties2 properties;
  properties.pNext = &v11;
  v11.pNext = &driver;
  functions.GetPhysicalDeviceProperties2(device, &properties);
  out.driver = driver.driverName;
  out.driver_version = driver.driverInfo;
  out.subgroup = v11.subgroupSize;
  out.max_allocation = v11.maxMemoryAllocationSize;
  out.has_budget = has_extension(functions, device, MEMORY_BUDGET);
  const bool has_dot = has_extension(functions, device, INTEGER_DOT);
  FeatureChain chain(has_dot);
  functions.GetPhysicalDeviceFeatures2(device, &chain.head);
  out.has_integer_dot = has_dot && chain.dot.shaderIntegerDotProduct;
  out.missing = missing_features(chain, plain.limits, has_dot, compute_family(device) != UINT32_MAX);
  api::PhysicalDeviceMemoryProperties2 memory;
  functions.GetPhysicalDeviceMemoryProperties2(device, &memory);
  out.memory = memory.memoryProperties.memoryHeaps[device_heap(memory.memoryProperties)].size;
  return out;
}

uint32_t Loader::compute_family(api::PhysicalDevice device) const {
  uint32_t count = 0;
  functions.GetPhysicalDeviceQueueFamilyProperties(device, &count, nullptr);
  std::vector<api::QueueFamilyProperties> families(count);
  functions.GetPhysicalDeviceQueueFamilyProperties(device, &count, families.data());
  for (uint32_t i = 0; i < count; i++)
    if (families[i].queueFlags & api::QUEUE_COMPUTE && families[i].queueCount) return i;
  return UINT32_MAX;
}

bool has_extension(const api::Functions& functions, api::PhysicalDevice device, const char* name) {
  uint32_t count = 0;
  functions.EnumerateDeviceExtensionProperties(device, nullptr, &count, nullptr);
  std::vector<api::ExtensionProperties> extensions(count);
  functions.EnumerateDeviceExtensionProperties(device, nullptr, &count, extensions.data());
  for (const api::ExtensionProperties& extension : extensions)
    if (!std::strcmp(extension.extensionName, name)) return true;
  return false;
}

uint32_t device_heap(const api::PhysicalDeviceMemoryProperties& memory) {
  uint32_t best = 0;
  bool is_local = false;
  for (uint32_t i = 0; i < memory.memoryHeapCount; i++) {
    const bool local = memory.memoryHeaps[i].flags & api::HEAP_DEVICE_LOCAL;
    if ((local && !is_local) || (local == is_local && memory.memoryHeaps[i].size > memory.memoryHeaps[best].size)) best = i, is_local = local;
  }
  return best;
}

std::vector<Facts> list_devices() {
  std::shared_ptr<Loader> loader;
  try {
    loader = Loader::open();
  } catch (const Error& error) {
    if (error.fault == Fault::NO_DEVICE) return {};
    throw;
  }
  std::vector<Facts> out;
  for (api::PhysicalDevice device : loader->devices()) out.push_back(loader->facts(device, (int)out.size()));
  return out;
}

}  // namespace brise::vk
