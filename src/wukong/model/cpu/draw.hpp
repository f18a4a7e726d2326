// Sampling of the next token.

#pragma once

#include <algorithm>
#include <cmath>

#include "vectors.hpp"

namespace {

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
    float top = largest(tops);
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

}  // namespace
