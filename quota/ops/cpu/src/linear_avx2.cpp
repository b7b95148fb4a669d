// The operator with AVX2 and FMA: 8 outputs a vector.
//
// Products of bytes would saturate, so weights and values are multiplied as 16-bit numbers, in pairs: of the 8 channels
// in one word of packed weights 0 and 4, 1 and 5, 2 and 6, 3 and 7, which one shift and one mask take out of it.
#include <immintrin.h>

#include "multiply.h"
#include "one_token.h"
#include "quantize.h"

namespace {

// 8 vectors of 8 words, rows to columns.
inline void transpose(__m256i* v) {
    __m256i s[8];
    for (int i = 0; i < 8; i += 2) {
        s[i] = _mm256_unpacklo_epi32(v[i], v[i + 1]);
        s[i + 1] = _mm256_unpackhi_epi32(v[i], v[i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; j++) {
            v[i + 2 * j] = _mm256_unpacklo_epi64(s[i + j], s[i + j + 2]);
            v[i + 2 * j + 1] = _mm256_unpackhi_epi64(s[i + j], s[i + j + 2]);
        }
    for (int j = 0; j < 4; j++) {
        s[j] = _mm256_permute2x128_si256(v[j], v[j + 4], 0x20);
        s[j + 4] = _mm256_permute2x128_si256(v[j], v[j + 4], 0x31);
    }
    for (int i = 0; i < 8; i++) v[i] = s[i];
}

inline __m256i load_bytes(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }

struct Lanes {
    static constexpr int width = 8;
    using F = __m256;
    using I = __m256i;

    static F load(const float* x) { return _mm256_loadu_ps(x); }
    static void store(float* out, F x) { _mm256_storeu_ps(out, x); }
    static void store_integers(int32_t* out, I x) { _mm256_storeu_si256(reinterpret_cast<I*>(out), x); }
    static I repeat(int32_t x) { return _mm256_set1_epi32(x); }
    static I add(I a, I b) { return _mm256_add_epi32(a, b); }
    static F set(float x) { return _mm256_set1_ps(x); }
    static F min(F a, F b) { return _mm256_min_ps(a, b); }
    static F max(F a, F b) { return _mm256_max_ps(a, b); }
    static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }

    struct Loader {
        const char* const* pieces;
        FloatType type;

        Loader(const char* const* pieces, FloatType type) : pieces(pieces), type(type) {}
        void operator()(int64_t channel, int64_t, F* out) const {
            I v[width];
            for (int l = 0; l < width; l++) {
                if (type == FLOAT32) {
                    v[l] = load_bytes(pieces[l] + 4 * channel);
                    continue;
                }
                const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(pieces[l] + 2 * channel));
                v[l] = type == BFLOAT16 ? _mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16)
                                        : _mm256_castps_si256(_mm256_cvtph_ps(halves));
            }
            transpose(v);
            for (int i = 0; i < width; i++) out[i] = _mm256_castsi256_ps(v[i]);
        }
    };
    static I bytes(F a, F b, F c, F d) {
        const I high = _mm256_slli_epi32(pair(c, d), 16);
        return _mm256_blend_epi16(pair(a, b), high, 0xaa);
    }
    // The lowest byte of `a`, then that of `b` and more.
    static I pair(F a, F b) {
        const I low = _mm256_and_si256(_mm256_castps_si256(a), _mm256_set1_epi32(255));
        return _mm256_or_si256(low, _mm256_slli_epi32(_mm256_castps_si256(b), 8));
    }
    static I add_bytes(I sum, I) { return sum; }
    static void scatter(I* words, int64_t count, int8_t* const* out, int64_t lanes) {
        for (int64_t first = 0; first < count; first += 8) {
            transpose(words + first);
            for (int64_t l = 0; l < lanes; l++) {
                if (count - first >= 8)
                    store_integers(reinterpret_cast<int32_t*>(out[l] + 4 * first), words[first + l]);
                else
                    std::memcpy(out[l] + 4 * first, words + first + l, 4 * (count - first));
            }
        }
    }

    static constexpr int64_t panel = 16, rows = ROWS_AVX2;
    using Weight = int16_t;

