// The operator in plain C++, for processors without AVX2; its loops are left to the compiler.
#include "quantize.h"

namespace {

struct Lanes {
    static constexpr int width = 8;
    typedef float F __attribute__((vector_size(32)));

    static F load(const float* x) {
        F v;
        std::memcpy(&v, x, sizeof v);
        return v;
    }
    static void store(float* out, F x) { std::memcpy(out, &x, sizeof x); }
    static F set(float x) { return F{x, x, x, x, x, x, x, x}; }
    static F min(F a, F b) { return a < b ? a : b; }
    static F max(F a, F b) { return a > b ? a : b; }
    template <int S>
    static F butterfly(F x) {
        F y;
        for (int i = 0; i < 8; i++) y[i] = i & S ? x[i ^ S] - x[i] : x[i] + x[i ^ S];
        return y;
    }
    static F quotient(F x, F scale, F) { return x / scale; }
    static float least(F x) {
        float found = x[0];
        for (int i = 1; i < 8; i++) found = x[i] < found ? x[i] : found;
        return found;
    }
    static float most(F x) { return -least(-x); }
    static bool has_nan(F x) {
        bool found = false;
        for (int i = 0; i < 8; i++) found = found || x[i] != x[i];
        return found;
    }
    static void store_codes(int8_t* out, F x, int zero) {
        for (int i = 0; i < 8; i++) {
            // NaN too becomes a number: no other has a defined integer.
            const float within = x[i] >= -8 ? x[i] > 7 ? 7 : x[i] : -8;
            out[i / 2 + i % 2 * 4] = int8_t(int(round_even(within)) - zero);
        }
    }
};

}  // namespace

bool quantize_portable(const void* x, FloatType type, int64_t hadamard, int64_t group, int64_t row, Activations& out,
                       float* buffer) {
    return quantize<Lanes>(x, type, hadamard, group, row, out, buffer);
}

namespace {

// One group of one output in the order of the codes, less 8.
inline void unpack(const uint8_t* packed, int64_t group, int8_t* out) {
    for (int64_t i = 0; i < group; i += 8)
        for (int64_t j = 0; j < 4; j++) {
            const uint8_t pair = packed[i / 2 + j];
            out[i + j] = int8_t((pair & 15) - 8);
            out[i + 4 + j] = int8_t((pair >> 4) - 8);
        }
}

inline int32_t dot(const int8_t* a, const int8_t* b, int64_t count) {
    int32_t sum = 0;
    for (int64_t i = 0; i < count; i++) sum += a[i] * b[i];
    return sum;
}

}  // namespace

void multiply_portable(const Activations& x, const Weights& w, const Result& out, int64_t first) {
    const int64_t count = w.outputs - first < BLOCK_PORTABLE ? w.outputs - first : BLOCK_PORTABLE;
    float y[MOST_ROWS][BLOCK_PORTABLE] = {};
    for (int64_t i = 0; i < count; i++) {
        const int64_t n = first + i;
        for (int64_t g = 0; g < x.groups; g++) {
            int8_t weights[CHUNK];
            unpack(w.packed + (n * x.columns + g * x.group) / 2, x.group, weights);
            const float weight_scale = from_bfloat16(w.scale[n * w.scales + g / w.groups_per_scale]);
            const int64_t channel = g * x.group;
            const int8_t* codes = x.codes + channel / CHUNK * x.rows * CHUNK + channel % CHUNK;
            for (int64_t m = 0; m < x.rows; m++) {
                const int32_t sum = dot(codes + m * CHUNK, weights, x.group);
                if (out.sums)
                    out.sums[(m * w.outputs + n) * x.groups + g] = sum;
                else
                    y[m][i] += float(sum) * (weight_scale * x.scale[g * x.rows + m]);
            }
        }
    }
    if (out.sums) return;
    for (int64_t m = 0; m < x.rows; m++) store_row(out, w, m, first, count, y[m]);
}
