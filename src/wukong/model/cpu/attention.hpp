// Normalisation, rotary positions, and attention of one new token per sequence, whose query heads may share key-value
// heads. Each sequence is computed in the same order whatever its company.

#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "vectors.hpp"

namespace {

struct Norm {
    const float *weight, *bias;  // without a bias: RMSNorm
};

// LayerNorm of K numbers, a multiple of 16.
void layer_norm(const float* x, const Norm& norm, float epsilon, float* y, int64_t K) {
    Floats sums = {}, squares = {};
    for (int64_t k = 0; k < K; k += WIDTH) sums += load(x + k);
    const float mean = sum(sums) / K;
    for (int64_t k = 0; k < K; k += WIDTH) squares += (load(x + k) - mean) * (load(x + k) - mean);
    const float factor = 1 / std::sqrt(sum(squares) / K + epsilon);
    for (int64_t k = 0; k < K; k += WIDTH)
        store(y + k, (load(x + k) - mean) * factor * load(norm.weight + k) + load(norm.bias + k));
}

// RMSNorm of K numbers, a multiple of 16. y may be x.
void rms_norm(const float* x, const float* weight, float epsilon, float* y, int64_t K) {
    Floats squares = {};
    for (int64_t k = 0; k < K; k += WIDTH) squares += load(x + k) * load(x + k);
    const float factor = 1 / std::sqrt(sum(squares) / K + epsilon);
    for (int64_t k = 0; k < K; k += WIDTH) store(y + k, load(x + k) * factor * load(weight + k));
}

// M rows of K.
void normalise(const float* x, const Norm& norm, float epsilon, float* y, int64_t M, int64_t K, int threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t m = 0; m < M; m++)
        if (norm.bias)
            layer_norm(x + m * K, norm, epsilon, y + m * K, K);
        else
            rms_norm(x + m * K, norm.weight, epsilon, y + m * K, K);
}

// What queries and keys go through before their product, where the model has it.
struct Positions {
    const float *q_norm, *k_norm;   // (D), weights of RMSNorm
    const float *cosines, *sines;  // (B, D / 2): number i and number i + D / 2 of a head are turned by an angle
    float epsilon;
};

template <typename Cached>
struct Attention {
    float* qkv;  // (B, H + 2 * G, D): the new token's queries, keys and values
    Positions positions;
    Cached *keys, *values;  // (B, G, S, D)
    const int64_t* lengths;
    float* y;            // (B, H, D)
    int64_t B, H, G, S;  // H query heads; each of the G key-value heads serves H / G of them
};

template <int D>
void position(const Positions& p, int64_t b, const float* norm, float* head) {
    if (norm) rms_norm(head, norm, p.epsilon, head, D);
    if (!p.cosines) return;
    const float *cosines = p.cosines + b * (D / 2), *sines = p.sines + b * (D / 2);
    for (int i = 0; i < D / 2; i++) {
        const float first = head[i], second = head[i + D / 2];
        head[i] = first * cosines[i] - second * sines[i];
        head[i + D / 2] = second * cosines[i] + first * sines[i];
    }
}

// Turns n scores into weights and returns their sum. The WIDTH numbers behind them are overwritten.
float softmax(float* scores, int64_t n) {
    std::fill_n(scores + n, WIDTH, -INFINITY);
    Floats tops = Floats{} - INFINITY, totals = {};
    for (int64_t s = 0; s < n; s += WIDTH) {
        const Floats x = load(scores + s);
        tops = x > tops ? x : tops;
    }
    const float top = largest(tops);
    for (int64_t s = 0; s < n; s += WIDTH) {
        const Floats weights = exponential(load(scores + s) - top);
        store(scores + s, weights);
        totals += weights;
    }
    return sum(totals);
}

// One key-value head of one sequence, and its queries; a head is V vectors wide. The queries go through keys and values
// together, in blocks that stay in the first cache. scores: scratch of (H / G) * (S + WIDTH + 1) floats.
template <int V, typename Cached>
void attend(const Attention<Cached>& a, int64_t row, float* scores) {
    constexpr int D = V * WIDTH;
    constexpr int64_t BLOCK = 4096 / D;
    const int64_t b = row / a.G, g = row % a.G, n = a.lengths[b] + 1, queries = a.H / a.G, room = a.S + WIDTH;
    float *q = a.qkv + (b * (a.H + 2 * a.G) + g * queries) * D, *k = a.qkv + (b * (a.H + 2 * a.G) + a.H + g) * D;
    float *y = a.y + row * queries * D, *totals = scores + queries * room;
    Cached *keys = a.keys + row * a.S * D, *values = a.values + row * a.S * D;
    for (int64_t h = 0; h < queries; h++) position<D>(a.positions, b, a.positions.q_norm, q + h * D);
    position<D>(a.positions, b, a.positions.k_norm, k);
    for (int i = 0; i < D; i += WIDTH) {
        store(keys + (n - 1) * D + i, load(k + i));
        store(values + (n - 1) * D + i, load(k + a.G * D + i));
    }
    for (int64_t first = 0; first < n; first += BLOCK)
        for (int64_t h = 0; h < queries; h++)
            for (int64_t s = first; s < std::min(n, first + BLOCK); s++) {
                Floats products = {};
#pragma GCC unroll 16
                for (int i = 0; i < V; i++) products += load(q + h * D + i * WIDTH) * load(keys + s * D + i * WIDTH);
                scores[h * room + s] = sum(products) / std::sqrt(static_cast<float>(D));
            }
    for (int64_t h = 0; h < queries; h++) totals[h] = softmax(scores + h * room, n);
    std::fill_n(y, queries * D, 0.0f);
    for (int64_t first = 0; first < n; first += BLOCK)
        for (int64_t h = 0; h < queries; h++) {
            Floats means[V];
#pragma GCC unroll 16
            for (int i = 0; i < V; i++) means[i] = load(y + h * D + i * WIDTH);
            for (int64_t s = first; s < std::min(n, first + BLOCK); s++)
#pragma GCC unroll 16
                for (int i = 0; i < V; i++) means[i] += scores[h * room + s] * load(values + s * D + i * WIDTH);
#pragma GCC unroll 16
            for (int i = 0; i < V; i++) store(y + h * D + i * WIDTH, means[i]);
        }
    for (int64_t h = 0; h < queries; h++)
        for (int i = 0; i < D; i += WIDTH) store(y + h * D + i, load(y + h * D + i) / totals[h]);
}

// Searches V from 1 upwards.
template <int V = 1, typename Cached>
void attend_all(const Attention<Cached>& a, int64_t D, int threads) {
    if constexpr (V * WIDTH < 128)
        if (D > V * WIDTH) return attend_all<V + 1>(a, D, threads);
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> scores(a.H / a.G * (a.S + WIDTH + 1));
#pragma omp for schedule(dynamic, 2)
        for (int64_t row = 0; row < a.B * a.G; row++) attend<V>(a, row, scores.data());
    }
}

}  // namespace
