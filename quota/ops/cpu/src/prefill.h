// Prefill attention in bfloat16: 64 queries at once, against all keys that the last of them may see.
//
//     logits   64 x reach floats   queries times key tiles, kept in the second-level cache
//     softmax  row by row, with the sums of what each key receives
//     output   weights rounded to bfloat16, times value tiles, divided by the row's sum
//
// Nothing larger than a block's logits is ever stored, and keys behind the diagonal are not touched. Rows of queries and
// weights are as they lie in memory; keys and values are laid out in tiles once for all heads that share them. `Products`
// is what multiplies: attention_amx.cpp by tile registers, attention_bf16.cpp by vectors.
#pragma once

#include "attention_kernels.h"

namespace {

using quota::Prefill;
using quota::PREFILL_BAND;

constexpr int64_t SIDE = 16, PAIR = 2 * SIDE, TILE = SIDE * PAIR;

// The first `count` numbers at `from`, at most a vector of them, and zeros.
template <class Vector>
inline Vector load_some(const uint16_t* from, int64_t count) {
    Vector v = {};
    if (count >= int64_t(sizeof v / 2)) return load<Vector>(from);
    std::memcpy(&v, from, 2 * count);
    return v;
}

// Key tiles: 16 keys by 32 channels, a row for each pair of channels; block by block of keys, then chunk by chunk of
// channels. Value tiles: 32 keys by 16 channels, a row for each pair of keys. What is behind the last key or channel is
// zero.
void arrange(const Prefill& job, int64_t group) {
    uint16_t* tile = job.tiles + group * job.prefill_tiles();
    for (int64_t key = 0; key < job.padded(); key += SIDE) {
        for (int64_t channel = 0; channel < job.side(); channel += PAIR, tile += TILE) {
            Words rows[SIDE];
            for (int64_t i = 0; i < SIDE; ++i) {
                rows[i] = key + i < job.length
                              ? load_some<Words>(job.key.at(group, key + i) + channel, job.width - channel)
                              : Words{};
            }
            transpose(rows);
            for (int64_t i = 0; i < SIDE; ++i) store(tile + i * PAIR, rows[i]);
        }
    }
    const auto value = [&](int64_t key, int64_t channel) {
        const bool there = key < job.length && channel < job.width;
        const Shorts v =
            there ? load_some<Shorts>(job.value.at(group, key) + channel, job.width - channel) : Shorts{};
        return __builtin_convertvector(v, Words);
    };
    for (int64_t key = 0; key < job.padded(); key += PAIR) {
        for (int64_t channel = 0; channel < job.side(); channel += SIDE, tile += TILE) {
            for (int64_t i = 0; i < SIDE; ++i) {
                store(tile + i * PAIR, value(key + 2 * i, channel) | value(key + 2 * i + 1, channel) << 16);
            }
        }
    }
}

// Products::multiply(a, a_row, b, b_next, b_step, steps, rows, to, to_row): to [rows, 32] = a [rows, 32 * steps] times b,
// of which each step takes the two tiles at b and b + b_next and goes `b_step` further. At most 32 rows; up to 32 of `a`
// and `to` are touched.
template <class Products>
void attend(const Prefill& job, int64_t head, int64_t band, float* scratch) {
    const int64_t padded = job.padded(), width = job.width, side = job.side(), chunks = side / PAIR,
                  group = head * job.groups / job.heads;
    const uint16_t* keys = job.tiles + group * job.prefill_tiles();
    const uint16_t* values = keys + padded * side;
    float* logits = scratch;
    // Rows a power of two apart would all fall into the same few places of the first-level cache.
    const int64_t step = padded + PAIR;
    float* block = logits + PREFILL_BAND * step;
    uint16_t* weights = reinterpret_cast<uint16_t*>(block + PAIR * PAIR);
    uint16_t* query = weights + PREFILL_BAND * step;
    const bool all_visible = std::memchr(job.visible, 0, job.length) == nullptr;
    const Products products;

    const int64_t start = band * PREFILL_BAND;
    const int64_t bands = (job.queries + PREFILL_BAND - 1) / PREFILL_BAND;
    const SoftmaxRows rows = {PREFILL_BAND, job.length,  0,
                              job.visible,  job.sets,    job.set_count,
                              job.queries,  job.scaling, job.sums + (head * bands + band) * job.set_count * job.length};
    const int64_t count = job.queries - start < PREFILL_BAND ? job.queries - start : PREFILL_BAND;
    std::memset(query, 0, 2 * PREFILL_BAND * side);
    for (int64_t i = 0; i < count; ++i) std::memcpy(query + i * side, job.query.at(head, start + i), 2 * width);
    // Keys that the last query may see.
    const int64_t reach = job.causal ? job.length - job.queries + start + count : job.length;
    const int64_t pairs = (reach + PAIR - 1) / PAIR;
    for (int64_t pair = 0; pair < pairs; ++pair) {
        // The second half finds the key tiles in the first-level cache.
        for (int64_t half = 0; half < count; half += PAIR) {
            products.multiply(query + half * side, side, keys + 2 * pair * chunks * TILE, chunks * TILE, TILE, chunks,
                              count - half, logits + half * step + pair * PAIR, step);
        }
    }

    float shares[PREFILL_BAND] = {};
    for (int64_t i = 0; i < PREFILL_BAND; ++i) {
        float* row = logits + i * step;
        uint16_t* weight = weights + i * step;
        int64_t done = 0;
        if (i < count) {
            const int64_t seen = job.causal ? reach - count + i + 1 : reach;
            if (!all_visible) hide(row, job.visible, seen);
            const auto round = [&](int64_t at, Floats e) { Products::round(weight + at, e); };
            shares[i] = share_of(exponentials(row, seen, job.scaling, round));
            add_row(row, shares[i], seen, start + i, rows);
            done = (seen + LANES - 1) / LANES * LANES;
        }
        std::memset(weight + done, 0, 2 * (pairs * PAIR - done));
    }

    for (int64_t channel = 0; channel < side; channel += PAIR) {
        for (int64_t half = 0; half < count; half += PAIR) {
            products.multiply(weights + half * step, step, values + channel * PAIR, TILE, side * PAIR, pairs,
                              count - half, block, PAIR);
            for (int64_t i = 0; i < PAIR && half + i < count; ++i) {
                const float share = shares[half + i];
                uint16_t out[PAIR];
                for (int64_t j = 0; j < PAIR; j += SIDE) {
                    Bfloat16::store_vector(out + j, load<Floats>(block + i * PAIR + j) * share);
                }
                const int64_t there = width - channel < PAIR ? width - channel : PAIR;
                std::memcpy(job.out.at(head, start + half + i) + channel, out, 2 * there);
            }
        }
    }
}

}  // namespace
