// RMS_NORM of each head of a row, or LAYER_NORM of a row: a workgroup for each. README.md has the bindings.
// Bound: memory; at short rows the barriers. The result may lie in x's memory.
#version 450

#define LANES 128
layout(local_size_x = LANES) in;
layout(set = 0, binding = 0) readonly buffer X { float x[]; };
layout(set = 0, binding = 1) readonly buffer W { float w[]; };
#ifdef LAYER_NORM
layout(set = 0, binding = 2) readonly buffer B { float b[]; };
layout(set = 0, binding = 3) writeonly buffer Result { float result[]; };
layout(push_constant) uniform Push { int width; float eps; };
const int heads = 1;
#else
layout(set = 0, binding = 2) writeonly buffer Result { float result[]; };
layout(push_constant) uniform Push { int width, heads; float eps; };
#endif

shared float lanes[LANES], eighths[8];

// The sum over all invocations, in one order: sixteen lanes, then eight such sums.
float total(float mine) {
  int lane = int(gl_LocalInvocationID.x);
  lanes[lane] = mine;
  barrier();
  if (lane < 8) {
    precise float sum = 0.0;
    for (int i = 0; i < LANES / 8; i++) sum += lanes[lane * (LANES / 8) + i];
    eighths[lane] = sum;
  }
  barrier();
  precise float sum = eighths[0];
  for (int i = 1; i < 8; i++) sum += eighths[i];
  return sum;
}

void main() {
  int lane = int(gl_LocalInvocationID.x), base = (int(gl_WorkGroupID.y) * heads + int(gl_WorkGroupID.x)) * width;
  precise float sum = 0.0;
  float mean = 0.0;
#ifdef LAYER_NORM
  for (int i = lane; i < width; i += LANES) sum += x[base + i];
  mean = total(sum) / float(width);
  sum = 0.0;
#endif
  // The variance is summed from differences: that of the mean of squares cancels where the mean is large.
  for (int i = lane; i < width; i += LANES) {
    precise float v = x[base + i] - mean;
    sum += v * v;
  }
  precise float inverse = 1.0 / sqrt(total(sum) / float(width) + eps);
  for (int i = lane; i < width; i += LANES) {
#ifdef LAYER_NORM
    precise float value = (x[base + i] - mean) * inverse * w[i] + b[i];
#else
    precise float value = x[base + i] * inverse * w[i];
#endif
    result[base + i] = value;
  }
}
