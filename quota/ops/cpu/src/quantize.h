// One row of activations: rotate, find scale and zero point of every group, round.
//
//     scale = (max(x, 0) - min(x, 0)) / 15       zero = clamp(round(-8 - min(x, 0) / scale), -8, 7)
//     code  = clamp(round(x / scale + zero), -8, 7) - zero             rounding half to even, all in float32
//
// That is quota.quantization.integer.quantize_activation to the last bit. The rotation adds in the order of spans 1, 2,
// 4 ..., so that every V gives the same bits. V is one instruction set's vector of `width` floats, 8 or 16:
//
//     F                                  the vector, with the arithmetic operators
//     load, store, set, min, max         as named
//     butterfly<S>(x)                    lane i: x[i] + x[i + S], lane i + S: x[i] - x[i + S]
//     quotient(x, scale, inverse)        x / scale, correctly rounded, for scales from SAFE_LOW to SAFE_HIGH
//     least, most, has_nan               over the lanes
//     store_codes(out, x, zero)          x clamped, rounded and less zero as bytes, even lanes of every 8 first
#pragma once

#include "floats.h"

namespace {

constexpr float LARGEST = 0x1.fffffep127f, SMALLEST_NORMAL = 0x1p-126f, EPSILON = 0x1p-23f;
// Between these, nothing that a quotient is made of over- or underflows.
constexpr float SAFE_LOW = 0x1p-60f, SAFE_HIGH = 0x1p60f;

// To nearest, ties to even, for |x| < 2^22.
inline float round_even(float x) {
    const float shifted = x + 0x1.8p23f;
    return shifted - 0x1.8p23f;
}

// Rotates COUNT vectors: one block, or several within one vector. `out` may be x.
template <class V, int COUNT>
inline void rotate_vectors(const float* x, int64_t block, float norm, float* out) {
    typename V::F v[COUNT];
    for (int i = 0; i < COUNT; i++) {
        v[i] = V::load(x + i * V::width);
        if (block > 1) v[i] = V::template butterfly<1>(v[i]);
        if (block > 2) v[i] = V::template butterfly<2>(v[i]);
        if (block > 4) v[i] = V::template butterfly<4>(v[i]);
        if constexpr (V::width > 8) v[i] = V::template butterfly<8>(v[i]);
    }
    for (int span = 1; span < COUNT; span *= 2)
        for (int i = 0; i < COUNT; i++)
            if (!(i & span)) {
                const typename V::F a = v[i], b = v[i + span];
                v[i] = a + b;
                v[i + span] = a - b;
            }
    for (int i = 0; i < COUNT; i++) V::store(out + i * V::width, v[i] * norm);
}

// The activations' group of COUNT vectors x, to codes of which every CHUNK lie `step` bytes after those before; returns
// the scale. `watch` becomes NaN, and stays so, if x is not finite.
template <class V, int COUNT>
inline float quantize_vectors(const float* x, int8_t* codes, int64_t step, typename V::F& watch) {
    typename V::F v[COUNT], low = V::set(0), high = V::set(0);
    for (int i = 0; i < COUNT; i++) {
        v[i] = V::load(x + i * V::width);
        low = V::min(low, v[i]);
        high = V::max(high, v[i]);
        watch = watch + v[i] * 0.0f;
    }
    const float lowest = V::least(low);
    float scale = (V::most(high) - lowest) / 15;
    // All zeros, or only subnormal numbers: any scale will do, they become zero.
    if (scale < SMALLEST_NORMAL) scale = EPSILON;
    float zero = -8 - lowest / scale;
    zero = round_even(zero >= -8 ? zero > 7 ? 7 : zero : -8);

    const typename V::F divisor = V::set(scale);
    if (scale >= SAFE_LOW && scale <= SAFE_HIGH) {
        const typename V::F inverse = V::set(1 / scale);
        for (int i = 0; i < COUNT; i++) v[i] = V::quotient(v[i], divisor, inverse);
    } else {
        for (int i = 0; i < COUNT; i++) v[i] = v[i] / divisor;
    }
    for (int i = 0; i < COUNT; i++)
        V::store_codes(codes + i * V::width / CHUNK * step + i * V::width % CHUNK, v[i] + zero, int(zero));
    return scale;
}

// Blocks of COUNT vectors at most, and of the largest such number that fits.
template <class V, int COUNT = 256 / V::width>
inline void rotate_row(const float* x, int64_t columns, int64_t block, float norm, float* out) {
    if constexpr (COUNT > 1)
        if (block < COUNT * V::width) return rotate_row<V, COUNT / 2>(x, columns, block, norm, out);
    for (int64_t k = 0; k < columns; k += COUNT * V::width) rotate_vectors<V, COUNT>(x + k, block, norm, out + k);
}

template <class V, int COUNT = 256 / V::width>
inline bool quantize_row(const float* x, int64_t group, int64_t row, Activations& out) {
    if constexpr (COUNT > 1)
        if (group < COUNT * V::width) return quantize_row<V, COUNT / 2>(x, group, row, out);
    typename V::F watch = V::set(0);
    bool finite = true;
    const int64_t step = out.rows * CHUNK, scales = group / out.group;
    int8_t* codes = out.codes + row * CHUNK;
    float* scale = out.scale + row;
    for (int64_t k = 0; k < out.columns; k += group) {
        const float found = quantize_vectors<V, COUNT>(x + k, codes + k / CHUNK * step + k % CHUNK, step, watch);
        finite = finite && found <= LARGEST;
        for (int64_t i = 0; i < scales; i++, scale += out.rows) *scale = found;
    }
    return finite && !V::has_nan(watch);
}

inline void add_up_codes(int64_t row, Activations& out) {
    for (int64_t g = 0; g < out.groups; g++) {
        const int64_t channel = g * out.group;
        const int8_t* codes = out.codes + (channel / CHUNK * out.rows + row) * CHUNK + channel % CHUNK;
        int32_t sum = 0;
        for (int64_t i = 0; i < out.group; i++) sum += codes[i];
        out.offset[g * out.rows + row] = -8 * sum;
    }
}

// 1 / sqrt(block) in double precision, then rounded.
inline float norm_of(int64_t block) {
    double norm = 1;
    for (; block >= 4; block /= 4) norm /= 2;
    return float(block == 2 ? norm * 0x1.6a09e667f3bcdp-1 : norm);
}

// `hadamard` (0 and 1: no rotation) and `group` are powers of two up to 256. With vectors of 16, both are 16 or more, or
// the former is 0 or 1.
template <class V>
inline bool quantize(const void* x, FloatType type, int64_t hadamard, int64_t group, int64_t row, Activations& out,
                     float* buffer) {
    const float* floats = static_cast<const float*>(x);
    if (type != FLOAT32) {
        load_halves(static_cast<const uint16_t*>(x), type, out.columns, buffer);
        floats = buffer;
    }
    if (hadamard > 1) {
        rotate_row<V>(floats, out.columns, hadamard, norm_of(hadamard), buffer);
        floats = buffer;
    }
    const bool finite = quantize_row<V>(floats, group, row, out);
    add_up_codes(row, out);
    return finite;
}

}  // namespace
