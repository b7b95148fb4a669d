// The quantised linear operator: what its parts share.
//
//     y[m, n] = bias[n] + sum_g  weight_scale[n, g] * scale[m, g] * S[m, n, g]
//     S[m, n, g] = sum_{k in g} (q[m, k] - zero[m, g]) * (w[n, k] - 8)            an int32, exactly
//
// Weights are read as the checkpoint holds them: 8 channels of a row in 4 bytes, even ones in the low nibbles. So the
// activations are stored with the even channels of every 8 in front of the odd ones, and a product of bytes needs no
// shuffle of weights.
//
// Groups are added in their order, each with one fused multiply-add by weight_scale * scale. AVX2, AVX512 and AMX thus
// give the same bits, whatever the number of rows or threads; the portable code rounds the product once more.
#pragma once

#include <cstdint>

enum FloatType { FLOAT32 = 0, BFLOAT16 = 1, FLOAT16 = 2 };

// Channels between two jumps in the layout of activations: 32 bytes of packed weights.
constexpr int64_t CHUNK = 64;
// Tokens handled at once; more would push their codes out of the second-level cache.
constexpr int64_t MOST_ROWS = 256;

// Quantised tokens. A kernel takes all tokens through one chunk of channels before the next, hence the order.
struct Activations {
    int64_t rows, columns;
    int64_t group, groups;  // of S: the smallest of the activations' group, the weights' and CHUNK
    int8_t* codes;          // [chunks, rows, CHUNK]  q - zero in -15 .. 15; the end of a last short chunk is not set
    float* scale;           // [groups, rows]
    int32_t* offset;        // [groups, rows]  -8 * sum of codes, for kernels that take weights as 0 .. 15
    int8_t* tiles;          // AMX only: see arrange_amx
    float* tile_scale;      // AMX only
};

struct Weights {
    int64_t outputs;
    const uint8_t* packed;  // [outputs, columns / 2]
    const uint16_t* scale;  // bfloat16 [outputs, scales]
    int64_t scales;
    int64_t groups_per_scale;
    int64_t block;  // outputs that a thread takes at once
};

struct Result {
    void* y;  // [rows, outputs]
    FloatType type;
    const float* bias;  // [outputs] or null
    int32_t* sums;  // not null: [rows, outputs, groups], written in place of y
};

// The token x to row `row` of `out`; `buffer` holds `columns` floats. False if it holds NaN or infinity or spans more than
// float32.
using Quantize = bool (*)(const void* x, FloatType type, int64_t hadamard, int64_t group, int64_t row, Activations& out,
                          float* buffer);
// All rows times the outputs [first, first + w.block).
using Multiply = void (*)(const Activations& x, const Weights& w, const Result& out, int64_t first);

bool quantize_portable(const void*, FloatType, int64_t, int64_t, int64_t, Activations&, float*);
bool quantize_avx2(const void*, FloatType, int64_t, int64_t, int64_t, Activations&, float*);
bool quantize_avx512(const void*, FloatType, int64_t, int64_t, int64_t, Activations&, float*);
void multiply_portable(const Activations&, const Weights&, const Result&, int64_t);
void multiply_avx2(const Activations&, const Weights&, const Result&, int64_t);
void multiply_avx512(const Activations&, const Weights&, const Result&, int64_t);
void multiply_amx(const Activations&, const Weights&, const Result&, int64_t);

// Lays the codes of TILE rows, `count` of which are tokens, out as AMX takes them.
void arrange_amx(const Activations& codes, int64_t count, int64_t tile, Activations& x);

constexpr int64_t BLOCK_PORTABLE = 16, BLOCK_AVX2 = 8, BLOCK_AVX512 = 16, BLOCK_AMX = 64;
// AMX takes this many outputs at once if all threads get some: the more, the fewer passes over the tokens.
constexpr int64_t WIDE_BLOCK_AMX = 256;
// Columns of an AMX tile: tokens. Groups that are taken together, so that as many are laid out.
constexpr int64_t TILE = 16, TILE_GROUPS = 4;

constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
