// A block of outputs, one in each lane, times all tokens.
//
// The packed words of the block's rows are transposed in registers; then four bytes of a token, the same
// in every lane, meet four weights of each output in one instruction. That serves one token and many alike: no sum
// across lanes, and the work on the weights is shared by all tokens. V is one instruction set's:
//
//     width, F, I                       lanes; floats and int32 of one vector
//     words                             packed words of a row that are loaded at once
//     transposed(rows, at, count, out)  so many words, or fewer, from byte `at` of each row: vector j is word j of all
//     Scales(rows, count)(index)        scale number `index` of all rows
//     low_nibbles, high_nibbles         of every byte
//     group_sums<WORDS, ROWS>           S of ROWS tokens
//     to_float, fma, load, store, set, store_integers, store_results     as named
#pragma once

#include "floats.h"

namespace {

template <class V>
struct Rows {
    const uint8_t* packed[V::width];
    const uint16_t* scale[V::width];
    int64_t count;

    Rows(const Activations& x, const Weights& w, int64_t first) {
        count = w.outputs - first < V::width ? w.outputs - first : V::width;
        for (int64_t i = 0; i < V::width; i++) {
            // Lanes past the last output do it again.
            const int64_t n = first + (i < count ? i : count - 1);
            packed[i] = w.packed + n * x.columns / 2;
            scale[i] = w.scale + n * w.scales;
        }
    }
};

template <class V>
inline void write_sums(typename V::I sums, const Activations& x, const Weights& w, const Result& out, int64_t m,
                       int64_t first, int64_t count, int64_t g) {
    int32_t lanes[V::width];
    V::store_integers(lanes, sums);
    for (int64_t i = 0; i < count; i++) out.sums[(m * w.outputs + first + i) * x.groups + g] = lanes[i];
}

// Fetches the part of the next block of outputs that starts where words [from, to) of this one's rows do. With few tokens
// the work waits for memory, and processors do not foresee jumps from row to row. Into the second-level cache: rows whose
// lengths are powers of two would push one another out of the first.
template <class V>
inline void prefetch_next_block(const Activations& x, const Weights& w, int64_t first, int64_t from, int64_t to) {
    constexpr int64_t LINE = 64, WORD = 4;
    const uint8_t* next = w.packed + (first + V::width) * x.columns / 2;
    for (int64_t at = from * WORD * V::width; at < to * WORD * V::width; at += LINE) __builtin_prefetch(next + at, 0, 2);
}

// Groups of WORDS packed words.
template <class V, int WORDS>
inline void multiply_groups(const Activations& x, const Weights& w, const Result& out, int64_t first) {
    constexpr int64_t GROUP = 8 * WORDS;
    const Rows<V> rows(x, w, first);
    typename V::Scales scales(rows.scale, w.scales);
    const int64_t words = x.columns / 8;
    alignas(64) float y[MOST_ROWS][V::width];
    for (int64_t m = 0; m < x.rows; m++) V::store(y[m], V::set(0));

    for (int64_t word = 0; word < words; word += V::words) {
        const int64_t loaded = words - word < V::words ? words - word : V::words;
        typename V::I packed[V::words];
        V::transposed(rows.packed, 4 * word, loaded, packed);
        prefetch_next_block<V>(x, w, first, word, word + loaded);

        for (int64_t part = 0; part < loaded; part += WORDS) {
            typename V::I weights[2 * WORDS];
            for (int j = 0; j < WORDS; j++) {
                weights[2 * j] = V::low_nibbles(packed[part + j]);
                weights[2 * j + 1] = V::high_nibbles(packed[part + j]);
            }
            const int64_t g = (word + part) / WORDS, channel = g * GROUP;
            const typename V::F weight_scale = scales(g / w.groups_per_scale);
            const int8_t* codes = x.codes + channel / CHUNK * x.rows * CHUNK + channel % CHUNK;
            const float* scale = x.scale + g * x.rows;
            const int32_t* offset = x.offset + g * x.rows;

            for (int64_t m = 0; m < x.rows;) {
                typename V::I sums[4];
                const int64_t taken = x.rows - m < 4 ? 1 : 4;
                if (taken == 4)
                    V::template group_sums<WORDS, 4>(codes + m * CHUNK, weights, offset + m, sums);
                else
                    V::template group_sums<WORDS, 1>(codes + m * CHUNK, weights, offset + m, sums);
                for (int64_t i = 0; i < taken; i++, m++) {
                    if (out.sums) {
                        write_sums<V>(sums[i], x, w, out, m, first, rows.count, g);
                        continue;
                    }
                    const typename V::F step = weight_scale * scale[m];
                    V::store(y[m], V::fma(V::to_float(sums[i]), step, V::load(y[m])));
                }
            }
        }
    }
    if (out.sums) return;
    for (int64_t m = 0; m < x.rows; m++) V::store_results(out, w, m, first, rows.count, V::load(y[m]));
}

template <class V>
inline void multiply(const Activations& x, const Weights& w, const Result& out, int64_t first) {
    switch (x.group) {
        case 8: return multiply_groups<V, 1>(x, w, out, first);
        case 16: return multiply_groups<V, 2>(x, w, out, first);
        case 32: return multiply_groups<V, 4>(x, w, out, first);
        default: return multiply_groups<V, 8>(x, w, out, first);
    }
}

}  // namespace
