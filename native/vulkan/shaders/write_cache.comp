// Writes one side (keys or values) of a token's head to the cache, rounded to its format. README.md has the bindings,
// ../cache_layout.h the layout. Variants: FORMAT 0 f32, 1 f16, 2 q8, 3 q4.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "formats.glsl"
#include "rows.glsl"

#define LANES 64
layout(local_size_x = LANES) in;
layout(set = 0, binding = 0) readonly buffer X { float x[]; };
layout(set = 0, binding = 1) readonly buffer Inputs { int inputs[]; };
layout(set = 0, binding = 2) writeonly buffer Side { uint side[]; };
layout(push_constant) uniform Push { int slots_at, kv_heads, head_dim, page_size, scales_at; };

#if FORMAT == 0
const int PER_WORD = 1;
#elif FORMAT == 1
const int PER_WORD = 2;
#elif FORMAT == 2
const int PER_WORD = 4;
shared float lanes[LANES];
#else
const int PER_WORD = 8, GROUP = 32;
#endif

float at(int base, int e) { return e < head_dim ? x[base + e] : 0.0; }

void main() {
  int lane = int(gl_LocalInvocationID.x), head = int(gl_WorkGroupID.x), token = int(gl_WorkGroupID.y), slot = inputs[slots_at + token];
  int base = (token * kv_heads + head) * head_dim, row = (slot / page_size * kv_heads + head) * page_size + slot % page_size;
  int words = (head_dim + 4 * PER_WORD - 1) / (4 * PER_WORD) * 4;
#if FORMAT == 2
  float top = 0.0;
  for (int e = lane; e < head_dim; e += LANES) top = max(top, abs(x[base + e]));
  lanes[lane] = top;
  barrier();
  top = 0.0;
  for (int i = 0; i < LANES; i++) top = max(top, lanes[i]);
  precise float scale = top / 127.0;
  // A subnormal scale has no inverse in float: numbers so small are stored as 0.
  precise float inverse = scale >= 1.17549435e-38 ? 1.0 / scale : 0.0;
  if (lane == 0) side[scales_at + row] = floatBitsToUint(scale);
#elif FORMAT == 3
  int groups = (head_dim + GROUP - 1) / GROUP;
#endif
  for (int i = lane; i < words; i += LANES) {
    uint word = 0;
#if FORMAT == 0
    word = floatBitsToUint(at(base, i));
#elif FORMAT == 1
    word = half_bits(at(base, 2 * i)) | half_bits(at(base, 2 * i + 1)) << 16;
#elif FORMAT == 2
    for (int j = 0; j < 4; j++) {
      precise float steps = at(base, 4 * i + j) * inverse;
      word |= uint(int(roundEven(clamp(steps, -127.0, 127.0))) & 255) << (8 * j);
    }
#else
    // Every invocation of a group finds its scale and minimum: four have the same.
    int first = i / 4 * GROUP, last = min(first + GROUP, head_dim);
    float low = x[base + first], top = low;
    for (int e = first + 1; e < last; e++) low = min(low, x[base + e]), top = max(top, x[base + e]);
    precise float span = (top - low) / 15.0;
    uint scale_bits = half_bits(min(span, 65504.0)), minimum_bits = half_bits(clamp(low, -65504.0, 65504.0));
    float scale = from_half(scale_bits), minimum = from_half(minimum_bits);
    for (int j = 0; j < 8; j++) {
      int e = 8 * i + j;
      precise float steps = scale > 0.0 && e < last ? (x[base + e] - minimum) / scale : 0.0;
      word |= uint(roundEven(clamp(steps, 0.0, 15.0))) << (4 * j);
    }
    if ((i & 3) == 0) side[scales_at + row * groups + i / 4] = scale_bits | minimum_bits << 16;
#endif
    side[row * words + i] = word;
  }
}
