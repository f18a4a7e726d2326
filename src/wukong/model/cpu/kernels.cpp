// One step of decoding on a CPU: products of a few rows with large matrices, attention for one new token per row,
// sampling of the next token; and GELU, also for training.
//
// A product of so few rows is bound by reading the matrix. So the matrix is stored in the order in which it is read, in
// panels as wide as a register: [N / WIDTH][K][WIDTH], float32 or bfloat16, the last panel padded with zeros. Arithmetic
// is float32. Each row is summed in the same order for any number of rows, so its result does not depend on the other
// rows, to the bit.
//
// Compiled on first use by kernels.py. Vectors use the compiler's vector_size (GCC and clang): one source for AVX2 and
// AVX-512.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

namespace {

#ifdef __AVX512F__
constexpr int WIDTH = 16, REGISTERS = 32;
#else
constexpr int WIDTH = 8, REGISTERS = 16;
#endif
typedef float Floats __attribute__((vector_size(4 * WIDTH)));
typedef int32_t Ints __attribute__((vector_size(4 * WIDTH)));
typedef uint32_t Bits __attribute__((vector_size(4 * WIDTH)));
typedef uint16_t Halves __attribute__((vector_size(2 * WIDTH)));

Floats load(const float* from) {
    Floats to;
    std::memcpy(&to, from, sizeof to);
    return to;
}

Floats load(const float* from, int64_t count) {
    Floats to = {};
    std::memcpy(&to, from, 4 * count);
    return to;
}

Floats load(const uint16_t* from) {  // bfloat16: the upper half of a float
    Halves halves;
    std::memcpy(&halves, from, sizeof halves);
    const Bits bits = __builtin_convertvector(halves, Bits) << 16;
    Floats to;
    std::memcpy(&to, &bits, sizeof to);
    return to;
}

void store(float* to, Floats from, int64_t count = WIDTH) { std::memcpy(to, &from, 4 * count); }

void store(uint16_t* to, Floats from) {  // rounded to nearest even
    Bits bits;
    std::memcpy(&bits, &from, sizeof bits);
    const Halves halves = __builtin_convertvector((bits + 0x7fff + ((bits >> 16) & 1)) >> 16, Halves);
    std::memcpy(to, &halves, sizeof halves);
}

// exp to about 1e-7 of its value, after Cephes (Moshier): 2^n times a polynomial of the remainder.
Floats exponential(Floats x) {
    x = x > 88.0f ? Floats{} + 88.0f : x;
    x = x < -87.0f ? Floats{} - 87.0f : x;
    const Floats magic = Floats{} + 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
    const Floats n = (x * 1.44269504f + magic) - magic;
    const Floats r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    Floats y = r * 1.9875691500e-4f + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * r * r + r + 1.0f;
    const Ints power = (__builtin_convertvector(n, Ints) + 127) << 23;
    Floats scale;
    std::memcpy(&scale, &power, sizeof scale);
    return y * scale;
}

Floats gelu(Floats x) {  // x/2 (1 + tanh u) = x / (1 + exp(-2u))
    return x / (exponential((x + 0.044715f * x * x * x) * -1.59576912f) + 1.0f);
}

Floats gelu_slope(Floats x) {
    const Floats s = 1.0f / (exponential((x + 0.044715f * x * x * x) * -1.59576912f) + 1.0f);
    return s + x * s * (1.0f - s) * (1.59576912f + 0.21406859f * x * x);
}

// Applies f to n elements, vector by vector; the last vector may be partial.
template <typename F>
void elementwise(int64_t n, int threads, F f) {
#pragma omp parallel for schedule(static) num_threads(n < 16384 ? 1 : threads)
    for (int64_t i = 0; i < n / WIDTH; i++) f(i * WIDTH, std::integral_constant<int64_t, WIDTH>{});
    if (n % WIDTH) f(n - n % WIDTH, n % WIDTH);
}

float sum(Floats x) {
    for (int half = WIDTH / 2; half; half /= 2)
        for (int i = 0; i < half; i++) x[i] += x[i + half];
    return x[0];
}

struct Product {  // y = x W^T + bias, through GELU, plus residual
    const float *x, *bias, *residual;
    bool through_gelu;
    float* y;
    int64_t M, K, N;
};

// Rows first .. first + rows of x, transposed to (K, R); missing rows are 0.
template <int R>
void transpose(const Product& p, int64_t first, int64_t k, int64_t end, float* columns) {
    for (int r = 0; r < R; r++) {
        const float* row = p.x + (first + r) * p.K;
        if (first + r < p.M)
            for (int64_t i = k; i < end; i++) columns[i * R + r] = row[i];
        else
            for (int64_t i = k; i < end; i++) columns[i * R + r] = 0.0f;
    }
}

// The results of the same rows for P adjacent panels. During the first P groups of rows the next P panels are
// prefetched.
template <int R, int P, typename Weight>
void multiply(const Product& p, int64_t first, const float* columns, const Weight* panels, int64_t column) {
    Floats sums[P][R] = {};
    const Weight *panel = panels + column * p.K, *next = panel + (P + first / R) * p.K * WIDTH;
    const bool fetch = first / R < P;
#pragma GCC unroll 2
    for (int64_t k = 0; k < p.K; k++, panel += WIDTH, columns += R) {
        if (fetch) __builtin_prefetch(next + k * WIDTH, 0, 2);
        Floats weights[P];
#pragma GCC unroll 4
        for (int i = 0; i < P; i++) weights[i] = load(panel + i * p.K * WIDTH);
#pragma GCC unroll 16
        for (int r = 0; r < R; r++)
#pragma GCC unroll 4
            for (int i = 0; i < P; i++) sums[i][r] += columns[r] * weights[i];
    }
#pragma GCC unroll 4
    for (int i = 0; i < P; i++, column += WIDTH) {
        const int64_t count = std::min<int64_t>(WIDTH, p.N - column);
#pragma GCC unroll 16
        for (int r = 0; r < R; r++) {
            if (first + r >= p.M) break;
            Floats y = sums[i][r] + load(p.bias + column);
            if (p.through_gelu) y = gelu(y);
            if (p.residual) y += load(p.residual + (first + r) * p.N + column, count);
            store(p.y + (first + r) * p.N + column, y, count);
        }
    }
}

// R rows at a time, and P panels.
template <int R, int P, typename Weight>
void multiply_all(const Product& p, const Weight* panels, float* columns, int threads) {
    constexpr int64_t SPAN = 32;
    const int64_t count = (p.N + WIDTH - 1) / WIDTH;
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (int64_t k = 0; k < p.K; k += SPAN)
            for (int64_t first = 0; first < p.M; first += R)
                transpose<R>(p, first, k, std::min(p.K, k + SPAN), columns + first * p.K);
#pragma omp for schedule(static)
        for (int64_t panel = 0; panel < count; panel += P)
            for (int64_t first = 0; first < p.M; first += R)
                if (panel + P <= count)
                    multiply<R, P>(p, first, columns + first * p.K, panels, panel * WIDTH);
                else
                    for (int64_t last = panel; last < count; last++)
                        multiply<R, 1>(p, first, columns + first * p.K, panels, last * WIDTH);
    }
}

