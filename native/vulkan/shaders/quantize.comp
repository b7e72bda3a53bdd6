// Rows of activations as QBlocks (native/kernels.h): 32 numbers as int8 with their scale and sums. Bindings: 0 x, 1 blocks.
//
// A group has 256 columns of a token, an invocation four of them. Bits are those of the CPU's quantize_row on every device: maxima and
// sums of integers have no order, and the two divisions, which a device may round as it likes, are done in integers.
#version 450
layout(local_size_x = 64) in;

layout(std430, binding = 0) readonly buffer X { float x[]; };
layout(std430, binding = 1) writeonly buffer Blocks { uvec4 blocks[]; };
layout(push_constant) uniform Push { uint cols, tokens, x_offset, x_stride, first_block; };

shared uint tops[64];
shared ivec2 codes[64];  // four codes, their sum

// a / b rounded to nearest even, for positive normal numbers whose quotient is normal: 25 bits and whether something is left.
float divide(uint a, uint b) {
  uint rest = a & 0x7fffffu | 0x800000u, by = b & 0x7fffffu | 0x800000u, exponent = (a >> 23) - (b >> 23) + 127u;
  if (rest < by) rest <<= 1, exponent--;
  uint quotient = 0u;
  for (int i = 0; i < 25; i++) {
    const bool is_in = rest >= by;
    quotient = quotient << 1 | uint(is_in);
    rest = rest - (is_in ? by : 0u) << 1;
  }
  const uint rounded = (quotient >> 1) + (quotient & uint(rest != 0u || (quotient & 2u) != 0u));
  return uintBitsToFloat((exponent - 1u << 23) + rounded);  // the leading bit of the quotient is one of the exponent
}

void main() {
  const uint lane = gl_LocalInvocationID.x, first = lane & ~7u, column = 256u * gl_WorkGroupID.x + 4u * lane, token = gl_WorkGroupID.y;
  const bool is_in = column < cols;
  float own[4];
  uint top = 0u;
  for (uint i = 0; i < 4; i++) {
    own[i] = is_in ? x[x_offset + token * x_stride + column + i] : 0.0;
    top = max(top, floatBitsToUint(own[i]) & 0x7fffffffu);  // sizes of floats are in the order of their bits
  }
  tops[lane] = top;
  barrier();
  for (uint i = 0; i < 8; i++) top = max(top, tops[first + i]);

  // A subnormal scale has no inverse in float: 127 * 2^-126 is the smallest top with a normal one. Of infinity and NaN the scale is the
  // same, and so is every output.
  const uint most = floatBitsToUint(127.0);
  const bool is_whole = top >= 0x7f800000u, has_scale = top >= most - (126u << 23) && !is_whole;
  float scale = 0.0, inverse = 0.0;
  if (has_scale) scale = divide(top, most), inverse = divide(most, top);
  if (is_whole) scale = uintBitsToFloat(top);
  int packed = 0, sum = 0;
  for (uint i = 0; i < 4; i++) {
    precise const float scaled = own[i] * inverse;
    const int code = has_scale ? int(roundEven(scaled)) : 0;
    packed |= (code & 255) << 8 * i;
    sum += code;
  }
  codes[lane] = ivec2(packed, sum);
  barrier();

  // Four of a block's eight invocations write a quarter of its 64 bytes each.
  const uint quarter = lane & 7u;
  if (!is_in || quarter >= 4u) return;
  int half_0 = 0, half_1 = 0;
  for (uint i = 0; i < 4; i++) half_0 += codes[first + i].y, half_1 += codes[first + i + 4u].y;
  precise const float sum_0 = scale * float(half_0), sum_1 = scale * float(half_1), all = scale * float(half_0 + half_1);
  uvec4 part;
  if (quarter < 2u) for (uint i = 0; i < 4; i++) part[i] = uint(codes[first + 4u * quarter + i].x);
  else if (quarter == 2u) part = uvec4(floatBitsToUint(scale), floatBitsToUint(all), half_0 + half_1, half_0);
  else part = uvec4(half_1, floatBitsToUint(sum_0), floatBitsToUint(sum_1), 0u);
  blocks[4u * (first_block + token * (cols / 32u) + 8u * gl_WorkGroupID.x + lane / 8u) + quarter] = part;
}
