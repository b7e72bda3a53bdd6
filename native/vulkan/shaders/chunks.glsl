// The order of a linear's sums, and how invocations share them: 16 neighbours have a tile's rows, `SLOTS` sixteens its chunks.
//
// Before this file: SLOTS, TOKENS, PASS, SIZE, rows, cols, tokens. After it: add_chunk, which adds the products of a chunk of 256
// columns of tile `tile` for tokens `first` to `first + last`, and store, which is given the sum of a row for a token. Compiled with STACK
// (stack.glsl), tokens are those of the workgroup's unit.
const uint TILES = SIZE / (16u * SLOTS);  // of a group
shared float parts[SLOTS > 1 ? SIZE * PASS * TOKENS : 1];

void add_chunk(uint chunk, uint tile, uint row, uint first, uint last, inout float acc[TOKENS]);
void store(uint row, uint token, float sum);

void sum_chunks() {
  const uint lane = gl_LocalInvocationID.x, row = lane % 16u, slot = lane / 16u % SLOTS;
  const uint tile = gl_WorkGroupID.y * TILES + lane / (16u * SLOTS);
#ifdef STACK
  const uint first = 0u, last = count - 1u;
#else
  const uint first = gl_WorkGroupID.x * TOKENS, last = min(tokens - first, TOKENS) - 1u;  // of the tokens, from the first
#endif
  const uint chunks = (cols + 255u) / 256u;
  const uint read_tile = min(tile, (rows - 1u) / 16u);  // lanes behind the end sum the last tile once more, for the barriers

  precise float total[TOKENS];
  [[unroll]] for (uint t = 0; t < TOKENS; t++) total[t] = 0.0;
  for (uint begin = 0; begin < chunks; begin += SLOTS * PASS) {
    for (uint i = 0, chunk = begin + slot; i < PASS && chunk < chunks; i++, chunk += SLOTS) {
      float acc[TOKENS];
      [[unroll]] for (uint t = 0; t < TOKENS; t++) acc[t] = 0.0;
      add_chunk(chunk, read_tile, row, first, last, acc);
      [[unroll]] for (uint t = 0; t < TOKENS; t++) {
        if (SLOTS == 1) total[t] = total[t] + acc[t];
        else parts[(i * TOKENS + t) * SIZE + lane] = acc[t];
      }
    }
    if (SLOTS > 1) {
      barrier();
      if (slot == 0u) {
        for (uint chunk = 0; chunk < min(SLOTS * PASS, chunks - begin); chunk++) {
          const uint from = chunk / SLOTS * TOKENS * SIZE + lane + 16u * (chunk % SLOTS);
          [[unroll]] for (uint t = 0; t < TOKENS; t++) total[t] = total[t] + parts[t * SIZE + from];
        }
      }
      barrier();
    }
  }
  const uint out_row = tile * 16u + row;
  if (slot == 0u && out_row < rows) {
    [[unroll]] for (uint t = 0; t < TOKENS; t++)
      if (t <= last) store(out_row, first + t, total[t]);
  }
}
