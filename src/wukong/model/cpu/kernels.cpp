// One step of decoding on a CPU: a layer of a language model for one new token of each sequence, and sampling of the next
// token; and GELU, also for training. What the functions do is in the files that are included here.
//
// Compiled on first use by kernels.py.

#include "attention.hpp"
#include "draw.hpp"
#include "products.hpp"
#include "vectors.hpp"

namespace {

// A layer of GPT-2 or Llama: C channels, H query heads and G key-value heads of width D, I columns inside the MLP.
// C and D are multiples of 16, D is at most 128.
struct Layer {
    Norm before_attention, before_mlp;
    Matrix qkv, attention_out;         // qkv: all queries, all keys, all values
    Matrix mlp_gate, mlp_in, mlp_out;  // without a gate: GELU
    const float *q_norm, *k_norm;      // RMSNorm of queries and keys (D), or absent
    int64_t C, H, G, D, I;
    float epsilon;
    int is_bfloat16;  // panels, and the cache

    int64_t qkv_width() const { return (H + 2 * G) * D; }
    int64_t narrow() const { return std::max(C, H * D); }  // of what attention reads and writes
    int64_t wide() const { return std::max(qkv_width(), I); }
};

}  // namespace

extern "C" {

int wukong_width() { return WIDTH; }

// x (M, K), W (N, K) -> y (M, N). columns: scratch of (M + 16) * K floats.
void wukong_linear(const float* x, const Matrix* matrix, int is_bfloat16, float* y, float* columns, int64_t M, int64_t K,
                   int64_t N, int threads) {
    multiply_all({x, *matrix, Activation::none, nullptr, nullptr, y, M, K, N}, is_bfloat16, columns, threads);
}

// Floats of scratch memory that `wukong_layer` needs for B sequences.
int64_t wukong_scratch(const Layer* layer, int64_t B) {
    return B * (layer->narrow() + layer->wide()) + (B + 16) * std::max(layer->narrow(), layer->I);
}

// A layer for one new token of each of B sequences: x (B, C) becomes its output. Its keys and values are appended to the
// lengths[b] tokens already in keys and values (B, G, S, D). cosines and sines (B, D / 2) of the new tokens' rotary
// positions, or absent. Returns -1, or the first row without a free slot for the new token, in which case nothing was
// written.
int64_t wukong_layer(const Layer* layer, float* x, void* keys, void* values, const int64_t* lengths, const float* cosines,
                     const float* sines, float* scratch, int64_t B, int64_t S, int threads) {
    for (int64_t b = 0; b < B; b++)
        if (lengths[b] < 0 || lengths[b] >= S) return b;
    const int64_t C = layer->C, H = layer->H, G = layer->G, D = layer->D, I = layer->I;
    float *narrow = scratch, *wide = narrow + B * layer->narrow(), *columns = wide + B * layer->wide();
    const auto product = [=](const Product& p) { multiply_all(p, layer->is_bfloat16, columns, threads); };
    const auto attention = [=](auto* k, auto* v) {
        const Positions positions{layer->q_norm, layer->k_norm, cosines, sines, layer->epsilon};
        const Attention<std::remove_pointer_t<decltype(k)>> a{wide, positions, k, v, lengths, narrow, B, H, G, S};
        attend_all(a, D, threads);
    };
    normalise(x, layer->before_attention, layer->epsilon, narrow, B, C, threads);
    product({narrow, layer->qkv, Activation::none, nullptr, nullptr, wide, B, C, layer->qkv_width()});
    if (layer->is_bfloat16)
        attention(static_cast<uint16_t*>(keys), static_cast<uint16_t*>(values));
    else
        attention(static_cast<float*>(keys), static_cast<float*>(values));
    product({narrow, layer->attention_out, Activation::none, nullptr, x, x, B, H * D, C});
    normalise(x, layer->before_mlp, layer->epsilon, narrow, B, C, threads);
    if (layer->mlp_gate.panels) {
        product({narrow, layer->mlp_in, Activation::none, nullptr, nullptr, wide, B, C, I});
        product({narrow, layer->mlp_gate, Activation::silu, wide, nullptr, wide, B, C, I});
    } else {
        product({narrow, layer->mlp_in, Activation::gelu, nullptr, nullptr, wide, B, C, I});
    }
    product({wide, layer->mlp_out, Activation::none, nullptr, x, x, B, I, C});
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
