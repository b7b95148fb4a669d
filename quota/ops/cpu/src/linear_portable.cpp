// The operator in plain C++, for processors without AVX2; its loops are left to the compiler.
#include "multiply.h"
#include "quantize.h"

namespace {

struct Lanes {
    static constexpr int width = 8;
    typedef float F __attribute__((vector_size(32)));
    typedef int32_t I __attribute__((vector_size(32)));

    static F load(const float* x) {
        F v;
        std::memcpy(&v, x, sizeof v);
        return v;
    }
    static void store(float* out, F x) { std::memcpy(out, &x, sizeof x); }
    static void store_integers(int32_t* out, I x) { std::memcpy(out, &x, sizeof x); }
    static F set(float x) { return F{x, x, x, x, x, x, x, x}; }
    static F min(F a, F b) { return a < b ? a : b; }
    static F max(F a, F b) { return a > b ? a : b; }
    static F fma(F a, F b, F c) { return a * b + c; }

    struct Loader {
        const char* const* pieces;
        FloatType type;

        Loader(const char* const* pieces, FloatType type) : pieces(pieces), type(type) {}
        void operator()(int64_t channel, int64_t, F* out) const {
            const int64_t size = type == FLOAT32 ? 4 : 2;
            for (int l = 0; l < width; l++)
                for (int i = 0; i < width; i++) out[i][l] = load_float(pieces[l] + (channel + i) * size, type);
        }
    };
    static I bytes(F a, F b, F c, F d) {
        I w[4];
        const F all[] = {a, b, c, d};
        std::memcpy(w, all, sizeof w);
        return (w[0] & 255) | (w[1] & 255) << 8 | (w[2] & 255) << 16 | w[3] << 24;
    }
    static I add_bytes(I sum, I) { return sum; }
    static void scatter(const I* words, int64_t count, int8_t* const* out, int64_t lanes) {
        for (int64_t l = 0; l < lanes; l++)
            for (int64_t i = 0; i < count; i++) {
                const int32_t word = words[i][l];
                std::memcpy(out[l] + 4 * i, &word, sizeof word);
            }
    }

    static constexpr int64_t panel = PANEL, rows = ROWS_PORTABLE;
    using Weight = int8_t;

    // [outputs, CHUNKS * CHUNK]
    static void unpack(const Product& job, int64_t first, int64_t chunk, int64_t chunks, int8_t* out) {
        const Rows<PANEL> rows(job, first, chunk * CHUNK);
        const int64_t end = (chunk + chunks) * CHUNK < job.x.columns ? (chunk + chunks) * CHUNK : job.x.columns;
        for (int64_t i = 0; i < PANEL; i++, out += CHUNKS * CHUNK)
            for (int64_t k = chunk * CHUNK, at = 0; k < end; k += 8, at += 8) {
                const int step = steps_of(job, first + i, k)[i % OUTPUTS];
                for (int64_t j = 0; j < 4; j++) {
                    const uint8_t pair = rows.packed[i][at / 2 + j];
                    out[at + j] = int8_t(((pair & 15) - 8) * step);
                    out[at + 4 + j] = int8_t(((pair >> 4) - 8) * step);
                }
            }
    }

    static void unpack_bytes(const Product& job, int64_t first, int64_t chunk, int64_t chunks, int8_t* out) {
        const Rows<PANEL> rows(job, first, chunk * CHUNK);
        const int64_t left = job.x.columns - chunk * CHUNK, count = chunks * CHUNK < left ? chunks * CHUNK : left;
        for (int64_t i = 0; i < PANEL; i++, out += CHUNKS * CHUNK)
            for (int64_t k = 0; k < count; k++)
                out[k / 8 * 8 + k % 8 / 2 + k % 2 * 4] = int8_t(rows.packed[i][k] - 128);
    }

    template <class Behind>
    static void multiply(const Values& x, int64_t row, int64_t, int64_t chunk, int64_t chunks, const int8_t* weights,
                         int32_t* sums, Behind behind) {
        const int64_t left = x.columns - chunk * CHUNK, count = chunks * CHUNK < left ? chunks * CHUNK : left;
        const int8_t* values = x.at(row, chunk);
        for (int64_t i = 0; i < PANEL; i++, weights += CHUNKS * CHUNK) {
            int32_t sum = 0;
            for (int64_t k = 0; k < count; k++) sum += values[k] * weights[k];
            sums[i] = chunk ? sums[i] + sum : sum;
        }
        behind();
    }

    static F whole(const int32_t* x) {
        I v;
        std::memcpy(&v, x, sizeof v);
        return __builtin_convertvector(v, F);
    }
    static void store_result(void* y, FloatType type, int64_t at, int64_t count, F x) {
        float values[width];
        store(values, x);
        store_floats(y, type, at, count, values);
    }
};

}  // namespace

bool quantize_portable(const Tokens& x, int64_t first, int64_t count, Values& out, int64_t row, float* buffer) {
    return quantize<Lanes>(x, first, count, out, row, buffer);
}

void measure_portable(const Tokens& x, int64_t first, int64_t count, float* errors, float* buffer) {
    measure<Lanes>(x, first, count, errors, buffer);
}

void multiply_portable(const Product& job) { multiply<Lanes>(job); }
