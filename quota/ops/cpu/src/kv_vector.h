// Vectors of as many floats as the target has, in the compiler's own vector types: one source for every instruction
// set.
//
// Included by one translation unit an instruction set, after its target has been chosen. Everything is in an unnamed
// namespace, so that the linker cannot take a function of one target for that of another.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));
typedef uint16_t Shorts __attribute__((vector_size(2 * LANES)));
typedef uint8_t Bytes __attribute__((vector_size(LANES)));

template <typename Vector, typename Element>
inline Vector load(const Element* from) {
    Vector v;
    std::memcpy(&v, from, sizeof v);
    return v;
}

template <typename Vector, typename Element>
inline void store(Element* to, Vector v) {
    std::memcpy(to, &v, sizeof v);
}

template <typename To, typename From>
inline To bits_of(From v) {
    static_assert(sizeof(To) == sizeof(From), "same size");
    To w;
    std::memcpy(&w, &v, sizeof w);
    return w;
}

inline Floats broadcast(float x) { return x - Floats{}; }

inline Floats fma(Floats a, Floats b, Floats c) {
#if defined(__AVX512F__)
    return _mm512_fmadd_ps(a, b, c);
#elif defined(__FMA__)
    return _mm256_fmadd_ps(a, b, c);
#else
    return a * b + c;
#endif
}

// x / scale, correctly rounded, where `inverse` is 1 / scale and nothing over- or underflows on the way: the remainder
// of a quotient that is nearly right says which of two neighbours is the right one. Several times as fast as a
// division.
inline Floats quotient(Floats x, Floats scale, Floats inverse) {
#if defined(__FMA__)
    const Floats nearly = x * inverse;
    return fma(fma(-nearly, scale, x), inverse, nearly);
#else
    (void)inverse;
    return x / scale;
#endif
}

inline Floats max(Floats a, Floats b) { return a > b ? a : b; }
inline Floats min(Floats a, Floats b) { return a < b ? a : b; }

using Lanes = std::make_integer_sequence<int, LANES>;

// Lane i gets lane i ^ span.
template <int span, int... lane>
inline Floats swap_lanes(Floats v, std::integer_sequence<int, lane...>) {
    return Floats{v[lane ^ span]...};
}

template <typename Join>
inline float reduce(Floats v, Join join) {
    v = join(v, swap_lanes<1>(v, Lanes{}));
    v = join(v, swap_lanes<2>(v, Lanes{}));
    if constexpr (LANES > 4) v = join(v, swap_lanes<4 % LANES>(v, Lanes{}));
    if constexpr (LANES > 8) v = join(v, swap_lanes<8 % LANES>(v, Lanes{}));
    return v[0];
}

inline float sum_of(Floats v) {
    return reduce(v, [](Floats a, Floats b) { return a + b; });
}
inline float max_of(Floats v) {
    return reduce(v, [](Floats a, Floats b) { return max(a, b); });
}

// Transposes a square of words: lane j of vector i and lane i of vector j change places.
template <int span, int... lane>
inline Words from_low(Words a, Words b, std::integer_sequence<int, lane...>) {
    return Words{(lane & span ? b[lane & ~span] : a[lane])...};
}
template <int span, int... lane>
inline Words from_high(Words a, Words b, std::integer_sequence<int, lane...>) {
    return Words{(lane & span ? b[lane] : a[lane | span])...};
}
template <int span>
inline void transpose_step(Words* v) {
    for (int i = 0; i < LANES; ++i) {
        if (i & span) continue;
        const Words a = v[i], b = v[i + span];
        v[i] = from_low<span>(a, b, Lanes{});
        v[i + span] = from_high<span>(a, b, Lanes{});
    }
}
inline void transpose(Words* v) {
    transpose_step<1>(v);
    transpose_step<2>(v);
    if constexpr (LANES > 4) transpose_step<4 % LANES>(v);
    if constexpr (LANES > 8) transpose_step<8 % LANES>(v);
}

// Lane i of the result joins all lanes of vector i of a square, which is used up.
template <int span, typename Join>
inline void join_step(Floats* v, Join join) {
    for (int i = 0; i < LANES; i += 2 * span) {
        const Words a = bits_of<Words>(v[i]), b = bits_of<Words>(v[i + span]);
        v[i] = join(bits_of<Floats>(from_low<span>(a, b, Lanes{})), bits_of<Floats>(from_high<span>(a, b, Lanes{})));
    }
}
template <typename Join>
inline Floats join_each(Floats* v, Join join) {
    join_step<1>(v, join);
    join_step<2>(v, join);
    if constexpr (LANES > 4) join_step<4 % LANES>(v, join);
    if constexpr (LANES > 8) join_step<8 % LANES>(v, join);
    return v[0];
}

// Added to a number of less than 2^22, this leaves it rounded to an integer, half to even, in the low mantissa bits.
constexpr float ROUNDER = 12582912.0f;

