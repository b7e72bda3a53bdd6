// Memory blocks, the paged cache, and packing of weights.
#include <sys/mman.h>

#include <cstring>
#include <new>
#include <stdexcept>
#include <string>

#include "program.h"
#include "vulkan/placed.h"

namespace brise {

namespace {
constexpr size_t LARGE_PAGE = 2u << 20;
size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }
}  // namespace

Memory::Memory(size_t bytes, bool large) : size_(bytes) {
  const size_t mapped = round_up(bytes ? bytes : 1, 4096);
  void* p = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) throw std::bad_alloc();
  if (large && mapped >= LARGE_PAGE) madvise(p, mapped, MADV_HUGEPAGE);
  data_ = (uint8_t*)p;
}

Memory::~Memory() { munmap(data_, round_up(size_ ? size_ : 1, 4096)); }

namespace {
struct LayerParts { size_t keys, values, scales; };  // scales: of one side
LayerParts layer_parts(int pages, int page_size, int kv_heads, int head_dim, CacheFormat format, int sides) {
  const size_t element = format == CacheFormat::F32 ? 4 : format == CacheFormat::I16 ? 2 : 1;
  const size_t tokens = (size_t)pages * page_size * kv_heads;
  const size_t stride = round_up((size_t)head_dim, TILE);
  if (format == CacheFormat::Q4) {
    const size_t groups = round_up((size_t)head_dim, 32) / 32;
    return {tokens * groups * 16, sides == 1 ? 0 : tokens * groups * 16, tokens * groups * 4};
  }
  const size_t columns = round_up((size_t)head_dim, format == CacheFormat::F32 ? 1 : 2);
  return {round_up(tokens * columns * element, 64), sides == 1 ? 0 : round_up(tokens * stride * element, 64),
          format == CacheFormat::F32 ? 0 : round_up(tokens * 4, 64)};
}
}  // namespace

size_t Cache::bytes(int layers, int pages, int page_size, int kv_heads, int head_dim, CacheFormat format, int sides) {
  // Slots are int32; sizes beyond an address space's 128 TiB could wrap around to small ones.
  if (layers < 0 || pages < 0 || page_size < 0 || kv_heads < 0 || head_dim < 0 || (int64_t)pages * page_size > INT32_MAX ||
      (double)layers * pages * page_size * kv_heads * ((double)head_dim + TILE) > 0x1p44)
    throw std::invalid_argument("no cache has " + std::to_string(layers) + " layers of " + std::to_string(pages) + " pages of " +
                                std::to_string(page_size) + " tokens with " + std::to_string(kv_heads) + " heads of " + std::to_string(head_dim));
  const LayerParts part = layer_parts(pages, page_size, kv_heads, head_dim, format, sides);
  return (size_t)layers * (part.keys + part.values + (size_t)sides * part.scales);
}

Cache::Cache(int layers, int pages, int page_size, int kv_heads, int head_dim, CacheFormat format, int sides)
    : CacheShape{layers, pages, page_size, kv_heads, head_dim, format, sides},
      layer_bytes_(bytes(1, pages, page_size, kv_heads, head_dim, format, sides)), memory_(layer_bytes_ * (size_t)layers) {}

CacheLayer Cache::layer(int index) const {
  const LayerParts part = layer_parts(pages, page_size, kv_heads, head_dim, format, sides);
  uint8_t* p = memory_.data() + layer_bytes_ * (size_t)index;
  uint8_t* scales = p + part.keys + part.values;
  return {format, page_size, kv_heads, head_dim, (int)round_up((size_t)head_dim, TILE), p, p + part.keys,
          (float*)scales, (float*)(scales + part.scales), (uint16_t*)scales, (uint16_t*)(scales + part.scales)};
}

size_t Weight::nbytes() const {
  if (placed) return vk::allocated(*placed);
  if (!vector.empty()) return vector.size() * sizeof(float);
  return packed_bytes(matrix.format, matrix.rows, matrix.cols);
}

// 4 KiB after the last tile: kernels prefetch lines, and may load past the end of a plane.
size_t packed_bytes(Format format, int rows, int cols) {
  return (size_t)((rows + TILE - 1) / TILE) * tile_bytes(format, cols) + 4096;
}

// Without columns it is a vector, which is small and allocated.
std::shared_ptr<Weight> shape_only(Format format, int rows, int cols) {
  auto out = std::make_shared<Weight>();
  if (cols) out->matrix = {format, rows, cols, tile_bytes(format, cols), nullptr};
  else out->vector.resize((size_t)rows);
  out->is_shape_only = true;
  return out;
}

std::shared_ptr<Weight> empty_matrix(Format format, int rows, int cols) {
  auto out = std::make_shared<Weight>();
  out->matrix = {format, rows, cols, tile_bytes(format, cols), nullptr};
  out->memory = std::make_shared<Memory>(packed_bytes(format, rows, cols), true);
  out->matrix.data = out->memory->data();
  return out;
}

void fill_rows(Pool& pool, Weight& weight, const uint8_t* source, int first, int rows) {
  const Matrix& m = weight.matrix;
  const size_t row_bytes = source_row_bytes(m.format, m.cols);
  uint8_t* tiles = weight.memory->data() + (size_t)(first / TILE) * m.tile_bytes;
  pool.each((rows + TILE - 1) / TILE, [&](int tile) {
    const int n = rows - tile * TILE < TILE ? rows - tile * TILE : TILE;
    pack_tile(m.format, source + (size_t)tile * TILE * row_bytes, row_bytes, n, m.cols, tiles + (size_t)tile * m.tile_bytes);
  });
}

}  // namespace brise
