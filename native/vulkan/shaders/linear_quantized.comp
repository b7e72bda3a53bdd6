// out = x times W transposed, W in a block format, x as the QBlocks of quantize.comp. Bindings: 0 weights, 1 blocks, 2 out.
//
// One token: bound by reading weights, 64 contiguous bytes for the 16 rows of a tile. Many: bound by the int8 dot; a lane unpacks
// a block once for T tokens. A row's sum has one order: blocks from zero in a chunk of 256 columns, then the chunks from zero. So the
// numbers of a token do not depend on slots, T, the group's size or the other tokens. Compiled with STACK: matrices of a stack (stack.glsl).
#version 450
#extension GL_EXT_control_flow_attributes : require
#extension GL_EXT_spirv_intrinsics : require
#include "formats.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint SLOTS = 1;  // invocations that share a row's chunks
layout(constant_id = 2) const uint TOKENS = 1;
const uint PASS = 4;  // chunks of an invocation between two barriers
const uint SIZE = gl_WorkGroupSize.x;

layout(std430, binding = 0) readonly buffer Weights { uint weights[]; };
layout(std430, binding = 1) readonly buffer Blocks { uvec4 blocks[]; };  // four for a QBlock
layout(std430, binding = 2) writeonly buffer Out { float result[]; };
#ifdef STACK
#include "stack.glsl"
#else
layout(push_constant) uniform Push { uint rows, cols, tokens, weights_offset, first_block, out_offset, out_stride; };
#define ROW_OF(t) min(t, last)
#endif

#include "chunks.glsl"

// The signed dot of four int8 each, exact. Debian's glslc of 2023 has no extension for it.
spirv_instruction(extensions = ["SPV_KHR_integer_dot_product"], capabilities = [6019, 6018], id = 4450)
int dot4(int a, int b, spirv_literal int packed);

#ifdef NUMBERS
// Two numbers for each pair of codes: an array in shared memory, because a table of constants is slow on many devices.
shared uint pairs[256];

uint number(uint code) {
  const uint word = code < 8u ? (code < 4u ? NUMBERS.x : NUMBERS.y) : (code < 12u ? NUMBERS.z : NUMBERS.w);
  return word >> 8u * (code & 3u) & 0xffu;
}

void make_numbers() {
  for (uint i = gl_LocalInvocationID.x; i < 256u; i += SIZE) pairs[i] = number(i & 15u) | number(i >> 4) << 8;
  barrier();
}

int weights_of(uint code) {
  const uint pair = code | code >> 4;
  return int(pairs[pair & 0xffu] | pairs[pair >> 16 & 0xffu] << 16);
}
#elif LOW == 8
int weights_of(uint code) { return int(code ^ 0x80808080u); }
#else
int weights_of(uint code) { return int(code); }
#endif

// What is taken from the dot for each unit of the activations' sum; bytes are signed already.
const int SHIFT = LOW == 8 ? 0 : OFFSET;

// Adds the block at `word` times each token's block number `block`.
void add_block(uint word, uint row, float d, float dmin, uint block, uint stride, uint last, inout float acc[TOKENS]) {
  precise float scale[2], least[2];
#if SCALE == SCALE_D || SCALE == SCALE_DM
  scale[0] = half_of(weights[word + row / 2u], row);
#elif SCALE == SCALE_E
  const uint e = byte_of(weights[word + row / 4u], row);  // 2^(e - 128)
  scale[0] = uintBitsToFloat(e < 2u ? 0x200000u << e : e - 1u << 23);
#elif SCALE == SCALE_K
  scale[0] = d * float(byte_of(weights[word + row / 4u], row));
#elif SCALE == SCALE_K32
  scale[0] = d * signed_byte_of(weights[word + row / 4u], row);
#elif SCALE == SCALE_K16
  for (uint h = 0; h < 2; h++) scale[h] = d * signed_byte_of(weights[word + 4u * h + row / 4u], row);
#elif SCALE == SCALE_K16M
  for (uint h = 0; h < 2; h++) {
    const uint both = byte_of(weights[word + 4u * h + row / 4u], row);
    scale[h] = d * float(both & 15u);
    least[h] = dmin * -float(both >> 4);
  }
#endif
#if SCALE == SCALE_DM
  least[0] = half_of(weights[word + 8u + row / 2u], row);
#elif SCALE == SCALE_K
  least[0] = dmin * -float(byte_of(weights[word + 4u + row / 4u], row));
#endif

  uint words[LOW + HIGH];
  [[unroll]] for (int i = 0; i < LOW + HIGH; i++) words[i] = weights[word + SCALE_WORDS + 16 * i + row];
  int w[8];
  [[unroll]] for (int j = 0; j < 8; j++) w[j] = weights_of(codes(words, j));

  [[unroll]] for (uint t = 0; t < TOKENS; t++) {
    const uint at = 4u * (block + ROW_OF(t) * stride);
    const ivec4 a = ivec4(blocks[at]), b = ivec4(blocks[at + 1u]);
    const uvec4 x = blocks[at + 2u];  // scale, sum, count, half[0]
    precise float sum = acc[t];
#if HAS_HALVES
    const uvec4 y = blocks[at + 3u];  // half[1], half_sum
    int first = -SHIFT * int(x.w), second = -SHIFT * int(y.x);
    [[unroll]] for (int j = 0; j < 4; j++) first += dot4(w[j], a[j], 0);
    [[unroll]] for (int j = 0; j < 4; j++) second += dot4(w[j + 4], b[j], 0);
    sum = sum + float(first) * (scale[0] * uintBitsToFloat(x.x));
    if (HAS_MIN) sum = sum + least[0] * uintBitsToFloat(y.y);
    sum = sum + float(second) * (scale[1] * uintBitsToFloat(x.x));
    if (HAS_MIN) sum = sum + least[1] * uintBitsToFloat(y.z);
#else
    int dots = -SHIFT * int(x.z);
    [[unroll]] for (int j = 0; j < 4; j++) dots += dot4(w[j], a[j], 0);
    [[unroll]] for (int j = 0; j < 4; j++) dots += dot4(w[j + 4], b[j], 0);
    sum = sum + float(dots) * (scale[0] * uintBitsToFloat(x.x));
    if (HAS_MIN) sum = sum + least[0] * uintBitsToFloat(x.y);
#endif
    acc[t] = sum;
  }
}

void add_chunk(uint chunk, uint tile, uint row, uint first, uint last, inout float acc[TOKENS]) {
  const uint groups = cols / 32u;
#ifdef STACK
  const uint weights_at = matrix_at, block_at = x_offset;
#else
  const uint weights_at = weights_offset, block_at = first_block + first * groups;
#endif
  uint word = weights_at + tile * tile_words(cols) + chunk_word(chunk);
  float d = 0.0, dmin = 0.0;
#if IS_K
  d = half_of(weights[word + row / 2u], row);
  if (HAS_MIN) dmin = half_of(weights[word + 8u + row / 2u], row);
  word += HEAD_WORDS;
#endif
  const uint end = min(8u * chunk + 8u, groups);
  for (uint g = 8u * chunk; g < end; g++, word += BLOCK_WORDS)
    add_block(word, row, d, dmin, block_at + g, groups, last, acc);
}

void store(uint row, uint token, float sum) {
#ifdef STACK
  token = ids[token];
#endif
  result[out_offset + token * out_stride + row] = sum;
}

void main() {
#ifdef STACK
  if (!begin_unit()) return;
#endif
#ifdef NUMBERS
  make_numbers();
#endif
  sum_chunks();
}
