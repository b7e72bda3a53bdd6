// Types that the native backend shares: weight tiles, quantized activations, the cache, the kernel table.
#pragma once

#include <cstddef>
#include <cstdint>

namespace brise {

constexpr int TILE = 16;          // output rows of a weight tile, keys of a cache tile
constexpr int TOKEN_BLOCK = 12;   // tokens whose activations lie side by side; the widest kernel's
constexpr int KEY_CHUNK = 512;    // keys whose scores one attention unit holds at a time

enum class Format : int { Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, IQ4_NL, MXFP4, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_XS, F16, BF16, F32 };
constexpr int NUM_FORMATS = (int)Format::F32 + 1;

// A format in a file: its name, and the columns and bytes of one block. Plain formats have blocks of one column.
struct StoredFormat {
  const char* name;
  int columns, bytes;
};

// A matrix (rows, cols) cut into tiles of 16 rows. A tile holds its rows for all columns, 16 rows
// interleaved so that one 64-byte load brings four columns of each; formats.h has the layouts.
struct Matrix {
  Format format;
  int rows, cols;
  size_t tile_bytes;
  const uint8_t* data;
  int tiles() const { return (rows + TILE - 1) / TILE; }
  bool is_float() const { return format >= Format::F16; }
};

// 32 activations of one token as int8, in one cache line with everything that the formats need with them.
struct alignas(64) QBlock {
  int8_t q[32];
  float scale;         // max|x| / 127
  float sum;           // scale * sum of q
  int32_t count;       // sum of q
  int32_t half[2];     // sums of q[0..15] and q[16..31]
  float half_sum[2];   // scale * half
  int32_t unused;
};
static_assert(sizeof(QBlock) == 64);

// Activations (tokens, cols) as QBlocks in the order [token / width][col / 32][token % width]; width is 12, or
// the number of tokens if there are fewer, so that the blocks of a single token are contiguous.
struct QRows {
  QBlock* blocks;
  int groups;  // cols / 32
  int width;
  QBlock* first(int token) const {
    return blocks + (size_t)(token / width) * groups * width + token % width;
  }
};

// All but F32 keep whole numbers with scales, so that attention sums products of integers: twice the speed of float's, and exact.
enum class CacheFormat : int { F32, I16, Q8, Q4 };

// Keys and values of one layer; of latents, which are both, only keys. In F32 keys of 16 tokens lie as [head_dim][16], values as
// [16][stride]: scores take 16 keys a register, sums of values take 16 numbers of a head.
//
// I16 (named "f16": 16 bits a number, as exact as float16) and Q8 are int16 and int8 with a float scale for each token, head and side. Two
// factors of a product lie side by side: keys are [head_dim / 2][16 keys][2], head_dim rounded up to 2; values [8][stride][2 keys].
//
// Q4 has two numbers a byte, i and i + 16 of a group of 32 numbers of a head, low and high: keys of a tile are
// [groups][8][16 keys][2 bytes], values [8][groups][16 bytes][2 keys]. Each side has lines [tile][groups] of 64 bytes,
// f16 scale[16], f16 minimum[16] of the tile's tokens: a number is scale * code + minimum.
struct CacheLayer {
  CacheFormat format;
  int page_size, kv_heads, head_dim, stride;  // stride: head_dim rounded up to 16
  uint8_t *keys, *values;
  float *key_scales, *value_scales;           // I16, Q8: one for each token and head
  uint16_t *key_lines, *value_lines;          // Q4
  int groups() const { return (head_dim + 31) / 32; }
  size_t element() const { return format == CacheFormat::F32 ? 4 : format == CacheFormat::I16 ? 2 : 1; }
  size_t key_columns() const { return format == CacheFormat::F32 ? (size_t)head_dim : (size_t)(head_dim + 1) / 2 * 2; }
  size_t key_tile_bytes() const {
    return format == CacheFormat::Q4 ? (size_t)groups() * 16 * TILE : key_columns() * TILE * element();
  }
  // Tiles of one kv head in one page are neighbours: [page][head][page_size / 16].
  size_t tile(int page, int head, int offset) const {
    return ((size_t)page * kv_heads + head) * (page_size / TILE) + offset / TILE;
  }
};

struct AttendShape {
  int heads, kv_heads, head_dim, window;  // window 0: all
  float scale;
  int rank = 0;  // of latents: a key's first numbers that are its value; 0: keys and values apart
};

// One unit of attention: query tokens [begin, end) of one sequence against one kv head; of latents, query rows
// (token * heads + head).
struct AttendUnit {
  const float *q;              // (T, heads, head_dim)
  float* out;                  // (T, heads * head_dim)
  const int32_t* positions;    // (T,)
  const int32_t* reach;        // (T,): the last position that a token sees; null: its own
  const int32_t* pages;        // of this sequence
  int begin, end, kv_head;
};

// Sixteen groups of weights as a format's codes: signed where the format's are, the number itself where the format has a table of
// numbers, and the bits of its scales (MXFP4: the exponent in d).
// `scale` and `min`: of K formats, for each group; d and m then are the same for all groups of a block.
struct Fitted {
  int8_t codes[16 * 32];  // group after group
  uint16_t d[16], m[16];
  int8_t scale[16], min[16];
};

struct Kernels {
  const char* name;
  int max_query_rows;
  void (*quantize_row)(const float* x, int cols, QBlock* first, int width);  // blocks `width` apart
  // out[t * ld + row] for the tiles [tile0, tile1) and tokens [t0, t1); t0 is a multiple of TOKEN_BLOCK.
  void (*linear_q)(const Matrix& w, const QRows& x, int tile0, int tile1, int t0, int t1, float* out, size_t ld);
  // Rows of x are ldx apart.
  void (*linear_f)(const Matrix& w, const float* x, size_t ldx, int tile0, int tile1, int t0, int t1, float* out, size_t ld);
  // out = (out + scale * b h) * gain for such tiles and tokens; b is F32 or BF16, gain null or as long as its tiles.
  void (*add_low_rank)(const Matrix& b, const float* h, size_t ldh, float scale, const float* gain, int tile0, int tile1, int t0, int t1, float* out, size_t ld);
  void (*rms_norm)(const float* x, const float* w, int n, float eps, float* out);
  void (*layer_norm)(const float* x, const float* w, const float* b, int n, float eps, float* out);
  void (*gelu)(const float* x, int n, float* out);
  void (*gelu_tanh)(const float* x, int n, float* out);
  void (*silu_mul)(const float* gate, const float* up, int n, float* out);
  void (*gelu_mul)(const float* gate, const float* up, int n, float* out);  // of gelu_tanh
  void (*add)(const float* x, const float* y, int n, float* out);
  void (*scale)(const float* x, float factor, int n, float* out);
  void (*rope)(const float* x, const float* table, int dim, int head_dim, bool interleaved, float* out);
  void (*write_cache)(const CacheLayer& cache, int slot, const float* k, const float* v);
  void (*attend)(const CacheLayer& cache, const AttendShape& shape, const AttendUnit& unit, float* scratch);
  void (*attend_latent)(const CacheLayer& cache, const AttendShape& shape, const AttendUnit& unit, float* scratch);
  size_t (*attend_scratch)(int head_dim);  // floats
  // Codes for up to sixteen groups (16 or 32 numbers, as the format has them) that lie one after the other.
  void (*fit)(Format format, const float* x, const float* importance, int groups, Fitted& out);
  void (*decode)(Format format, const uint8_t* block, float* out);  // one block of a file as numbers
  void (*round_bf16)(const float* x, int n, uint16_t* out);
};

// Those compiled into this build and runnable on this processor, best first; ends with nullptr.
const Kernels* const* available_kernels();

// formats.cpp: ISA-independent packing.
StoredFormat stored_format(Format format);
size_t tile_bytes(Format format, int cols);
size_t source_row_bytes(Format format, int cols);
int block_columns(Format format);  // cols must be a multiple
void pack_tile(Format format, const uint8_t* source, size_t row_bytes, int rows, int cols, uint8_t* tile);
void unpack_row(const Matrix& w, int row, float* out);

// quantize.cpp: a row in a block format, weighted by importance (cols) where there is one.
void encode_row(const Kernels& kernels, Format format, const float* x, const float* importance, int cols, uint8_t* out);

// decode.cpp: rows of blocks, as a file has them, as float32 or bfloat16.
void decode_rows(const Kernels& kernels, Format format, const uint8_t* data, size_t rows, int cols, bool is_bf16, int threads, uint8_t* out);

}  // namespace brise
