// Units of at most `most` places that have one expert, from the places that expert_places.comp listed. README.md has the plan.
//
// A workgroup has an expert. It counts the places of experts before its own, which says where its list begins: those of others need not be
// waited for. Its units begin at number begin / most + expert, which leaves room for the last part of each expert before it; units between
// the last of an expert and the first of the next are empty. Places are in order of tokens.
#version 450
layout(local_size_x = 128) in;
layout(set = 0, binding = 0) buffer Plan { int plan[]; };
layout(push_constant) uniform Push { int places, most; };

shared int before[128], own[128];

void main() {
  const int lane = int(gl_LocalInvocationID.x), expert = int(gl_WorkGroupID.x), part = (places + 127) / 128;
  const int first = min(lane * part, places), last = min(first + part, places);
  int less = 0, equal = 0;
  for (int i = first; i < last; i++) {
    const int other = plan[i];
    less += int(other >= 0 && other < expert);
    equal += int(other == expert);
  }
  before[lane] = less;
  own[lane] = equal;
  barrier();
  int begin = 0, count = 0, at = 0;
  for (int i = 0; i < 128; i++) {
    begin += before[i];
    at += i < lane ? own[i] : 0;
    count += own[i];
  }
  at += begin;
  for (int i = first; i < last; i++)
    if (plan[i] == expert) plan[2 * places + at++] = i;
  const bool is_last = expert + 1 == int(gl_NumWorkGroups.x);
  const int units = begin / most + expert, next = (is_last ? places : begin + count) / most + expert + 1;
  for (int unit = units + lane; unit < next; unit += 128) {
    const int skipped = (unit - units) * most, at = 3 * places + 3 * unit;
    plan[at] = expert;
    plan[at + 1] = begin + skipped;
    plan[at + 2] = clamp(count - skipped, 0, most);
  }
}
