// What the AVX512 and AMX files share.
#pragma once

#include <immintrin.h>

#include "floats.h"

namespace {

// 16 vectors of 16 words, rows to columns.
inline void transpose(__m512i* v) {
    __m512i s[16];
    for (int i = 0; i < 16; i += 2) {
        s[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
        s[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; j++) {
            v[i + 2 * j] = _mm512_unpacklo_epi64(s[i + j], s[i + j + 2]);
            v[i + 2 * j + 1] = _mm512_unpackhi_epi64(s[i + j], s[i + j + 2]);
        }
    for (int i = 0; i < 16; i += 8)
        for (int j = 0; j < 4; j++) {
            s[i + j] = _mm512_shuffle_i32x4(v[i + j], v[i + j + 4], 0x88);
            s[i + j + 4] = _mm512_shuffle_i32x4(v[i + j], v[i + j + 4], 0xdd);
        }
    for (int j = 0; j < 8; j++) {
        v[j] = _mm512_shuffle_i32x4(s[j], s[j + 8], 0x88);
        v[j + 8] = _mm512_shuffle_i32x4(s[j], s[j + 8], 0xdd);
    }
}

// `store_row` of floats.h for 16 values at once, where there are as many.
inline void store_vector(const Result& out, const Weights& w, int64_t row, int64_t first, int64_t count, __m512 values) {
    if (count < 16) {
        float few[16];
        _mm512_storeu_ps(few, values);
        return store_row(out, w, row, first, count, few);
    }
    if (out.bias) values = _mm512_add_ps(values, _mm512_loadu_ps(out.bias + first));
    const int64_t at = row * w.outputs + first;
    if (out.type == FLOAT32) return _mm512_storeu_ps(static_cast<float*>(out.y) + at, values);
    __m256i halves;
    if (out.type == FLOAT16) {
        halves = _mm512_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT);
    } else {
        const __m512i bits = _mm512_castps_si512(values), one = _mm512_set1_epi32(1);
        const __m512i last = _mm512_and_si512(_mm512_srli_epi32(bits, 16), one);
        __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(last, _mm512_set1_epi32(0x7fff)));
        const __mmask16 nan = _mm512_cmp_ps_mask(values, values, _CMP_UNORD_Q);
        rounded = _mm512_mask_set1_epi32(rounded, nan, 0x7fc00000);
        halves = _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
    }
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(static_cast<uint16_t*>(out.y) + at), halves);
}

}  // namespace
