// Memory blocks, the paged cache, and packing of weights.
#include <sys/mman.h>

#include <cstring>
#include <new>
#include <stdexcept>
#include <string>

#include "program.h"

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
struct LayerParts { size_t keys, values, scales; };
LayerParts layer_parts(int pages, int page_size, int kv_heads, int head_dim, CacheFormat format) {
  const size_t element = format == CacheFormat::F32 ? 4 : format == CacheFormat::F16 ? 2 : 1;
  const size_t tokens = (size_t)pages * page_size * kv_heads;
  const size_t stride = round_up((size_t)head_dim, TILE);
  return {round_up(tokens * head_dim * element, 64), round_up(tokens * stride * element, 64),
          format == CacheFormat::Q8 ? round_up(tokens * 4, 64) : 0};
}
}  // namespace

size_t Cache::bytes(int layers, int pages, int page_size, int kv_heads, int head_dim, CacheFormat format) {
  // Slots are int32; sizes beyond an address space's 128 TiB could wrap around to small ones.
  if (layers < 0 || pages < 0 || page_size < 0 || kv_heads < 0 || head_dim < 0 || (int64_t)pages * page_size > INT32_MAX ||
      (double)layers * pages * page_size * kv_heads * ((double)head_dim + TILE) > 0x1p44)
    throw std::invalid_argument("no cache has " + std::to_string(layers) + " layers of " + std::to_string(pages) + " pages of " +
                                std::to_string(page_size) + " tokens with " + std::to_string(kv_heads) + " heads of " + std::to_string(head_dim));
  const LayerParts part = layer_parts(pages, page_size, kv_heads, head_dim, format);
  return (size_t)layers * (part.keys + part.values + 2 * part.scales);
}

Cache::Cache(int layers, int pages, int page_size, int kv_heads, int head_dim, CacheFormat format)
    : layers(layers), pages(pages), page_size(page_size), kv_heads(kv_heads), head_dim(head_dim), format(format),
      layer_bytes_(bytes(1, pages, page_size, kv_heads, head_dim, format)), memory_(layer_bytes_ * (size_t)layers) {}

CacheLayer Cache::layer(int index) const {
  const LayerParts part = layer_parts(pages, page_size, kv_heads, head_dim, format);
  uint8_t* p = memory_.data() + layer_bytes_ * (size_t)index;
  float* scales = (float*)(p + part.keys + part.values);
  return {format, page_size, kv_heads, head_dim, (int)round_up((size_t)head_dim, TILE), p, p + part.keys,
          scales, scales + part.scales / 4};
}

std::shared_ptr<Weight> pack(Pool& pool, Format format, const uint8_t* source, int rows, int cols) {
  auto out = std::make_shared<Weight>();
  const size_t row_bytes = source_row_bytes(format, cols), size = tile_bytes(format, cols);
  out->matrix = {format, rows, cols, size, nullptr};
  const int tiles = out->matrix.tiles();
  // 4 KiB behind the last tile: a kernel asks for lines ahead, and may load past the end of a plane.
  out->memory = std::make_shared<Memory>((size_t)tiles * size + 4096, true);
  out->matrix.data = out->memory->data();
  pool.each(tiles, [&](int tile) {
    const int n = rows - tile * TILE < TILE ? rows - tile * TILE : TILE;
    pack_tile(format, source + (size_t)tile * TILE * row_bytes, row_bytes, n, cols, out->memory->data() + (size_t)tile * size);
  });
  return out;
}

}  // namespace brise
