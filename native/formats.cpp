// Packing GGUF blocks into tiles, and reading single rows back (for the embedding).
//
// GGUF block layouts (ggml; bytes in order, d/m/dmin f16, little endian):
//   Q4_0 d, 16 x nibbles (low: columns 0..15, high: 16..31)       Q4_1 d, m, the same
//   Q5_0 d, 32 high bits, 16 x nibbles    Q5_1 d, m, the same      Q8_0 d, 32 x int8
//   IQ4_NL d, nibbles as in Q4_0           MXFP4 8 bits of exponent, the same
//   Q2_K 16 x (scale | min << 4), 64 x 2 bits, d, dmin             Q3_K 32 high-bit bytes, 64 x 2 bits, 12 scale bytes, d
//   Q4_K d, dmin, 12 scale bytes, 128 nibble bytes                 Q5_K d, dmin, 12, 32 high-bit bytes, 128
//   Q6_K 128 low-nibble bytes, 64 high 2-bit bytes, 16 x int8 scales, d
//   IQ4_XS d, 16 bits and 4 bytes: high two bits and low four bits of eight scales + 32, 8 x 16 nibble bytes as in Q4_0
#include "formats.h"

#include <cstring>

#include "half.h"

namespace brise {

namespace {

// quant/formats.py has the same list; backends/native/backend.py compares the two when it is imported.
constexpr StoredFormat layout_of(Format format) {
  switch (format) {
    case Format::Q4_0: return {"Q4_0", 32, 18};
    case Format::Q4_1: return {"Q4_1", 32, 20};
    case Format::Q5_0: return {"Q5_0", 32, 22};
    case Format::Q5_1: return {"Q5_1", 32, 24};
    case Format::Q8_0: return {"Q8_0", 32, 34};
    case Format::IQ4_NL: return {"IQ4_NL", 32, 18};
    case Format::MXFP4: return {"MXFP4", 32, 17};
    case Format::Q2_K: return {"Q2_K", 256, 84};
    case Format::Q3_K: return {"Q3_K", 256, 110};
    case Format::Q4_K: return {"Q4_K", 256, 144};
    case Format::Q5_K: return {"Q5_K", 256, 176};
    case Format::Q6_K: return {"Q6_K", 256, 210};
    case Format::IQ4_XS: return {"IQ4_XS", 256, 136};
    case Format::F16: return {"F16", 1, 2};
    case Format::BF16: return {"BF16", 1, 2};
    case Format::F32: break;
  }
  return {"F32", 1, 4};
}

// 32 columns of one row: codes, four to a word, and the scale numbers as the file has them.
struct Decoded {
  uint32_t quad[8];
  uint16_t d, m;         // f16 bits; for K formats of the super-block
  uint8_t scale[2], min[2];
};

constexpr uint32_t NIBBLES = 0x0f0f0f0f, PAIRS = 0x03030303, BITS = 0x01010101;

uint32_t word4(const uint8_t* p) {
  uint32_t value;
  std::memcpy(&value, p, 4);
  return value;
}

// 6-bit scales and minimums of Q4_K and Q5_K: eight of each in 12 bytes.
void scale_min(const uint8_t* s, int j, uint8_t& scale, uint8_t& min) {
  if (j < 4) {
    scale = s[j] & 63;
    min = s[j + 4] & 63;
  } else {
    scale = (uint8_t)((s[j + 4] & 15) | (s[j - 4] >> 6) << 4);
    min = (uint8_t)((s[j + 4] >> 4) | (s[j] >> 6) << 4);
  }
}

// 6-bit scales of Q3_K: low nibbles in bytes 0..7, high two bits in bytes 8..11; stored + 32.
int q3_scale(const uint8_t* s, int j) {
  const int low = j < 8 ? s[j] & 15 : s[j - 8] >> 4;
  return (low | (s[8 + j % 4] >> (2 * (j / 4)) & 3) << 4) - 32;
}

void nibbles(const uint8_t* q, uint32_t* quad) {
  for (int i = 0; i < 4; i++) {
    quad[i] = word4(q + 4 * i) & NIBBLES;
    quad[i + 4] = word4(q + 4 * i) >> 4 & NIBBLES;
  }
}

// Bit i of the word belongs to column i. The product puts four neighbouring bits one to a byte.
void fifth_bits(const uint8_t* bits, uint32_t* quad) {
  const uint32_t high = word4(bits);
  for (int i = 0; i < 8; i++) quad[i] |= ((high >> (4 * i) & 15) * 0x00204081 & BITS) << 4;
}

void decode_k(Format format, const uint8_t* p, int j, Decoded& out) {
  switch (format) {
    case Format::Q2_K:
      for (int i = 0; i < 8; i++) out.quad[i] = word4(p + 16 + 32 * (j / 4) + 4 * i) >> (2 * (j % 4)) & PAIRS;
      for (int h = 0; h < 2; h++) out.scale[h] = p[2 * j + h] & 15, out.min[h] = p[2 * j + h] >> 4;
      std::memcpy(&out.d, p + 80, 2);
      std::memcpy(&out.m, p + 82, 2);
      break;
    case Format::Q3_K:
      for (int i = 0; i < 8; i++)
        out.quad[i] = (word4(p + 32 + 32 * (j / 4) + 4 * i) >> (2 * (j % 4)) & PAIRS) | (word4(p + 4 * i) >> j & BITS) << 2;
      for (int h = 0; h < 2; h++) out.scale[h] = (uint8_t)(int8_t)q3_scale(p + 96, 2 * j + h);
      std::memcpy(&out.d, p + 108, 2);
      break;
    case Format::Q4_K:
    case Format::Q5_K: {
      const bool five = format == Format::Q5_K;
      const uint8_t* q = p + (five ? 48 : 16) + 32 * (j / 2);
      for (int i = 0; i < 8; i++) out.quad[i] = word4(q + 4 * i) >> (4 * (j % 2)) & NIBBLES;
      if (five) for (int i = 0; i < 8; i++) out.quad[i] |= (word4(p + 16 + 4 * i) >> j & BITS) << 4;
      scale_min(p + 4, j, out.scale[0], out.min[0]);
      std::memcpy(&out.d, p, 2);
      std::memcpy(&out.m, p + 2, 2);
      break;
    }
    case Format::IQ4_XS: {
      const int low = p[4 + j / 2] >> (4 * (j % 2)) & 15, high = p[2 + j / 4] >> (2 * (j % 4)) & 3;
      nibbles(p + 8 + 16 * j, out.quad);
      out.scale[0] = (uint8_t)(int8_t)((low | high << 4) - 32);
      std::memcpy(&out.d, p, 2);
      break;
    }
    default: {  // Q6_K: halves of 128 columns; quarter k has its low bits in nibble k / 2 of bytes 32 * (k % 2)
      const int side = j / 4, quarter = j % 4;
      const uint8_t *low = p + 64 * side + 32 * (quarter % 2), *high = p + 128 + 32 * side;
      for (int i = 0; i < 8; i++)
        out.quad[i] = (word4(low + 4 * i) >> (quarter / 2 * 4) & NIBBLES) | (word4(high + 4 * i) >> (2 * quarter) & PAIRS) << 4;
      for (int h = 0; h < 2; h++) out.scale[h] = p[192 + 2 * j + h];
      std::memcpy(&out.d, p + 208, 2);
    }
  }
}

inline void decode(Format format, const uint8_t* row, int block, Decoded& out) {
  const size_t size = (size_t)layout_of(format).bytes;
  if (format >= Format::Q2_K) return decode_k(format, row + block / 8 * size, block % 8, out);
  const uint8_t* p = row + block * size;
  std::memcpy(&out.d, p, 2);
  switch (format) {
    case Format::Q4_0:
    case Format::IQ4_NL: nibbles(p + 2, out.quad); break;
    case Format::MXFP4: out.scale[0] = p[0]; nibbles(p + 1, out.quad); break;
    case Format::Q4_1: std::memcpy(&out.m, p + 2, 2); nibbles(p + 4, out.quad); break;
    case Format::Q5_0: nibbles(p + 6, out.quad); fifth_bits(p + 2, out.quad); break;
    case Format::Q5_1: std::memcpy(&out.m, p + 2, 2); nibbles(p + 8, out.quad); fifth_bits(p + 4, out.quad); break;
    default: for (int i = 0; i < 8; i++) out.quad[i] = word4(p + 2 + 4 * i) ^ 0x80808080;  // Q8_0: int8 + 128
  }
}

template <class L>
void put_scales(const Decoded& in, int lane, uint8_t* head, uint8_t* p) {
  if constexpr (L::IS_K) {
    std::memcpy(head + 2 * lane, &in.d, 2);
    if constexpr (L::HAS_MIN) std::memcpy(head + 32 + 2 * lane, &in.m, 2);
  }
  if constexpr (L::SCALE == Scale::D || L::SCALE == Scale::DM) std::memcpy(p + 2 * lane, &in.d, 2);
  if constexpr (L::SCALE == Scale::DM) std::memcpy(p + 32 + 2 * lane, &in.m, 2);
  if constexpr (L::SCALE == Scale::E || L::SCALE == Scale::K32) p[lane] = in.scale[0];
  if constexpr (L::SCALE == Scale::K) p[lane] = in.scale[0], p[16 + lane] = in.min[0];
  if constexpr (L::SCALE == Scale::K16) p[lane] = in.scale[0], p[16 + lane] = in.scale[1];
  if constexpr (L::SCALE == Scale::K16M)
    for (int h = 0; h < 2; h++) p[16 * h + lane] = (uint8_t)(in.scale[h] | in.min[h] << 4);
}

// Splits the codes of one row, four columns a word, over the planes of its block.
template <class L>
void put_codes(const uint32_t* quad, int lane, uint8_t* p) {
  const auto put = [&](int plane, uint32_t word) { std::memcpy(p + 64 * plane + 4 * lane, &word, 4); };
  if constexpr (L::LOW == 8) {
    for (int j = 0; j < 8; j++) put(j, quad[j]);
  } else if constexpr (L::LOW == 4) {
    for (int j = 0; j < 4; j++) put(j, (quad[j] & NIBBLES) | (quad[j + 4] & NIBBLES) << 4);
  } else {
    for (int i = 0; i < 2; i++) {
      uint32_t word = 0;
      for (int j = 0; j < 4; j++) word |= (quad[4 * i + j] & PAIRS) << (2 * j);
      put(i, word);
    }
  }
  constexpr int first = L::LOW;  // planes so far
  if constexpr (L::HIGH == 1) {
    uint32_t word = 0;
    for (int j = 0; j < 8; j++) word |= (quad[j] >> L::LOW & BITS) << j;
    put(first, word);
  } else if constexpr (L::HIGH == 2) {
    for (int i = 0; i < 2; i++) {
      uint32_t word = 0;
      for (int j = 0; j < 4; j++) word |= (quad[4 * i + j] >> L::LOW & PAIRS) << (2 * j);
      put(first + i, word);
    }
  }
}

template <class L>
uint8_t* block_at(uint8_t* tile, int block, uint8_t** head) {
  if constexpr (L::IS_K) {
    uint8_t* super = tile + (size_t)(block / 8) * (L::HEAD_BYTES + 8 * L::BLOCK_BYTES);
    *head = super;
    return super + L::HEAD_BYTES + (block % 8) * L::BLOCK_BYTES;
  } else {
    *head = nullptr;
    return tile + (size_t)block * L::BLOCK_BYTES;
  }
}

template <class L>
uint8_t code_at(const uint8_t* planes, int lane, int column) {
  const int quad = column / 4, byte = 4 * lane + column % 4;
  uint8_t code;
  if constexpr (L::LOW == 8) code = planes[64 * quad + byte];
  else if constexpr (L::LOW == 4) code = planes[64 * (quad % 4) + byte] >> (quad / 4 * 4) & 15;
  else code = planes[64 * (quad / 4) + byte] >> (2 * (quad % 4)) & 3;
  const uint8_t* high = planes + L::LOW_BYTES;
  if constexpr (L::HIGH == 1) code |= (uint8_t)((high[byte] >> quad & 1) << L::LOW);
  if constexpr (L::HIGH == 2) code |= (uint8_t)((high[64 * (quad / 4) + byte] >> (2 * (quad % 4)) & 3) << L::LOW);
  return code;
}

uint16_t word(const uint8_t* p, int index) {
  uint16_t value;
  std::memcpy(&value, p + 2 * index, 2);
  return value;
}

template <class L>
void unpack_block(const uint8_t* head, const uint8_t* p, int lane, float* out) {
  for (int i = 0; i < 32; i++) {
    const uint8_t stored = code_at<L>(p + L::SCALE_BYTES, lane, i);
    const float code = (float)(L::TABLE == Table::NONE ? (int)stored - L::OFFSET : (int)L::NUMBERS[stored & 15]);
    float scale, min = 0.0f;
    const int h = i / 16;
    if constexpr (L::SCALE == Scale::D) scale = half_to_float(word(p, lane));
    if constexpr (L::SCALE == Scale::E) scale = exponent_to_float(p[lane]);
    if constexpr (L::SCALE == Scale::K32) scale = half_to_float(word(head, lane)) * (int8_t)p[lane];
    if constexpr (L::SCALE == Scale::DM) scale = half_to_float(word(p, lane)), min = -half_to_float(word(p + 32, lane));
    if constexpr (L::SCALE == Scale::K)
      scale = half_to_float(word(head, lane)) * p[lane], min = half_to_float(word(head + 32, lane)) * p[16 + lane];
    if constexpr (L::SCALE == Scale::K16) scale = half_to_float(word(head, lane)) * (int8_t)p[16 * h + lane];
    if constexpr (L::SCALE == Scale::K16M)
      scale = half_to_float(word(head, lane)) * (p[16 * h + lane] & 15), min = half_to_float(word(head + 32, lane)) * (p[16 * h + lane] >> 4);
    out[i] = scale * code - min;
  }
}

}  // namespace

StoredFormat stored_format(Format format) { return layout_of(format); }

int block_columns(Format format) { return layout_of(format).columns; }

size_t source_row_bytes(Format format, int cols) {
  const StoredFormat stored = layout_of(format);
  return (size_t)(cols / stored.columns) * (size_t)stored.bytes;
}

size_t tile_bytes(Format format, int cols) {
  if (format >= Format::F16) return (size_t)cols * TILE * (format == Format::F32 ? 4 : 2);
  size_t out = 0;
  with_layout(format, [&](auto layout) { out = decltype(layout)::bytes(cols); });
  return out;
}

void pack_tile(Format format, const uint8_t* source, size_t row_bytes, int rows, int cols, uint8_t* tile) {
  if (rows < TILE) std::memset(tile, 0, tile_bytes(format, cols));
  if (format >= Format::F16) {
    const int size = format == Format::F32 ? 4 : 2;
    for (int c = 0; c < cols; c++)
      for (int r = 0; r < rows; r++)
        std::memcpy(tile + ((size_t)c * TILE + r) * size, source + r * row_bytes + (size_t)c * size, (size_t)size);
    return;
  }
  with_layout(format, [&](auto layout) {
    using L = decltype(layout);
    Decoded one;
    for (int b = 0; b < cols / 32; b++) {
      uint8_t *head, *p = block_at<L>(tile, b, &head);
      for (int r = 0; r < rows; r++) {
        decode(format, source + r * row_bytes, b, one);
        put_scales<L>(one, r, head, p);
        put_codes<L>(one.quad, r, p + L::SCALE_BYTES);
      }
    }
  });
}

void unpack_row(const Matrix& w, int row, float* out) {
  const uint8_t* tile = w.data + (size_t)(row / TILE) * w.tile_bytes;
  const int lane = row % TILE;
  for (int c = 0; w.is_float() && c < w.cols; c++) {
    const size_t at = (size_t)c * TILE + (size_t)lane;
    if (w.format == Format::F32) std::memcpy(out + c, tile + 4 * at, 4);
    if (w.format == Format::F16) out[c] = half_to_float(word(tile, (int)at));
    if (w.format == Format::BF16) {
      const uint32_t bits = (uint32_t)word(tile, (int)at) << 16;
      std::memcpy(out + c, &bits, 4);
    }
  }
  with_layout(w.format, [&](auto layout) {
    using L = decltype(layout);
    for (int b = 0; b < w.cols / 32; b++) {
      uint8_t* head;
      const uint8_t* p = block_at<L>(const_cast<uint8_t*>(tile), b, &head);
      unpack_block<L>(head, p, lane, out + 32 * b);
    }
  });
}

}  // namespace brise
