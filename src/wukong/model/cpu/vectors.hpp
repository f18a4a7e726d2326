// Vectors as wide as a register: loading and storing, exp, activations, sums. They use the compiler's vector_size (GCC
// and clang): one source for AVX2 and AVX-512.

#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

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

Floats silu(Floats x) { return x / (exponential(-x) + 1.0f); }

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

float largest(Floats x) {
    float top = x[0];
    for (int i = 1; i < WIDTH; i++) top = x[i] > top ? x[i] : top;
    return top;
}

}  // namespace
