// The tile registers, and what the compiler must be told of them.
//
// Macros, as GCC's own are: the number of a tile is a part of the instruction. With QUOTA_PLAIN_TILES they are plain
// C++, so that code for tiles can be tested where there are none.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace {

// GCC's tile loads do not say that they read memory: what is to be read must be stored before this.
inline void stored_before() { asm volatile("" ::: "memory"); }

#ifndef QUOTA_PLAIN_TILES

#define TILE_ZERO(tile) _tile_zero(tile)
#define TILE_LOAD(tile, from, step) _tile_loadd(tile, from, step)
#define TILE_STORE(tile, to, step) _tile_stored(tile, to, step)
#define TILE_DOT_BYTES(sums, a, b) _tile_dpbssd(sums, a, b)
#define TILE_DOT_BFLOAT16(sums, a, b) _tile_dpbf16ps(sums, a, b)

// All eight: 16 rows of 64 bytes.
struct alignas(64) TileLayout {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileLayout) == 64, "as the processor reads it");

inline void configure_tiles() {
    // Constant: GCC 12 declares that 8 bytes of it are read, so stores to the rest of a local would be dropped.
    static const TileLayout layout;
    stored_before();
    _tile_loadconfig(&layout);
}

inline void release_tiles() { _tile_release(); }

#else

#define TILE_ZERO(tile) std::memset(plain_tiles[tile], 0, 1024)
#define TILE_LOAD(tile, from, step) load_plain(tile, from, step)
#define TILE_STORE(tile, to, step) store_plain(tile, to, step)
#define TILE_DOT_BYTES(sums, a, b) dot_plain_bytes(sums, a, b)
#define TILE_DOT_BFLOAT16(sums, a, b) dot_plain_bfloat16(sums, a, b)

thread_local int32_t plain_tiles[8][16][16];

inline void load_plain(int tile, const void* from, int64_t step) {
    for (int64_t i = 0; i < 16; i++) std::memcpy(plain_tiles[tile][i], static_cast<const char*>(from) + i * step, 64);
}

inline void store_plain(int tile, void* to, int64_t step) {
    for (int64_t i = 0; i < 16; i++) std::memcpy(static_cast<char*>(to) + i * step, plain_tiles[tile][i], 64);
}

inline void dot_plain_bytes(int sums, int a, int b) {
    for (int m = 0; m < 16; m++)
        for (int k = 0; k < 16; k++) {
            int8_t x[4], y[16][4];
            std::memcpy(x, &plain_tiles[a][m][k], sizeof x);
            std::memcpy(y, plain_tiles[b][k], sizeof y);
            for (int n = 0; n < 16; n++)
                for (int i = 0; i < 4; i++) plain_tiles[sums][m][n] += x[i] * y[n][i];
        }
}

inline void dot_plain_bfloat16(int sums, int a, int b) {
    const auto upper = [](int32_t pair, int half) {
        const uint32_t bits = half ? uint32_t(pair) & 0xffff0000u : uint32_t(pair) << 16;
        float value;
        std::memcpy(&value, &bits, sizeof value);
        return value;
    };
    for (int m = 0; m < 16; m++)
        for (int n = 0; n < 16; n++) {
            float sum;
            std::memcpy(&sum, &plain_tiles[sums][m][n], sizeof sum);
            for (int k = 0; k < 16; k++)
                for (int half = 0; half < 2; half++)
                    sum += upper(plain_tiles[a][m][k], half) * upper(plain_tiles[b][k][n], half);
            std::memcpy(&plain_tiles[sums][m][n], &sum, sizeof sum);
        }
}

// What is in the tiles before and after a job is nobody's.
inline void configure_tiles() { std::memset(plain_tiles, 0x55, sizeof plain_tiles); }
inline void release_tiles() { configure_tiles(); }

#endif

}  // namespace
