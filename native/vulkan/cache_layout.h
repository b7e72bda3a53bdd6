// How the key/value cache lies on a device, and how attention over it is cut into workgroups.
//
// One buffer for each layer and side (keys, values; of latents keys only). A row holds one token's numbers of one head; row number
// (page * kv_heads + head) * page_size + offset. A row is padded to 16 bytes with zeros, so that a shader loads 16 bytes at a time:
//   f32  float32          f16  float16, halves to even (CacheFormat::I16, which on the CPU is another format of that name)
//   q8   int8, and after all rows one float32 a row: number = scale * code, scale = max|x| / 127
//   q4   4 bits, number e in bits 4 (e % 8) of word e / 8, and after all rows one word for each row and group of 32 numbers:
//        float16 scale (low half), float16 minimum (high half): number = scale * code + minimum
// A new buffer must be zero: padding is not written again for rows that no step has written, and is read.
#pragma once

#include "../kernels.h"

namespace brise::vk {

constexpr size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

constexpr size_t cache_row_bytes(CacheFormat format, int head_dim) {
  const size_t n = (size_t)head_dim;
  return round_up(format == CacheFormat::F32 ? 4 * n : format == CacheFormat::I16 ? 2 * n : format == CacheFormat::Q8 ? n : (n + 1) / 2, 16);
}

// Where the scales begin (the push constant is in words: bytes / 4); the size of the rows where a format has none.
constexpr size_t cache_scales_offset(CacheFormat format, size_t pages, int page_size, int kv_heads, int head_dim) {
  return round_up(pages * (size_t)page_size * (size_t)kv_heads * cache_row_bytes(format, head_dim), 32);
}

constexpr size_t cache_side_bytes(CacheFormat format, size_t pages, int page_size, int kv_heads, int head_dim) {
  const size_t rows = pages * (size_t)page_size * (size_t)kv_heads, groups = (size_t)(head_dim + 31) / 32;
  const size_t scales = format == CacheFormat::Q8 ? 4 * rows : format == CacheFormat::Q4 ? 4 * rows * groups : 0;
  return round_up(cache_scales_offset(format, pages, page_size, kv_heads, head_dim) + scales, 32);
}

constexpr int ATTEND_CHUNK = 512;      // keys whose maximum, sum and output are one part; chunks begin at its multiples
constexpr int ATTEND_MAX_ROWS = 8;     // query rows of a workgroup
constexpr int ATTEND_MAX_VALUE = 512;  // numbers of a value: a column of 4 for each of 128 invocations

// The rows of a workgroup fit into 32 KiB of shared memory beside the chunk's weights.
constexpr int attend_row_limit(int head_dim) {
  const int fit = (32768 - 2560) / 4 / (head_dim + 32 + 544);
  return fit < ATTEND_MAX_ROWS ? fit : ATTEND_MAX_ROWS;
}

// `share` query heads use one key/value head. A workgroup takes `rows` = `tokens` times a part of the share.
struct AttendCut {
  int rows;    // specialization constant 0
  int tokens;  // of a unit
  int parts;   // workgroups for each key/value head
};

constexpr AttendCut attend_cut(int share, int head_dim, bool is_decode) {
  const int limit = attend_row_limit(head_dim), parts = (share + limit - 1) / limit, part = (share + parts - 1) / parts;
  const int tokens = is_decode || parts > 1 ? 1 : limit / part;
  return {tokens * part, tokens, parts};
}

}  // namespace brise::vk
