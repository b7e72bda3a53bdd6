// One number of a row from the same number of one or two others: bias, add, scale, activations. README.md has the bindings.
// Bound: memory. The result may lie in an argument's memory.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "rows.glsl"

layout(local_size_x = 256) in;
layout(set = 0, binding = 0) readonly buffer X { float x[]; };
#ifdef ONE_ARGUMENT
layout(set = 0, binding = 1) writeonly buffer Result { float result[]; };
#else
layout(set = 0, binding = 1) readonly buffer Y { float y[]; };
layout(set = 0, binding = 2) writeonly buffer Result { float result[]; };
#endif
layout(push_constant) uniform Push {
  int width;
#if defined(SCALE)
  float factor;
#elif defined(SCALE_QUERIES)
  int factors_at;
#endif
};

void main() {
  int column = int(gl_GlobalInvocationID.x), row = int(gl_WorkGroupID.y);
  if (column >= width) return;
  int i = row * width + column;
#if defined(ADD)
  precise float value = x[i] + y[i];
#elif defined(BIAS)
  precise float value = x[i] + y[column];
#elif defined(SCALE)
  precise float value = x[i] * factor;
#elif defined(SCALE_QUERIES)
  precise float value = x[i] * y[factors_at + row];
#elif defined(SILU_MUL)
  precise float value = divided(x[i], x[i]) * y[i];
#elif defined(GELU_MUL)
  precise float value = gelu_by_tanh(x[i]) * y[i];
#elif defined(GELU)
  precise float value = gelu_by_erf(x[i]);
#elif defined(GELU_TANH)
  precise float value = gelu_by_tanh(x[i]);
#endif
  result[i] = value;
}
