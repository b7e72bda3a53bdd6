// Doubles whole numbers: what the tests of the device itself run.
// Bindings: 0 int x[] (read), 1 int y[] (written). Push: uint count. Groups: count / local size, rounded up. Constants: 0 the local size.
#version 450
layout(local_size_x_id = 0) in;
layout(std430, set = 0, binding = 0) readonly buffer X { int x[]; };
layout(std430, set = 0, binding = 1) writeonly buffer Y { int y[]; };
layout(push_constant) uniform Push { uint count; };

void main() {
  const uint i = gl_GlobalInvocationID.x;
  if (i < count) y[i] = 2 * x[i];
}
