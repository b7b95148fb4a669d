// How far the activation quantiser moves a token: the definition of quota.quantization.integer.quantize_activation,
// summed up without storing what it makes.
//
//     scale = (max(x, 0) - min(x, 0)) / (2^bits - 1)       zero = round(-shift - min(x, 0) / scale)      shift =
//     2^(bits-1) error = scale * (clamp(round(x / scale + zero), -shift, shift - 1) - zero) - x
#pragma once

#include "kv_kernels.h"

namespace {

constexpr int64_t MAX_GROUP = quota::LARGEST_GROUP;

// To the nearest integer, half to even, for less than 2^22.
inline Floats round_even(Floats x) { return x + ROUNDER - ROUNDER; }

// Sum of squared errors of one group, padded with zeros (which move no bound and have no error) to whole vectors.
inline Floats group_error(const float* x, int64_t padded, int bits) {
    Floats lowest = {}, highest = {};
    for (int64_t i = 0; i < padded; i += LANES) {
        const Floats v = load<Floats>(x + i);
        lowest = min(v, lowest);
        highest = max(v, highest);
    }
    const float low = min_of(lowest), spread = (max_of(highest) - low) / float((1 << bits) - 1);
    const float scale = spread < 0x1p-126f ? 0x1p-23f : spread, shift = float(1 << (bits - 1));
    const Floats bottom = broadcast(-shift), top = broadcast(shift - 1.0f);
    const Floats zero = max(min(round_even(broadcast(-shift - low / scale)), top), bottom);
    Floats sum = {};
    for (int64_t i = 0; i < padded; i += LANES) {
        const Floats v = load<Floats>(x + i);
        const Floats q = round_even(max(min(v / scale + zero, top), bottom));
        const Floats error = (q - zero) * scale - v;
        sum = fma(error, error, sum);
    }
    return sum;
}

// ||Q(x H) - x H|| of one token; NaN if it holds NaN or infinity.
inline float activation_error(const void* x, int type, int64_t columns, int64_t block, int64_t group, int bits) {
    const int64_t piece = block > group ? block : group, padded = (group + LANES - 1) / LANES * LANES;
    alignas(64) float rotated[MAX_GROUP + LANES] = {}, one[MAX_GROUP + LANES] = {};
    Floats sum = {}, finite = {};
    for (int64_t first = 0; first < columns; first += piece) {
        rotate_in(static_cast<const char*>(x) + quota::size_of(type) * first, type, piece, block, rotated);
        for (int64_t start = 0; start < piece; start += group) {
            std::memcpy(one, rotated + start, 4 * group);
            sum += group_error(one, padded, bits);
            // Zero times infinity or NaN is NaN, which comparisons would lose.
            for (int64_t i = 0; i < padded; i += LANES) finite += load<Floats>(one + i) * 0.0f;
        }
    }
    return __builtin_sqrtf(sum_of(sum + finite));
}

}  // namespace
