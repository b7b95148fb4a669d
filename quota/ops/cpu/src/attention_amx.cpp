// Prefill attention in bfloat16 with AMX: 64 queries at once, against all keys that the last of them may see.
//
//     logits   64 x reach floats   query tiles times key tiles, kept in the second-level cache
//     softmax  row by row, with the sums of what each key receives
//     output   weights rounded to bfloat16, times value tiles, divided by the row's sum
//
// Nothing larger than a block's logits is ever stored, and keys behind the diagonal are not touched. Tiles of queries
// and weights are rows as they lie in memory; those of keys and values are laid out once for all heads that share them.
#include "amx.h"
#include "attention_kernels.h"

using quota::Prefill;
using quota::Rows;
using quota::SoftmaxRows;

namespace {

constexpr int64_t SIDE = 16, PAIR = 2 * SIDE, TILE = SIDE * PAIR;

// to [32, 32] = a [32, 32 * steps] times b, of which each step takes the two tiles at b and goes `b_step` further. Tiles:
// four of sums (0 to 3), two of the first operand (4, 5) and two of the second (6, 7).
inline void multiply(const uint16_t* a, int64_t a_row, const uint16_t* b, int64_t b_next, int64_t b_step, int64_t steps,
                     float* to, int64_t to_row) {
    stored_before();
    TILE_ZERO(0);
    TILE_ZERO(1);
    TILE_ZERO(2);
    TILE_ZERO(3);
    for (int64_t step = 0; step < steps; ++step) {
        TILE_LOAD(4, a + step * PAIR, 2 * a_row);
        TILE_LOAD(6, b + step * b_step, 64);
        TILE_LOAD(7, b + step * b_step + b_next, 64);
        TILE_DOT_BFLOAT16(0, 4, 6);
        TILE_DOT_BFLOAT16(1, 4, 7);
        TILE_LOAD(5, a + step * PAIR + SIDE * a_row, 2 * a_row);
        TILE_DOT_BFLOAT16(2, 5, 6);
        TILE_DOT_BFLOAT16(3, 5, 7);
    }
    TILE_STORE(0, to, 4 * to_row);
    TILE_STORE(1, to + SIDE, 4 * to_row);
    TILE_STORE(2, to + SIDE * to_row, 4 * to_row);
    TILE_STORE(3, to + SIDE * to_row + SIDE, 4 * to_row);
}

}  // namespace

namespace quota {

// Key tiles: 16 keys by 32 channels, a row for each pair of channels; block by block of keys, then chunk by chunk of
// channels. Value tiles: 32 keys by 16 channels, a row for each pair of keys. What is behind the last key is zero.
void arrange_keys_amx(const Prefill& job, int64_t group) {
    uint16_t* tile = job.tiles + group * job.prefill_tiles();
    for (int64_t key = 0; key < job.padded(); key += SIDE) {
        for (int64_t channel = 0; channel < job.width; channel += PAIR, tile += TILE) {
            Words rows[SIDE];
            for (int64_t i = 0; i < SIDE; ++i) {
                rows[i] = key + i < job.length ? load<Words>(job.key.at(group, key + i) + channel) : Words{};
            }
            transpose(rows);
            for (int64_t i = 0; i < SIDE; ++i) store(tile + i * PAIR, rows[i]);
        }
    }
    const Shorts nothing = {};
    for (int64_t key = 0; key < job.padded(); key += PAIR) {
        for (int64_t channel = 0; channel < job.width; channel += SIDE, tile += TILE) {
            for (int64_t i = 0; i < SIDE; ++i) {
                const int64_t even = key + 2 * i, odd = even + 1;
                const Shorts low = even < job.length ? load<Shorts>(job.value.at(group, even) + channel) : nothing;
                const Shorts high = odd < job.length ? load<Shorts>(job.value.at(group, odd) + channel) : nothing;
                store(tile + i * PAIR, __builtin_convertvector(low, Words) | __builtin_convertvector(high, Words)
                                                                                 << 16);
            }
        }
    }
}

void attend_amx(const Prefill& job, int64_t head, int64_t band, float* scratch) {
    const int64_t padded = job.padded(), width = job.width, chunks = width / PAIR,
                  group = head * job.groups / job.heads;
    const uint16_t* keys = job.tiles + group * job.prefill_tiles();
    const uint16_t* values = keys + padded * width;
    float* logits = scratch;
    // Rows a power of two apart would all fall into the same few places of the first-level cache.
    const int64_t step = padded + PAIR;
    float* block = logits + PREFILL_BAND * step;
    uint16_t* weights = reinterpret_cast<uint16_t*>(block + PAIR * PAIR);
    uint16_t* query = weights + PREFILL_BAND * step;
    const bool all_visible = std::memchr(job.visible, 0, job.length) == nullptr;
    configure_tiles();

    const int64_t start = band * PREFILL_BAND;
    const int64_t bands = (job.queries + PREFILL_BAND - 1) / PREFILL_BAND;
    const SoftmaxRows rows = {PREFILL_BAND, job.length,  0,
                              job.visible,  job.sets,    job.set_count,
                              job.queries,  job.scaling, job.sums + (head * bands + band) * job.set_count * job.length};
    const int64_t count = job.queries - start < PREFILL_BAND ? job.queries - start : PREFILL_BAND;
    for (int64_t i = 0; i < count; ++i) std::memcpy(query + i * width, job.query.at(head, start + i), 2 * width);
    std::memset(query + count * width, 0, 2 * (PREFILL_BAND - count) * width);
    // Keys that the last query may see.
    const int64_t reach = job.length - job.queries + start + count, pairs = (reach + PAIR - 1) / PAIR;
    for (int64_t pair = 0; pair < pairs; ++pair) {
        // The second half finds the key tiles in the first-level cache.
        for (int64_t half = 0; half < PREFILL_BAND; half += PAIR) {
            multiply(query + half * width, width, keys + 2 * pair * chunks * TILE, chunks * TILE, TILE, chunks,
                     logits + half * step + pair * PAIR, step);
        }
    }

    float shares[PREFILL_BAND] = {};
    for (int64_t i = 0; i < PREFILL_BAND; ++i) {
        float* row = logits + i * step;
        uint16_t* weight = weights + i * step;
        int64_t done = 0;
        if (i < count) {
            const int64_t seen = reach - count + i + 1;
            if (!all_visible) hide(row, job.visible, seen);
            const auto round = [&](int64_t at, Floats e) { Bfloat16::store_vector(weight + at, e); };
            shares[i] = share_of(exponentials(row, seen, job.scaling, round));
            add_row(row, shares[i], seen, start + i, rows);
            done = (seen + LANES - 1) / LANES * LANES;
        }
        std::memset(weight + done, 0, 2 * (pairs * PAIR - done));
    }

    for (int64_t channel = 0; channel < width; channel += PAIR) {
        for (int64_t half = 0; half < count; half += PAIR) {
            multiply(weights + half * step, step, values + channel * PAIR, TILE, width * PAIR, pairs, block, PAIR);
            for (int64_t i = 0; i < PAIR && half + i < count; ++i) {
                uint16_t* out = job.out.at(head, start + half + i) + channel;
                const float share = shares[half + i];
                Bfloat16::store_vector(out, load<Floats>(block + i * PAIR) * share);
                Bfloat16::store_vector(out + SIDE, load<Floats>(block + i * PAIR + SIDE) * share);
            }
        }
    }
    release_tiles();
}

}  // namespace quota