// Registers hold the sums of many rows, or of several panels for few rows.
template <typename Weight>
void multiply_all(const Product& p, const Weight* panels, float* columns, int threads) {
    if (p.M == 1) return multiply_all<1, 4>(p, panels, columns, threads);
    if (p.M == 2) return multiply_all<2, 4>(p, panels, columns, threads);
    if (p.M <= 4) return multiply_all<4, 2>(p, panels, columns, threads);
    if constexpr (REGISTERS < 32) return multiply_all<6, 2>(p, panels, columns, threads);
    if (p.M <= 8) return multiply_all<8, 1>(p, panels, columns, threads);
    if constexpr (sizeof(Weight) == sizeof(float))
        if (p.M > 16) return multiply_all<8, 3>(p, panels, columns, threads);
    multiply_all<16, 1>(p, panels, columns, threads);  // converting to float32 should serve many rows
}

// LayerNorm of M rows of K, a multiple of 16.
void normalise(const float* x, const float* weight, const float* bias, float epsilon, float* y, int64_t M, int64_t K,
               int threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t m = 0; m < M; m++) {
        const float* row = x + m * K;
        Floats sums = {}, squares = {};
        for (int64_t k = 0; k < K; k += WIDTH) sums += load(row + k);
        const float mean = sum(sums) / K;
        for (int64_t k = 0; k < K; k += WIDTH) squares += (load(row + k) - mean) * (load(row + k) - mean);
        const float factor = 1 / std::sqrt(sum(squares) / K + epsilon);
        for (int64_t k = 0; k < K; k += WIDTH)
            store(y + m * K + k, (load(row + k) - mean) * factor * load(weight + k) + load(bias + k));
    }
}

template <typename Cached>
struct Attention {
    const float* qkv;
    Cached *keys, *values;
    const int64_t* lengths;
    float* y;
    int64_t B, H, S;
};

