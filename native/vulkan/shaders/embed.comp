// Rows of an embedding as float32, unpacked from tiles (native/formats.h): 32 columns an invocation. README.md has the bindings.
// Bound: memory, and little of it. Compiled with one of the formats defined.
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#include "formats.glsl"

layout(local_size_x = 64) in;
layout(set = 0, binding = 0) readonly buffer Weights { uint weights[]; };
layout(set = 0, binding = 1) readonly buffer Inputs { int inputs[]; };
layout(set = 0, binding = 2) writeonly buffer Result { float result[]; };
layout(push_constant) uniform Push { int tokens_at, first_row, num_rows, cols, weights_at; };

#ifdef LOW
#ifdef NUMBERS
float number_of(uint code) {
  uvec4 numbers = NUMBERS;
  return signed_byte_of(numbers[code / 4u], code);
}
#else
float number_of(uint code) { return float(int(code) - OFFSET); }
#endif

// Scale, and what is added, of the block's half h: of 16 columns.
vec2 scale_of(uint head, uint at, uint row, int h) {
#if IS_K
  float d = half_of(weights[head + row / 2u], row);
#endif
#if SCALE == SCALE_D
  precise float scale = half_of(weights[at + row / 2u], row), least = 0.0;
#elif SCALE == SCALE_DM
  precise float scale = half_of(weights[at + row / 2u], row), least = half_of(weights[at + 8u + row / 2u], row);
#elif SCALE == SCALE_E
  uint e = byte_of(weights[at + row / 4u], row);  // 2^(e - 128)
  precise float scale = uintBitsToFloat(e < 2u ? 0x200000u << e : e - 1u << 23), least = 0.0;
#elif SCALE == SCALE_K
  precise float scale = d * float(byte_of(weights[at + row / 4u], row));
  precise float least = half_of(weights[head + 8u + row / 2u], row) * -float(byte_of(weights[at + 4u + row / 4u], row));
#elif SCALE == SCALE_K32
  precise float scale = d * signed_byte_of(weights[at + row / 4u], row), least = 0.0;
#elif SCALE == SCALE_K16
  precise float scale = d * signed_byte_of(weights[at + 4u * h + row / 4u], row), least = 0.0;
#else
  uint both = byte_of(weights[at + 4u * h + row / 4u], row);
  precise float scale = d * float(both & 15u), least = half_of(weights[head + 8u + row / 2u], row) * -float(both >> 4);
#endif
  return vec2(scale, least);
}

void unpack(uint tile, uint row, uint block, int to) {
  uint head = weights_at + tile * tile_words(uint(cols));
#if IS_K
  head += chunk_word(block / 8u);
  uint at = head + HEAD_WORDS + block % 8u * BLOCK_WORDS;
#else
  uint at = head + block * BLOCK_WORDS;
#endif
  uint words[LOW + HIGH];
  [[unroll]] for (int i = 0; i < LOW + HIGH; i++) words[i] = weights[at + SCALE_WORDS + 16 * i + row];
  for (int j = 0; j < 8; j++) {  // glslc unrolls it only when told to, and then forgets NoContraction
    uint code = codes(words, j);
    vec2 scale = scale_of(head, at, row, j / 4);
    for (int i = 0; i < 4; i++) {
      precise float product = scale.x * number_of(code >> 8 * i & 255u), number = product + scale.y;
      result[to + 4 * j + i] = number;
    }
  }
}
#else
void unpack(uint tile, uint row, uint block, int to) {
  for (uint i = 0; i < 32u && 32u * block + i < uint(cols); i++) {
    uint column = tile * uint(cols) + 32u * block + i;
#ifdef F32
    result[to + int(i)] = uintBitsToFloat(weights[weights_at + column * 16u + row]);
#else
    uint both = weights[weights_at + column * 8u + row / 2u];
#ifdef BF16
    result[to + int(i)] = uintBitsToFloat(both << 16u * (1u - (row & 1u)) & 0xffff0000u);
#else
    result[to + int(i)] = half_of(both, row);
#endif
#endif
  }
}
#endif

void main() {
  int block = int(gl_GlobalInvocationID.x), token = int(gl_WorkGroupID.y), row = inputs[tokens_at + token] - first_row;
  if (32 * block >= cols || row < 0 || row >= num_rows) return;
  unpack(uint(row / 16), uint(row % 16), uint(block), token * cols + 32 * block);
}
