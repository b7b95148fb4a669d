// The operator with AMX: 16 tokens, 16 outputs and 64 channels an instruction, and 2 by 2 such products at once.
//
// Tokens are the first operand and weights the second, so sums come out as rows of y. A panel of weights stays in the
// first-level cache while all tokens pass.
#include "amx.h"
#include "avx512.h"

namespace {

struct Tiles : Wide {
    static constexpr int64_t rows = ROWS_AMX, TILE = 1024, ROW = 64, STEP = 4 * PANEL, SIDE = 16;

    static void unpack(const Product& job, int64_t first, int64_t chunk, int64_t chunks, int8_t* out) {
        Wide::unpack<0>(job, first, chunk, chunks, out);
    }
    static void unpack_bytes(const Product& job, int64_t first, int64_t chunk, int64_t chunks, int8_t* out) {
        Wide::unpack_bytes<0>(job, first, chunk, chunks, out);
    }

    // Tiles: four of sums (0 to 3), two of tokens (4, 5) and two of weights (6, 7).
    template <class Behind>
    static void multiply(const Values& x, int64_t row, int64_t rows, int64_t chunk, int64_t chunks,
                         const int8_t* weights, int32_t* sums, Behind behind) {
        const int8_t* values = x.at(row, chunk);
        const bool both = rows > SIDE;
        int32_t* lower = sums + SIDE * PANEL;
        stored_before();
        if (chunk == 0) {
            TILE_ZERO(0);
            TILE_ZERO(1);
            TILE_ZERO(2);
            TILE_ZERO(3);
        } else {
            TILE_LOAD(0, sums, STEP);
            TILE_LOAD(1, sums + SIDE, STEP);
            TILE_LOAD(2, lower, STEP);
            TILE_LOAD(3, lower + SIDE, STEP);
        }
        for (int64_t c = 0; c < chunks; c++, values += 2 * TILE, weights += 2 * TILE) {
            TILE_LOAD(6, weights, ROW);
            TILE_LOAD(4, values, ROW);
            TILE_LOAD(7, weights + TILE, ROW);
            TILE_DOT_BYTES(0, 4, 6);
            TILE_DOT_BYTES(1, 4, 7);
            if (!both) continue;
            TILE_LOAD(5, values + TILE, ROW);
            TILE_DOT_BYTES(2, 5, 6);
            TILE_DOT_BYTES(3, 5, 7);
        }
        behind();
        TILE_STORE(0, sums, STEP);
        TILE_STORE(1, sums + SIDE, STEP);
        if (!both) return;
        TILE_STORE(2, lower, STEP);
        TILE_STORE(3, lower + SIDE, STEP);
    }
};

}  // namespace

void multiply_amx(const Product& job) {
    configure_tiles();
    multiply<Tiles>(job);
    release_tiles();
}