// One head of one sequence; a head is V vectors wide.
template <int V, typename Cached>
void attend(const Attention<Cached>& a, int64_t row, float* scores) {
    constexpr int D = V * WIDTH;
    const int64_t b = row / a.H, n = a.lengths[b] + 1;
    const float* q = a.qkv + (b * 3 * a.H + row % a.H) * D;
    Cached *keys = a.keys + row * a.S * D, *values = a.values + row * a.S * D;
    for (int i = 0; i < D; i += WIDTH) {
        store(keys + (n - 1) * D + i, load(q + a.H * D + i));
        store(values + (n - 1) * D + i, load(q + 2 * a.H * D + i));
    }
    float top = -INFINITY;
    for (int64_t s = 0; s < n; s++) {
        Floats products = {};
#pragma GCC unroll 16
        for (int i = 0; i < V; i++) products += load(q + i * WIDTH) * load(keys + s * D + i * WIDTH);
        scores[s] = sum(products) / std::sqrt(static_cast<float>(D));
        top = std::max(top, scores[s]);
    }
    std::fill_n(scores + n, WIDTH, -INFINITY);
    Floats totals = {}, means[V] = {};
    for (int64_t s = 0; s < n; s += WIDTH) {
        const Floats weights = exponential(load(scores + s) - top);
        store(scores + s, weights);
        totals += weights;
    }
    const float total = sum(totals);
    for (int64_t s = 0; s < n; s++)
#pragma GCC unroll 16
        for (int i = 0; i < V; i++) means[i] += scores[s] * load(values + s * D + i * WIDTH);
#pragma GCC unroll 16
    for (int i = 0; i < V; i++) store(a.y + row * D + i * WIDTH, means[i] / total);
}

// Searches V from 1 upwards.
template <int V = 1, typename Cached>
void attend_all(const Attention<Cached>& a, int64_t D, int threads) {
    if constexpr (V * WIDTH < 128)
        if (D > V * WIDTH) return attend_all<V + 1>(a, D, threads);
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> scores(a.S + WIDTH);
#pragma omp for schedule(dynamic, 4)
        for (int64_t row = 0; row < a.B * a.H; row++) attend<V>(a, row, scores.data());
    }
}

// A token by inverse-CDF sampling in two levels, first a block of tokens and then a token in it, as `rollout.draw`:
// here the weights are never stored. At temperature 0 the most likely token. Also gives its log-prob at that
// temperature (1 for 0).
void draw(const float* logits, int64_t V, float temperature, float noise, float* sums, int64_t* token, float* logprob) {
    constexpr int BLOCK = 4 * WIDTH;
    const Floats nothing = Floats{} - INFINITY;
    Floats tops = nothing;
    for (int64_t i = 0; i + WIDTH <= V; i += WIDTH) {
        const Floats x = load(logits + i);
        tops = x > tops ? x : tops;
    }
    float top = -INFINITY;
    for (int i = 0; i < WIDTH; i++) top = std::max(top, tops[i]);
    for (int64_t i = V - V % WIDTH; i < V; i++) top = std::max(top, logits[i]);

    const float factor = 1 / (temperature > 0 ? temperature : 1);
    const auto weights = [=](int64_t i) {  // of the tokens from i on
        Floats x = nothing;
        if (i + WIDTH <= V)
            x = load(logits + i);
        else
            for (int64_t j = i; j < V; j++) x[j - i] = logits[j];
        const Floats power = (x - top) * factor;
        return power < -87.0f ? Floats{} : exponential(power);
    };
    const int64_t blocks = (V + BLOCK - 1) / BLOCK;
    double total = 0;
    for (int64_t block = 0; block < blocks; block++) {
        Floats parts = {};
        for (int i = 0; i < BLOCK; i += WIDTH) parts += weights(block * BLOCK + i);
        sums[block] = sum(parts);
        total += sums[block];
    }
    // The first whose running sum exceeds the target; if rounding leaves none, the last with nonzero weight.
    double rest = noise * total;
    int64_t chosen = 0;
    for (int64_t block = 0; block < blocks; block++) {
        if (sums[block] > 0) chosen = block;
        if (rest < sums[block]) break;
        if (block + 1 < blocks) rest -= sums[block];
    }
    *token = chosen * BLOCK;
    bool found = false;
    for (int i = 0; i < BLOCK && !found; i += WIDTH) {
        const Floats w = weights(chosen * BLOCK + i);
        for (int j = 0; j < WIDTH && !found; j++) {
            if (w[j] > 0) *token = chosen * BLOCK + i + j;
            found = rest < w[j];
            rest -= w[j];
        }
    }
    if (temperature == 0) *token = std::max_element(logits, logits + V) - logits;
    *logprob = (logits[*token] - top) * factor - static_cast<float>(std::log(total));
}

