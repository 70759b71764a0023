/* Operations in C99. `//// NAME` begins the text of an operation; T stands for the type of its input, LENGTH for the
   number of inputs of a dense layer above which its sums are split. */

//// copy
static void copy_T(const T *in, int32_t n, float *out) {
    for (int32_t i = 0; i < n; i++) out[i] = (float)in[i];
}

//// slice
/* Columns start to start + width of rows of `row` numbers. */
static void slice_T(const T *in, int32_t rows, int32_t row, int32_t start, int32_t width, float *out) {
    for (int32_t r = 0; r < rows; r++)
        for (int32_t i = 0; i < width; i++) out[r * width + i] = (float)in[r * row + start + i];
}

//// transpose
/* Array [a, b, c] with its last axis first. */
static void transpose_T(const T *in, int32_t a, int32_t b, int32_t c, float *out) {
    for (int32_t i = 0; i < a * b; i++)
        for (int32_t k = 0; k < c; k++) out[k * a * b + i] = (float)in[i * c + k];
}

//// one_hot
static void one_hot_T(const T *in, const int32_t *sizes, int32_t n, float *out) {
    for (int32_t k = 0; k < n; k++) {
        for (int32_t i = 0; i < sizes[k]; i++) out[i] = (int64_t)in[k] == i ? 1.0f : 0.0f;
        out += sizes[k];
    }
}

//// standardize
/* (x - mean) / std, with arrays of n numbers (step 1) or of one (step 0). */
static void standardize_T(const T *in, const float *mean, const float *std, int32_t step, int32_t n, float *out) {
    for (int32_t i = 0; i < n; i++) out[i] = (float)((in[i] - mean[i * step]) / std[i * step]);
}

//// clip
static void clip(const float *in, const float *low, const float *high, int32_t step, int32_t n, float *out) {
    for (int32_t i = 0; i < n; i++) out[i] = fminf(fmaxf(in[i], low[i * step]), high[i * step]);
}

//// linear
/* weight: [inputs, outputs], so that the inner loop needs no sum in a fixed order; `mean` is subtracted from pixels. */
static void linear_T(const T *restrict in, float mean, const float *restrict weight, const float *restrict bias,
                     int32_t inputs, int32_t outputs, float *restrict out) {
    for (int32_t o = 0; o < outputs; o++) out[o] = bias[o];
    for (int32_t i = 0; i < inputs; i++) {
        const float x = (float)in[i] - mean;
        const float *row = weight + i * outputs;
        for (int32_t o = 0; o < outputs; o++) out[o] += x * row[o];
    }
}

//// long_linear
/* As linear, with long sums made of short ones, in `sum`: the rounding error of one grows with its length. */
static void long_linear_T(const T *restrict in, float mean, const float *restrict weight, const float *restrict bias,
                          int32_t inputs, int32_t outputs, float *restrict sum, float *restrict out) {
    for (int32_t o = 0; o < outputs; o++) out[o] = bias[o];
    for (int32_t start = 0; start < inputs; start += LENGTH) {
        const int32_t end = start + LENGTH < inputs ? start + LENGTH : inputs;
        for (int32_t o = 0; o < outputs; o++) sum[o] = 0.0f;
        for (int32_t i = start; i < end; i++) {
            const float x = (float)in[i] - mean;
            const float *row = weight + i * outputs;
            for (int32_t o = 0; o < outputs; o++) sum[o] += x * row[o];
        }
        for (int32_t o = 0; o < outputs; o++) out[o] += sum[o];
    }
}

//// conv
/* Square kernels on [depth, height, width]; weight: [depth, kernel, kernel, channels]; out: [channels, rows, columns].
   `sum` has room for one number per channel. */