    // [chunks, 8 words, 4 pairs of channels, 2 halves of the panel, 8 outputs, 2]
    static void unpack(const Product& job, int64_t first, int64_t chunk, int64_t chunks, int16_t* out) {
        const int64_t words = job.x.columns / 8;
        for (int64_t half = 0; half < 2; half++) {
            const Rows<width> rows(job, first + half * width, chunk * CHUNK);
            for (int64_t c = 0; c < chunks; c++) {
                const int64_t word = (chunk + c) * 8, count = words - word < 8 ? words - word : 8;
                const I lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
                const I mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(int(count)), lanes);
                I packed[8], step = {}, lift = {};
                for (int i = 0; i < width; i++) {
                    const uint8_t* from = rows.packed[i] + c * CHUNK / 2;
                    packed[i] = _mm256_maskload_epi32(reinterpret_cast<const int*>(from), mask);
                }
                transpose(packed);
                for (int64_t j = 0; j < count; j++) {
                    if (j == 0 || ((word + j) * 8 & (job.w.group - 1)) == 0) {
                        const I one = steps(steps_of(job, first, (word + j) * 8) + half * width);
                        step = _mm256_or_si256(one, _mm256_slli_epi32(one, 16));
                        lift = _mm256_slli_epi16(step, 3);
                    }
                    for (int pair = 0; pair < 4; pair++) {
                        const I two = _mm256_set1_epi32(0xf000f);
                        const I q = _mm256_and_si256(_mm256_srli_epi32(packed[j], 4 * pair), two);
                        const I w = _mm256_sub_epi16(_mm256_mullo_epi16(q, step), lift);
                        store_integers(reinterpret_cast<int32_t*>(out + ((c * 32 + j * 4 + pair) * 2 + half) * 16), w);
                    }
                }
            }
        }
        prefetch(job, first, panel, chunk * CHUNK, chunks * CHUNK);
    }

    // The same order, four words of 8 channels at once.
    static void unpack_bytes(const Product& job, int64_t first, int64_t chunk, int64_t chunks, int16_t* out) {
        const int64_t words = job.x.columns / 8, end = words < (chunk + chunks) * 8 ? words : (chunk + chunks) * 8;
        const I lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), low = _mm256_set1_epi32(255);
        for (int64_t half = 0; half < 2; half++) {
            const Rows<width> rows(job, first + half * width, chunk * CHUNK);
            for (int64_t word = chunk * 8; word < end; word += 4) {
                const int64_t at = word - chunk * 8, count = end - word < 4 ? end - word : 4;
                const I mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(int(2 * count)), lanes);
                I bytes[8];
                for (int i = 0; i < width; i++)
                    bytes[i] = _mm256_maskload_epi32(reinterpret_cast<const int*>(rows.packed[i] + at * 8), mask);
                transpose(bytes);
                for (int64_t j = 0; j < count; j++)
                    for (int pair = 0; pair < 4; pair++) {
                        const I one = _mm256_and_si256(_mm256_srli_epi32(bytes[2 * j], 8 * pair), low);
                        const I other = _mm256_and_si256(_mm256_srli_epi32(bytes[2 * j + 1], 8 * pair), low);
                        const I both = _mm256_or_si256(one, _mm256_slli_epi32(other, 16));
                        store_integers(reinterpret_cast<int32_t*>(out + (((at + j) * 4 + pair) * 2 + half) * 16),
                                       _mm256_sub_epi16(both, _mm256_set1_epi16(128)));
                    }
            }
        }
        prefetch(job, first, panel, chunk * CHUNK, chunks * CHUNK);
    }

    template <class Behind>
    static void multiply(const Values& x, int64_t row, int64_t rows, int64_t chunk, int64_t chunks,
                         const int16_t* weights, int32_t* sums, Behind behind) {
        const int8_t* values = x.at(row, chunk);
        if (rows == 4) multiply<4>(values, x.together, chunks, weights, sums, chunk == 0);
        else if (rows == 3) multiply<3>(values, x.together, chunks, weights, sums, chunk == 0);
        else if (rows == 2) multiply<2>(values, x.together, chunks, weights, sums, chunk == 0);
        else multiply<1>(values, x.together, chunks, weights, sums, chunk == 0);
        behind();
    }
    template <int ROWS>
    static void multiply(const int8_t* values, int64_t together, int64_t chunks, const int16_t* weights, int32_t* sums,
                         bool fresh) {
        // The order of the weights' pairs.
        const __m128i order = _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15);
        I total[ROWS][2];
        for (int m = 0; m < ROWS; m++)
            for (int half = 0; half < 2; half++)
                total[m][half] = fresh ? _mm256_setzero_si256() : load_bytes(sums + m * PANEL + half * width);
        for (int64_t c = 0; c < chunks; c++, values += together * CHUNK) {
            alignas(32) int32_t pairs[ROWS][CHUNK / 2];
            for (int m = 0; m < ROWS; m++)
                for (int i = 0; i < CHUNK / 16; i++) {
                    const __m128i bytes = _mm_load_si128(reinterpret_cast<const __m128i*>(values + m * CHUNK) + i);
                    store_integers(pairs[m] + 8 * i, _mm256_cvtepi8_epi16(_mm_shuffle_epi8(bytes, order)));
                }
            for (int k = 0; k < CHUNK / 2; k++, weights += 32) {
                const I low = load_bytes(weights), high = load_bytes(weights + 16);
                for (int m = 0; m < ROWS; m++) {
                    const I pair = _mm256_set1_epi32(pairs[m][k]);
                    total[m][0] = _mm256_add_epi32(total[m][0], _mm256_madd_epi16(low, pair));
                    total[m][1] = _mm256_add_epi32(total[m][1], _mm256_madd_epi16(high, pair));
                }
            }
        }
        for (int m = 0; m < ROWS; m++)
            for (int half = 0; half < 2; half++) store_integers(sums + m * PANEL + half * width, total[m][half]);
    }

    static F whole(const int32_t* x) { return _mm256_cvtepi32_ps(load_bytes(x)); }
    static void store_result(void* y, FloatType type, int64_t at, int64_t count, F x) {
        float values[width];
        store(values, x);
        store_floats(y, type, at, count, values);
    }

    static constexpr int64_t groups = 1;

    // Sums of two products of a nibble and a byte, and of two such sums, stay within 16 bits.
    struct Token {
        I even, odd;
        int32_t offset[1];

        Token(const int8_t* values, int64_t) {
            const __m256 low = _mm256_loadu_ps(reinterpret_cast<const float*>(values));
            const __m256 high = _mm256_loadu_ps(reinterpret_cast<const float*>(values) + 8);
            even = _mm256_permute4x64_epi64(_mm256_castps_si256(_mm256_shuffle_ps(low, high, 0x88)), 0xd8);
            odd = _mm256_permute4x64_epi64(_mm256_castps_si256(_mm256_shuffle_ps(low, high, 0xdd)), 0xd8);
            const I ones = _mm256_set1_epi8(1);
            const I pairs = _mm256_add_epi16(_mm256_maddubs_epi16(ones, even), _mm256_maddubs_epi16(ones, odd));
            int32_t sums[8];
            store_integers(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(-8)));
            offset[0] = 0;
            for (const int32_t sum : sums) offset[0] += sum;
        }
        I times(const uint8_t* row) const {
            const I packed = load_bytes(row), nibble = _mm256_set1_epi8(15);
            const I low = _mm256_maddubs_epi16(_mm256_and_si256(packed, nibble), even);
            const I high = _mm256_maddubs_epi16(_mm256_and_si256(_mm256_srli_epi16(packed, 4), nibble), odd);
            return _mm256_madd_epi16(_mm256_add_epi16(low, high), _mm256_set1_epi16(1));
        }
    };
    // Products of two bytes would saturate in pairs, so both become 16-bit numbers.
    struct ByteToken {
        I values[4];

        explicit ByteToken(const int8_t* from) {
            const __m128i channels = _mm_setr_epi8(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15);
            for (int i = 0; i < 4; i++) {
                const __m128i bytes = _mm_shuffle_epi8(load_half(from + 16 * i), channels);
                values[i] = _mm256_cvtepi8_epi16(bytes);
            }
        }
        I add(I sums, const uint8_t* row) const {
            for (int i = 0; i < 4; i++)
                sums = Lanes::add(sums, _mm256_madd_epi16(_mm256_cvtepu8_epi16(load_half(row + 16 * i)), values[i]));
            return sums;
        }
        static __m128i load_half(const void* from) { return _mm_loadu_si128(static_cast<const __m128i*>(from)); }
    };
    static void add_up(const I* parts, I* sums) {
        const I low = _mm256_hadd_epi32(_mm256_hadd_epi32(parts[0], parts[1]), _mm256_hadd_epi32(parts[2], parts[3]));
        const I high = _mm256_hadd_epi32(_mm256_hadd_epi32(parts[4], parts[5]), _mm256_hadd_epi32(parts[6], parts[7]));
        const I half = _mm256_permute2x128_si256(low, high, 0x20);
        sums[0] = _mm256_add_epi32(half, _mm256_permute2x128_si256(low, high, 0x31));
    }
    static I plus_scaled(I total, I sums, int32_t offset, const uint8_t* from) {
        const I sum = _mm256_add_epi32(sums, _mm256_set1_epi32(offset));
        return _mm256_add_epi32(total, _mm256_mullo_epi32(sum, steps(from)));
    }
    static I steps(const uint8_t* from) {
        return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
    }
};

}  // namespace

bool quantize_avx2(const Tokens& x, int64_t first, int64_t count, Values& out, int64_t row, float* buffer) {
    return quantize<Lanes>(x, first, count, out, row, buffer);
}

void measure_avx2(const Tokens& x, int64_t first, int64_t count, float* errors, float* buffer) {
    measure<Lanes>(x, first, count, errors, buffer);
}

void multiply_avx2(const Product& job) {
    if (!is_one_token(job)) return multiply<Lanes>(job);
    if (job.w.bits == 8) return multiply_one_token_by_bytes<Lanes>(job);
    multiply_one_token<Lanes>(job);
}
