// out = x times W transposed, W in float16, bfloat16 or float32. Bindings: 0 weights, 1 x, 2 out.
// Compiled with LOW_RANK: out = (out + scale * sum) * gain, the part of a low-rank adapter; binding 3 is gain. With STACK: matrices of a
// stack (stack.glsl).
//
// Bound by reading weights. Sums have the order of linear_quantized.comp, column by column in a chunk.
#version 450
#extension GL_EXT_control_flow_attributes : require
#include "formats.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint SLOTS = 1;  // invocations that share a row's chunks
layout(constant_id = 2) const uint TOKENS = 1;
const uint PASS = 4;  // chunks of an invocation between two barriers
const uint SIZE = gl_WorkGroupSize.x;

layout(std430, binding = 0) readonly buffer Weights { uint weights[]; };
layout(std430, binding = 1) readonly buffer X { float x[]; };
#ifdef LOW_RANK
layout(std430, binding = 2) buffer Out { float result[]; };
layout(std430, binding = 3) readonly buffer Gain { float gain[]; };
layout(push_constant) uniform Push {
  uint rows, cols, tokens, weights_offset, x_offset, x_stride, out_offset, out_stride;
  float scale;
  uint has_gain;
};
#else
layout(std430, binding = 2) writeonly buffer Out { float result[]; };
#ifdef STACK
#include "stack.glsl"
#else
layout(push_constant) uniform Push { uint rows, cols, tokens, weights_offset, x_offset, x_stride, out_offset, out_stride; };
#endif
#endif
#ifndef STACK
#define ROW_OF(t) min(t, last)
#endif

#include "chunks.glsl"

#ifdef F32
const uint COLUMN_WORDS = 16;
float weight(uint word, uint row) { return uintBitsToFloat(weights[word + row]); }
#else
const uint COLUMN_WORDS = 8;
float weight(uint word, uint row) {
  const uint both = weights[word + row / 2u];
#ifdef BF16
  return uintBitsToFloat(both << 16u * (1u - (row & 1u)) & 0xffff0000u);
#else
  return half_of(both, row);
#endif
}
#endif

void add_chunk(uint chunk, uint tile, uint row, uint first, uint last, inout float acc[TOKENS]) {
#ifdef STACK
  const uint weights_at = matrix_at, x_stride = cols;
#else
  const uint weights_at = weights_offset;
#endif
  const uint end = min(256u * chunk + 256u, cols);
  for (uint column = 256u * chunk; column < end; column++) {
    const float w = weight(weights_at + (tile * cols + column) * COLUMN_WORDS, row);
    [[unroll]] for (uint t = 0; t < TOKENS; t++) {
      precise const float product = w * x[x_offset + (first + ROW_OF(t)) * x_stride + column];
      precise const float sum = acc[t] + product;
      acc[t] = sum;
    }
  }
}

void store(uint row, uint token, float sum) {
#ifdef STACK
  token = ids[token];
#endif
  const uint at = out_offset + token * out_stride + row;
#ifdef LOW_RANK
  precise float added = result[at] + scale * sum;
  if (has_gain != 0u) added = added * gain[row];
  result[at] = added;
#else
  result[at] = sum;
#endif
}

void main() {
#ifdef STACK
  if (!begin_unit()) return;
#endif
  sum_chunks();
}