static void conv_T(const T *restrict in, float mean, const float *restrict weight, const float *restrict bias,
                   int32_t depth, int32_t height, int32_t width, int32_t channels, int32_t kernel, int32_t stride,
                   int32_t padding, float *restrict sum, float *restrict out) {
    const int32_t rows = (height + 2 * padding - kernel) / stride + 1;
    const int32_t columns = (width + 2 * padding - kernel) / stride + 1;
    for (int32_t r = 0; r < rows; r++) {
        for (int32_t c = 0; c < columns; c++) {
            for (int32_t o = 0; o < channels; o++) sum[o] = bias[o];
            for (int32_t d = 0; d < depth; d++) {
                for (int32_t i = 0; i < kernel; i++) {
                    const int32_t y = r * stride + i - padding;
                    if (y < 0 || y >= height) continue;
                    for (int32_t j = 0; j < kernel; j++) {
                        const int32_t x = c * stride + j - padding;
                        if (x < 0 || x >= width) continue;
                        const float pixel = (float)in[(d * height + y) * width + x] - mean;
                        const float *row = weight + ((d * kernel + i) * kernel + j) * channels;
                        for (int32_t o = 0; o < channels; o++) sum[o] += pixel * row[o];
                    }
                }
            }
            for (int32_t o = 0; o < channels; o++) out[(o * rows + r) * columns + c] = sum[o];
        }
    }
}

//// max_pool
static void max_pool(const float *in, int32_t depth, int32_t height, int32_t width, int32_t kernel, int32_t stride,
                     int32_t padding, float *out) {
    const int32_t rows = (height + 2 * padding - kernel) / stride + 1;
    const int32_t columns = (width + 2 * padding - kernel) / stride + 1;
    for (int32_t d = 0; d < depth; d++)
        for (int32_t r = 0; r < rows; r++)
            for (int32_t c = 0; c < columns; c++) {
                float best = -INFINITY;
                for (int32_t i = 0; i < kernel; i++)
                    for (int32_t j = 0; j < kernel; j++) {
                        const int32_t y = r * stride + i - padding, x = c * stride + j - padding;
                        if (y >= 0 && y < height && x >= 0 && x < width)
                            best = fmaxf(best, in[(d * height + y) * width + x]);
                    }
                out[(d * rows + r) * columns + c] = best;
            }
}

//// objects
/* Positions, movements and sizes of the object in each region [top, bottom, left, right] of frames
   [frames, height, width], distances, and meetings; `work` has room for 3 numbers per region and frame. */
static float meeting(const float *position, const float *speed, const float *target, int32_t along, int32_t low,
                     int32_t high, float *offset) {
    const int32_t across = 1 - along, period = 2 * (high - low > 1 ? high - low : 1);
    const float distance = target[along] - position[along];
    const int moves = distance * speed[along] > 0.0f;
    const float frames = moves ? distance / speed[along] : 0.0f;
    float folded, arrival;
    *offset = 0.0f;
    if (!moves && distance != 0.0f) return 0.0f;
    folded = fmodf(position[across] + frames * speed[across] - (float)low, (float)period);
    if (folded < 0.0f) folded += (float)period;
    arrival = (float)low + fminf(folded, (float)period - folded);
    *offset = arrival - target[across];
    return 1.0f / (1.0f + frames);
}

