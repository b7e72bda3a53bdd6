// Causal attention over the paged cache for a few query rows that share a key/value head. README.md has the bindings and units,
// ../cache_layout.h the layout. Variants: FORMAT 0 f32, 1 f16, 2 q8, 3 q4; CHUNKS: a workgroup takes one chunk of keys and
// leaves its maximum, sum and output to attend_merge.comp; without it one takes all chunks and merges them itself.
//
// Bound: memory in decode, multiply-adds and shared memory in prefill. Scores: an invocation takes every 128th key and multiplies it with all
// rows' queries. Values: an invocation takes four columns and every `slots`-th key; the slots are added in order. Whatever rows
// and chunks a workgroup has, a row's keys are summed in the same order: the bits do not depend on its company.
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#include "half.glsl"
#include "rows.glsl"

#define LANES 128
#define CHUNK 512
layout(local_size_x = LANES) in;
layout(constant_id = 0) const int ROWS = 1;
layout(constant_id = 1) const int HEAD_DIM = 64;
layout(constant_id = 2) const int VALUE_DIM = 64;

layout(set = 0, binding = 0) readonly buffer Queries { float queries[]; };
layout(set = 0, binding = 1) readonly buffer Inputs { int inputs[]; };
// PER numbers in 16 bytes; an invocation loads STEP of a key at a time, so that whole numbers do not take all registers.
#if FORMAT == 0
#define PER 4
#define STEP 4
layout(set = 0, binding = 2) readonly buffer Keys { uvec4 keys[]; };
layout(set = 0, binding = 3) readonly buffer Values { uvec4 values[]; };
#elif FORMAT == 1
#define PER 8
#define STEP 8
layout(set = 0, binding = 2) readonly buffer Keys { uvec4 keys[]; };
layout(set = 0, binding = 3) readonly buffer Values { uvec2 values[]; };
#else
#define PER (FORMAT == 2 ? 16 : 32)
#define STEP (PER / 2)
layout(set = 0, binding = 2) readonly buffer Keys { uvec2 keys[]; };
layout(set = 0, binding = 2) readonly buffer KeyWords { uint key_words[]; };
layout(set = 0, binding = 3) readonly buffer Values { uint values[]; };
#endif
layout(set = 0, binding = 4) buffer Result { float result[]; };
layout(push_constant) uniform Push {
  int positions_at, reach_at, pages_at, pages_per_sequence, units_at, heads, kv_heads, page_size, window, key_scales_at, value_scales_at, chunks;
  float scale;
};

const int PIECES = (HEAD_DIM + PER - 1) / PER;  // of 16 bytes in a row of the cache
const int QUADS = PIECES * (PER / 4);           // of four numbers
const int COLUMNS = (VALUE_DIM + 3) / 4;
const float LEAST = -1e38;  // below every score: that of a key that a row does not see

shared vec4 query[ROWS * QUADS];
shared float weights[ROWS * CHUNK];  // scores, weights, and then sums of values: [row][4][LANES]
shared float sixteenths[ROWS * 16];
shared int place[CHUNK];  // the keys' rows in the cache
shared int row_first[ROWS], row_last[ROWS];
shared float row_top[ROWS], row_max[ROWS], row_sum[ROWS], keep[ROWS], take[ROWS];

// Numbers 4 quad to 4 quad + 3 of a step of a key; `line` is the scale and minimum of its group.
#if FORMAT == 0
vec4 key_numbers(uvec4 piece, int quad, uint line) { return uintBitsToFloat(piece); }
#elif FORMAT == 1
vec4 key_numbers(uvec4 piece, int quad, uint line) {
  return quad == 0 ? vec4(from_halves(piece.x), from_halves(piece.y)) : vec4(from_halves(piece.z), from_halves(piece.w));
}
#elif FORMAT == 2
vec4 key_numbers(uvec2 piece, int quad, uint line) {
  int word = int(piece[quad]);
  return vec4(bitfieldExtract(word, 0, 8), bitfieldExtract(word, 8, 8), bitfieldExtract(word, 16, 8), word >> 24);
}
#else
vec4 key_numbers(uvec2 piece, int quad, uint line) {
  uint word = piece[quad / 2] >> (16 * (quad & 1));
  vec2 by = from_halves(line);
  precise vec4 numbers = vec4(word & 15u, word >> 4 & 15u, word >> 8 & 15u, word >> 12 & 15u) * by.x + vec4(by.y);
  return numbers;
}
#endif

