// What the entry points refuse before they read a number: sizes that no kernel is made for. How large the buffers are
// they cannot know; Python compares those with the sizes (quota/ops/cpu/library.py).
#pragma once

#include <cstdint>
#include <initializer_list>

#include "isa.h"

// What every entry point returns.
enum Status { DONE = 0, REFUSED = 1, NO_MEMORY = 2, WRONG_SIZES = 3 };

inline bool runs_here(int isa, int threads) { return isa >= PORTABLE && isa <= best_isa() && threads > 0; }

// float32, bfloat16 and float16.
inline bool is_type(int type) { return type >= 0 && type <= 2; }

inline bool are_sizes(std::initializer_list<int64_t> sizes) {
    for (const int64_t size : sizes)
        if (size < 0) return false;
    return true;
}

// Whether `block` is a power of two from `least` to `most` that divides `columns`.
inline bool is_block(int64_t block, int64_t least, int64_t most, int64_t columns) {
    return block >= least && block <= most && (block & (block - 1)) == 0 && columns % block == 0;
}

// Of a rotation; 0: none.
inline bool is_rotation(int64_t block, int64_t most, int64_t columns) {
    return block == 0 || is_block(block, 1, most, columns);
}
