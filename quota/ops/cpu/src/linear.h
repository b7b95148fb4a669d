// The quantised linear operator: what its parts share. Definitions: quota/ops/activations.py, weights.py and
// reference/backend.py.
//
//     y_tn = ((s_n S_tn) s_t) + b_n        S_tn = sum_k v_tk g_nj q_nk        int32, exactly, over all channels k
//
// Tokens become whole numbers v of a byte; a panel of outputs is unpacked to whole weights g q, and multiplied with all
// tokens while it lies in the first-level cache. Weights are read as the checkpoint holds them: of 4 bits, 8 channels
// of a row in 4 bytes, even ones in the low nibbles. So the even channels of every 8 stand in front of the odd ones in
// v, and unpacking needs no shuffle of bytes. Weights of 8 bits, a byte each and 128 more than they are, have no steps;
// they are shuffled as they are read, so that one v serves both.
//
// No float operation is fused, and sums are exact: every instruction set gives the same bits, whatever the number of
// rows, threads and weights.
#pragma once

#include <cstdint>

// The last is for tests alone: S itself in place of y.
enum FloatType { FLOAT32 = 0, BFLOAT16 = 1, FLOAT16 = 2, INTEGERS = 3 };

// Channels that are handled at once, and chunks that an unpacked panel spans: 16 KB, half of a first-level cache.
constexpr int64_t CHUNK = 64, CHUNKS = 8;
// Outputs of a panel.
constexpr int64_t PANEL = 32;
// Outputs whose steps stand together.
constexpr int64_t OUTPUTS = 16;
// Lanes of the widest vectors.
constexpr int64_t MOST_LANES = 16;

constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return divide_up(a, b) * b; }

// Tokens to quantise.
struct Tokens {
    const void* x;  // [., columns] of `type`, rows `step` numbers apart
    FloatType type;
    int64_t columns, step;
    int64_t hadamard;  // block of the rotation; 0 and 1: none
    int64_t group;     // of 4 bits; with 8 it counts for nothing
    int bits;
};

// A token is cut into pieces that are rotated and quantised each for itself, as many at once as a vector has lanes.
struct Pieces {
    int64_t length, count;  // channels of one; of a token
    int64_t tokens;         // quantised together: so few that their floats stay in the cache, yet lanes are full

    explicit Pieces(const Tokens& x) {
        const int64_t divisor = x.columns & -x.columns, group = x.bits == 4 ? x.group : 0;
        length = divisor < CHUNK ? divisor : CHUNK;
        if (length < group) length = group;
        if (length < x.hadamard) length = x.hadamard;
        count = x.columns / length;
        tokens = 1;
        while (8 * (lanes() - tokens * count) > tokens * count && tokens < MOST_LANES) tokens *= 2;
    }
    int64_t lanes() const { return round_up(tokens * count, MOST_LANES); }
    // Of memory for `tokens` tokens: their channels, two bounds for each group of at least 8, and five numbers a piece.
    int64_t floats() const { return lanes() * (length + length / 4 + 5); }
};

// Quantised tokens.
struct Values {
    int64_t rows, columns;
    int64_t together;  // rows that lie together, as many as a kernel takes at once: a power of two
    // v, zero behind the last channel: [blocks of CHUNKS chunks, rows / together, chunks of a block, together, CHUNK]
    int8_t* data;
    float* scale;  // [rows]: s
    int32_t* sum;  // [rows]: of v, for kernels that need one factor without a sign

    int64_t chunks() const { return divide_up(columns, CHUNK); }
    int64_t padded() const { return round_up(rows, together); }
    int8_t* at(int64_t row, int64_t chunk) const {
        const int64_t block = chunk / CHUNKS * CHUNKS, width = chunks() - block < CHUNKS ? chunks() - block : CHUNKS;
        const int64_t inside = row & (together - 1);
        return data + (block * padded() + (row - inside) * width + (chunk - block) * together + inside) * CHUNK;
    }
};

// One weight, and where its result goes: the layout that Python fills in, field by field.
struct Weights {
    const uint8_t* packed;  // [outputs, columns * bits / 8]
    const uint8_t* steps;   // [outputs / OUTPUTS, columns / group, OUTPUTS]; of 8 bits nothing
    const float* scale;     // [outputs]
    const float* bias;      // [outputs] or null
    void* y;                // [rows, outputs]
    int64_t outputs, group;  // with 8 bits the group is the row
    int64_t bits;

    int64_t bytes(int64_t channels) const { return channels * bits / 8; }
};

// A job of multiplying: all rows of x times the outputs [first, last) of w, `first` a multiple of PANEL.
struct Product {
    const Values& x;
    const Weights& w;
    int64_t first, last;
    FloatType type;
    int64_t row;    // of y that the first row of x goes to
    int32_t* sums;  // memory for [x.padded(), PANEL]
};

// Tokens [first, first + count) of x to rows [row, row + count) of `out`; `buffer` has Pieces(x).floats() floats, whole
// cache lines. False if one holds NaN or infinity.
using Quantize = bool (*)(const Tokens& x, int64_t first, int64_t count, Values& out, int64_t row, float* buffer);
// s ||v - t|| of tokens [first, first + count), what quantisation adds to them; NaN for one that is not finite.
using Measure = void (*)(const Tokens& x, int64_t first, int64_t count, float* errors, float* buffer);
using Multiply = void (*)(const Product& job);

bool quantize_portable(const Tokens&, int64_t, int64_t, Values&, int64_t, float*);
bool quantize_avx2(const Tokens&, int64_t, int64_t, Values&, int64_t, float*);
bool quantize_avx512(const Tokens&, int64_t, int64_t, Values&, int64_t, float*);
void measure_portable(const Tokens&, int64_t, int64_t, float*, float*);
void measure_avx2(const Tokens&, int64_t, int64_t, float*, float*);
void measure_avx512(const Tokens&, int64_t, int64_t, float*, float*);
void multiply_portable(const Product&);
void multiply_avx2(const Product&);
void multiply_avx512(const Product&);
void multiply_amx(const Product&);

// Rows that each takes at once.
constexpr int64_t ROWS_PORTABLE = 1, ROWS_AVX2 = 4, ROWS_AVX512 = 8, ROWS_AMX = 32;
