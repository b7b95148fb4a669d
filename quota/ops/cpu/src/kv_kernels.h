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

// Row `row` of what is stored, from floats with room for whole vectors. False, with nothing stored, if float16 cannot hold
// their range.
inline bool quantize(float* buffer, int64_t width, const PackedRows& rows, int64_t row) {
    alignas(64) uint8_t q[MAX_WIDTH + 4 * LANES];
    // Whole vectors: repeat a number that is there already.
    for (int64_t i = width; i % LANES; ++i) buffer[i] = buffer[0];

    Floats low = load<Floats>(buffer), high = low, finite = {};
    for (int64_t i = 0; i < width; i += LANES) {
        const Floats v = load<Floats>(buffer + i);
        low = min(low, v);
        high = max(high, v);
        // Zero times infinity or NaN is NaN, which comparisons would lose.
        finite = fma(v, Floats{}, finite);
    }
    const float smallest = min_of(low), range = (max_of(high) - smallest) / 15.0f;
    // Of 0 and -0 the smallest is that which a lane happens to see first: both are stored as 0.
    const uint16_t scale_half = to_half(range < 0x1p-14f ? 0x1p-14f : range), zero_half = to_half(smallest + 0.0f);
    const bool stored = sum_of(finite) == 0.0f && (scale_half & 0x7c00u) != 0x7c00u && (zero_half & 0x7c00u) != 0x7c00u;
    if (!stored) return false;

    // Rounded against the stored scale and zero, not against the exact ones.
    const Floats scale = broadcast(from_half(scale_half)), zero = broadcast(from_half(zero_half));
    const Floats inverse = 1.0f / scale;
    for (int64_t i = 0; i < width; i += LANES) {
        const Floats level =
            min(max(quotient(load<Floats>(buffer + i) - zero, scale, inverse), Floats{}), broadcast(15.0f));
        const Words rounded = bits_of<Words>(level + ROUNDER) & 15u;
        store(q + i, __builtin_convertvector(rounded, Bytes));
    }
    uint8_t* packed = rows.packed + row * rows.packed_step;
    int64_t i = 0;
    for (; i + 4 * LANES <= width; i += 4 * LANES) {
        store(packed + i / 2, __builtin_convertvector(join_nibbles(load<Words>(q + i)), Shorts));
    }
    for (; i < width; i += 2) packed[i / 2] = uint8_t(q[i] | q[i + 1] << 4);
    rows.scale[row * rows.scale_step] = scale_half;
    rows.zero[row * rows.zero_step] = zero_half;
    return true;
}

// The other way round, without the room.
inline void dequantize(const PackedRows& rows, int64_t row, int64_t width, float* to) {
    typedef uint32_t Eight __attribute__((vector_size(32)));
    typedef int32_t EightInts __attribute__((vector_size(32)));
    typedef float EightFloats __attribute__((vector_size(32)));
    const Eight shifts = {0, 4, 8, 12, 16, 20, 24, 28};
    const uint8_t* packed = rows.packed + row * rows.packed_step;
    const float scale = from_half(rows.scale[row * rows.scale_step]), zero = from_half(rows.zero[row * rows.zero_step]);
    for (int64_t i = 0; i < width; i += 8) {
        uint32_t word;
        std::memcpy(&word, packed + i / 2, 4);
        const Eight q = (word - Eight{}) >> shifts & 15u;
        EightInts signed_q;
        std::memcpy(&signed_q, &q, sizeof q);
        store(to + i, __builtin_convertvector(signed_q, EightFloats) * scale + zero);
    }
}

// out [ROWS, LANES * VECTORS] = start + x [ROWS, width] times so many columns of a matrix; rows are `columns` apart
// everywhere. A number is summed channel by channel, whatever the tile: a row's result is its own.
template <int ROWS, int VECTORS>
inline void map_tile(const float* x, int64_t width, const float* matrix, const float* start, int64_t columns, float* out) {
    Floats sums[ROWS][VECTORS];
    for (int vector = 0; vector < VECTORS; ++vector) {
        const Floats first = start == nullptr ? Floats{} : load<Floats>(start + vector * LANES);
        for (int row = 0; row < ROWS; ++row) sums[row][vector] = first;
    }
    for (int64_t k = 0; k < width; ++k) {
        Floats line[VECTORS];
        for (int vector = 0; vector < VECTORS; ++vector) line[vector] = load<Floats>(matrix + k * columns + vector * LANES);
        for (int row = 0; row < ROWS; ++row) {
            const Floats number = broadcast(x[row * columns + k]);
            for (int vector = 0; vector < VECTORS; ++vector) {
                sums[row][vector] = fma(number, line[vector], sums[row][vector]);
            }
        }
    }
    for (int row = 0; row < ROWS; ++row) {
        for (int vector = 0; vector < VECTORS; ++vector) store(out + row * columns + vector * LANES, sums[row][vector]);
    }
}

template <int ROWS, int VECTORS>
inline void map_rows(const float* x, int64_t width, const float* matrix, const float* start, float* out) {
    const int64_t columns = quota::columns_of(width);
    const auto from = [&](int64_t column) { return start == nullptr ? nullptr : start + column; };
    int64_t column = 0;
    for (; column + VECTORS * LANES <= columns; column += VECTORS * LANES) {
        map_tile<ROWS, VECTORS>(x, width, matrix + column, from(column), columns, out + column);
    }
    for (; column < columns; column += LANES) {
        map_tile<ROWS, 1>(x, width, matrix + column, from(column), columns, out + column);
    }
}

// As many rows at once as registers hold sums of; the rest one by one.
inline void map_all(const float* x, int64_t rows, int64_t width, const float* matrix, const float* start, float* out) {
    constexpr int TOGETHER = 6, VECTORS = LANES == 16 ? 4 : 2;
    const int64_t columns = quota::columns_of(width);
    int64_t row = 0;
    for (; row + TOGETHER <= rows; row += TOGETHER) {
        map_rows<TOGETHER, VECTORS>(x + row * columns, width, matrix, start, out + row * columns);
    }
    for (; row < rows; ++row) map_rows<1, 8>(x + row * columns, width, matrix, start, out + row * columns);
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
        bool stored = true;
        for (int64_t row = 0; row < count; ++row) stored &= quantize(ready + row * columns, width, block.stored, first + row);
        if (!stored) return false;
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
    for (int64_t k = 0; k < width; ++k) {
        Floats sum = {};
        for (int64_t i = 0; i < columns; i += LANES) {
            sum = fma(load<Floats>(scratch + i), load<Floats>(map.back + k * columns + i), sum);
        }
        out[k] = sum_of(sum);
    }
}

}  // namespace
