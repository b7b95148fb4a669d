// Tokens to whole numbers, as quota/ops/activations.py defines them, to the last bit behind the same rotation.
//
// Pieces of tokens stand in the lanes of a vector, a channel in each vector: so rotating takes no shuffles, and the
// bounds of a group no reduction; one token fills the lanes as well as many. The rotation adds in the order of spans 1,
// 2, 4 ..., so that every V gives the same bits. V is one instruction set's:
//
//     width, F, I            lanes; floats and int32 of one vector, the former with the arithmetic operators
//     Loader(pieces, type)   (channel, length, out): `width` channels of all lanes, a vector each, of pieces so long
//     set, min, max, load, store, store_integers, fma     as named; a fused sum is taken of whole numbers only
//     bytes(a, b, c, d)      the lowest bytes of four vectors' lanes as one word a lane
//     add_bytes(sum, words)  the four signed bytes of every word added
//     scatter(words, count, out, lanes)     lane l's `count` words to out[l]
#pragma once

#include "floats.h"

namespace {

// Added to a number of less than 2^22, this leaves it rounded to an integer, half to even, in the low mantissa bits.
constexpr float ROUNDER = 0x1.8p23f;
constexpr float SMALLEST_NORMAL = 0x1p-126f;

// The first levels of the fast transform, over vectors that lie one after the other.
template <class V, int COUNT, int SPAN = 1>
inline void butterflies(typename V::F* v, int64_t block) {
    if constexpr (SPAN < COUNT) {
        if (block <= SPAN) return;
#pragma GCC unroll 16
        for (int i = 0; i < COUNT; i++)
            if (!(i & SPAN)) {
                const typename V::F a = v[i], b = v[i + SPAN];
                v[i] = a + b;
                v[i + SPAN] = a - b;
            }
        butterflies<V, COUNT, 2 * SPAN>(v, block);
    }
}

// COUNT vectors `span` apart, for all of the `length` channels.
template <class V, int COUNT>
inline void later_levels(float* channels, int64_t length, int64_t span, float factor) {
    for (int64_t first = 0; first < length; first += COUNT * span)
        for (int64_t c = first; c < first + span; c++) {
            typename V::F v[COUNT];
            for (int i = 0; i < COUNT; i++) v[i] = V::load(channels + (c + i * span) * V::width);
            butterflies<V, COUNT>(v, COUNT);
            for (int i = 0; i < COUNT; i++) V::store(channels + (c + i * span) * V::width, v[i] * factor);
        }
}

// block**-0.5 in double precision, then rounded.
inline float norm_of(int64_t block) {
    double norm = 1;
    for (; block >= 4; block /= 4) norm /= 2;
    return float(block == 2 ? norm * 0x1.6a09e667f3bcdp-1 : norm);
}

// Some tokens on their way; numbers of pieces are one a lane.
template <class V>
struct Quantizer {
    using F = typename V::F;
    using I = typename V::I;

    const Tokens& x;
    const Pieces pieces;
    const int64_t groups;  // bounds of a piece
    const int64_t lanes;
    float *channels, *bounds, *tops, *bad, *inverse, *error;
    int32_t* sum;

    Quantizer(const Tokens& x, float* buffer)
        : x(x), pieces(x), groups(x.bits == 4 ? pieces.length / x.group : 1), lanes(pieces.lanes()) {
        channels = buffer;
        bounds = channels + lanes * pieces.length;
        tops = bounds + lanes * 2 * groups;
        bad = tops + lanes;
        inverse = bad + lanes;
        error = inverse + lanes;
        sum = reinterpret_cast<int32_t*>(error + lanes);
    }

    // Reads and rotates the pieces [at, at + V::width) of the tokens from `first` on, of which `count` are there, and
    // finds their bounds.
    void read(int64_t first, int64_t count, int64_t at) {
        const char* from[V::width];
        for (int64_t l = 0, token = at / pieces.count, piece = at % pieces.count; l < V::width; l++) {
            // Lanes past the last piece do it again.
            const int64_t size = x.type == FLOAT32 ? 4 : 2;
            from[l] = static_cast<const char*>(x.x) + ((first + token) * x.step + piece * pieces.length) * size;
            if (token * pieces.count + piece + 1 == count * pieces.count) continue;
            if (++piece == pieces.count) token++, piece = 0;
        }
        rotate(from, channels + at * pieces.length);
        bound(channels + at * pieces.length, at);
    }

