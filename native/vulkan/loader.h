// Vulkan's loader and an instance: which devices there are and what they can.
#pragma once

#include <memory>
#include <vector>

#include "device.h"

namespace brise::vk {

// One instance, which its devices keep alive. The library itself is never closed: drivers keep thread-local data.
struct Loader {
  static std::shared_ptr<Loader> open();  // throws NO_LOADER
  Loader() = default;
  ~Loader();
  Loader(const Loader&) = delete;
  Loader& operator=(const Loader&) = delete;
  std::vector<api::PhysicalDevice> devices() const;
  Facts facts(api::PhysicalDevice device, int number) const;
  uint32_t compute_family(api::PhysicalDevice device) const;  // UINT32_MAX if there is none

  api::Functions functions;  // of the instance; those of a device are filled by the device
  api::Instance instance = nullptr;
};

bool has_extension(const api::Functions& functions, api::PhysicalDevice device, const char* name);

// Number of the heap that buffers come from: the largest that lies on the device.
uint32_t device_heap(const api::PhysicalDeviceMemoryProperties& memory);

// What brise needs, as it is asked from vkGetPhysicalDeviceFeatures2 and enabled in vkCreateDevice. Does not move.
struct FeatureChain {
  explicit FeatureChain(bool has_integer_dot);
  FeatureChain(const FeatureChain&) = delete;
  FeatureChain& operator=(const FeatureChain&) = delete;
  api::PhysicalDeviceFeatures2 head;
  api::PhysicalDeviceVulkan11Features v11;
  api::PhysicalDeviceVulkan12Features v12;
  api::PhysicalDeviceShaderIntegerDotProductFeatures dot;
};

}  // namespace brise::vk