struct Matrix {
    const void* panels;
    const float* bias;  // padded to whole panels
};

// columns: scratch of (M + 16) * K floats.
void linear(const Product& p, const void* panels, int is_bfloat16, float* columns, int threads) {
    if (is_bfloat16)
        multiply_all(p, static_cast<const uint16_t*>(panels), columns, threads);
    else
        multiply_all(p, static_cast<const float*>(panels), columns, threads);
}

}  // namespace

extern "C" {

int wukong_width() { return WIDTH; }

struct Layer {
    const float *ln_1_weight, *ln_1_bias, *ln_2_weight, *ln_2_bias;
    Matrix qkv, attention_out, mlp_in, mlp_out;
    float epsilon;
    int is_bfloat16;  // panels, and the cache
};

// x (M, K), W (N, K) -> y (M, N).
void wukong_linear(const float* x, const Matrix* matrix, int is_bfloat16, float* y, float* columns, int64_t M, int64_t K,
                   int64_t N, int threads) {
    linear({x, matrix->bias, nullptr, false, y, M, K, N}, matrix->panels, is_bfloat16, columns, threads);
}

// A layer of GPT-2 for one new token of each of B sequences: x (B, H * D) becomes its output. Its keys and values are
// appended to the lengths[b] tokens already in keys and values (B, H, S, D); D is a multiple of 16 up to 128.
// scratch: (B + 16) * 10 * H * D floats. Returns -1, or the first row without a free slot for the new token,
// in which case nothing was written.
int64_t wukong_layer(const Layer* layer, float* x, void* keys, void* values, const int64_t* lengths, float* scratch,
                     int64_t B, int64_t H, int64_t S, int64_t D, int threads) {
    for (int64_t b = 0; b < B; b++)
        if (lengths[b] < 0 || lengths[b] >= S) return b;
    const int64_t C = H * D;
    float *narrow = scratch, *columns = narrow + B * C, *wide = columns + (B + 16) * 4 * C;
    const auto product = [=](const float* from, const Matrix& matrix, const float* residual, bool through_gelu, float* to,
                             int64_t K, int64_t N) {
        const Product p{from, matrix.bias, residual, through_gelu, to, B, K, N};
        linear(p, matrix.panels, layer->is_bfloat16, columns, threads);
    };
    normalise(x, layer->ln_1_weight, layer->ln_1_bias, layer->epsilon, narrow, B, C, threads);
    product(narrow, layer->qkv, nullptr, false, wide, C, 3 * C);
    if (layer->is_bfloat16) {
        auto *k = static_cast<uint16_t*>(keys), *v = static_cast<uint16_t*>(values);
        attend_all(Attention<uint16_t>{wide, k, v, lengths, narrow, B, H, S}, D, threads);
    } else {
        auto *k = static_cast<float*>(keys), *v = static_cast<float*>(values);
        attend_all(Attention<float>{wide, k, v, lengths, narrow, B, H, S}, D, threads);
    }
    product(narrow, layer->attention_out, x, false, x, C, C);
    normalise(x, layer->ln_2_weight, layer->ln_2_bias, layer->epsilon, narrow, B, C, threads);
    product(narrow, layer->mlp_in, nullptr, true, wide, C, 4 * C);
    product(wide, layer->mlp_out, x, false, x, 4 * C, C);
    return -1;
}

// A token for each row of logits (B, V), and its log-prob, both (B).
void wukong_draw(const float* logits, const float* temperatures, const float* noise, int64_t* tokens, float* logprobs,
                 int64_t B, int64_t V, int threads) {
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> sums(V / WIDTH + 1);
#pragma omp for
        for (int64_t b = 0; b < B; b++)
            draw(logits + b * V, V, temperatures[b], noise[b], sums.data(), tokens + b, logprobs + b);
    }
}

// Tanh GELU, x (n) -> y (n), and its derivative times the gradient.
void wukong_gelu(const float* x, float* y, int64_t n, int threads) {
    elementwise(n, threads, [=](int64_t i, auto count) { store(y + i, gelu(load(x + i, count)), count); });
}

void wukong_gelu_backward(const float* gradient, const float* x, float* y, int64_t n, int threads) {
    elementwise(n, threads, [=](int64_t i, auto count) {
        store(y + i, load(gradient + i, count) * gelu_slope(load(x + i, count)), count);
    });
}

}  // extern "C"
