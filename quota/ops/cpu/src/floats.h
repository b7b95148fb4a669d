// Reading and writing the three float types. No instruction set is assumed; compilers vectorise the loops.
//
// Everything is in an unnamed namespace: each kernel file is compiled for its own processor, and a linker that merged
// their copies of a function could run AVX-512 on a machine without it. For the same reason kernel files use no function
// of the standard library.
#pragma once

#include <cstdint>
#include <cstring>

#include "linear.h"

namespace {

inline float float_of(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline uint32_t bits_of(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

inline float from_bfloat16(uint16_t x) { return float_of(uint32_t(x) << 16); }

inline float from_float16(uint16_t x) {
    // Exponent and mantissa moved into place are 2^112 times too small, also where they are subnormal.
    const uint32_t size = (x & 0x7fffu) << 13;
    const uint32_t special = size >= 0x0f800000u ? size | 0x7f800000u : bits_of(float_of(size) * 0x1p112f);
    return float_of(special | uint32_t(x & 0x8000u) << 16);
}

// To nearest, ties to even.
inline uint16_t to_bfloat16(float value) {
    const uint32_t bits = bits_of(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fc0;
    return uint16_t((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

inline uint16_t to_float16(float value) {
    const uint32_t bits = bits_of(value), sign = bits >> 16 & 0x8000u, size = bits & 0x7fffffffu;
    if (size > 0x7f800000u) return uint16_t(sign | 0x7e00u);
    if (size >= 0x477ff000u) return uint16_t(sign | 0x7c00u);
    // Below 2^-14 the addition leaves multiples of 2^-24, rounded to even, in the low bits.
    if (size < 0x38800000u) return uint16_t(sign | (bits_of(float_of(size) + 0.5f) - 0x3f000000u));
    return uint16_t(sign | (size - 0x38000000u + 0xfffu + (size >> 13 & 1u)) >> 13);
}

// One number of any type.
inline float load_float(const char* x, FloatType type) {
    if (type == FLOAT32) {
        float value;
        std::memcpy(&value, x, sizeof value);
        return value;
    }
    uint16_t half;
    std::memcpy(&half, x, sizeof half);
    return type == BFLOAT16 ? from_bfloat16(half) : from_float16(half);
}

// Numbers [at, at + count) of y, of any type.
inline void store_floats(void* y, FloatType type, int64_t at, int64_t count, const float* values) {
    if (type == FLOAT32) {
        std::memcpy(static_cast<float*>(y) + at, values, count * sizeof(float));
        return;
    }
    uint16_t* halves = static_cast<uint16_t*>(y) + at;
    if (type == BFLOAT16) {
        for (int64_t i = 0; i < count; i++) halves[i] = to_bfloat16(values[i]);
    } else {
        for (int64_t i = 0; i < count; i++) halves[i] = to_float16(values[i]);
    }
}

}  // namespace
