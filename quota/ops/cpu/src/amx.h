// The tile registers, and what the compiler must be told of them.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace {

// GCC's tile loads do not say that they read memory: what is to be read must be stored before this.
inline void stored_before() { asm volatile("" ::: "memory"); }

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

}  // namespace
