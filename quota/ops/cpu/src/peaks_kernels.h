// The score of one visual token: what all that look like it are attended by, times how new it is.
//
//     c_j     = p_j / (|v_i| |v_j|)                                  p: the products of v_i with all tokens
//     score_i = sqrt(sum_j w_j max(0, c_j)^16) * (1 - max of c_j over the j ahead of i)
//
// j is ahead of i if w_j > w_i, or w_j = w_i and j < i; the first of all has 2 for the second factor.
#pragma once

#include <algorithm>
#include <cmath>

#include "kv.h"
#include "kv_vector.h"

namespace {

using quota::PeakRow;
using quota::TokenProducts;

inline Floats load_up_to(const float* from, int64_t count) {
    if (count >= LANES) return load<Floats>(from);
    Floats x = {};
    std::memcpy(&x, from, sizeof(float) * count);
    return x;
}

inline float length(const float* x, int64_t width) {
    Floats squares = {};
    for (int64_t k = 0; k < width; k += LANES) {
        const Floats part = load_up_to(x + k, width - k);
        squares = fma(part, part, squares);
    }
    return std::sqrt(sum_of(squares));
}

// Each half of the lanes goes on with one of two vectors.
template <int span, int... lane>
inline Floats halve(Floats a, Floats b, std::integer_sequence<int, lane...>) {
    return Floats{(lane & span ? b[lane] : a[lane])...} + Floats{(lane & span ? b[lane ^ span] : a[lane ^ span])...};
}

// Lane i of the result is the sum of v[i]; v is used up.
template <int span = LANES / 2>
inline Floats sums_of(Floats* v) {
    for (int i = 0; i < span; ++i) v[i] = halve<span>(v[i], v[i + span], Lanes{});
    if constexpr (span > 1) return sums_of<span / 2>(v);
    return v[0];
}

constexpr int64_t TILE = 4, WIDE = LANES / TILE;

// Channels from .. stop of tokens row .. row + TILE - 1 with those of column .. column + WIDE - 1, added to what is there.
inline void multiply(const TokenProducts& job, int64_t row, int64_t column, bool mirror, int64_t from, int64_t stop) {
    const float *left[TILE], *right[WIDE];
    for (int64_t a = 0; a < TILE; ++a) left[a] = job.hidden + std::min(row + a, job.tokens - 1) * job.width;
    for (int64_t b = 0; b < WIDE; ++b) right[b] = job.hidden + std::min(column + b, job.tokens - 1) * job.width;
    Floats sums[LANES] = {};
    const auto add = [&](auto load) {
        Floats x[TILE];
        for (int64_t a = 0; a < TILE; ++a) x[a] = load(left[a]);
        for (int64_t b = 0; b < WIDE; ++b) {
            const Floats y = load(right[b]);
            for (int64_t a = 0; a < TILE; ++a) sums[b * TILE + a] = fma(x[a], y, sums[b * TILE + a]);
        }
    };
    int64_t k = from;
    for (; k + LANES <= stop; k += LANES) add([k](const float* x) { return load<Floats>(x + k); });
    if (k < stop) add([k, stop](const float* x) { return load_up_to(x + k, stop - k); });
    float found[LANES];
    store(found, sums_of(sums));
    const int64_t above = row - job.first;
    const auto put = [&](int64_t rows, int64_t columns) {
        for (int64_t b = 0; b < columns; ++b) {
            float* product = job.products + above * job.tokens + column + b;
            for (int64_t a = 0; a < rows; ++a, product += job.tokens) {
                if (from > 0) found[b * TILE + a] += *product;
                *product = found[b * TILE + a];
            }
            if (!mirror) continue;
            std::copy_n(found + b * TILE, rows, job.products + (column + b - job.first) * job.tokens + row);
        }
    };
    const int64_t rows = std::min(TILE, job.rows - above), columns = std::min(WIDE, job.tokens - column);
    // Numbers that the compiler knows are faster.
    rows == TILE && columns == WIDE ? put(TILE, WIDE) : put(rows, columns);
}

inline void products(const TokenProducts& job, int64_t row) {
    const int64_t stop = job.first + job.rows, end = std::min(row + TokenProducts::BLOCK, stop);
    // A block of rows and a tile of columns stay in the first cache.
    constexpr int64_t CHANNELS = 512;
    for (int64_t from = 0; from < job.width; from += CHANNELS) {
        for (int64_t column = 0; column < job.tokens; column += WIDE) {
            const bool both = column >= job.first && column < stop;
            for (int64_t tile = row; tile < end; tile += TILE) {
                const int64_t above = column / TILE - tile / TILE;
                if (both && above < 0) continue;
                multiply(job, tile, column, both && above > 0, from, std::min(from + CHANNELS, job.width));
            }
        }
    }
}

inline float peak(const PeakRow& row) {
    const float own = row.order[row.index];
    Ints place;
    for (int lane = 0; lane < LANES; ++lane) place[lane] = lane;
    Floats mass = {}, closest = broadcast(-1.0f);
    for (int64_t j = 0; j < row.tokens; j += LANES, place += LANES) {
        const Floats products = load_up_to(row.products + j, row.tokens - j);
        const Floats order = load<Floats>(row.order + j);
        const Ints there = order > -INFINITY;
        // What stands at padding may be no number.
        const Floats cosine = there ? products * row.inverse * load<Floats>(row.inverses + j) : Floats{};
        // Less has no normal 16th power, which would take long to compute. Written so that NaN stays NaN.
        Floats alike = cosine < 0.005f ? Floats{} : cosine;
        for (int squaring = 0; squaring < 4; ++squaring) alike *= alike;
        mass = fma(alike, load<Floats>(row.weights + j), mass);
        const Ints ahead = (order > own) | ((order == own) & (place < int32_t(row.index)));
        closest = (ahead & (cosine > closest)) ? cosine : closest;
    }
    const float novelty = 1.0f - max_of(closest);
    return std::sqrt(sum_of(mass)) * (novelty < 0.0f ? 0.0f : novelty);
}

}  // namespace
