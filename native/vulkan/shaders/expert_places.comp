// The places of each token, which are pairs of it and one of its experts: those whose gate is not 0, ascending. README.md has the bindings
// and the plan; at most 1024 experts. A workgroup has a token. With `has_units` each place is a unit of its own.
#version 450
layout(local_size_x = 64) in;
layout(set = 0, binding = 0) readonly buffer Gates { float gates[]; };
layout(set = 0, binding = 1) writeonly buffer Plan { int plan[]; };
layout(push_constant) uniform Push { int experts, per_token, first_token, places, has_units; };

shared int is_taken[1024];

void write(int place, int expert, float gate) {
  plan[place] = expert;
  plan[places + place] = floatBitsToInt(gate);
  if (has_units == 0) return;
  const int at = 3 * places + 3 * place;
  plan[2 * places + place] = place;
  plan[at] = expert;
  plan[at + 1] = place;
  plan[at + 2] = int(expert >= 0);
}

void main() {
  const int lane = int(gl_LocalInvocationID.x), token = int(gl_WorkGroupID.y), row = (first_token + token) * experts;
  for (int e = lane; e < experts; e += 64) is_taken[e] = int(gates[row + e] != 0.0);
  barrier();
  for (int e = lane; e < experts; e += 64) {
    if (is_taken[e] == 0) continue;
    int rank = 0;
    for (int i = 0; i < e; i++) rank += is_taken[i];
    if (rank < per_token) write(token * per_token + rank, e, gates[row + e]);
  }
  int count = 0;
  for (int e = 0; e < experts; e++) count += is_taken[e];
  for (int i = count + lane; i < per_token; i += 64) write(token * per_token + i, -1, 0.0);
}
