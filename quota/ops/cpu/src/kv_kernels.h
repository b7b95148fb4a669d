// KV4 storage: rotate, quantise and pack one head of one token, and the way back.
#pragma once

#include "kv.h"
#include "kv_vector.h"

namespace {

using quota::MAX_WIDTH;
using quota::PackedRows;

template <int span>
inline Floats butterfly(Floats v) {
    Floats sign;
    for (int lane = 0; lane < LANES; ++lane) sign[lane] = lane & span ? -1.0f : 1.0f;
    return fma(v, sign, swap_lanes<span>(v, Lanes{}));
}

// x H in blocks of `block` numbers, H Sylvester's matrix over sqrt(block): the fast transform. `width` may be padded to
// whole vectors.
inline void hadamard(float* x, int64_t width, int64_t block) {
    if (block <= 1) return;
    for (int64_t i = 0; i < width; i += LANES) {
        Floats v = load<Floats>(x + i);
        if (block > 1) v = butterfly<1>(v);
        if (block > 2) v = butterfly<2>(v);
        if constexpr (LANES > 4) {
            if (block > 4) v = butterfly<4 % LANES>(v);
        }
        if constexpr (LANES > 8) {
            if (block > 8) v = butterfly<8 % LANES>(v);
        }
        store(x + i, v);
    }
    for (int64_t span = LANES; span < block; span *= 2) {
        for (int64_t first = 0; first < width; first += 2 * span) {
            for (int64_t i = first; i < first + span; i += LANES) {
                const Floats a = load<Floats>(x + i), b = load<Floats>(x + i + span);
                store(x + i, a + b);
                store(x + i + span, a - b);
            }
        }
    }
    const float root = 1.0f / __builtin_sqrtf(float(block));
    for (int64_t i = 0; i < width; i += LANES) store(x + i, load<Floats>(x + i) * root);
}

// `rotated` has room for whole vectors.
inline void rotate_in(const void* x, int type, int64_t width, int64_t block, float* rotated) {
    with_type(type, [&](auto element) {
        using Type = decltype(element);
        load_row<Type>(static_cast<const typename Type::Stored*>(x), width, rotated);
    });
    for (int64_t i = width; i % LANES; ++i) rotated[i] = 0.0f;
    hadamard(rotated, width, block);
}

// The same the other way round; `rotated` has room for whole vectors and is overwritten.
inline void rotate_back(float* rotated, int64_t width, int64_t block, void* x, int type) {
    for (int64_t i = width; i % LANES; ++i) rotated[i] = 0.0f;
    hadamard(rotated, width, block);
    with_type(type, [&](auto element) {
        using Type = decltype(element);
        store_row<Type>(rotated, width, static_cast<typename Type::Stored*>(x));
    });
}

inline void rotate_out(const float* rotated, int64_t width, int64_t block, void* x, int type) {
    alignas(64) float buffer[MAX_WIDTH + LANES];
    std::memcpy(buffer, rotated, 4 * width);
    rotate_back(buffer, width, block, x, type);
}

// Bytes of one number each to bytes of two: lane i of the result is the low 16 bits of word i.
inline Words join_nibbles(Words q) {
    const Words pairs = (q | q >> 4) & 0x00ff00ffu;
    return pairs | pairs >> 8;
}

inline bool quantize(const void* x, int type, int64_t width, int64_t block, uint8_t* packed, uint16_t* scale_out,
                     uint16_t* zero_out) {
    alignas(64) float buffer[MAX_WIDTH + LANES];
    alignas(64) uint8_t q[MAX_WIDTH + 4 * LANES];
    rotate_in(x, type, width, block, buffer);
    // Whole vectors: repeat a number that is there already.
    for (int64_t i = width; i % LANES; ++i) buffer[i] = buffer[0];

    Floats low = load<Floats>(buffer), high = low, finite = {};
    for (int64_t i = 0; i < width; i += LANES) {
        const Floats v = load<Floats>(buffer + i);
        low = min(low, v);
        high = max(high, v);
        // Zero times infinity or NaN is NaN, which comparisons would lose.
        finite = fma(v, Floats{}, finite);
    }
    const float smallest = min_of(low), range = (max_of(high) - smallest) / 15.0f;
    // Of 0 and -0 the smallest is that which a lane happens to see first: both are stored as 0.
    const uint16_t scale_half = to_half(range < 0x1p-14f ? 0x1p-14f : range), zero_half = to_half(smallest + 0.0f);
    const bool stored = sum_of(finite) == 0.0f && (scale_half & 0x7c00u) != 0x7c00u && (zero_half & 0x7c00u) != 0x7c00u;
    if (!stored) return false;

    // Rounded against the stored scale and zero, not against the exact ones.
    const Floats scale = broadcast(from_half(scale_half)), zero = broadcast(from_half(zero_half));
    const Floats inverse = 1.0f / scale;
    for (int64_t i = 0; i < width; i += LANES) {
        const Floats level =
            min(max(quotient(load<Floats>(buffer + i) - zero, scale, inverse), Floats{}), broadcast(15.0f));
        const Words rounded = bits_of<Words>(level + ROUNDER) & 15u;
        store(q + i, __builtin_convertvector(rounded, Bytes));
    }
    int64_t i = 0;
    for (; i + 4 * LANES <= width; i += 4 * LANES) {
        store(packed + i / 2, __builtin_convertvector(join_nibbles(load<Words>(q + i)), Shorts));
    }
    for (; i < width; i += 2) packed[i / 2] = uint8_t(q[i] | q[i + 1] << 4);
    *scale_out = scale_half;
    *zero_out = zero_half;
    return true;
}

inline void dequantize(const PackedRows& rows, int64_t t, int64_t width, int64_t block, void* x, int type) {
    typedef uint32_t Eight __attribute__((vector_size(32)));
    typedef int32_t EightInts __attribute__((vector_size(32)));
    typedef float EightFloats __attribute__((vector_size(32)));
    alignas(64) float buffer[MAX_WIDTH + LANES];
    const Eight shifts = {0, 4, 8, 12, 16, 20, 24, 28};
    const uint8_t* packed = rows.packed + t * rows.packed_step;
    const float scale = from_half(rows.scale[t * rows.scale_step]), zero = from_half(rows.zero[t * rows.zero_step]);
    for (int64_t i = 0; i < width; i += 8) {
        uint32_t word;
        std::memcpy(&word, packed + i / 2, 4);
        const Eight q = (word - Eight{}) >> shifts & 15u;
        EightInts signed_q;
        std::memcpy(&signed_q, &q, sizeof q);
        store(buffer + i, __builtin_convertvector(signed_q, EightFloats) * scale + zero);
    }
    rotate_back(buffer, width, block, x, type);
}

}  // namespace
