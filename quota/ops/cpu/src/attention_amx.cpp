// Prefill attention in bfloat16 by the tile registers of AMX.
#include "amx.h"
#include "prefill.h"

namespace {

struct Tiles {
    Tiles() { configure_tiles(); }
    Tiles(const Tiles&) = delete;
    ~Tiles() { release_tiles(); }

    static void round(uint16_t* to, Floats x) { Bfloat16::store_vector(to, x); }

    // All 32 rows at once. Tiles: four of sums (0 to 3), two of the first operand (4, 5) and two of the second (6, 7).
    static void multiply(const uint16_t* a, int64_t a_row, const uint16_t* b, int64_t b_next, int64_t b_step,
                         int64_t steps, int64_t, float* to, int64_t to_row) {
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
};

}  // namespace

namespace quota {

extern const PrefillKernels prefill_amx = {arrange, attend<Tiles>};

}  // namespace quota
