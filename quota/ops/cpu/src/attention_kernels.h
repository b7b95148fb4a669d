// Attention over the packed cache for one query a sequence, and the softmax of a prefill with the sums of its rows.
//
//     scores   s_t = scaling * (zero_t * sum_k q_k + scale_t * sum_k q_k n_tk)       n_tk: the stored integers
//     output   o_k = sum_t p_t (zero_t + scale_t n_tk)
//
// so integers are only ever unpacked, never dequantised. Query heads that share a key head are served together: each
// integer is unpacked once for all of them.
#pragma once

#include "kv.h"
#include "kv_vector.h"

namespace {

using quota::MAX_SHARED;
using quota::MAX_WIDTH;
using quota::PackedRows;
using quota::SoftmaxRows;

constexpr float LOWEST = -3.0e38f;
// Tokens whose keys are asked for before they are needed.
constexpr int64_t AHEAD = 256;

// sum_k q_k n_tk for LANES tokens from `t` on, a lane each; tokens behind the last one repeat it. The query is [width,
// shared] here: heads side by side, so that one pointer reaches all of them.
template <int shared>
inline void dot_products(const float* query, int64_t width, const PackedRows& keys, int64_t t, int64_t tokens,
                         Floats* dots) {
    // Two sums a head, so that one addition need not wait for the other.
    Floats sums[shared][2] = {};
    for (int64_t word = 0; word < width / 8; word += LANES) {
        const int64_t count = width / 8 - word < LANES ? width / 8 - word : LANES;
        Words block[LANES];
        for (int lane = 0; lane < LANES; ++lane) {
            const int64_t token = t + lane < tokens ? t + lane : tokens - 1;
            block[lane] = load_words(keys.packed + token * keys.packed_step + 4 * word, count);
        }
        transpose(block);
        for (int64_t i = 0; i < count; ++i) {
            const float* q = query + 8 * (word + i) * shared;
            for (int j = 0; j < 8; ++j) {
                const Floats n = nibble(block[i], j);
                for (int head = 0; head < shared; ++head) {
                    sums[head][j & 1] = fma(n, broadcast(q[j * shared + head]), sums[head][j & 1]);
                }
            }
        }
    }
    for (int head = 0; head < shared; ++head) dots[head] = sums[head][0] + sums[head][1];
}

// out[head] = sum_t weights[head][t] n_t over tokens start .. tokens - 1; weights have a stride of `step`.
template <int shared>
inline void weighted_sum(const float* weights, int64_t step, const PackedRows& values, int64_t width, int64_t start,
                         int64_t tokens, float* out) {
    // As many numbers of a word at once as there are registers for.
    constexpr int TOGETHER = LANES == 16 ? 4 : 2;
    for (int64_t word = 0; word < width / 8; word += LANES) {
        const int64_t count = width / 8 - word < LANES ? width / 8 - word : LANES;
        for (int first = 0; first < 8; first += TOGETHER) {
            Floats sums[shared][TOGETHER] = {};
            for (int64_t t = start; t < tokens; ++t) {
                const Words words = load_words(values.packed + t * values.packed_step + 4 * word, count) >> (4 * first);
                for (int j = 0; j < TOGETHER; ++j) {
                    const Floats n = nibble(words, j);
                    for (int head = 0; head < shared; ++head) {
                        sums[head][j] = fma(n, broadcast(weights[head * step + t - start]), sums[head][j]);
                    }
                }
            }
            // By way of memory: vectors whose lanes are picked one by one would not stay in registers above.
            float lanes[shared][TOGETHER][LANES];
            for (int head = 0; head < shared; ++head) {
                for (int j = 0; j < TOGETHER; ++j) store(lanes[head][j], sums[head][j]);
            }
            for (int head = 0; head < shared; ++head) {
                for (int j = 0; j < TOGETHER; ++j) {
                    for (int64_t i = 0; i < count; ++i)
                        out[head * width + 8 * (word + i) + first + j] = lanes[head][j][i];
                }
            }
        }
    }
}

// The largest number at x [count], padded to whole vectors.
inline float highest_of(float* x, int64_t count) {
    for (int64_t i = count; i % LANES; ++i) x[i] = LOWEST;
    Floats high = broadcast(LOWEST);
    for (int64_t i = 0; i < count; i += LANES) high = max(load<Floats>(x + i), high);
    return max_of(high);
}

// The numbers at x [count], padded to whole vectors, become e^(scaling * (x - max)); returns their sum, 0 if all are
// LOWEST. `seen` is called with the place and the numbers of each vector.
template <typename Seen>
inline float exponentials(float* x, int64_t count, float scaling, Seen seen) {
    const float highest = highest_of(x, count);
    // Only hidden numbers: e^(x - 0) is zero then, where e^(x - max) were one.
    const float shift = highest == LOWEST ? 0.0f : highest;
    Floats sum = {};
    for (int64_t i = 0; i < count; i += LANES) {
        const Floats e = exp_of((load<Floats>(x + i) - shift) * scaling);
        sum += e;
        store(x + i, e);
        seen(i, e);
    }
    return sum_of(sum);
}

// 1 / sum; 0 for a row that sees nothing.
inline float share_of(float sum) { return sum == 0.0f ? 0.0f : 1.0f / sum; }

// Scales and zeros of `count` tokens from `start` on, times `factor`, padded to whole vectors with zeros.
inline void load_ranges(const PackedRows& rows, int64_t start, int64_t count, float factor, float* scale, float* zero) {
    int64_t t = 0;
    if (rows.scale_step == 1 && rows.zero_step == 1) {
        for (; t + LANES <= count; t += LANES) {
            store(scale + t, Float16::load_vector(rows.scale + start + t) * factor);
            store(zero + t, Float16::load_vector(rows.zero + start + t) * factor);
        }
    }
    for (; t < count; ++t) {
        scale[t] = factor * from_half(rows.scale[(start + t) * rows.scale_step]);
        zero[t] = factor * from_half(rows.zero[(start + t) * rows.zero_step]);
    }
    for (; t % LANES; ++t) scale[t] = zero[t] = 0.0f;
}

// Asks for the rows of tokens t .. t + LANES - 1: what a step reads comes from memory, and waiting for it would take
// longer than the step.
inline void prefetch(const PackedRows& rows, int64_t width, int64_t t, int64_t tokens) {
    for (int64_t lane = 0; lane < LANES && t + lane < tokens; ++lane) {
        const uint8_t* row = rows.packed + (t + lane) * rows.packed_step;
        for (int64_t byte = 0; byte < width / 2; byte += 64) __builtin_prefetch(row + byte);
    }
}

template <int shared>
inline void decode_shared(const float* query, int64_t width, const PackedRows& keys, const PackedRows& values,
                          const uint8_t* valid, const float* added, int64_t start, int64_t tokens, float scaling,
                          float* scratch, float* out) {
    const int64_t count = tokens - start, step = count + LANES;
    float* scale = scratch + shared * step;
    float* zero = scale + step;
    float query_sum[shared] = {}, side_by_side[MAX_WIDTH * shared];
    for (int head = 0; head < shared; ++head) {
        for (int64_t k = 0; k < width; ++k) {
            query_sum[head] += query[head * width + k];
            side_by_side[k * shared + head] = query[head * width + k];
        }
    }
    load_ranges(keys, start, count, scaling, scale, zero);
    for (int64_t t = 0; t < count; t += LANES) {
        prefetch(keys, width, start + t + AHEAD, tokens);
        prefetch(values, width, start + t, tokens);
        Floats dots[shared];
        dot_products<shared>(side_by_side, width, keys, start + t, tokens, dots);
        for (int head = 0; head < shared; ++head) {
            const Floats shift = load<Floats>(zero + t) * query_sum[head];
            store(scratch + head * step + t, fma(load<Floats>(scale + t), dots[head], shift));
        }
    }
    load_ranges(values, start, count, 1.0f, scale, zero);
    float shift[shared];
    for (int head = 0; head < shared; ++head) {
        float* weights = scratch + head * step;
        if (added != nullptr) {
            const float* own = added + head * tokens + start;
            for (int64_t t = 0; t < count; ++t) weights[t] += own[t];
        }
        for (int64_t t = 0; valid != nullptr && t < count; ++t) {
            if (!valid[start + t]) weights[t] = LOWEST;
        }
        const float share = share_of(exponentials(weights, count, 1.0f, [](int64_t, Floats) {}));
        Floats zeros = {};
        for (int64_t t = 0; t < count; t += LANES) {
            const Floats weight = load<Floats>(weights + t) * share;
            zeros = fma(weight, load<Floats>(zero + t), zeros);
            store(weights + t, weight * load<Floats>(scale + t));
        }
        shift[head] = sum_of(zeros);
    }
    weighted_sum<shared>(scratch, step, values, width, start, tokens, out);
    for (int head = 0; head < shared; ++head) {
        for (int64_t k = 0; k < width; ++k) out[head * width + k] += shift[head];
    }
}

inline void decode(const float* query, int shared, int64_t width, const PackedRows& keys, const PackedRows& values,
                   const uint8_t* valid, const float* added, int64_t start, int64_t tokens, float scaling,
                   float* scratch, float* out) {
    switch (shared) {
        case 1:
            return decode_shared<1>(query, width, keys, values, valid, added, start, tokens, scaling, scratch, out);
        case 2:
            return decode_shared<2>(query, width, keys, values, valid, added, start, tokens, scaling, scratch, out);
        case 3:
            return decode_shared<3>(query, width, keys, values, valid, added, start, tokens, scaling, scratch, out);
        default:
            return decode_shared<4>(query, width, keys, values, valid, added, start, tokens, scaling, scratch, out);
    }
}

// LOWEST wherever x [count] is hidden.
inline void hide(float* x, const uint8_t* visible, int64_t count) {
    for (int64_t i = 0; i < count; ++i) x[i] = visible[i] ? x[i] : LOWEST;
}

// What row `row` gives to each of `count` keys, added to the sums of the sets that have it.
inline void add_row(const float* x, float share, int64_t count, int64_t row, const SoftmaxRows& rows) {
    for (int64_t set = 0; set < rows.set_count; ++set) {
        if (!rows.sets[set * rows.set_step + row]) continue;
        float* sums = rows.sums + set * rows.columns;
        int64_t i = 0;
        for (; i + LANES <= count; i += LANES) {
            store(sums + i, fma(load<Floats>(x + i), broadcast(share), load<Floats>(sums + i)));
        }
        for (; i < count; ++i) sums[i] += share * x[i];
    }
}

template <typename Type>
inline void softmax_typed(typename Type::Stored* logits, const SoftmaxRows& rows, float* x) {
    for (int64_t row = 0; row < rows.rows; ++row) {
        typename Type::Stored* line = logits + row * rows.columns;
        const int64_t seen = rows.first + row + 1 < rows.columns ? rows.first + row + 1 : rows.columns;
        // Whole vectors as far as the line goes; what is not seen becomes zero on the way.
        const int64_t padded = (seen + LANES - 1) / LANES * LANES;
        const int64_t width = padded < rows.columns ? padded : rows.columns;
        load_row<Type>(line, width, x);
        hide(x, rows.visible, seen);
        const float share = share_of(exponentials(x, seen, rows.scaling, [](int64_t, Floats) {}));
        add_row(x, share, width, row, rows);
        for (int64_t i = 0; i < seen; i += LANES) store(x + i, load<Floats>(x + i) * share);
        store_row<Type>(x, width, line);
        std::memset(static_cast<void*>(line + width), 0, sizeof *line * (rows.columns - width));
    }
}

inline void softmax(void* logits, int type, const SoftmaxRows& rows, float* scratch) {
    with_type(type, [&](auto element) {
        using Type = decltype(element);
        softmax_typed<Type>(static_cast<typename Type::Stored*>(logits), rows, scratch);
    });
}

}  // namespace