    void rotate(const char* const* from, float* to) {
        const float norm = norm_of(x.hadamard);
        typename V::Loader load(from, x.type);
        for (int64_t c = 0; c < pieces.length; c += V::width) {
            F v[V::width];
            const int64_t count = pieces.length - c < V::width ? pieces.length - c : V::width;
            load(c, pieces.length, v);
            if (x.hadamard > 1) butterflies<V, V::width>(v, x.hadamard);
            if (x.hadamard > 1 && x.hadamard <= V::width)
                for (F& one : v) one = one * norm;
            for (int64_t i = 0; i < count; i++) V::store(to + (c + i) * V::width, v[i]);
        }
        for (int64_t span = V::width; span < x.hadamard;) {
            const int64_t next = 4 * span <= x.hadamard ? 4 * span : 2 * span;
            const float factor = next == x.hadamard ? norm : 1;
            if (next == 4 * span) later_levels<V, 4>(to, pieces.length, span, factor);
            else later_levels<V, 2>(to, pieces.length, span, factor);
            span = next;
        }
    }

    void bound(const float* v, int64_t at) {
        const int64_t group = pieces.length / groups;
        F top = V::set(0), watch = V::set(0);
        for (int64_t g = 0; g < groups; g++) {
            // Two of each, as one waits for itself.
            F low[2], high[2];
            low[0] = high[0] = V::load(v + g * group * V::width);
            low[1] = high[1] = low[0];
            for (int64_t c = g * group; c < (g + 1) * group; c += 2)
                for (int i = 0; i < 2; i++) {
                    const F one = V::load(v + (c + i) * V::width);
                    low[i] = V::min(low[i], one);
                    high[i] = V::max(high[i], one);
                    // Becomes NaN, and stays so, for what is not finite, which comparisons would lose.
                    watch = watch + one * V::set(0);
                }
            low[0] = V::min(low[0], low[1]);
            high[0] = V::max(high[0], high[1]);
            V::store(bounds + at * 2 * groups + 2 * g * V::width, low[0]);
            V::store(bounds + at * 2 * groups + (2 * g + 1) * V::width, high[0]);
            top = V::max(top, V::max(high[0], V::set(0) - low[0]));
        }
        V::store(tops + at, top);
        V::store(bad + at, watch);
    }

    // s of each token, and its inverse for each of its pieces; false if one is not finite.
    bool scale(int64_t count, float* scales) {
        bool finite = true;
        for (int64_t token = 0; token < count; token++) {
            float top = 0, watch = 0;
            for (int64_t p = token * pieces.count; p < (token + 1) * pieces.count; p++) {
                top = tops[p] > top ? tops[p] : top;
                watch += bad[p];
            }
            finite = finite && watch == 0;
            const float s = top / (x.bits == 4 ? 122.0f : 127.0f);
            // All zeros, or only subnormal numbers: any scale will do, they become zero.
            scales[token] = s < SMALLEST_NORMAL ? 1 : s;
            for (int64_t p = token * pieces.count; p < (token + 1) * pieces.count; p++) inverse[p] = 1 / scales[token];
        }
        for (int64_t p = count * pieces.count; p < lanes; p++) inverse[p] = 0;
        return finite;
    }

    // Calls take(channel, v + ROUNDER, t) for every 8 channels of the pieces from `at` on.
    template <class Take>
    void round(int64_t at, Take take) {
        if (x.bits == 4) round<true>(at, take);
        else round<false>(at, take);
    }
    template <bool FOUR, class Take>
    void round(int64_t at, Take take) {
        const float* v = channels + at * pieces.length;
        const F r = V::load(inverse + at), rounder = V::set(ROUNDER), zero = V::set(0);
        F step = V::set(1), offset = zero, fine = zero, base = rounder;
        const F least = V::set(FOUR ? 0 : -127), most = V::set(FOUR ? 15 : 127);
        for (int64_t c = 0; c < pieces.length; c += 8) {
            if (FOUR && (c & (x.group - 1)) == 0) {
                const float* of = bounds + at * 2 * groups + c / x.group * 2 * V::width;
                const F low = V::load(of) * r, high = V::load(of + V::width) * r;
                step = V::max((high - low) * V::set(1.0f / 15) + rounder - rounder, V::set(1));
                offset = ((low + high) * V::set(0.5f) - step * V::set(7.5f)) + rounder - rounder;
                fine = V::set(1) / step;
                base = offset + rounder;
            }
            F t[8], codes[8];
            for (int i = 0; i < 8; i++) {
                t[i] = V::load(v + (c + i) * V::width) * r;
                const F exact = FOUR ? (t[i] - offset) * fine : t[i];
                const F code = V::max(V::min(exact, most), least) + rounder;
                codes[i] = FOUR ? V::fma(code - rounder, step, base) : code;
            }
            take(c, codes, t);
        }
    }

