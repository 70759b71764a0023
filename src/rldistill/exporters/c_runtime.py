"""Operations in C99, as the text of static functions; `T` stands for the type of the input."""

ACTIVATIONS = {
    "relu": "x > 0.0f ? x : 0.0f",
    "tanh": "tanhf(x)",
    "elu": "x > 0.0f ? x : expm1f(x)",
    "celu": "x > 0.0f ? x : expm1f(x)",
    "selu": "1.05070098f * (x > 0.0f ? x : 1.67326324f * expm1f(x))",
    "gelu": "0.5f * x * (1.0f + erff(x * 0.707106781f))",
    "silu": "x / (1.0f + expf(-x))",
    "mish": "x * tanhf(x > 20.0f ? x : log1pf(expf(x)))",
    "leakyrelu": "x > 0.0f ? x : 0.01f * x",
    "relu6": "fminf(fmaxf(x, 0.0f), 6.0f)",
    "sigmoid": "1.0f / (1.0f + expf(-x))",
    "softplus": "x > 20.0f ? x : log1pf(expf(x))",
    "softsign": "x / (1.0f + fabsf(x))",
    "hardtanh": "fminf(fmaxf(x, -1.0f), 1.0f)",
    "hardswish": "x * fminf(fmaxf(x + 3.0f, 0.0f), 6.0f) / 6.0f",
    "hardsigmoid": "fminf(fmaxf(x / 6.0f + 0.5f, 0.0f), 1.0f)",
    "logsigmoid": "x < 0.0f ? x - log1pf(expf(x)) : -log1pf(expf(-x))",
    "tanhshrink": "x - tanhf(x)",
    "softshrink": "x > 0.5f ? x - 0.5f : (x < -0.5f ? x + 0.5f : 0.0f)",
    "hardshrink": "fabsf(x) > 0.5f ? x : 0.0f",
    "cos": "cosf(x)",
    "log": "logf(x)",
    "negate": "-x",
}
"""Functions of one float `x`."""

UNARY = """
static void NAME(const float *in, int32_t n, float *out) {
    for (int32_t i = 0; i < n; i++) {
        const float x = in[i];
        out[i] = EXPRESSION;
    }
}
"""

FUNCTIONS = {
    "copy": """
static void copy_T(const T *in, int32_t n, float *out) {
    for (int32_t i = 0; i < n; i++) out[i] = (float)in[i];
}
""",
    "slice": """
/* Columns start to start + width of rows of `row` numbers. */
static void slice_T(const T *in, int32_t rows, int32_t row, int32_t start, int32_t width, float *out) {
    for (int32_t r = 0; r < rows; r++)
        for (int32_t i = 0; i < width; i++) out[r * width + i] = (float)in[r * row + start + i];
}
""",
    "transpose": """
/* Array [a, b, c] with its last axis first. */
static void transpose_T(const T *in, int32_t a, int32_t b, int32_t c, float *out) {
    for (int32_t i = 0; i < a * b; i++)
        for (int32_t k = 0; k < c; k++) out[k * a * b + i] = (float)in[i * c + k];
}
""",
    "one_hot": """
static void one_hot_T(const T *in, const int32_t *sizes, int32_t n, float *out) {
    for (int32_t k = 0; k < n; k++) {
        for (int32_t i = 0; i < sizes[k]; i++) out[i] = (int64_t)in[k] == i ? 1.0f : 0.0f;
        out += sizes[k];
    }
}
""",
    "standardize": """
/* (x - mean) / std, with arrays of n numbers (step 1) or of one (step 0). */
static void standardize_T(const T *in, const float *mean, const float *std, int32_t step, int32_t n, float *out) {
    for (int32_t i = 0; i < n; i++) out[i] = (float)((in[i] - mean[i * step]) / std[i * step]);
}
""",
    "clip": """
static void clip(const float *in, const float *low, const float *high, int32_t step, int32_t n, float *out) {
    for (int32_t i = 0; i < n; i++) out[i] = fminf(fmaxf(in[i], low[i * step]), high[i * step]);
}
""",
    "linear": """
/* weight: [inputs, outputs], so that the inner loop needs no sum in a fixed order. */
static void linear_T(const T *restrict in, const float *restrict weight, const float *restrict bias, int32_t inputs,
                     int32_t outputs, float *restrict out) {
    for (int32_t o = 0; o < outputs; o++) out[o] = bias[o];
    for (int32_t i = 0; i < inputs; i++) {
        const float x = (float)in[i];
        const float *row = weight + i * outputs;
        for (int32_t o = 0; o < outputs; o++) out[o] += x * row[o];
    }
}
""",
    "conv": """
/* Square kernels on [depth, height, width]; weight: [depth, kernel, kernel, channels]; out: [channels, rows, columns].
   `sum` has room for one number per channel. */
static void conv_T(const T *restrict in, const float *restrict weight, const float *restrict bias, int32_t depth,
                   int32_t height, int32_t width, int32_t channels, int32_t kernel, int32_t stride, int32_t padding,
                   float *restrict sum, float *restrict out) {
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
                        const float pixel = (float)in[(d * height + y) * width + x];
                        const float *row = weight + ((d * kernel + i) * kernel + j) * channels;
                        for (int32_t o = 0; o < channels; o++) sum[o] += pixel * row[o];
                    }
                }
            }
            for (int32_t o = 0; o < channels; o++) out[(o * rows + r) * columns + c] = sum[o];
        }
    }
}
""",
    "max_pool": """
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
""",
    "add": """
static void add(const float *a, const float *b, int32_t n, float *out) {
    for (int32_t i = 0; i < n; i++) out[i] = a[i] + b[i];
}
""",
    "multiply": """
static void multiply(const float *a, const float *b, int32_t n, float *out) {
    for (int32_t i = 0; i < n; i++) out[i] = a[i] * b[i];
}
""",
    "tree": """
static void tree_T(const float *in, const T *feature, const float *threshold, const T *left, const T *right,
                   const float *value, int32_t n, float *out) {
    int32_t node = 0;
    while (feature[node] >= 0) node = in[feature[node]] <= threshold[node] ? left[node] : right[node];
    for (int32_t i = 0; i < n; i++) out[i] = value[node * n + i];
}
""",
    "mask": """
static void mask_T(const float *in, const T *legal, float illegal, int32_t n, float *out) {
    for (int32_t i = 0; i < n; i++) out[i] = legal[i] != 0 ? in[i] : illegal;
}
""",
    "argmax": """
static int64_t argmax(const float *in, int32_t n) {
    int32_t best = 0;
    for (int32_t i = 1; i < n; i++)
        if (in[i] > in[best]) best = i;
    return best;
}
""",
}
"""Text of each operation."""
