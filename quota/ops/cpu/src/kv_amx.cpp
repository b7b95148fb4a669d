// KV4 storage in bfloat16 with AMX: the map of 32 tokens at a time, there and back, as products of tiles.
//
//     stored = x into + offset        read = scale (q back) + zero (1 back)
//
// What is given and the integers q are exact in bfloat16. A matrix is taken as two: its numbers rounded, and what that
// leaves off; their products together are as good as those of floats.
#include "amx.h"
#include "kv_kernels.h"

namespace {

constexpr int64_t SIDE = 16, PAIR = 2 * SIDE, TILE = SIDE * PAIR;
static_assert(quota::KV_ROWS == PAIR, "two tiles of tokens");

// In the upper half of each word.
inline Words rounded(Floats x) {
    const Words w = bits_of<Words>(x);
    return (w + 0x7fffu + (w >> 16 & 1u)) & 0xffff0000u;
}

// Tiles of 32 channels by 16 columns, a row for each pair of channels: that of the rounded numbers, then that of the
// rest.
inline void lay_out(const float* matrix, int64_t width, int64_t side, uint16_t* tiles) {
    const int64_t columns = quota::columns_of(width);
    for (int64_t k = 0; k < side; k += 2) {
        for (int64_t column = 0; column < side; column += SIDE) {
            Words most = {}, rest = {};
            for (int64_t odd = 0; odd < 2 && k + odd < width && column < columns; ++odd) {
                const Floats exact = load<Floats>(matrix + quota::place_of(width, k + odd, column));
                const Words high = rounded(exact), low = rounded(exact - bits_of<Floats>(high));
                most |= odd ? high : high >> 16;
                rest |= odd ? low : low >> 16;
            }
            uint16_t* tile = tiles + 2 * TILE * (k / PAIR * (side / SIDE) + column / SIDE) + k % PAIR * SIDE;
            store(tile, most);
            store(tile + TILE, rest);
        }
    }
}

// to [32, side] = a [32, side] times a matrix. Tiles: four of sums (0 to 3), two of a (4, 5), two of the matrix (6, 7).
inline void multiply(const uint16_t* a, const uint16_t* tiles, int64_t side, float* to) {
    stored_before();
    for (int64_t column = 0; column < side; column += PAIR) {
        TILE_ZERO(0);
        TILE_ZERO(1);
        TILE_ZERO(2);
        TILE_ZERO(3);
        for (int64_t k = 0; k < side; k += PAIR) {
            const uint16_t* tile = tiles + 2 * TILE * (k / PAIR * (side / SIDE) + column / SIDE);
            TILE_LOAD(4, a + k, 2 * side);
            TILE_LOAD(5, a + SIDE * side + k, 2 * side);
            for (int64_t part = 0; part < 2 * TILE; part += TILE) {
                TILE_LOAD(6, tile + part, 64);
                TILE_LOAD(7, tile + 2 * TILE + part, 64);
                TILE_DOT_BFLOAT16(0, 4, 6);
                TILE_DOT_BFLOAT16(1, 4, 7);
                TILE_DOT_BFLOAT16(2, 5, 6);
                TILE_DOT_BFLOAT16(3, 5, 7);
            }
        }
        TILE_STORE(0, to + column, 4 * side);
        TILE_STORE(1, to + column + SIDE, 4 * side);
        TILE_STORE(2, to + SIDE * side + column, 4 * side);
        TILE_STORE(3, to + SIDE * side + column + SIDE, 4 * side);
    }
}

// The integers of a row [width], and zeros up to `side`.
inline void unpack(const uint8_t* packed, int64_t width, int64_t side, uint16_t* to) {
    for (int64_t channel = 0; channel < side; channel += PAIR) {
        uint8_t bytes[SIDE] = {};
        std::memcpy(bytes, packed + channel / 2, width - channel < PAIR ? (width - channel) / 2 : SIDE);
        const Words pairs = __builtin_convertvector(load<Bytes>(bytes), Words);
        // Integers below 16 leave the lower half of a float empty.
        store(to + channel, bits_of<Words>(nibble(pairs, 0)) >> 16 | bits_of<Words>(nibble(pairs, 1)));
    }
}

}  // namespace

namespace quota {

bool keep_amx(const KvBlock& block, float* scratch) {
    const int64_t width = block.width, side = tiles_side(width);
    float *const sums = scratch, *const total = sums + KV_ROWS * side;
    uint16_t* const a = reinterpret_cast<uint16_t*>(total + side);
    uint16_t *const into = a + KV_ROWS * side, *const back = into + 2 * side * side;
    if (block.x != nullptr) lay_out(block.map.into, width, side, into);
    if (block.read != nullptr) {
        lay_out(block.map.back, width, side, back);
        for (int64_t column = 0; column < width; column += LANES) {
            Floats sum = {};
            for (int64_t k = 0; k < width; ++k) sum += load<Floats>(block.map.back + place_of(width, k, column));
            store(total + column, sum);
        }
    }
    configure_tiles();
    bool kept = true;
    for (int64_t first = 0; first < block.rows; first += KV_ROWS) {
        const int64_t count = block.rows - first < KV_ROWS ? block.rows - first : KV_ROWS;
        if (block.x != nullptr) {
            std::memset(a, 0, sizeof *a * KV_ROWS * side);
            for (int64_t row = 0; row < count; ++row) {
                const uint16_t* from = static_cast<const uint16_t*>(block.x) + (first + row) * block.step;
                std::memcpy(a + row * side, from, sizeof *a * width);
            }
            multiply(a, into, side, sums);
            for (int64_t row = 0; row < count; ++row) {
                float* const line = sums + row * side;
                for (int64_t column = 0; column < width; column += LANES) {
                    store(line + column, load<Floats>(line + column) + load<Floats>(block.map.offset + column));
                }
            }
            kept &= quantize(sums, count, width, side, block.stored, first);
        }
        if (block.read == nullptr || !kept) continue;
        for (int64_t row = 0; row < count; ++row) {
            unpack(block.stored.packed + (first + row) * block.stored.packed_step, width, side, a + row * side);
        }
        multiply(a, back, side, sums);
        for (int64_t row = 0; row < count; ++row) {
            uint16_t* to = static_cast<uint16_t*>(block.read) + (first + row) * width;
            const Floats scale = broadcast(from_half(block.stored.scale[(first + row) * block.stored.scale_step]));
            const Floats zero = broadcast(from_half(block.stored.zero[(first + row) * block.stored.zero_step]));
            for (int64_t column = 0; column < width; column += LANES) {
                const Floats low = zero * load<Floats>(total + column);
                Bfloat16::store_vector(to + column, fma(scale, load<Floats>(sums + row * side + column), low));
            }
        }
    }
    release_tiles();
    return kept;
}

}  // namespace quota