// e^x for x <= 0, to about one unit in the last place; exactly 0 below -87, where float32 runs out.
inline Floats exp_of(Floats x) {
    const Floats shifted = fma(x, broadcast(1.44269504f), broadcast(ROUNDER));
    const Floats n = shifted - ROUNDER;
    // ln 2 in two parts: n times the first one is exact.
    const Floats r = fma(n, broadcast(-1.42860677e-6f), fma(n, broadcast(-0.693145752f), x));
    // Taylor's series; |r| is at most half of ln 2.
    Floats y = broadcast(1.0f / 5040);
    const float coefficients[] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
    for (float coefficient : coefficients) y = fma(y, r, broadcast(coefficient));
    const Words power = (bits_of<Words>(shifted) << 23) + 0x3f800000u;
    const Floats result = y * bits_of<Floats>(power);
    // Written so that NaN stays NaN.
    return x < -87.0f ? Floats{} : result;
}

inline float from_half(uint16_t half) {
#if defined(__F16C__)
    return _cvtsh_ss(half);
#else
    const uint32_t magnitude = half & 0x7fffu;
    float value = bits_of<float>(magnitude << 13) * 0x1p112f;
    if (magnitude >= 0x7c00u) value = bits_of<float>(0x7f800000u | magnitude << 13);
    return half & 0x8000u ? -value : value;
#endif
}

inline uint16_t to_half(float value) {
#if defined(__F16C__)
    return _cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT);
#else
    const uint32_t bits = bits_of<uint32_t>(value), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return 0x7e00u;
    if (magnitude >= 0x477ff000u) return sign | 0x7c00u;
    // Below the normal range the sum with 0.5 rounds to the spacing of subnormal halves.
    if (magnitude < 0x38800000u) return sign | (bits_of<uint32_t>(bits_of<float>(magnitude) + 0.5f) - 0x3f000000u);
    return sign | (magnitude + 0xfffu + (magnitude >> 13 & 1u) - 0x38000000u) >> 13;
#endif
}

// Element types of the model's tensors: one number, or a vector of them, from and to float.
struct Float32 {
    using Stored = float;
    static float get(float x) { return x; }
    static float put(float x) { return x; }
    static Floats load_vector(const float* from) { return load<Floats>(from); }
    static void store_vector(float* to, Floats v) { store(to, v); }
};

struct Bfloat16 {
    using Stored = uint16_t;
    static float get(uint16_t x) { return bits_of<float>(uint32_t(x) << 16); }
    static uint16_t put(float x) {
        const uint32_t w = bits_of<uint32_t>(x);
        return (w + 0x7fffu + (w >> 16 & 1u)) >> 16;
    }
    static Floats load_vector(const uint16_t* from) {
        return bits_of<Floats>(__builtin_convertvector(load<Shorts>(from), Words) << 16);
    }
    static void store_vector(uint16_t* to, Floats v) {
        const Words w = bits_of<Words>(v);
        store(to, __builtin_convertvector((w + 0x7fffu + (w >> 16 & 1u)) >> 16, Shorts));
    }
};

struct Float16 {
    using Stored = uint16_t;
    static float get(uint16_t x) { return from_half(x); }
    static uint16_t put(float x) { return to_half(x); }
#if defined(__AVX512F__)
    static Floats load_vector(const uint16_t* from) { return _mm512_cvtph_ps(load<__m256i>(from)); }
    static void store_vector(uint16_t* to, Floats v) {
        store(to, _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    }
#elif defined(__F16C__)
    static Floats load_vector(const uint16_t* from) { return _mm256_cvtph_ps(load<__m128i>(from)); }
    static void store_vector(uint16_t* to, Floats v) { store(to, _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT)); }
#else
    static Floats load_vector(const uint16_t* from) {
        Floats v;
        for (int lane = 0; lane < LANES; ++lane) v[lane] = get(from[lane]);
        return v;
    }
    static void store_vector(uint16_t* to, Floats v) {
        for (int lane = 0; lane < LANES; ++lane) to[lane] = put(v[lane]);
    }
#endif
};

// Calls `work` with the element type that `type` names.
template <typename Work>
inline auto with_type(int type, Work work) {
    switch (type) {
        case 0:
            return work(Float32{});
        case 1:
            return work(Bfloat16{});
        default:
            return work(Float16{});
    }
}

template <typename Type>
inline void load_row(const typename Type::Stored* from, int64_t count, float* to) {
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) store(to + i, Type::load_vector(from + i));
    for (; i < count; ++i) to[i] = Type::get(from[i]);
}

template <typename Type>
inline void store_row(const float* from, int64_t count, typename Type::Stored* to) {
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) Type::store_vector(to + i, load<Floats>(from + i));
    for (; i < count; ++i) to[i] = Type::put(from[i]);
}

// Number j of each word, eight of four bits, as floats.
inline Floats nibble(Words words, int j) {
#if defined(__AVX512F__)
    const Floats table = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    // The permutation looks at the low four bits of a lane only.
    return _mm512_permutexvar_ps(bits_of<__m512i>(words >> (4 * j)), table);
#else
    return __builtin_convertvector(bits_of<Ints>(words >> (4 * j) & 15u), Floats);
#endif
}

// The first `count` words at `from`, at most a vector of them, and zeros.
inline Words load_words(const uint8_t* from, int64_t count) {
    if (count >= LANES) return load<Words>(from);
#if defined(__AVX512F__)
    return bits_of<Words>(_mm512_maskz_loadu_epi32(__mmask16((1u << count) - 1), from));
#else
    uint32_t words[LANES] = {};
    std::memcpy(words, from, 4 * count);
    return load<Words>(words);
#endif
}

}  // namespace
