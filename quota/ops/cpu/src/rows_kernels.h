// Norms and activations: each reads its operands once from memory, and writes once. A row is read again, for its
// squares and its results, while it lies in the first-level cache.
#pragma once

#include "kv_vector.h"
#include "rows.h"

namespace {

// As the type would hold it.
template <class Type>
inline Floats rounded(Floats v) {
    typename Type::Stored stored[LANES];
    Type::store_vector(stored, v);
    return Type::load_vector(stored);
}

// The first `count` numbers, fewer than a vector, and zeros.
template <class Type>
inline Floats load_part(const typename Type::Stored* from, int64_t count) {
    typename Type::Stored part[LANES] = {};
    std::memcpy(part, from, count * sizeof part[0]);
    return Type::load_vector(part);
}

// y[i] = make(from[i] ...): what is left behind the last vector goes through the same instructions.
template <class Type, class Make, class... From>
inline void map(int64_t count, typename Type::Stored* y, Make make, const From*... from) {
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) Type::store_vector(y + i, make(Type::load_vector(from + i)...));
    if (i == count) return;
    typename Type::Stored part[LANES];
    Type::store_vector(part, make(load_part<Type>(from + i, count - i)...));
    std::memcpy(y + i, part, (count - i) * sizeof part[0]);
}

// Sum of term(x), in four chains of additions.
template <class Type, class Term>
inline float sum_over(const typename Type::Stored* x, int64_t count, Term term) {
    Floats total[4] = {};
    int64_t i = 0;
    for (; i + 4 * LANES <= count; i += 4 * LANES)
        for (int chain = 0; chain < 4; ++chain) total[chain] += term(Type::load_vector(x + i + chain * LANES));
    for (; i + LANES <= count; i += LANES) total[0] += term(Type::load_vector(x + i));
    if (i < count) {
        Ints lane;
        for (int j = 0; j < LANES; ++j) lane[j] = j;
        total[1] += lane < int32_t(count - i) ? term(load_part<Type>(x + i, count - i)) : Floats{};
    }
    return sum_of((total[0] + total[1]) + (total[2] + total[3]));
}

template <class Type>
inline void norm_row(const quota::NormRows& job, int64_t row) {
    using Stored = typename Type::Stored;
    const Stored* x = static_cast<const Stored*>(job.x) + row * job.columns;
    const float count = float(job.columns);
    const float mean = job.centred ? sum_over<Type>(x, job.columns, [](Floats v) { return v; }) / count : 0.0f;
    const float square = sum_over<Type>(x, job.columns, [=](Floats v) { return (v - mean) * (v - mean); }) / count;
    const float inverse = 1.0f / __builtin_sqrtf(square + job.eps), one = job.offset ? 1.0f : 0.0f;
    // Only what is scaled by the weight itself is rounded before.
    const bool twice = !job.centred && !job.offset;
    const auto scaled = [=](Floats v, Floats weight) {
        const Floats normed = (v - mean) * inverse;
        return (twice ? rounded<Type>(normed) : normed) * (weight + one);
    };
    Stored* y = static_cast<Stored*>(job.y) + row * job.columns;
    const Stored *weight = static_cast<const Stored*>(job.weight), *bias = static_cast<const Stored*>(job.bias);
    if (bias == nullptr) return map<Type>(job.columns, y, scaled, x, weight);
    map<Type>(job.columns, y, [=](Floats v, Floats w, Floats b) { return scaled(v, w) + b; }, x, weight, bias);
}

inline void norm(const quota::NormRows& job, int64_t first, int64_t last) {
    with_type(job.type, [&](auto element) {
        for (int64_t row = first; row < last; ++row) norm_row<decltype(element)>(job, row);
    });
}

// e^x for all x, to below 1.5 units in the last place: 0 below -86, infinity from 88.73 on, NaN for NaN.
inline Floats exp_of_any(Floats x) {
    const Floats shifted = fma(x, broadcast(1.44269504f), broadcast(ROUNDER));
    const Floats n = shifted - ROUNDER;
    const Floats r = fma(n, broadcast(-1.42860677e-6f), fma(n, broadcast(-0.693145752f), x));
    Floats y = broadcast(1.0f / 5040);
    const float coefficients[] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
    for (float coefficient : coefficients) y = fma(y, r, broadcast(coefficient));
    // 2^(n - 1), as n may be 128.
    const Words half_power = (bits_of<Words>(shifted) << 23) + 0x3f000000u;
    const Floats result = (y + y) * bits_of<Floats>(half_power);
    return x < -86.0f ? Floats{} : x > 88.73f ? broadcast(__builtin_inff()) : result;
}

// In each the type rounds what it rounds in torch.
struct Silu {
    template <class Type>
    static Floats of(Floats x) {
        return x / (exp_of_any(-x) + 1.0f);
    }
};

// x (1 + tanh u) / 2 = x / (1 + e^-2u), which loses nothing where tanh is close to -1.
struct GeluTanh {
    template <class Type>
    static Floats of(Floats x) {
        return x / (exp_of_any(-x * fma(x * x, broadcast(0.0713548163f), broadcast(1.59576912f))) + 1.0f);
    }
};

// x Phi(x), Phi the normal distribution: ln Phi(-t) is nearly a parabola. The polynomial was fitted on [0, 6], where Phi is
// right to 1e-7, and Phi(-t) to 5e-6 of itself; behind, it is below 1e-9.
struct Gelu {
    template <class Type>
    static Floats of(Floats x) {
        const Floats t = x < 0.0f ? -x : x;
        Floats y = broadcast(-1.381832e-8f);
        const float coefficients[] = {4.400399e-7f,   -5.9773197e-6f, 4.383309e-5f,  -1.6361754e-4f, -5.9368504e-5f,
                                      0.004883057f,   -0.0363919f,    -0.31829485f,  -0.797886f,     -0.6931472f};
        for (float coefficient : coefficients) y = fma(y, t, broadcast(coefficient));
        const Floats tail = t < 6.0f ? exp_of(y) : Floats{};
        return x * (x < 0.0f ? tail : 1.0f - tail);
    }
};

struct QuickGelu {
    template <class Type>
    static Floats of(Floats x) {
        const Floats inner = rounded<Type>(x * 1.702f);
        return x * rounded<Type>(1.0f / (exp_of_any(-inner) + 1.0f));
    }
};

template <class Type, class Function>
inline void activate_as(const quota::Activated& job, int64_t first, int64_t last) {
    using Stored = typename Type::Stored;
    const Stored* x = static_cast<const Stored*>(job.x) + first;
    Stored* y = static_cast<Stored*>(job.y) + first;
    const auto activated = [](Floats v) { return Function::template of<Type>(v); };
    if (job.up == nullptr) return map<Type>(last - first, y, activated, x);
    const auto gated = [=](Floats gate, Floats up) { return rounded<Type>(activated(gate)) * up; };
    map<Type>(last - first, y, gated, x, static_cast<const Stored*>(job.up) + first);
}

inline void activate(const quota::Activated& job, int64_t first, int64_t last) {
    with_type(job.type, [&](auto element) {
        using Type = decltype(element);
        switch (job.activation) {
            case quota::SILU:
                return activate_as<Type, Silu>(job, first, last);
            case quota::GELU:
                return activate_as<Type, Gelu>(job, first, last);
            case quota::GELU_TANH:
                return activate_as<Type, GeluTanh>(job, first, last);
            default:
                return activate_as<Type, QuickGelu>(job, first, last);
        }
    });
}

}  // namespace
