// Linears of a stack of matrices, of which a workgroup takes one: that of a head, or of an expert with some of its places.
//
// A row of x is given by an id. Of heads, id = token * all + matrix, and ids lie in order. Of experts an id is a place, a pair of a token
// and one of its experts; expert_places.comp and expert_units.comp list units of places that have one matrix. Row id / share of x times
// the matrix becomes row id of out.
layout(std430, binding = 3) readonly buffer Plan { int plan[]; };
layout(push_constant) uniform Push {
  uint rows, cols, tokens, weights_offset, matrix_words, first_matrix, matrices, all, share, x_offset, out_offset, out_stride;
  int units_at, list_at;  // in the plan; of heads -1
};

uint matrix_at;  // in words
uint ids[TOKENS], x_rows[TOKENS], count;
#define ROW_OF(t) x_rows[t]

// Whether the workgroup has work: its unit may be empty, or of a matrix that lies in another buffer.
bool begin_unit() {
  uint matrix = first_matrix + gl_WorkGroupID.z, first = gl_WorkGroupID.x * TOKENS;
  count = min(tokens - first, TOKENS);
  if (units_at >= 0) {
    const uint at = uint(units_at) + 3u * gl_WorkGroupID.x;
    matrix = uint(plan[at]);
    first = uint(plan[at + 1u]);
    count = uint(plan[at + 2u]);
    if (count == 0u || matrix < first_matrix || matrix >= first_matrix + matrices) return false;
  }
  matrix_at = weights_offset + (matrix - first_matrix) * matrix_words;
  [[unroll]] for (uint t = 0; t < TOKENS; t++) {
    const uint own = first + min(t, count - 1u);
    ids[t] = units_at >= 0 ? uint(plan[uint(list_at) + own]) : own * all + matrix;
    x_rows[t] = ids[t] / share;
  }
  return true;
}
