// The operator with AVX512-VNNI: 16 outputs a vector. One factor of its products has no sign: weights are 128 more than
// they are, which the sum of a token's values takes back.
#include "avx512.h"
#include "one_token.h"
#include "quantize.h"

namespace {

struct Lanes : Wide {
    static void store(float* out, F x) { _mm512_storeu_ps(out, x); }
    static void store_integers(int32_t* out, I x) { _mm512_storeu_si512(out, x); }
    static I repeat(int32_t x) { return _mm512_set1_epi32(x); }
    static I add(I a, I b) { return _mm512_add_epi32(a, b); }
    static F min(F a, F b) { return _mm512_min_ps(a, b); }
    static F max(F a, F b) { return _mm512_max_ps(a, b); }
    static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }

    // Halves are transposed in pairs, 32 channels at once, if there are as many.
    struct Loader {
        const char* const* pieces;
        FloatType type;
        I pairs[16];

        Loader(const char* const* pieces, FloatType type) : pieces(pieces), type(type) {}
        void operator()(int64_t channel, int64_t length, F* out) {
            const int64_t size = type == FLOAT32 ? 4 : 2, words = size == 4 ? 16 : 32 / size;
            if (size == 4 || channel % 32 == 0) {
                const int64_t left = (length - channel) * size / 4;
                const __mmask16 mask = left < words ? __mmask16((1u << left) - 1) : 0xffff;
                for (int l = 0; l < 16; l++) pairs[l] = _mm512_maskz_loadu_epi32(mask, pieces[l] + size * channel);
                transpose(pairs);
            }
            const I* from = pairs + (size == 2 ? channel % 32 / 2 : 0);
            for (int i = 0; i < 16; i++)
                out[i] = type == FLOAT32 ? _mm512_castsi512_ps(pairs[i])
                         : i % 2         ? upper(from[i / 2], type)
                                         : lower(from[i / 2], type);
        }
        static F lower(I pair, FloatType type) {
            if (type == BFLOAT16) return _mm512_castsi512_ps(_mm512_slli_epi32(pair, 16));
            return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(pair));
        }
        static F upper(I pair, FloatType type) {
            const I half = _mm512_set1_epi32(int(0xffff0000));
            if (type == BFLOAT16) return _mm512_castsi512_ps(_mm512_and_si512(pair, half));
            return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(pair, 16)));
        }
    };
    static I bytes(F a, F b, F c, F d) {
        const I byte = _mm512_set1_epi32(0xff), half = _mm512_set1_epi32(0xffff);
        const I second = _mm512_slli_epi32(_mm512_castps_si512(b), 8);
        const I fourth = _mm512_slli_epi32(_mm512_castps_si512(d), 8);
        // The first where its mask is set, else the second.
        const I low = _mm512_ternarylogic_epi32(byte, _mm512_castps_si512(a), second, 0xca);
        const I high = _mm512_ternarylogic_epi32(byte, _mm512_castps_si512(c), fourth, 0xca);
        return _mm512_ternarylogic_epi32(half, low, _mm512_slli_epi32(high, 16), 0xca);
    }
    static I add_bytes(I sum, I words) { return _mm512_dpbusd_epi32(sum, _mm512_set1_epi8(1), words); }
    static void scatter(I* words, int64_t count, int8_t* const* out, int64_t lanes) {
        const __mmask16 mask = __mmask16((1u << count) - 1);
        transpose(words);
        for (int64_t l = 0; l < lanes; l++) _mm512_mask_storeu_epi32(out[l], mask, words[l]);
    }

    static constexpr int64_t rows = ROWS_AVX512;

    static void unpack(const Product& job, int64_t first, int64_t chunk, int64_t chunks, int8_t* out) {
        Wide::unpack<128>(job, first, chunk, chunks, out);
    }
    static void unpack_bytes(const Product& job, int64_t first, int64_t chunk, int64_t chunks, int8_t* out) {
        Wide::unpack_bytes<128>(job, first, chunk, chunks, out);
    }
    template <class Behind>
    static void multiply(const Values& x, int64_t row, int64_t rows, int64_t chunk, int64_t chunks,
                         const int8_t* weights, int32_t* sums, Behind behind) {
        multiply<ROWS_AVX512>(x, row, rows, chunk, chunks, weights, sums);
        behind();
    }
    // ROWS rows, or as many as there are.
    template <int ROWS>
    static void multiply(const Values& x, int64_t row, int64_t rows, int64_t chunk, int64_t chunks,
                         const int8_t* weights, int32_t* sums) {
        if constexpr (ROWS > 1)
            if (rows < ROWS) return multiply<ROWS - 1>(x, row, rows, chunk, chunks, weights, sums);
        const int8_t* values = x.at(row, chunk);
        I total[ROWS][2];
        for (int m = 0; m < ROWS; m++)
            for (int tile = 0; tile < 2; tile++)
                total[m][tile] = chunk ? _mm512_loadu_si512(sums + m * PANEL + tile * width)
                                       : _mm512_set1_epi32(-128 * x.sum[row + m]);
        for (int64_t c = 0; c < chunks; c++, values += x.together * CHUNK, weights += 2048)
            for (int k = 0; k < 16; k++) {
                const I low = _mm512_load_si512(weights + 64 * k), high = _mm512_load_si512(weights + 1024 + 64 * k);
                for (int m = 0; m < ROWS; m++) {
                    int32_t four;
                    std::memcpy(&four, values + m * CHUNK + 4 * k, sizeof four);
                    total[m][0] = _mm512_dpbusd_epi32(total[m][0], low, _mm512_set1_epi32(four));
                    total[m][1] = _mm512_dpbusd_epi32(total[m][1], high, _mm512_set1_epi32(four));
                }
            }
        for (int m = 0; m < ROWS; m++)
            for (int tile = 0; tile < 2; tile++) store_integers(sums + m * PANEL + tile * width, total[m][tile]);
    }

    static constexpr int64_t groups = 2;

    struct Token {
        I even, odd;
        __mmask16 there;
        int32_t offset[2];

        Token(const int8_t* values, int64_t count) : there(count == 2 ? 0xffff : 0xff) {
            const I low = _mm512_loadu_si512(values);
            const I high = count == 2 ? _mm512_loadu_si512(values + CHUNK) : _mm512_setzero_si512();
            const I lanes = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
            even = _mm512_permutex2var_epi32(low, lanes, high);
            odd = _mm512_permutex2var_epi32(low, _mm512_add_epi32(lanes, _mm512_set1_epi32(1)), high);
            const I eight = _mm512_set1_epi8(8), zero = _mm512_setzero_si512();
            offset[0] = -_mm512_reduce_add_epi32(_mm512_dpbusd_epi32(zero, eight, low));
            offset[1] = -_mm512_reduce_add_epi32(_mm512_dpbusd_epi32(zero, eight, high));
        }
        I times(const uint8_t* row) const {
            const I packed = _mm512_maskz_loadu_epi32(there, row), nibble = _mm512_set1_epi8(15);
            const I sums = _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_and_si512(packed, nibble), even);
            return _mm512_dpbusd_epi32(sums, _mm512_and_si512(_mm512_srli_epi16(packed, 4), nibble), odd);
        }
    };
    struct ByteToken {
        I values;

        explicit ByteToken(const int8_t* from) {
            const __m128i channels = _mm_setr_epi8(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15);
            values = _mm512_shuffle_epi8(_mm512_loadu_si512(from), _mm512_broadcast_i32x4(channels));
        }
        I add(I sums, const uint8_t* row) const { return _mm512_dpbusd_epi32(sums, _mm512_loadu_si512(row), values); }
    };
    // Lanes 0 .. 7 of a row's are the first group's, 8 .. 15 the second's.
    static void add_up(const I* parts, I* sums) {
        I quad[4], half[2];
        for (int i = 0; i < 4; i++) {
            const I* row = parts + 4 * i;
            const I a = _mm512_add_epi32(_mm512_unpacklo_epi32(row[0], row[1]), _mm512_unpackhi_epi32(row[0], row[1]));
            const I b = _mm512_add_epi32(_mm512_unpacklo_epi32(row[2], row[3]), _mm512_unpackhi_epi32(row[2], row[3]));
            quad[i] = _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
        }
        for (int i = 0; i < 2; i++) {
            const I a = quad[2 * i], b = quad[2 * i + 1];
            half[i] = _mm512_add_epi32(_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xdd));
        }
        sums[0] = _mm512_shuffle_i32x4(half[0], half[1], 0x88);
        sums[1] = _mm512_shuffle_i32x4(half[0], half[1], 0xdd);
    }
    static I plus_scaled(I total, I sums, int32_t offset, const uint8_t* steps) {
        const I step = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(steps)));
        return _mm512_add_epi32(total, _mm512_mullo_epi32(_mm512_add_epi32(sums, _mm512_set1_epi32(offset)), step));
    }
};

}  // namespace

bool quantize_avx512(const Tokens& x, int64_t first, int64_t count, Values& out, int64_t row, float* buffer) {
    return quantize<Lanes>(x, first, count, out, row, buffer);
}

void measure_avx512(const Tokens& x, int64_t first, int64_t count, float* errors, float* buffer) {
    measure<Lanes>(x, first, count, errors, buffer);
}

void multiply_avx512(const Product& job) {
    if (!is_one_token(job)) return multiply<Lanes>(job);
    if (job.w.bits == 8) return multiply_one_token_by_bytes<Lanes>(job);
    multiply_one_token<Lanes>(job);
}