vec4 value_numbers(int row, int column) {
#if FORMAT == 0
  return uintBitsToFloat(values[row * PIECES + column]);
#elif FORMAT == 1
  uvec2 pair = values[row * QUADS + column];
  return vec4(from_halves(pair.x), from_halves(pair.y));
#elif FORMAT == 2
  int word = int(values[row * QUADS + column]);
  precise vec4 numbers = vec4(bitfieldExtract(word, 0, 8), bitfieldExtract(word, 8, 8), bitfieldExtract(word, 16, 8), word >> 24)
                         * uintBitsToFloat(values[value_scales_at + row]);
  return numbers;
#else
  uint word = values[(row * QUADS + column) / 2] >> (16 * (column & 1));
  vec2 by = from_halves(values[value_scales_at + row * PIECES + column / 8]);
  precise vec4 numbers = vec4(word & 15u, word >> 4 & 15u, word >> 8 & 15u, word >> 12 & 15u) * by.x + vec4(by.y);
  return numbers;
#endif
}

int lane() { return int(gl_LocalInvocationID.x); }
int share() { return heads / kv_heads; }
int part() { return min(ROWS, share()); }  // heads of a workgroup

// The first token of the unit, the head, and whether there is such a row.
bool row_place(int r, ivec4 unit, out int token, out int head) {
  int parts = (share() + part() - 1) / part(), y = int(gl_WorkGroupID.y), own = y % parts * part() + r % part();
  token = unit.y + r / part();
  head = y / parts * share() + own;
  return token < unit.z && own < share();
}

// The scores of one key for all rows, into `weights`.
void score(int key, int k, int row) {
  precise vec4 sums[ROWS];
  [[unroll]] for (int r = 0; r < ROWS; r++) sums[r] = vec4(0.0);
  const int steps = PIECES * (PER / STEP);
  [[dont_unroll]] for (int p = 0; p < steps; p++) {
    uint line = 0;
#if FORMAT == 3
    line = key_words[key_scales_at + row * PIECES + p / 2];
#endif
#if FORMAT < 2
    uvec4 piece = keys[row * steps + p];
#else
    uvec2 piece = keys[row * steps + p];
#endif
    [[unroll]] for (int i = 0; i < STEP / 4; i++) {
      vec4 numbers = key_numbers(piece, i, line);
      [[unroll]] for (int r = 0; r < ROWS; r++) {
        precise vec4 product = query[r * QUADS + p * (STEP / 4) + i] * numbers;
        sums[r] = sums[r] + product;
      }
    }
  }
  float by = scale;
#if FORMAT == 2
  precise float scales = uintBitsToFloat(key_words[key_scales_at + row]) * scale;
  by = scales;
#endif
  [[unroll]] for (int r = 0; r < ROWS; r++) {
    precise float sum = ((sums[r].x + sums[r].y) + (sums[r].z + sums[r].w)) * by;
    weights[r * CHUNK + k] = key >= row_first[r] && key <= row_last[r] ? sum : LEAST;
  }
}

// Scores become weights; the chunk's maximum and sum of them for each row, and how it is merged with those before it.
// Sixteen lanes have a row, each every sixteenth key.
void soften(int from, int to) {
  int row = lane() / 16, first = from + (lane() - from & 15);
  float top = LEAST;
  if (row < ROWS)
    [[dont_unroll]] for (int k = first; k <= to; k += 16) top = max(top, weights[row * CHUNK + k]);
  if (row < ROWS) sixteenths[lane()] = top;
  barrier();
  if (lane() < ROWS) {
    top = LEAST;
    [[dont_unroll]] for (int i = 0; i < 16; i++) top = max(top, sixteenths[lane() * 16 + i]);
#ifdef CHUNKS
    row_max[lane()] = top;
#else
    float joint = max(top, row_max[lane()]);
    precise float old = row_max[lane()] - joint, new = top - joint;
    keep[lane()] = row_max[lane()] > LEAST ? exponential(old) : 0.0;
    take[lane()] = top > LEAST ? exponential(new) : 0.0;
    row_max[lane()] = joint;
#endif
    row_top[lane()] = top;
  }
  barrier();
  int count = to - from + 1;
  [[dont_unroll]] for (int i = lane(); i < ROWS * count; i += LANES) {
    int r = i / count, at = r * CHUNK + from + i % count;
    float s = weights[at];
    precise float below = s - row_top[r];
    weights[at] = s > LEAST ? exponential(below) : 0.0;
  }
  barrier();
  precise float sum = 0.0;
  if (row < ROWS)
    [[dont_unroll]] for (int k = first; k <= to; k += 16) sum += weights[row * CHUNK + k];
  if (row < ROWS) sixteenths[lane()] = sum;
  barrier();
  if (lane() < ROWS) {
    sum = 0.0;
    [[dont_unroll]] for (int i = 0; i < 16; i++) sum += sixteenths[lane() * 16 + i];
#ifdef CHUNKS
    row_sum[lane()] = sum;
#else
    precise float merged = row_sum[lane()] * keep[lane()] + sum * take[lane()];
    row_sum[lane()] = merged;
#endif
  }
}

