// What visual tokens have in common, and what a chosen one leaves of the others: quota/ops/reference/tokens.py says what of.
#pragma once

#include <algorithm>
#include <cfloat>

#include "kv.h"
#include "kv_vector.h"

namespace {

using quota::Conditioning;
using quota::TokenProducts;

inline Floats load_up_to(const float* from, int64_t count) {
    if (count >= LANES) return load<Floats>(from);
    Floats x = {};
    std::memcpy(&x, from, sizeof(float) * count);
    return x;
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

inline void products(const TokenProducts& job, int64_t row, int64_t start, int64_t until) {
    const int64_t stop = job.first + job.rows, end = std::min(row + TokenProducts::BLOCK, stop);
    // A block of rows and a tile of columns stay in the first cache.
    constexpr int64_t CHANNELS = 512;
    for (int64_t from = 0; from < job.width; from += CHANNELS) {
        for (int64_t column = start; column < until; column += WIDE) {
            const bool both = column >= job.first && column < stop;
            for (int64_t tile = row; tile < end; tile += TILE) {
                const int64_t above = column / TILE - tile / TILE;
                if (both && above < 0) continue;
                multiply(job, tile, column, both && above > 0, from, std::min(from + CHANNELS, job.width));
            }
        }
    }
}

inline void condition(const Conditioning& job, int64_t block) {
    constexpr int64_t BLOCK = Conditioning::BLOCK, PART = std::min<int64_t>(BLOCK, 8 * LANES), VECTORS = PART / LANES;
    for (int64_t part = 0; part < BLOCK; part += PART) {
        float* row = job.factor + block * job.room * BLOCK + part;
        const int64_t first = block * BLOCK + part;
        Floats shared[VECTORS];
        for (int64_t v = 0; v < VECTORS; ++v) {
            const int64_t j = first + v * LANES;
            shared[v] = load_up_to(job.products + j, std::max<int64_t>(job.tokens - j, 0));
        }
        for (int64_t step = 0; step < job.steps; ++step, row += BLOCK) {
            const Floats own = broadcast(-job.own[step]);
            for (int64_t v = 0; v < VECTORS; ++v) shared[v] = fma(own, load<Floats>(row + v * LANES), shared[v]);
        }
        for (int64_t v = 0; v < VECTORS; ++v) {
            const Floats taken = shared[v] * job.inverse;
            float* left = job.left + first + v * LANES;
            const Floats before = load<Floats>(left);
            Floats behind = fma(-taken, taken, before);
            // Lower is only what is not to be chosen. Written so that NaN stays NaN.
            behind = behind < -FLT_MAX ? broadcast(-FLT_MAX) : behind;
            store(row + v * LANES, taken);
            store(left, before < -FLT_MAX ? before : behind);
        }
    }
}

}  // namespace
