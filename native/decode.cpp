// Decodes rows of blocks into the caller's buffer, on a few threads that live as long as the call.
#include <algorithm>
#include <thread>
#include <vector>

#include "kernels.h"

namespace brise {

namespace {

constexpr size_t LEAST = 1 << 16;  // numbers that make another thread worth starting: 50 microseconds of work for 20 of starting it

void decode_part(const Kernels& kernels, Format format, const uint8_t* data, size_t blocks, bool is_bf16, uint8_t* out) {
  const int block = block_columns(format);
  const size_t block_bytes = source_row_bytes(format, block);
  float numbers[256];
  for (size_t b = 0; b < blocks; b++, data += block_bytes) {
    if (is_bf16) {
      kernels.decode(format, data, numbers);
      kernels.round_bf16(numbers, block, reinterpret_cast<uint16_t*>(out) + b * (size_t)block);
    } else {
      kernels.decode(format, data, reinterpret_cast<float*>(out) + b * (size_t)block);
    }
  }
}

}  // namespace

void decode_rows(const Kernels& kernels, Format format, const uint8_t* data, size_t rows, int cols, bool is_bf16, int threads, uint8_t* out) {
  const int block = block_columns(format);
  const size_t blocks = rows * (size_t)(cols / block), block_bytes = source_row_bytes(format, block), size = is_bf16 ? 2 : 4;
  const size_t parts = std::clamp<size_t>(blocks * (size_t)block / LEAST, 1, (size_t)threads), share = (blocks + parts - 1) / parts;
  std::vector<std::jthread> others;
  for (size_t first = share; first < blocks; first += share)
    others.emplace_back([&, first] {
      decode_part(kernels, format, data + first * block_bytes, std::min(share, blocks - first), is_bf16, out + first * (size_t)block * size);
    });
  decode_part(kernels, format, data, std::min(share, blocks), is_bf16, out);
}

}  // namespace brise
