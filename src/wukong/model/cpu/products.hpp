// Products of a few rows with a large matrix.
//
// A product of so few rows is bound by reading the matrix. So the matrix is stored in the order in which it is read, in
// panels as wide as a register: [N / WIDTH][K][WIDTH], float32 or bfloat16, the last panel padded with zeros. Arithmetic
// is float32. Each row is summed in the same order for any number of rows, so its result does not depend on the other
// rows, to the bit.

#pragma once

#include <algorithm>

#include "vectors.hpp"

namespace {

struct Matrix {
    const void* panels;
    const float* bias;  // padded to whole panels
};

enum class Activation { none, gelu, silu };

// y = activation(x W^T + bias) * factor + residual: x (M, K), W (N, K), the others (M, N). factor and residual may be
// absent, and each may be y.
struct Product {
    const float* x;
    Matrix matrix;
    Activation activation;
    const float *factor, *residual;
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
            const int64_t place = (first + r) * p.N + column;
            Floats y = sums[i][r] + load(p.matrix.bias + column);
            if (p.activation == Activation::gelu) y = gelu(y);
            if (p.activation == Activation::silu) y = silu(y);
            if (p.factor) y *= load(p.factor + place, count);
            if (p.residual) y += load(p.residual + place, count);
            store(p.y + place, y, count);
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

// columns: scratch of (M + 16) * K floats.
void multiply_all(const Product& p, int is_bfloat16, float* columns, int threads) {
    if (is_bfloat16)
        multiply_all(p, static_cast<const uint16_t*>(p.matrix.panels), columns, threads);
    else
        multiply_all(p, static_cast<const float*>(p.matrix.panels), columns, threads);
}

}  // namespace