static void objects_T(const T *in, const int32_t *regions, int32_t n, int32_t frames, int32_t height, int32_t width,
                      int32_t threshold, float *work, float *out) {
    float *size = work + 2 * n * frames;
    const int32_t last = frames - 1;
    for (int32_t r = 0; r < n; r++) {
        const int32_t *box = regions + 4 * r;
        for (int32_t t = 0; t < frames; t++) {
            const T *frame = in + t * height * width;
            int32_t counts[256] = {0}, background = 0;
            float rows = 0.0f, columns = 0.0f, total = 0.0f, pixels = 0.0f;
            for (int32_t y = box[0]; y < box[1]; y++)
                for (int32_t x = box[2]; x < box[3]; x++) counts[frame[y * width + x]]++;
            for (int32_t v = 1; v < 256; v++)
                if (counts[v] > counts[background]) background = v;
            for (int32_t y = box[0]; y < box[1]; y++)
                for (int32_t x = box[2]; x < box[3]; x++) {
                    const int32_t signed_difference = (int32_t)frame[y * width + x] - background;
                    const int32_t difference = signed_difference < 0 ? -signed_difference : signed_difference;
                    if (difference <= threshold) continue;
                    rows += (float)(difference * y);
                    columns += (float)(difference * x);
                    total += (float)difference;
                    pixels += 1.0f;
                }
            work[2 * (r * frames + t)] = rows / fmaxf(total, 1.0f);
            work[2 * (r * frames + t) + 1] = columns / fmaxf(total, 1.0f);
            size[r * frames + t] = pixels;
        }
    }
    for (int32_t r = 0; r < n; r++) {
        const float *position = work + 2 * r * frames, *present = size + r * frames;
        *out++ = position[2 * last];
        *out++ = position[2 * last + 1];
        for (int32_t t = last; t > 0; t--)
            for (int32_t axis = 0; axis < 2; axis++)
                *out++ = present[t] > 0.0f && present[t - 1] > 0.0f
                             ? position[2 * t + axis] - position[2 * t - 2 + axis]
                             : 0.0f;
    }
    for (int32_t r = 0; r < n; r++) *out++ = size[r * frames + last];
    for (int32_t a = 0; a < n; a++)
        for (int32_t b = a + 1; b < n; b++)
            for (int32_t axis = 0; axis < 2; axis++) {
                const int both = size[a * frames + last] > 0.0f && size[b * frames + last] > 0.0f;
                *out++ = both ? work[2 * (a * frames + last) + axis] - work[2 * (b * frames + last) + axis] : 0.0f;
            }
    if (frames < 2) return;
    for (int32_t a = 0; a < n; a++)
        for (int32_t b = 0; b < n; b++)
            for (int32_t along = 1; a != b && along >= 0; along--) {
                const float *mine = work + 2 * (a * frames + last), *other = work + 2 * (b * frames + last);
                const int both = size[a * frames + last] > 0.0f && size[b * frames + last] > 0.0f;
                const int moved = both && size[a * frames + last - 1] > 0.0f;
                const float speed[2] = {moved ? mine[0] - mine[-2] : 0.0f, moved ? mine[1] - mine[-1] : 0.0f};
                const int32_t *box = regions + 4 * a + 2 * (1 - along);
                out[0] = out[1] = 0.0f;
                if (both) out[0] = meeting(mine, speed, other, along, box[0], box[1] - 1, out + 1);
                out += 2;
            }
}

//// add
static void add(const float *a, const float *b, int32_t n, float *out) {
    for (int32_t i = 0; i < n; i++) out[i] = a[i] + b[i];
}

//// multiply
static void multiply(const float *a, const float *b, int32_t n, float *out) {
    for (int32_t i = 0; i < n; i++) out[i] = a[i] * b[i];
}

//// tree
static void tree_T(const float *in, const T *feature, const float *threshold, const T *left, const T *right,
                   const float *value, int32_t n, float *out) {
    int32_t node = 0;
    while (feature[node] >= 0) node = in[feature[node]] <= threshold[node] ? left[node] : right[node];
    for (int32_t i = 0; i < n; i++) out[i] = value[node * n + i];
}

//// mask
static void mask_T(const float *in, const T *legal, float illegal, int32_t n, float *out) {
    for (int32_t i = 0; i < n; i++) out[i] = legal[i] != 0 ? in[i] : illegal;
}

//// argmax
static int64_t argmax(const float *in, int32_t n) {
    int32_t best = 0;
    for (int32_t i = 1; i < n; i++)
        if (in[i] > in[best]) best = i;
    return best;
}

//// unary
static void NAME(const float *in, int32_t n, float *out) {
    for (int32_t i = 0; i < n; i++) {
        const float x = in[i];
        out[i] = EXPRESSION;
    }
}
