// What lies on a device as long as a model is loaded: weights, the paged cache, adapters.
#pragma once

#include <memory>
#include <vector>

#include "../recording.h"
#include "device.h"

namespace brise::vk {

// Of a matrix, buffers of whole tiles in the CPU's layout, byte for byte, each within what the device binds; of a vector one buffer. The
// matrices of a stack lie one after the other in as few buffers as the device binds, each in one.
struct Placed {
  struct Range {
    int first_row, rows;
    std::shared_ptr<Buffer> buffer;
    size_t offset = 0, bytes = 0;  // of a matrix of a stack, in the buffer
  };
  std::shared_ptr<Device> device;
  std::vector<Range> ranges;
};

// Without columns it is a vector, in float32 whatever its format.
size_t weight_bytes(const Device& device, Format format, int rows, int cols);
std::shared_ptr<Weight> empty_matrix(const std::shared_ptr<Device>& device, Format format, int rows, int cols);
size_t stack_bytes(const Device& device, Format format, int count, int rows, int cols);
std::vector<std::shared_ptr<Weight>> empty_stack(const std::shared_ptr<Device>& device, Format format, int count, int rows, int cols);
std::shared_ptr<Weight> place_vector(const std::shared_ptr<Device>& device, const float* data, size_t length);
// A copy of a packed matrix or a vector in the host's memory.
std::shared_ptr<Weight> place(const std::shared_ptr<Device>& device, const Weight& weight);
// As brise::fill_rows: packs at most a half of the staging ring at a time in the host's memory.
void fill_rows(Pool& pool, const Weight& weight, const uint8_t* source, int first, int rows);
// Tiles [first, last) of a placed matrix.
void read_tiles(const Weight& weight, int first, int last, uint8_t* out);
void unpack_rows(const Weight& weight, int first, int rows, float* out);
size_t allocated(const Placed& placed);

// An adapter's matrices and gains, each at a multiple of 256 bytes in one buffer. `parts` is by target, as the adapter's own are.
struct PlacedAdapter {
  struct Part {
    Binding a, b, gain;  // gain of any kind if there is none
  };
  std::shared_ptr<Buffer> buffer;
  std::vector<Part> parts;
};

// Moves the adapter's numbers to the device; its shapes stay.
void place_adapter(const std::shared_ptr<Device>& device, brise::Adapter& adapter);

// One buffer for each layer and side, all zeros; cache_layout.h describes it.
class Cache : public CacheShape {
 public:
  Cache(std::shared_ptr<Device> device, const CacheShape& shape);
  const uint64_t id;  // of no other cache of the process
  const Buffer& side(int layer, int which) const { return *buffers_[(size_t)(layer * sides + which)]; }
  size_t nbytes() const;
  static size_t bytes(const Device& device, const CacheShape& shape);
  static size_t side_bytes(const CacheShape& shape);
  int scales_at() const;          // of a side, in words
  const char* format_name() const;

 private:
  std::shared_ptr<Device> device_;
  std::vector<std::shared_ptr<Buffer>> buffers_;
};

}  // namespace brise::vk
