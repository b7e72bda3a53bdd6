// Ops that only move numbers, or take their mean: rows taken by index, rows of images put in place, parts of heads, neighbours of a
// patch or of a moment. README.md has the bindings.
#version 450

layout(local_size_x = 256) in;
layout(set = 0, binding = 0) readonly buffer X { float x[]; };
#if defined(TAKE_ROWS)
layout(set = 0, binding = 1) readonly buffer Inputs { int inputs[]; };
layout(set = 0, binding = 2) writeonly buffer Result { float result[]; };
layout(push_constant) uniform Push { int rows_at, width; };
#elif defined(PUT_ROWS)
layout(set = 0, binding = 1) readonly buffer Inputs { int inputs[]; };
layout(set = 0, binding = 2) readonly buffer Features { float features[]; };
layout(set = 0, binding = 3) writeonly buffer Result { float result[]; };
layout(push_constant) uniform Push { int rows_at, features_at, width; };
#elif defined(COLUMNS)
layout(set = 0, binding = 1) writeonly buffer Result { float result[]; };
layout(push_constant) uniform Push { int heads, head_dim, first, last; };
#elif defined(CONCAT)
layout(set = 0, binding = 1) readonly buffer Y { float y[]; };
layout(set = 0, binding = 2) writeonly buffer Result { float result[]; };
layout(push_constant) uniform Push { int heads, x_dim, y_dim; };
#elif defined(MERGE_PATCHES) || defined(MEAN_PATCHES)
layout(set = 0, binding = 1) writeonly buffer Result { float result[]; };
layout(push_constant) uniform Push { int width, columns, size, first_patch, first_row; };
#elif defined(WINDOWS)
layout(set = 0, binding = 1) writeonly buffer Result { float result[]; };
layout(push_constant) uniform Push { int rows, width, size, stride; };
#endif

#if defined(MERGE_PATCHES) || defined(MEAN_PATCHES)
// Number `column` of neighbour (y, x) of the square `row`, of an image that has `columns` patches in a row.
float neighbour(int row, int y, int x_in, int column) {
  int across = columns / size, patch_row = row / across * size + y, patch_column = row % across * size + x_in;
  return x[(first_patch + patch_row * columns + patch_column) * width + column];
}
#endif

void main() {
  int column = int(gl_GlobalInvocationID.x), row = int(gl_WorkGroupID.y);
#if defined(TAKE_ROWS)
  if (column < width) result[row * width + column] = x[inputs[rows_at + row] * width + column];
#elif defined(PUT_ROWS)
  int feature = rows_at < 0 ? -1 : inputs[rows_at + row];
  if (column < width) result[row * width + column] = feature < 0 ? x[row * width + column] : features[features_at + feature * width + column];
#elif defined(COLUMNS)
  int one = last - first;
  if (column < heads * one) result[row * heads * one + column] = x[(row * heads + column / one) * head_dim + first + column % one];
#elif defined(CONCAT)
  int one = x_dim + y_dim, head = column / one, i = column % one;
  if (column >= heads * one) return;
  head += row * heads;
  result[head * one + i] = i < x_dim ? x[head * x_dim + i] : y[head * y_dim + i - x_dim];
#elif defined(MERGE_PATCHES)
  int all = size * size, place = column % all;
  if (column < width * all) result[(first_row + row) * width * all + column] = neighbour(row, place / size, place % size, column / all);
#elif defined(MEAN_PATCHES)
  if (column >= width) return;
  precise float sum = 0.0;
  for (int i = 0; i < size * size; i++) sum += neighbour(row, i / size, i % size, column);
  precise float mean = sum / float(size * size);
  result[(first_row + row) * width + column] = mean;
#elif defined(WINDOWS)
  int from = row * stride + column % size - size / 2;
  if (column < width * size) result[row * width * size + column] = from >= 0 && from < rows ? x[from * width + column / size] : 0.0;
#endif
}