// Sums of the chunk's values by weight, of a slot's keys, in place of the weights.
void weigh(int from, int to, int slots) {
  int slot = lane() / COLUMNS, column = lane() % COLUMNS;
  precise vec4 sums[ROWS];
  [[unroll]] for (int r = 0; r < ROWS; r++) sums[r] = vec4(0.0);
  if (slot < slots)
    [[dont_unroll]] for (int k = from + (slot - from & slots - 1); k <= to; k += slots) {
      vec4 numbers = value_numbers(place[k], column);
      [[unroll]] for (int r = 0; r < ROWS; r++) {
        precise vec4 product = numbers * weights[r * CHUNK + k];
        sums[r] = sums[r] + product;
      }
    }
  barrier();
  [[unroll]] for (int r = 0; r < ROWS; r++)
    [[unroll]] for (int i = 0; i < 4; i++) weights[(r * 4 + i) * LANES + lane()] = sums[r][i];
  barrier();
}

// The sum over slots of number e of a row's values.
float slots_sum(int r, int e, int slots) {
  int at = (r * 4 + e % 4) * LANES + e / 4;
  precise float sum = weights[at];
  [[dont_unroll]] for (int slot = 1; slot < slots; slot++) sum += weights[at + slot * COLUMNS];
  return sum;
}

void main() {
#ifdef CHUNKS
  int unit_index = int(gl_WorkGroupID.z);
#else
  int unit_index = int(gl_WorkGroupID.x);
#endif
  int unit_at = units_at + 4 * unit_index, slots = 1 << findMSB(LANES / COLUMNS);
  ivec4 unit = ivec4(inputs[unit_at], inputs[unit_at + 1], inputs[unit_at + 2], 0);
  int token, head, kv_head = int(gl_WorkGroupID.y) / ((share() + part() - 1) / part());
  if (lane() < ROWS) {
    bool is_row = row_place(lane(), unit, token, head);
    int position = is_row ? inputs[positions_at + token] : 0;
    row_first[lane()] = !is_row ? 0x7fffffff : window > 0 ? max(position - window + 1, 0) : 0;
    row_last[lane()] = !is_row ? -1 : reach_at >= 0 ? inputs[reach_at + token] : position;
    row_max[lane()] = LEAST;
    row_sum[lane()] = 0.0;
  }
  [[dont_unroll]] for (int i = lane(); i < ROWS * QUADS; i += LANES) {
    int e = i % QUADS * 4;
    vec4 numbers = vec4(0.0);
    if (row_place(i / QUADS, unit, token, head)) {
      int at = (token * heads + head) * HEAD_DIM + e;
      [[unroll]] for (int j = 0; j < 4; j++)
        if (e + j < HEAD_DIM) numbers[j] = queries[at + j];
    }
    query[i] = numbers;
  }
  barrier();
  int first = row_first[0], last = row_last[0];
  [[dont_unroll]] for (int r = 1; r < ROWS; r++) first = min(first, row_first[r]), last = max(last, row_last[r]);
#ifdef CHUNKS
  int begin = (first / CHUNK + int(gl_WorkGroupID.x)) * CHUNK;
  if (begin > last) return;
#else
  [[dont_unroll]] for (int begin = first / CHUNK * CHUNK; begin <= last; begin += CHUNK)
#endif
  {
    int from = max(first - begin, 0), to = min(last - begin, CHUNK - 1);
    [[dont_unroll]] for (int k = from + (lane() - from & LANES - 1); k <= to; k += LANES) {
      int key = begin + k, page = inputs[pages_at + unit.x * pages_per_sequence + key / page_size];
      int row = (page * kv_heads + kv_head) * page_size + key % page_size;
      place[k] = row;
      score(key, k, row);
    }
    barrier();
    soften(from, to);
    weigh(from, to, slots);
    [[dont_unroll]] for (int i = lane(); i < ROWS * VALUE_DIM; i += LANES) {
      int r = i / VALUE_DIM, e = i % VALUE_DIM;
      if (!row_place(r, unit, token, head)) continue;
      float sum = slots_sum(r, e, slots);
#ifdef CHUNKS
      int at = ((unit_index * heads + head) * chunks + int(gl_WorkGroupID.x)) * (VALUE_DIM + 2);
      result[at + e] = sum;
      if (e == 0) result[at + VALUE_DIM] = row_max[r];
      if (e == 0) result[at + VALUE_DIM + 1] = row_sum[r];
#else
      // The output so far lies in memory: always the same lane has it.
      int at = (token * heads + head) * VALUE_DIM + e;
      precise float merged = (begin <= first ? 0.0 : result[at]) * keep[r] + sum * take[r];
      if (begin + CHUNK > last) merged = merged / row_sum[r];
      result[at] = merged;
#endif
    }
    barrier();
  }
}
