// What the AVX512 and AMX files share: floats, and unpacked panels of weights.
#pragma once

#include <immintrin.h>

#include "multiply.h"

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

// What `multiply` needs besides its products.
struct Wide {
    static constexpr int width = 16;
    using F = __m512;
    using I = __m512i;

    static F load(const float* x) { return _mm512_loadu_ps(x); }
    static F set(float x) { return _mm512_set1_ps(x); }
    static F whole(const int32_t* x) { return _mm512_cvtepi32_ps(_mm512_loadu_si512(x)); }
    static void store_result(void* y, FloatType type, int64_t at, int64_t count, F x) {
        const __mmask16 mask = __mmask16((1u << count) - 1);
        if (type == FLOAT32) return _mm512_mask_storeu_ps(static_cast<float*>(y) + at, mask, x);
        __m256i halves;
        if (type == FLOAT16) {
            halves = _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT);
        } else {
            const I bits = _mm512_castps_si512(x);
            const I last = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
            const I up = _mm512_add_epi32(bits, _mm512_add_epi32(last, _mm512_set1_epi32(0x7fff)));
            const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
            halves = _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_set1_epi32(up, nan, 0x7fc00000), 16));
        }
        _mm256_mask_storeu_epi16(static_cast<uint16_t*>(y) + at, mask, halves);
    }

    static constexpr int64_t panel = PANEL;
    using Weight = int8_t;

    // Bytes as [chunks, 2 tiles of outputs, 16, 16 outputs, 4 channels], the even ones of every 8 in front.
    template <int MORE>
    static void unpack_bytes(const Product& job, int64_t first, int64_t chunk, int64_t chunks, int8_t* out) {
        const int64_t end = job.x.columns / 8;
        const __m128i evens_first = _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15);
        const I order = _mm512_broadcast_i32x4(evens_first), less = _mm512_set1_epi8(char(128 - MORE));
        for (int64_t tile = 0; tile < 2; tile++) {
            const Rows<OUTPUTS> rows(job, first + tile * OUTPUTS, chunk * CHUNK);
            for (int64_t c = 0; c < chunks; c++) {
                const int64_t left = end - (chunk + c) * 8;
                const __mmask8 mask = __mmask8(left < 8 ? (1u << left) - 1 : 0xff);
                I bytes[16];
                for (int i = 0; i < 16; i++) {
                    const I row = _mm512_maskz_loadu_epi64(mask, rows.packed[i] + c * CHUNK);
                    bytes[i] = _mm512_sub_epi8(_mm512_shuffle_epi8(row, order), less);
                }
                transpose(bytes);
                for (int i = 0; i < 16; i++) _mm512_store_si512(out + (c * 2 + tile) * 1024 + 64 * i, bytes[i]);
                // Half of the next panel's share for each tile.
                prefetch(job, first, panel, (chunk + c) * CHUNK + tile * CHUNK / 2, CHUNK / 2);
            }
        }
    }

    // g q + MORE in the same order.
    template <int MORE>
    static void unpack(const Product& job, int64_t first, int64_t chunk, int64_t chunks, int8_t* out) {
        switch (job.w.group) {
            case 8: return unpack<MORE, 1>(job, first, chunk, chunks, out);
            case 16: return unpack<MORE, 2>(job, first, chunk, chunks, out);
            case 32: return unpack<MORE, 4>(job, first, chunk, chunks, out);
            default: return unpack<MORE, 8>(job, first, chunk, chunks, out);
        }
    }
    // WORDS of 8 channels have the same step.
    template <int MORE, int WORDS>
    static void unpack(const Product& job, int64_t first, int64_t chunk, int64_t chunks, int8_t* out) {
        const int64_t end = job.x.columns / 8;
        for (int64_t tile = 0; tile < 2; tile++) {
            const int64_t output = first + tile * OUTPUTS;
            const Rows<OUTPUTS> rows(job, output, chunk * CHUNK);
            for (int64_t c = 0; c < chunks; c += 2) {
                const int64_t word = (chunk + c) * 8, most = chunks - c < 2 ? 8 : 16;
                const int64_t count = end - word < most ? end - word : most;
                const __mmask16 mask = __mmask16((1u << count) - 1);
                I packed[16];
                for (int i = 0; i < 16; i++) packed[i] = _mm512_maskz_loadu_epi32(mask, rows.packed[i] + c * CHUNK / 2);
                transpose(packed);
                for (int64_t j = 0; j < count; j += WORDS) {
                    const uint8_t* steps = steps_of(job, output, (word + j) * 8);
                    const I one = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(steps)));
                    // At most 15 * 16, so the product of the lower byte of 16 bits does not reach the upper one.
                    const I step = _mm512_or_si512(one, _mm512_slli_epi32(one, 16)), eight = _mm512_slli_epi16(step, 3);
                    const I less = _mm512_sub_epi8(_mm512_or_si512(eight, _mm512_slli_epi16(eight, 8)),
                                                   _mm512_set1_epi8(char(MORE)));
                    int8_t* to = out + ((c + j / 8) * 2 + tile) * 1024 + j % 8 * 128;
                    const int64_t there = count - j < WORDS ? count - j : WORDS;
                    for (int64_t i = 0; i < there; i++) {
                        const I nibble = _mm512_set1_epi8(15), low = _mm512_and_si512(packed[j + i], nibble);
                        const I high = _mm512_and_si512(_mm512_srli_epi16(packed[j + i], 4), nibble);
                        _mm512_store_si512(to + 128 * i, _mm512_sub_epi8(_mm512_mullo_epi16(low, step), less));
                        _mm512_store_si512(to + 128 * i + 64, _mm512_sub_epi8(_mm512_mullo_epi16(high, step), less));
                    }
                }
                // Half of the next panel's share for each tile.
                prefetch(job, first, panel, (chunk + c) * CHUNK + tile * most * 4, most * 4);
            }
        }
    }
};

}  // namespace