    // v of the pieces from `at` on, of which the first stands in row `row`, to where they belong.
    void write(int64_t count, int64_t at, Values& out, int64_t row) {
        const int64_t there = count * pieces.count - at < V::width ? count * pieces.count - at : V::width;
        const int64_t width = pieces.length < CHUNK ? pieces.length : CHUNK;
        int64_t rows[V::width], channel[V::width];
        for (int64_t l = 0, token = at / pieces.count, piece = at % pieces.count; l < there; l++) {
            rows[l] = row + token;
            channel[l] = piece * pieces.length;
            if (++piece == pieces.count) token++, piece = 0;
        }
        I words[CHUNK / 4] = {}, total = {};
        round(at, [&](int64_t c, const F* v, const F*) {
            I* pair = words + (c & (width - 1)) / 4;
            pair[0] = V::bytes(v[0], v[2], v[4], v[6]);
            pair[1] = V::bytes(v[1], v[3], v[5], v[7]);
            total = V::add_bytes(V::add_bytes(total, pair[0]), pair[1]);
            if ((c + 8) & (width - 1)) return;
            int8_t* to[V::width];
            for (int64_t l = 0; l < there; l++) {
                const int64_t first = channel[l] + c + 8 - width;
                to[l] = out.at(rows[l], first / CHUNK) + first % CHUNK;
            }
            V::scatter(words, width / 4, to, there);
        });
        V::store_integers(sum + at, total);
    }

    // Sums of (v - t)^2.
    void measure(int64_t at) {
        F total = V::set(0);
        round(at, [&](int64_t, const F* v, const F* t) {
            for (int i = 0; i < 8; i++) {
                const F error = (v[i] - V::set(ROUNDER)) - t[i];
                total = total + error * error;
            }
        });
        V::store(error + at, total + V::load(bad + at));
    }
};

// Calls work(quantizer, first token, count) for a few tokens at a time, all pieces being read.
template <class V, class Work>
inline void in_turn(const Tokens& x, int64_t first, int64_t count, float* buffer, Work work) {
    Quantizer<V> few(x, buffer);
    for (int64_t done = 0; done < count; done += few.pieces.tokens) {
        const int64_t taken = count - done < few.pieces.tokens ? count - done : few.pieces.tokens;
        for (int64_t at = 0; at < taken * few.pieces.count; at += V::width) few.read(first + done, taken, at);
        work(few, done, taken);
    }
}

template <class V>
inline bool quantize(const Tokens& x, int64_t first, int64_t count, Values& out, int64_t row, float* buffer) {
    bool finite = true;
    if (x.columns % CHUNK)
        for (int64_t i = 0; i < count; i++) std::memset(out.at(row + i, out.chunks() - 1), 0, CHUNK);
    in_turn<V>(x, first, count, buffer, [&](Quantizer<V>& few, int64_t done, int64_t taken) {
        finite = few.scale(taken, out.scale + row + done) && finite;
        const int64_t pieces = taken * few.pieces.count;
        for (int64_t at = 0; at < pieces; at += V::width) few.write(taken, at, out, row + done);
        for (int64_t token = 0; token < taken; token++) {
            int32_t sum = 0;
            for (int64_t p = 0; p < few.pieces.count; p++) sum += few.sum[token * few.pieces.count + p];
            out.sum[row + done + token] = sum;
        }
    });
    return finite;
}

template <class V>
inline void measure(const Tokens& x, int64_t first, int64_t count, float* errors, float* buffer) {
    in_turn<V>(x, first, count, buffer, [&](Quantizer<V>& few, int64_t done, int64_t taken) {
        float scales[MOST_LANES];
        few.scale(taken, scales);
        for (int64_t at = 0; at < taken * few.pieces.count; at += V::width) few.measure(at);
        for (int64_t token = 0; token < taken; token++) {
            float sum = 0;
            for (int64_t p = 0; p < few.pieces.count; p++) sum += few.error[token * few.pieces.count + p];
            errors[done + token] = scales[token] * __builtin_sqrtf(sum);
        }
    });
}

}  // namespace
