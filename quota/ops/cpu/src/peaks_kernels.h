// The score of one visual token: what all that look like it are attended by, times how new it is.
//
//     c_j     = p_j / (|v_i| |v_j|)                                  p: the products of v_i with all tokens
//     score_i = sqrt(sum_j w_j max(0, c_j)^16) * (1 - max of c_j over the j ahead of i)
//
// j is ahead of i if w_j > w_i, or w_j = w_i and j < i; the first of all has 2 for the second factor.
#pragma once

#include <cmath>

#include "kv.h"
#include "kv_vector.h"

namespace {

using quota::PeakRow;

inline float peak(const PeakRow& row) {
    const float own = row.order[row.index];
    Ints place;
    for (int lane = 0; lane < LANES; ++lane) place[lane] = lane;
    Floats mass = {}, closest = broadcast(-1.0f);
    for (int64_t j = 0; j < row.tokens; j += LANES, place += LANES) {
        Floats products = {};
        if (j + LANES <= row.tokens) {
            products = load<Floats>(row.products + j);
        } else {
            std::memcpy(&products, row.products + j, sizeof(float) * (row.tokens - j));
        }
        const Floats order = load<Floats>(row.order + j);
        const Ints there = order > -INFINITY;
        // What stands at padding may be no number.
        const Floats cosine = there ? products / row.length / load<Floats>(row.lengths + j) : Floats{};
        // Written so that NaN stays NaN.
        Floats alike = cosine < 0.0f ? Floats{} : cosine;
        for (int squaring = 0; squaring < 4; ++squaring) alike *= alike;
        mass = fma(alike, load<Floats>(row.weights + j), mass);
        const Ints ahead = (order > own) | ((order == own) & (place < int32_t(row.index)));
        closest = (ahead & (cosine > closest)) ? cosine : closest;
    }
    const float novelty = 1.0f - max_of(closest);
    return std::sqrt(sum_of(mass)) * (novelty < 0.0f ? 0.0f : novelty);
}

}  // namespace
