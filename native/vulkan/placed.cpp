// Weights, cache and adapters on a device: see placed.h.
#include "placed.h"

#include <algorithm>
#include <atomic>
#include <climits>
#include <string>

#include "../threads.h"
#include "cache_layout.h"

namespace brise::vk {

namespace {

constexpr size_t ALIGNMENT = 256;  // no device asks for more

// Rows of a range of a matrix: whole tiles, as many as one binding and one allocation take.
int range_rows(const Device& device, Format format, int rows, int cols) {
  const size_t bytes = tile_bytes(format, cols), most = std::min(device.facts().max_binding, device.facts().max_allocation) / bytes;
  if (!most)
    throw std::invalid_argument("a tile of " + std::to_string(cols) + " columns has " + std::to_string(bytes) + " bytes, " + device.facts().name + " binds " +
                                std::to_string(device.facts().max_binding));
  return (int)std::min<size_t>((size_t)rows, most * TILE);
}

// Matrices of a stack in one buffer.
int range_matrices(const Device& device, Format format, int rows, int cols) {
  const size_t bytes = (size_t)((rows + TILE - 1) / TILE) * tile_bytes(format, cols), most = std::min(device.facts().max_binding, device.facts().max_allocation);
  if (bytes > most)
    throw std::invalid_argument("a matrix of a stack has " + std::to_string(bytes) + " bytes, " + device.facts().name + " binds " + std::to_string(most));
  return (int)std::min<size_t>(most / bytes, INT_MAX);
}

size_t range_bytes(Format format, int rows, int cols) { return (size_t)((rows + TILE - 1) / TILE) * tile_bytes(format, cols); }

std::shared_ptr<Placed> placed_of(const Weight& weight) {
  if (!weight.placed) throw std::invalid_argument("the weight does not lie on a GPU");
  return std::const_pointer_cast<Placed>(weight.placed);
}

// Calls f(range, first tile of the range, tiles) for each part of tiles [first, last) that lies in one range.
template <class Call>
void each_range(const Placed& placed, int first, int last, Call&& f) {
  for (const auto& range : placed.ranges) {
    const int begin = range.first_row / TILE, end = begin + (range.rows + TILE - 1) / TILE;
    const int from = std::max(first, begin), to = std::min(last, end);
    if (from < to) f(range, from, from - begin, to - from);
  }
}

}  // namespace

size_t weight_bytes(const Device& device, Format format, int rows, int cols) {
  if (!cols) return device.allocation_bytes((size_t)rows * sizeof(float));
  const int most = range_rows(device, format, rows, cols);
  size_t sum = 0;
  for (int first = 0; first < rows; first += most) sum += device.allocation_bytes(range_bytes(format, std::min(most, rows - first), cols));
  return sum;
}

std::shared_ptr<Weight> empty_matrix(const std::shared_ptr<Device>& device, Format format, int rows, int cols) {
  auto out = std::make_shared<Weight>();
  out->matrix = {format, rows, cols, tile_bytes(format, cols), nullptr};
  auto placed = std::make_shared<Placed>();
  placed->device = device;
  const int most = range_rows(*device, format, rows, cols);
  for (int first = 0; first < rows; first += most) {
    const int own = std::min(most, rows - first);
    placed->ranges.push_back({first, own, device->allocate(range_bytes(format, own, cols))});
  }
  out->placed = placed;
  return out;
}

size_t stack_bytes(const Device& device, Format format, int count, int rows, int cols) {
  const int most = range_matrices(device, format, rows, cols);
  size_t sum = 0;
  for (int first = 0; first < count; first += most) sum += device.allocation_bytes((size_t)std::min(most, count - first) * range_bytes(format, rows, cols));
  return sum;
}

std::vector<std::shared_ptr<Weight>> empty_stack(const std::shared_ptr<Device>& device, Format format, int count, int rows, int cols) {
  const int most = range_matrices(*device, format, rows, cols);
  const size_t bytes = range_bytes(format, rows, cols);
  std::vector<std::shared_ptr<Weight>> out;
  std::shared_ptr<Buffer> buffer;
  for (int i = 0; i < count; i++) {
    if (i % most == 0) buffer = device->allocate((size_t)std::min(most, count - i) * bytes);
    auto placed = std::make_shared<Placed>();
    placed->device = device;
    placed->ranges.push_back({0, rows, buffer, (size_t)(i % most) * bytes, bytes});
    out.push_back(std::make_shared<Weight>());
    out.back()->matrix = {format, rows, cols, tile_bytes(format, cols), nullptr};
    out.back()->placed = placed;
  }
  return out;
}

std::shared_ptr<Weight> place_vector(const std::shared_ptr<Device>& device, const float* data, size_t length) {
  auto out = std::make_shared<Weight>();
  out->vector.assign(data, data + length);
  auto placed = std::make_shared<Placed>();
  placed->device = device;
  placed->ranges.push_back({0, (int)length, device->allocate(length * sizeof(float))});
  device->upload(*placed->ranges[0].buffer, 0, data, length * sizeof(float));
  out->placed = placed;
  return out;
}

std::shared_ptr<Weight> place(const std::shared_ptr<Device>& device, const Weight& weight) {
  if (weight.is_shape_only || weight.placed) throw std::invalid_argument("wanted a weight in the host's memory");
  if (!weight.vector.empty()) return place_vector(device, weight.vector.data(), weight.vector.size());
  const Matrix& m = weight.matrix;
  std::shared_ptr<Weight> out = empty_matrix(device, m.format, m.rows, m.cols);
  for (const auto& range : out->placed->ranges)
    device->upload(*range.buffer, 0, m.data + (size_t)(range.first_row / TILE) * m.tile_bytes, range_bytes(m.format, range.rows, m.cols));
  return out;
}

void fill_rows(Pool& pool, const Weight& weight, const uint8_t* source, int first, int rows) {
  const auto placed = placed_of(weight);
  const Matrix& m = weight.matrix;
  const size_t row_bytes = source_row_bytes(m.format, m.cols);
  const int most = (int)std::max<size_t>(Device::STAGING_HALF / m.tile_bytes, 1), last = (first + rows + TILE - 1) / TILE;
  std::vector<uint8_t> tiles;
  for (int begin = first / TILE; begin < last; begin += most) {
    const int count = std::min(most, last - begin);
    tiles.resize((size_t)count * m.tile_bytes);
    pool.each(count, [&](int i) {
      const int row = (begin + i) * TILE - first;
      pack_tile(m.format, source + (size_t)row * row_bytes, row_bytes, std::min(TILE, rows - row), m.cols, tiles.data() + (size_t)i * m.tile_bytes);
    });
    each_range(*placed, begin, begin + count, [&](const Placed::Range& range, int tile, int own, int num) {
      placed->device->upload(*range.buffer, range.offset + (size_t)own * m.tile_bytes, tiles.data() + (size_t)(tile - begin) * m.tile_bytes, (size_t)num * m.tile_bytes);
    });
  }
}

void read_tiles(const Weight& weight, int first, int last, uint8_t* out) {
  const auto placed = placed_of(weight);
  const size_t bytes = weight.matrix.tile_bytes;
  each_range(*placed, first, last, [&](const Placed::Range& range, int tile, int own, int num) {
    placed->device->download(*range.buffer, range.offset + (size_t)own * bytes, out + (size_t)(tile - first) * bytes, (size_t)num * bytes);
  });
}

void unpack_rows(const Weight& weight, int first, int rows, float* out) {
  Matrix m = weight.matrix;
  const int most = (int)std::max<size_t>(Device::STAGING_HALF / m.tile_bytes, 1), last = (first + rows + TILE - 1) / TILE;
  std::vector<uint8_t> tiles;
  for (int begin = first / TILE; begin < last; begin += most) {
    const int end = std::min(begin + most, last);
    tiles.resize((size_t)(end - begin) * m.tile_bytes);
    read_tiles(weight, begin, end, tiles.data());
    m.data = tiles.data();
    for (int row = std::max(first, begin * TILE); row < std::min(first + rows, end * TILE); row++)
      unpack_row(m, row - begin * TILE, out + (size_t)(row - first) * (size_t)m.cols);
  }
}

size_t allocated(const Placed& placed) {
  size_t sum = 0;
  for (const auto& range : placed.ranges) sum += range.bytes ? range.bytes : range.buffer->allocated;
  return sum;
}

void place_adapter(const std::shared_ptr<Device>& device, brise::Adapter& adapter) {
  struct Piece {
    Binding* binding;
    const void* data;
    size_t bytes;
  };
  auto placed = std::make_shared<PlacedAdapter>();
  placed->parts.resize(adapter.num_targets());
  std::vector<Piece> pieces;
  size_t end = 0;
  const auto add = [&](Binding& binding, const void* data, size_t bytes) {
    binding = {nullptr, end, bytes};
    pieces.push_back({&binding, data, bytes});
    end = round_up(end + bytes, ALIGNMENT);
  };
  for (size_t i = 0; i < placed->parts.size(); i++) {
    const auto* part = adapter.at((int)i);
    if (!part) continue;
    add(placed->parts[i].a, part->a.data, (size_t)part->a.tiles() * part->a.tile_bytes);
    add(placed->parts[i].b, part->b.data, (size_t)part->b.tiles() * part->b.tile_bytes);
    if (!part->gain.empty()) add(placed->parts[i].gain, part->gain.data(), part->gain.size() * sizeof(float));
    else placed->parts[i].gain = placed->parts[i].b;
  }
  placed->buffer = device->allocate(end);
  for (const Piece& piece : pieces) {
    piece.binding->buffer = placed->buffer.get();
    device->upload(*placed->buffer, piece.binding->offset, piece.data, piece.bytes);
  }
  for (auto& part : placed->parts) part.gain.buffer = part.gain.bytes ? placed->buffer.get() : nullptr;
  adapter.move_to(placed, placed->buffer->allocated);
}

size_t Cache::side_bytes(const CacheShape& s) {
  return cache_side_bytes((CacheFormat)(int)s.format, (size_t)s.pages, s.page_size, s.kv_heads, s.head_dim);
}

size_t Cache::bytes(const Device& device, const CacheShape& s) {
  if (s.layers < 0 || s.pages < 0 || s.page_size < 0 || s.kv_heads < 0 || s.head_dim < 0 || (int64_t)s.pages * s.page_size > INT32_MAX ||
      (double)s.layers * s.pages * s.page_size * s.kv_heads * ((double)s.head_dim + TILE) > 0x1p44)
    throw std::invalid_argument("no cache has " + std::to_string(s.layers) + " layers of " + std::to_string(s.pages) + " pages of " + std::to_string(s.page_size) +
                                " tokens with " + std::to_string(s.kv_heads) + " heads of " + std::to_string(s.head_dim));
  const size_t most = std::min(device.facts().max_binding, device.facts().max_allocation), one = side_bytes(s);
  if (one > most)
    throw std::invalid_argument("a layer's keys in " + std::to_string(s.pages) + " pages have " + std::to_string(one) + " bytes, " + device.facts().name + " binds " + std::to_string(most));
  return (size_t)s.layers * (size_t)s.sides * device.allocation_bytes(one);
}

namespace {
uint64_t next_id() {
  static std::atomic<uint64_t> last = 0;
  return ++last;
}
}  // namespace

Cache::Cache(std::shared_ptr<Device> device, const CacheShape& shape) : CacheShape(shape), id(next_id()), device_(std::move(device)) {
  bytes(*device_, shape);  // refuses what the device does not bind
  for (int i = 0; i < layers * sides; i++) buffers_.push_back(device_->allocate(side_bytes(shape)));
  Commands commands(*device_);
  commands.begin();
  for (const auto& buffer : buffers_) commands.fill(*buffer, 0, buffer->bytes, 0);
  commands.barrier();
  commands.end();
  commands.submit();
  commands.wait();
}

size_t Cache::nbytes() const {
  size_t sum = 0;
  for (const auto& buffer : buffers_) sum += buffer->allocated;
  return sum;
}

int Cache::scales_at() const {
  return (int)(cache_scales_offset((CacheFormat)(int)format, (size_t)pages, page_size, kv_heads, head_dim) / 4);
}

const char* Cache::format_name() const {
  const char* const names[] = {"f32", "f16", "q8", "q4"};
  return names[(int)format];
}

}  // namespace brise::vk
