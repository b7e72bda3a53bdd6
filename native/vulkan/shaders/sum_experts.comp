// The sum of a token's experts, ascending, each times its gate. README.md has the bindings and the plan.
#version 450
layout(local_size_x = 256) in;
layout(set = 0, binding = 0) readonly buffer X { float x[]; };
layout(set = 0, binding = 1) readonly buffer Plan { int plan[]; };
layout(set = 0, binding = 2) writeonly buffer Result { float result[]; };
layout(push_constant) uniform Push { int width, per_token, first_token, places; };

void main() {
  const int column = int(gl_GlobalInvocationID.x), token = int(gl_WorkGroupID.y), first = token * per_token;
  if (column >= width) return;
  precise float sum = 0.0;
  for (int place = first; place < first + per_token; place++) {
    if (plan[place] < 0) break;
    precise float share = x[place * width + column] * intBitsToFloat(plan[places + place]);
    sum += share;
  }
  result[(first_token + token) * width + column] = sum;
}
