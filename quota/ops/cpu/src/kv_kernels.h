// KV4 storage: map or rotate some tokens of one head, quantise and pack them, and the way back, while they are in the
// first-level cache.
#pragma once

#include "kv.h"
#include "kv_vector.h"

namespace {

using quota::HeadMap;
using quota::KvBlock;
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

inline void load_floats(const void* x, int type, int64_t width, float* to) {
    with_type(type, [&](auto element) {
        using Type = decltype(element);
        load_row<Type>(static_cast<const typename Type::Stored*>(x), width, to);
    });
    for (int64_t i = width; i % LANES; ++i) to[i] = 0.0f;
}

inline void store_floats(const float* from, int64_t width, void* x, int type) {
    with_type(type, [&](auto element) {
        using Type = decltype(element);
        store_row<Type>(from, width, static_cast<typename Type::Stored*>(x));
    });
}

inline void rotate_out(const float* rotated, int64_t width, int64_t block, void* x, int type) {
    alignas(64) float buffer[MAX_WIDTH + LANES];
    std::memcpy(buffer, rotated, 4 * width);
    for (int64_t i = width; i % LANES; ++i) buffer[i] = 0.0f;
    hadamard(buffer, width, block);
    store_floats(buffer, width, x, type);
}

// Bytes of one number each to bytes of two: lane i of the result is the low 16 bits of word i.
inline Words join_nibbles(Words q) {
    const Words pairs = (q | q >> 4) & 0x00ff00ffu;
    return pairs | pairs >> 8;
}

// Stores up to LANES rows from `row` on, of floats `columns` apart that have room for whole vectors. False if float16
// cannot hold the range of one. Ranges are found for all rows at once, a lane each.
inline bool quantize_few(float* x, int64_t count, int64_t width, int64_t columns, const PackedRows& rows, int64_t row) {
    Floats lows[LANES] = {}, highs[LANES] = {}, finites[LANES] = {};
    for (int64_t lane = 0; lane < count; ++lane) {
        float* const line = x + lane * columns;
        // Whole vectors: repeat a number that is there already.
        for (int64_t i = width; i % LANES; ++i) line[i] = line[0];
        Floats low = load<Floats>(line), high = low, finite = {};
        for (int64_t i = 0; i < width; i += LANES) {
            const Floats v = load<Floats>(line + i);
            low = min(low, v);
            high = max(high, v);
            // Zero times infinity or NaN is NaN, which comparisons would lose.
            finite = fma(v, Floats{}, finite);
        }
        lows[lane] = low, highs[lane] = high, finites[lane] = finite;
    }
    // Lanes without a row have the first once more.
    for (int64_t lane = count; lane < LANES; ++lane) {
        lows[lane] = lows[0], highs[lane] = highs[0], finites[lane] = finites[0];
    }
    const Floats low = join_each(lows, [](Floats a, Floats b) { return min(a, b); });
    const Floats range = (join_each(highs, [](Floats a, Floats b) { return max(a, b); }) - low) / 15.0f;
    const Floats finite = join_each(finites, [](Floats a, Floats b) { return a + b; });
    uint16_t scales[LANES], zeros[LANES];
    Float16::store_vector(scales, max(range, broadcast(0x1p-14f)));
    // Of 0 and -0 the smallest is that which a lane happens to see first: both are stored as 0.
    Float16::store_vector(zeros, low + 0.0f);
    // Rounded against the stored scale and zero, not against the exact ones.
    const Floats scale = Float16::load_vector(scales), zero = Float16::load_vector(zeros), inverse = 1.0f / scale;

    bool stored = true;
    for (int64_t lane = 0; lane < count; ++lane) {
        stored &= finite[lane] == 0.0f && (scales[lane] & 0x7c00u) != 0x7c00u && (zeros[lane] & 0x7c00u) != 0x7c00u;
    }
    if (!stored) return false;
    float of_lane[3][LANES];
    store(of_lane[0], scale), store(of_lane[1], zero), store(of_lane[2], inverse);
    for (int64_t lane = 0; lane < count; ++lane) {
        alignas(64) uint8_t q[MAX_WIDTH + 4 * LANES];
        for (int64_t i = 0; i < width; i += LANES) {
            const Floats above = load<Floats>(x + lane * columns + i) - of_lane[1][lane];
            const Floats exact = quotient(above, broadcast(of_lane[0][lane]), broadcast(of_lane[2][lane]));
            const Words rounded = bits_of<Words>(min(max(exact, Floats{}), broadcast(15.0f)) + ROUNDER) & 15u;
            store(q + i, __builtin_convertvector(rounded, Bytes));
        }
        uint8_t* packed = rows.packed + (row + lane) * rows.packed_step;
        int64_t i = 0;
        for (; i + 4 * LANES <= width; i += 4 * LANES) {
            store(packed + i / 2, __builtin_convertvector(join_nibbles(load<Words>(q + i)), Shorts));
        }
        for (; i < width; i += 2) packed[i / 2] = uint8_t(q[i] | q[i + 1] << 4);
        rows.scale[(row + lane) * rows.scale_step] = scales[lane];
        rows.zero[(row + lane) * rows.zero_step] = zeros[lane];
    }
    return true;
}

inline bool quantize(float* x, int64_t count, int64_t width, int64_t columns, const PackedRows& rows, int64_t row) {
    bool stored = true;
    for (int64_t first = 0; first < count; first += LANES) {
        const int64_t few = count - first < LANES ? count - first : LANES;
        stored &= quantize_few(x + first * columns, few, width, columns, rows, row + first);
    }
    return stored;
}

// The other way round: floats of one row, in whole vectors.
inline void dequantize(const PackedRows& rows, int64_t row, int64_t width, float* to) {
    const uint8_t* packed = rows.packed + row * rows.packed_step;
    const float scale = from_half(rows.scale[row * rows.scale_step]), zero = from_half(rows.zero[row * rows.zero_step]);
    Words shifts;
    for (int lane = 0; lane < LANES; ++lane) shifts[lane] = 4 * (lane % 8);
#if defined(__AVX512F__)
    const Floats integers = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, levels = integers * scale + zero;
#endif
    for (int64_t i = 0; i < width; i += LANES) {
        // Eight numbers of a word each get a lane.
        uint32_t words[2] = {};
        std::memcpy(words, packed + i / 2, LANES == 16 && width - i >= 16 ? 8 : LANES == 4 ? 2 : 4);
#if defined(__AVX512F__)
        const __m512i both = _mm512_inserti64x4(_mm512_set1_epi32(int(words[0])), _mm256_set1_epi32(int(words[1])), 1);
        // The permutation looks at the low four bits of a lane only.
        store(to + i, Floats(_mm512_permutexvar_ps(_mm512_srlv_epi32(both, bits_of<__m512i>(shifts)), levels)));
#else
        const Words q = (words[0] - Words{}) >> shifts & 15u;
        store(to + i, __builtin_convertvector(bits_of<Ints>(q), Floats) * scale + zero);
#endif
    }
}

// out [ROWS, LANES * VECTORS] = start + x [ROWS, width] times so many columns of a matrix. A number is summed channel
// by channel, whatever the tile: a row's result is its own.
template <int ROWS, int VECTORS>
inline void map_tile(const float* x, int64_t width, const float* matrix, const float* start, int64_t column,
                     float* out) {
    const int64_t columns = quota::columns_of(width);
    const float* lines[VECTORS];
    int64_t steps[VECTORS];
    Floats sums[ROWS][VECTORS];
    for (int vector = 0; vector < VECTORS; ++vector) {
        const int64_t own = column + vector * LANES;
        lines[vector] = matrix + quota::place_of(width, 0, own);
        steps[vector] = quota::panel_of(width, own);
        const Floats first = start == nullptr ? Floats{} : load<Floats>(start + own);
        for (int row = 0; row < ROWS; ++row) sums[row][vector] = first;
    }
    for (int64_t k = 0; k < width; ++k) {
        Floats line[VECTORS];
        for (int vector = 0; vector < VECTORS; ++vector) line[vector] = load<Floats>(lines[vector] + k * steps[vector]);
        for (int row = 0; row < ROWS; ++row) {
            const Floats number = broadcast(x[row * columns + k]);
            for (int vector = 0; vector < VECTORS; ++vector) {
                sums[row][vector] = fma(number, line[vector], sums[row][vector]);
            }
        }
    }
    for (int row = 0; row < ROWS; ++row) {
        for (int vector = 0; vector < VECTORS; ++vector) {
            store(out + row * columns + column + vector * LANES, sums[row][vector]);
        }
    }
}

// As many vectors of a row at once as make the sums wait for nothing; x and out have room for whole tiles of rows,
// whose numbers behind `rows` are anything.
template <int ROWS, int VECTORS>
inline void map_rows(const float* x, int64_t rows, int64_t width, const float* matrix, const float* start, float* out) {
    const int64_t columns = quota::columns_of(width);
    int64_t column = 0;
    for (; column + VECTORS * LANES <= columns; column += VECTORS * LANES) {
        for (int64_t row = 0; row < rows; row += ROWS) {
            map_tile<ROWS, VECTORS>(x + row * columns, width, matrix, start, column, out + row * columns);
        }
    }
    for (; column < columns; column += LANES) {
        for (int64_t row = 0; row < rows; row += ROWS) {
            map_tile<ROWS, 1>(x + row * columns, width, matrix, start, column, out + row * columns);
        }
    }
}

inline void map_all(const float* x, int64_t rows, int64_t width, const float* matrix, const float* start, float* out) {
    constexpr int TOGETHER = LANES == 16 ? 8 : 4;
    static_assert(quota::KV_ROWS % TOGETHER == 0, "whole tiles");
    if (rows == 1) map_rows<1, 4>(x, rows, width, matrix, start, out);
    else map_rows<TOGETHER, 2>(x, rows, width, matrix, start, out);
}

// Up to KV_ROWS rows.
inline bool keep_rows(const KvBlock& block, int64_t first, int64_t count, float* scratch) {
    const HeadMap& map = block.map;
    const int64_t width = block.width, columns = quota::columns_of(width), size = quota::size_of(block.type);
    float *const plain = scratch, *const mapped = scratch + quota::KV_ROWS * columns;
    if (block.x != nullptr) {
        for (int64_t row = 0; row < count; ++row) {
            const char* from = static_cast<const char*>(block.x) + size * block.step * (first + row);
            load_floats(from, block.type, width, plain + row * columns);
            if (map.into == nullptr) hadamard(plain + row * columns, width, map.hadamard);
        }
        if (map.into != nullptr) map_all(plain, count, width, map.into, map.offset, mapped);
        float* const ready = map.into == nullptr ? plain : mapped;
        if (!quantize(ready, count, width, columns, block.stored, first)) return false;
    }
    if (block.read == nullptr) return true;
    for (int64_t row = 0; row < count; ++row) {
        float* const to = plain + row * columns;
        dequantize(block.stored, first + row, width, to);
        if (map.into == nullptr) hadamard(to, width, map.hadamard);
    }
    if (map.into != nullptr) map_all(plain, count, width, map.back, nullptr, mapped);
    for (int64_t row = 0; row < count; ++row) {
        char* to = static_cast<char*>(block.read) + size * width * (first + row);
        store_floats((map.into == nullptr ? plain : mapped) + row * columns, width, to, block.type);
    }
    return true;
}

inline bool keep(const KvBlock& block, float* scratch) {
    bool kept = true;
    for (int64_t first = 0; first < block.rows; first += quota::KV_ROWS) {
        const int64_t count = block.rows - first < quota::KV_ROWS ? block.rows - first : quota::KV_ROWS;
        kept &= keep_rows(block, first, count, scratch);
    }
    return kept;
}

inline void query(const void* x, int type, int64_t width, const HeadMap& map, float* out, float* scratch) {
    const int64_t columns = quota::columns_of(width);
    if (map.into == nullptr) {
        load_floats(x, type, width, out);
        return hadamard(out, width, map.hadamard);
    }
    load_floats(x, type, width, scratch);
    for (int64_t i = width; i < columns; ++i) scratch[i] = 0.0f;
    for (int64_t first = 0; first < width; first += LANES) {
        Floats sums[LANES] = {};
        for (int64_t k = first; k < width && k < first + LANES; ++k) {
            for (int64_t i = 0; i < columns; i += LANES) {
                const Floats line = load<Floats>(map.back + quota::place_of(width, k, i));
                sums[k - first] = fma(load<Floats>(scratch + i), line, sums[k - first]);
            }
        }
        store(out + first, join_each(sums, [](Floats a, Floats b) { return a + b; }));
    }
}

}  // namespace
