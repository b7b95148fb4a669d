// Prefill attention in bfloat16 by the products of AVX512_BF16: a row of a tile is a vector, and a pair of numbers of the
// other operand meets it in all lanes.
#include "prefill.h"

namespace {

struct Vectors {
    static void round(uint16_t* to, Floats x) { store(to, bits_of<Shorts>(_mm512_cvtneps_pbh(x))); }

    static void multiply(const uint16_t* a, int64_t a_row, const uint16_t* b, int64_t b_next, int64_t b_step,
                         int64_t steps, int64_t rows, float* to, int64_t to_row) {
        for (int64_t row = 0; row < PAIR && row < rows; row += ROWS) {
            multiply_rows(a + row * a_row, a_row, b, b_next, b_step, steps, to + row * to_row, to_row);
        }
    }

private:
    // 16 sums in registers: enough to wait for none of them, and each operand loaded serves several.
    static constexpr int ROWS = 8;

    static void multiply_rows(const uint16_t* a, int64_t a_row, const uint16_t* b, int64_t b_next, int64_t b_step,
                              int64_t steps, float* to, int64_t to_row) {
        Floats sums[ROWS][2] = {};
        for (int64_t step = 0; step < steps; ++step, a += PAIR, b += b_step) {
            for (int64_t pair = 0; pair < SIDE; ++pair) {
                const auto left = (__m512bh)load<__m512i>(b + pair * PAIR);
                const auto right = (__m512bh)load<__m512i>(b + b_next + pair * PAIR);
                for (int row = 0; row < ROWS; ++row) {
                    int32_t two;
                    std::memcpy(&two, a + row * a_row + 2 * pair, sizeof two);
                    const auto both = (__m512bh)_mm512_set1_epi32(two);
                    sums[row][0] = _mm512_dpbf16_ps(sums[row][0], both, left);
                    sums[row][1] = _mm512_dpbf16_ps(sums[row][1], both, right);
                }
            }
        }
        for (int row = 0; row < ROWS; ++row) {
            store(to + row * to_row, sums[row][0]);
            store(to + row * to_row + SIDE, sums[row][1]);
        }
    }
};

}  // namespace

namespace quota {

extern const PrefillKernels prefill_bf16 = {arrange, attend<Vectors>};

}  // namespace quota
