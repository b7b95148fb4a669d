// What the fuzzer calls, and how it draws.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>

#include "../quota/ops/cpu/src/checks.h"
#include "../quota/ops/cpu/src/kv.h"
#include "../quota/ops/cpu/src/linear.h"
#include "../quota/ops/cpu/src/rows.h"

extern "C" {
int quota_best_isa();
int quota_has_bf16(int);
int quota_linear(int, int, const void*, int, int64_t, int64_t, int64_t, int64_t, int, const Weights*, int64_t);
int quota_sums(int, int, const int8_t*, int64_t, int64_t, const Weights*);
int quota_quantize(int, int, const void*, int, int64_t, int64_t, int64_t, int64_t, int, int8_t*, float*);
int quota_kv4_store(int, int, int, int64_t, int64_t, int64_t, int64_t, const quota::KvInput*, int64_t);
int quota_kv4_dequantize(int, int, const quota::PackedTensor*, int64_t, int64_t, int64_t, int64_t, void*, int);
int quota_kv4_decode(int, int, const void*, int, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t,
                     const quota::PackedTensor*, const quota::PackedTensor*, const uint8_t*, const float*, float, void*);
int quota_softmax_sums(int, int, void*, int, int64_t, int64_t, int64_t, int64_t, const uint8_t*, const uint8_t*, int64_t,
                       int64_t, float, int64_t, float*);
int quota_attention(int, int, const void*, const void*, const void*, void*, const int64_t*, int64_t, int64_t, int64_t, int64_t,
                    int64_t, int, const uint8_t*, const uint8_t*, int64_t, float, float*, void*);
int quota_activation_error(int, int, const void*, int, int64_t, int64_t, int64_t, int64_t, int64_t, int, float*);
int quota_information(int, int, const float*, const uint8_t*, const int64_t*, int64_t, int64_t, int64_t, float, float*);
int quota_cut(int, int, const float*, const uint8_t*, const int64_t*, const int64_t*, int64_t, int64_t, uint8_t*, int64_t, int64_t,
              int64_t*, uint8_t*, int64_t*);
int quota_norm(int, int, const void*, int, int64_t, int64_t, const void*, const void*, float, int, int, void*);
int quota_activate(int, int, const void*, int, int64_t, int, void*);
int quota_gated(int, int, const void*, int, const void*, int64_t, int, void*);
}

// Of the call that is being made.
inline uint64_t seed;
inline std::mt19937_64 random_bits;

inline int64_t draw(int64_t low, int64_t high) { return low + int64_t(random_bits() % uint64_t(high - low + 1)); }
inline int64_t power(int64_t low, int64_t high) { return int64_t(1) << draw(low, high); }
inline bool chance(int of) { return draw(1, of) == 1; }

inline void require(bool holds, const char* what) {
    if (holds) return;
    std::fprintf(stderr, "seed %llu: %s\n", static_cast<unsigned long long>(seed), what);
    std::exit(1);
}

inline int threads() { return int(draw(1, 3)); }

// A call with one size that does not fit the others: it must be refused before any memory is touched.
void wrong_sizes();
