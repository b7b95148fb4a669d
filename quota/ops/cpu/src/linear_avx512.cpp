// The operator with AVX512-VNNI: 16 outputs at once, one in each lane.
#include <immintrin.h>

#include "avx512.h"
#include "multiply.h"
#include "one_token.h"
#include "quantize.h"

namespace {

struct Lanes {
    static constexpr int width = 16, words = 16;
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
        // Saturation to bytes leaves what is outside of -8 .. 7 outside.
        const __m128i least = _mm_set1_epi8(-8), most = _mm_set1_epi8(7), zeros = _mm_set1_epi8(char(zero));
        const __m128i order = _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15);
        const __m128i q = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(x));
        const __m128i codes = _mm_sub_epi8(_mm_min_epi8(_mm_max_epi8(q, least), most), zeros);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm_shuffle_epi8(codes, order));
    }

    static void store_results(const Result& out, const Weights& w, int64_t row, int64_t first, int64_t count, F x) {
        store_vector(out, w, row, first, count, x);
    }
    static void store_integers(int32_t* out, I x) { _mm512_storeu_si512(out, x); }
    static F to_float(I x) { return _mm512_cvtepi32_ps(x); }
    static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
    static I low_nibbles(I x) { return _mm512_and_si512(x, _mm512_set1_epi8(15)); }
    static I high_nibbles(I x) { return low_nibbles(_mm512_srli_epi16(x, 4)); }

    static void transposed(const uint8_t* const* row, int64_t at, int64_t count, I* out) {
        const __mmask16 mask = __mmask16((1u << count) - 1);
        for (int i = 0; i < 16; i++) out[i] = _mm512_maskz_loadu_epi32(mask, row[i] + at);
        transpose(out);
    }

    // Takes 32 scales of each row at a time, transposed in pairs.
    struct Scales {
        const uint16_t* const* row;
        int64_t count, first = -1;
        I pairs[16];

        Scales(const uint16_t* const* rows, int64_t scales) : row(rows), count(scales) {}
        F operator()(int64_t index) {
            if (index / 32 * 32 != first) take(index / 32 * 32);
            const I pair = pairs[index % 32 / 2];
            return _mm512_castsi512_ps(index % 2 ? _mm512_and_si512(pair, _mm512_set1_epi32(int(0xffff0000)))
                                                 : _mm512_slli_epi32(pair, 16));
        }
        void take(int64_t from) {
            const int64_t left = count - from < 32 ? count - from : 32;
            const __mmask32 mask = __mmask32((uint64_t(1) << left) - 1);
            for (int i = 0; i < 16; i++) pairs[i] = _mm512_maskz_loadu_epi16(mask, row[i] + from);
            transpose(pairs);
            first = from;
        }
    };

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
};

}  // namespace

bool quantize_avx512(const void* x, FloatType type, int64_t hadamard, int64_t group, int64_t row, Activations& out,
                     float* buffer) {
    if (group < Lanes::width || (hadamard > 1 && hadamard < Lanes::width))
        return quantize_avx2(x, type, hadamard, group, row, out, buffer);
    return quantize<Lanes>(x, type, hadamard, group, row, out, buffer);
}

void multiply_avx512(const Activations& x, const Weights& w, const Result& out, int64_t first) {
    if (fits_one_token(x)) return multiply_one_token<Lanes>(x, w, out, first);
    multiply<Lanes>(x, w, out, first);
}
