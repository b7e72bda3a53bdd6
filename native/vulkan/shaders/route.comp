// Gates of a row's experts: softmax of its logits over the best `per_token` (of equal ones the lower index), times `scale`.
// At most 1024 experts. README.md has the bindings.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "rows.glsl"

layout(local_size_x = 64) in;
layout(set = 0, binding = 0) readonly buffer X { float x[]; };
layout(set = 0, binding = 1) writeonly buffer Result { float result[]; };
layout(push_constant) uniform Push { int experts, per_token; float scale; };

shared float logits[1024], shares[1024], top, sum;

void main() {
  int lane = int(gl_LocalInvocationID.x), row = int(gl_WorkGroupID.y) * experts;
  for (int e = lane; e < experts; e += 64) logits[e] = x[row + e];
  barrier();
  if (lane == 0) {
    float most = logits[0];
    for (int e = 1; e < experts; e++) most = max(most, logits[e]);
    top = most;
  }
  barrier();
  for (int e = lane; e < experts; e += 64) {
    int better = 0;
    for (int i = 0; i < experts; i++) better += int(logits[i] > logits[e] || (logits[i] == logits[e] && i < e));
    precise float below = logits[e] - top;
    // One that is chosen keeps a share, however small: exponential() is 0 below -87.
    shares[e] = better < per_token ? exponential(below) : 0.0;
  }
  barrier();
  if (lane == 0) {
    precise float all = 0.0;
    for (int e = 0; e < experts; e++) all += shares[e];
    sum = all;
  }
  barrier();
  for (int e = lane; e < experts; e += 64) {
    precise float gate = shares[e] / sum * scale;
    result[row + e] = gate;
  }
}
