// The operator with AVX2 and FMA: 8 outputs at once, one in each lane.
#include <immintrin.h>

#include "multiply.h"
#include "quantize.h"

namespace {

struct Lanes {
    static constexpr int width = 8, words = 8;
    using F = __m256;
    using I = __m256i;

    static F load(const float* x) { return _mm256_loadu_ps(x); }
    static void store(float* out, F x) { _mm256_storeu_ps(out, x); }
    static F set(float x) { return _mm256_set1_ps(x); }
    static F min(F a, F b) { return _mm256_min_ps(a, b); }
    static F max(F a, F b) { return _mm256_max_ps(a, b); }
    template <int S>
    static F butterfly(F x) {
        const F sign = S == 1   ? _mm256_setr_ps(1, -1, 1, -1, 1, -1, 1, -1)
                       : S == 2 ? _mm256_setr_ps(1, 1, -1, -1, 1, 1, -1, -1)
                                : _mm256_setr_ps(1, 1, 1, 1, -1, -1, -1, -1);
        const F other = S == 1   ? _mm256_permute_ps(x, 0xb1)
                        : S == 2 ? _mm256_permute_ps(x, 0x4e)
                                 : _mm256_permute2f128_ps(x, x, 1);
        return _mm256_fmadd_ps(x, sign, other);
    }
    // Markstein's division: from the rounded inverse, one correction by the exact remainder is correctly rounded.
    static F quotient(F x, F scale, F inverse) {
        const F close = _mm256_mul_ps(x, inverse);
        return _mm256_fmadd_ps(_mm256_fnmadd_ps(close, scale, x), inverse, close);
    }
    static float least(F x) {
        __m128 y = _mm_min_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
        y = _mm_min_ps(y, _mm_movehl_ps(y, y));
        return _mm_cvtss_f32(_mm_min_ss(y, _mm_movehdup_ps(y)));
    }
    static float most(F x) { return -least(-x); }
    static bool has_nan(F x) { return _mm256_movemask_ps(_mm256_cmp_ps(x, x, _CMP_UNORD_Q)); }
    static void store_codes(int8_t* out, F x, int zero) {
        const F within = _mm256_min_ps(_mm256_max_ps(x, _mm256_set1_ps(-8)), _mm256_set1_ps(7));
        const __m256i q = _mm256_sub_epi32(_mm256_cvtps_epi32(within), _mm256_set1_epi32(zero));
        const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(q), _mm256_extracti128_si256(q, 1));
        const __m128i order = _mm_setr_epi8(0, 4, 8, 12, 2, 6, 10, 14, -1, -1, -1, -1, -1, -1, -1, -1);
        _mm_storel_epi64(reinterpret_cast<__m128i*>(out), _mm_shuffle_epi8(words, order));
    }

    static void store_results(const Result& out, const Weights& w, int64_t row, int64_t first, int64_t count, F x) {
        float values[width];
        store(values, x);
        store_row(out, w, row, first, count, values);
    }
    static void store_integers(int32_t* out, I x) { _mm256_storeu_si256(reinterpret_cast<I*>(out), x); }
    static F to_float(I x) { return _mm256_cvtepi32_ps(x); }
    static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
    static I low_nibbles(I x) { return _mm256_and_si256(x, _mm256_set1_epi8(15)); }
    static I high_nibbles(I x) { return low_nibbles(_mm256_srli_epi16(x, 4)); }

    static void transposed(const uint8_t* const* row, int64_t at, int64_t count, I* out) {
        const I mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(int(count)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
        I r[8], s[8];
        for (int i = 0; i < 8; i++) r[i] = _mm256_maskload_epi32(reinterpret_cast<const int*>(row[i] + at), mask);
        for (int i = 0; i < 8; i += 2) {
            s[i] = _mm256_unpacklo_epi32(r[i], r[i + 1]);
            s[i + 1] = _mm256_unpackhi_epi32(r[i], r[i + 1]);
        }
        for (int i = 0; i < 8; i += 4)
            for (int j = 0; j < 2; j++) {
                r[i + 2 * j] = _mm256_unpacklo_epi64(s[i + j], s[i + j + 2]);
                r[i + 2 * j + 1] = _mm256_unpackhi_epi64(s[i + j], s[i + j + 2]);
            }
        for (int j = 0; j < 4; j++) {
            out[j] = _mm256_permute2x128_si256(r[j], r[j + 4], 0x20);
            out[j + 4] = _mm256_permute2x128_si256(r[j], r[j + 4], 0x31);
        }
    }

    struct Scales {
        const uint16_t* const* row;

        Scales(const uint16_t* const* rows, int64_t) : row(rows) {}
        F operator()(int64_t index) const {
            float values[width];
            for (int i = 0; i < width; i++) values[i] = from_bfloat16(row[i][index]);
            return load(values);
        }
    };

    // Products of a whole group add up in 16 bits, as 16 * 2 * 15 * 15 < 2^15.
    template <int WORDS, int ROWS>
    static void group_sums(const int8_t* codes, const I* weights, const int32_t* offset, I* sums) {
        I pairs[ROWS];
        for (int m = 0; m < ROWS; m++) pairs[m] = _mm256_setzero_si256();
        for (int j = 0; j < 2 * WORDS; j++) {
            const I four = weights[j];
            for (int m = 0; m < ROWS; m++) {
                int32_t x;
                std::memcpy(&x, codes + m * CHUNK + 4 * j, sizeof x);
                pairs[m] = _mm256_add_epi16(pairs[m], _mm256_maddubs_epi16(four, _mm256_set1_epi32(x)));
            }
        }
        for (int m = 0; m < ROWS; m++)
            sums[m] = _mm256_add_epi32(_mm256_madd_epi16(pairs[m], _mm256_set1_epi16(1)), _mm256_set1_epi32(offset[m]));
    }
};

}  // namespace

bool quantize_avx2(const void* x, FloatType type, int64_t hadamard, int64_t group, int64_t row, Activations& out,
                   float* buffer) {
    return quantize<Lanes>(x, type, hadamard, group, row, out, buffer);
}

void multiply_avx2(const Activations& x, const Weights& w, const Result& out, int64_t first) {
    multiply<Lanes>(x, w, out, first);
}
