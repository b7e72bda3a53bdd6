// Rotates the first `dim` numbers of each head, a pair for an invocation, and copies the others. README.md has the bindings.
// The table has dim / 2 cosines, then dim / 2 sines for each row. The result may lie in x's memory.
#version 450

layout(local_size_x = 256) in;
layout(set = 0, binding = 0) readonly buffer X { float x[]; };
layout(set = 0, binding = 1) readonly buffer Table { float table[]; };
layout(set = 0, binding = 2) writeonly buffer Result { float result[]; };
layout(push_constant) uniform Push { int heads, head_dim, dim, table_at, interleaved; };

void main() {
  int half_dim = dim / 2, each = head_dim - half_dim, i = int(gl_GlobalInvocationID.x), row = int(gl_WorkGroupID.y);
  if (i >= heads * each) return;
  int head = (row * heads + i / each) * head_dim;
  i %= each;
  if (i >= half_dim) {
    result[head + half_dim + i] = x[head + half_dim + i];
    return;
  }
  int a = head + (interleaved != 0 ? 2 * i : i), b = interleaved != 0 ? a + 1 : a + half_dim;
  float u = x[a], v = x[b], cosine = table[table_at + row * dim + i], sine = table[table_at + row * dim + half_dim + i];
  precise float first = u * cosine - v * sine, second = v * cosine + u * sine;
  result[a] = first;
  result[b] = second;
}
