// Reads all of a buffer and keeps next to nothing of it: what measures the bandwidth of a device's memory.
// Bindings: 0 uvec4 data[] (read), 1 uint out[] (written, one for each invocation). Push: uint count, of uvec4. Groups: any; all
// invocations together walk over the data, neighbours read neighbours. Constants: 0 the local size.
#version 450
layout(local_size_x_id = 0) in;
layout(std430, set = 0, binding = 0) readonly buffer Data { uvec4 data[]; };
layout(std430, set = 0, binding = 1) writeonly buffer Out { uint result[]; };
layout(push_constant) uniform Push { uint count; };

void main() {
  const uint all_invocations = gl_NumWorkGroups.x * gl_WorkGroupSize.x;
  uvec4 sum = uvec4(0);
  for (uint i = gl_GlobalInvocationID.x; i < count; i += all_invocations) sum ^= data[i];
  result[gl_GlobalInvocationID.x] = sum.x ^ sum.y ^ sum.z ^ sum.w;
}
