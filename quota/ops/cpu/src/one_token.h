// One token times a block of 16 outputs: rows are multiplied as they lie in memory, and what is transposed is their sums.
//
// A vector of a row holds two groups of 64 channels; its product with the token is 16 partial sums, eight a group. Those of
// 16 rows are added and transposed together, with 30 shuffles where transposing the weights takes 64. The integers, and
// with them every bit of the result, are those of `multiply.h`.
#pragma once

#include "avx512.h"
#include "multiply.h"

namespace {

constexpr int64_t PAIR = 2 * CHUNK;

inline bool fits_one_token(const Activations& x) { return x.rows == 1 && x.group == CHUNK && x.columns % PAIR == 0; }

inline __m512i every_other(__m512i low, __m512i high, int first) {
    const __m512i lanes = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    return _mm512_permutex2var_epi32(low, _mm512_add_epi32(lanes, _mm512_set1_epi32(first)), high);
}

// Partial sums of 16 rows, 0 .. 7 of a first group and 8 .. 15 of a second -> the sums of both, a row in each lane.
inline void add_up(const __m512i* parts, __m512i* sums) {
    __m512i quad[4], half[2];
    for (int i = 0; i < 4; i++) {
        const __m512i* row = parts + 4 * i;
        const __m512i a = _mm512_add_epi32(_mm512_unpacklo_epi32(row[0], row[1]), _mm512_unpackhi_epi32(row[0], row[1]));
        const __m512i b = _mm512_add_epi32(_mm512_unpacklo_epi32(row[2], row[3]), _mm512_unpackhi_epi32(row[2], row[3]));
        quad[i] = _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
    }
    for (int i = 0; i < 2; i++) {
        const __m512i a = quad[2 * i], b = quad[2 * i + 1];
        half[i] = _mm512_add_epi32(_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xdd));
    }
    sums[0] = _mm512_shuffle_i32x4(half[0], half[1], 0x88);
    sums[1] = _mm512_shuffle_i32x4(half[0], half[1], 0xdd);
}

template <class V>
inline void multiply_one_token(const Activations& x, const Weights& w, const Result& out, int64_t first) {
    const Rows<V> rows(x, w, first);
    typename V::Scales scales(rows.scale, w.scales);
    __m512 y = _mm512_setzero_ps();
    for (int64_t g = 0; g < x.groups; g += 2) {
        const __m512i low = _mm512_loadu_si512(x.codes + g * CHUNK), high = _mm512_loadu_si512(x.codes + (g + 1) * CHUNK);
        const __m512i even = every_other(low, high, 0), odd = every_other(low, high, 1);
        __m512i parts[V::width], sums[2];
        for (int64_t i = 0; i < V::width; i++) {
            const __m512i packed = _mm512_loadu_si512(rows.packed[i] + g * CHUNK / 2);
            parts[i] = _mm512_dpbusd_epi32(_mm512_setzero_si512(), V::low_nibbles(packed), even);
            parts[i] = _mm512_dpbusd_epi32(parts[i], V::high_nibbles(packed), odd);
        }
        prefetch_next_block<V>(x, w, first, g * CHUNK / 8, (g + 2) * CHUNK / 8);
        add_up(parts, sums);
        for (int64_t i = 0; i < 2; i++) {
            const __m512i sum = _mm512_add_epi32(sums[i], _mm512_set1_epi32(x.offset[g + i]));
            if (out.sums) {
                write_sums<V>(sum, x, w, out, 0, first, rows.count, g + i);
                continue;
            }
            const __m512 step = scales((g + i) / w.groups_per_scale) * x.scale[g + i];
            y = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), step, y);
        }
    }
    if (!out.sums) V::store_results(out, w, 0, first, rows.count, y);
}

}  // namespace
