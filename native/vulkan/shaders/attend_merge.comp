// Merges the parts that attend.comp's variant CHUNKS left, in ascending order of keys: a workgroup for each unit and head.
// README.md has the bindings. The order and the operations are those of attend.comp without CHUNKS.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "rows.glsl"

#define LANES 64
#define CHUNK 512
layout(local_size_x = LANES) in;
layout(set = 0, binding = 0) readonly buffer Partial { float partial[]; };
layout(set = 0, binding = 1) readonly buffer Inputs { int inputs[]; };
layout(set = 0, binding = 2) writeonly buffer Result { float result[]; };
layout(push_constant) uniform Push { int positions_at, reach_at, units_at, heads, window, chunks, value_dim; };
const float LEAST = -1e38;

void main() {
  int head = int(gl_WorkGroupID.x), unit = int(gl_WorkGroupID.y), token = inputs[units_at + 4 * unit + 1], position = inputs[positions_at + token];
  int first = window > 0 ? max(position - window + 1, 0) : 0, last = reach_at >= 0 ? inputs[reach_at + token] : position;
  int count = last / CHUNK - first / CHUNK + 1, part = (unit * heads + head) * chunks * (value_dim + 2);
  for (int e = int(gl_LocalInvocationID.x); e < value_dim; e += LANES) {
    float top = LEAST, sum = 0.0, mean = 0.0;
    for (int c = 0, at = part; c < count; c++, at += value_dim + 2) {
      float own = partial[at + value_dim], joint = max(own, top);
      precise float old = top - joint, new = own - joint;
      float keep = top > LEAST ? exponential(old) : 0.0, take = own > LEAST ? exponential(new) : 0.0;
      precise float all = sum * keep + partial[at + value_dim + 1] * take, both = mean * keep + partial[at + e] * take;
      sum = all;
      mean = both;
      top = joint;
    }
    precise float share = mean / sum;
    result[(token * heads + head) * value_dim + e] = share;
  }
}
