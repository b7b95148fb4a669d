// The operator with AVX512-VNNI: 16 outputs at once, one in each lane.
#include <immintrin.h>

#include "multiply.h"
#include "quantize.h"

namespace {

struct Lanes {
    static constexpr int width = 16;
    using F = __m512;
    using I = __m512i;

    static F load(const float* x) { return _mm512_loadu_ps(x); }
    static void store(float* out, F x) { _mm512_storeu_ps(out, x); }
    static F set(float x) { return _mm512_set1_ps(x); }
    static F min(F a, F b) { return _mm512_min_ps(a, b); }
    static F max(F a, F b) { return _mm512_max_ps(a, b); }
    template <int S>
    static F butterfly(F x) {
        const __mmask16 upper = S == 1 ? 0xaaaa : S == 2 ? 0xcccc : S == 4 ? 0xf0f0 : 0xff00;
        const F sign = _mm512_mask_blend_ps(upper, _mm512_set1_ps(1), _mm512_set1_ps(-1));
        const F other = S == 1   ? _mm512_permute_ps(x, 0xb1)
                        : S == 2 ? _mm512_permute_ps(x, 0x4e)
                        : S == 4 ? _mm512_shuffle_f32x4(x, x, 0xb1)
                                 : _mm512_shuffle_f32x4(x, x, 0x4e);
        return _mm512_fmadd_ps(x, sign, other);
    }
    // Markstein's division: from the rounded inverse, one correction by the exact remainder is correctly rounded.
    static F quotient(F x, F scale, F inverse) {
        const F close = _mm512_mul_ps(x, inverse);
        return _mm512_fmadd_ps(_mm512_fnmadd_ps(close, scale, x), inverse, close);
    }
    static float least(F x) { return _mm512_reduce_min_ps(x); }
    static float most(F x) { return _mm512_reduce_max_ps(x); }
    static bool has_nan(F x) { return _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q); }
    static void store_codes(int8_t* out, F x, int zero) {
        const F within = _mm512_min_ps(_mm512_max_ps(x, _mm512_set1_ps(-8)), _mm512_set1_ps(7));
        const I q = _mm512_sub_epi32(_mm512_cvtps_epi32(within), _mm512_set1_epi32(zero));
        const __m128i order = _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm_shuffle_epi8(_mm512_cvtepi32_epi8(q), order));
    }

    static void store_integers(int32_t* out, I x) { _mm512_storeu_si512(out, x); }
    static F to_float(I x) { return _mm512_cvtepi32_ps(x); }
    static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
    static I low_nibbles(I x) { return _mm512_and_si512(x, _mm512_set1_epi8(15)); }
    static I high_nibbles(I x) { return low_nibbles(_mm512_srli_epi16(x, 4)); }

    template <int WORDS>
    static void transposed(const uint8_t* const* row, int64_t at, I* out) {
        I r[8], s[8];
        // In this order of rows, the last step leaves lanes in the order of rows.
        for (int i = 0; i < 8; i++) {
            const int upper = i < 4 ? i : i + 4;
            const __m256i half = load_words<WORDS>(row[upper] + at);
            r[i] = _mm512_inserti64x4(_mm512_castsi256_si512(half), load_words<WORDS>(row[upper + 4] + at), 1);
        }
        for (int i = 0; i < 8; i += 2) {
            s[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
            s[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
        }
        for (int i = 0; i < 8; i += 4)
            for (int j = 0; j < 2; j++) {
                r[i + 2 * j] = _mm512_unpacklo_epi64(s[i + j], s[i + j + 2]);
                r[i + 2 * j + 1] = _mm512_unpackhi_epi64(s[i + j], s[i + j + 2]);
            }
        for (int j = 0; j < (WORDS < 4 ? WORDS : 4); j++) out[j] = _mm512_shuffle_i32x4(r[j], r[j + 4], 0x88);
        for (int j = 4; j < WORDS; j++) out[j] = _mm512_shuffle_i32x4(r[j - 4], r[j], 0xdd);
    }

    template <int WORDS, int ROWS>
    static void group_sums(const int8_t* codes, const I* weights, const int32_t* offset, I* sums) {
        // Two chains of additions a token, as one waits for itself.
        I even[ROWS], odd[ROWS];
        for (int m = 0; m < ROWS; m++) {
            even[m] = _mm512_set1_epi32(offset[m]);
            odd[m] = _mm512_setzero_si512();
        }
        for (int j = 0; j < WORDS; j++)
            for (int m = 0; m < ROWS; m++) {
                int32_t x[2];
                std::memcpy(x, codes + m * CHUNK + 8 * j, sizeof x);
                even[m] = _mm512_dpbusd_epi32(even[m], weights[2 * j], _mm512_set1_epi32(x[0]));
                odd[m] = _mm512_dpbusd_epi32(odd[m], weights[2 * j + 1], _mm512_set1_epi32(x[1]));
            }
        for (int m = 0; m < ROWS; m++) sums[m] = _mm512_add_epi32(even[m], odd[m]);
    }

private:
    template <int WORDS>
    static __m256i load_words(const uint8_t* source) {
        return _mm256_maskz_loadu_epi32((1 << WORDS) - 1, source);
    }
};

}  // namespace

bool quantize_avx512(const void* x, FloatType type, int64_t hadamard, int64_t group, int64_t row, Activations& out,
                     float* buffer) {
    if (group < Lanes::width || (hadamard > 1 && hadamard < Lanes::width))
        return quantize_avx2(x, type, hadamard, group, row, out, buffer);
    return quantize<Lanes>(x, type, hadamard, group, row, out, buffer);
}

void multiply_avx512(const Activations& x, const Weights& w, const Result& out, int64_t first) {
    multiply<Lanes>(x, w, out, first);
}
