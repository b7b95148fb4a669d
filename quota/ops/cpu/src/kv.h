// What the entry points (kv.cpp, attention.cpp, ranking.cpp) and the kernels of each instruction set know of each other.
#pragma once

#include <cstdint>

namespace quota {

// Heads of up to this many channels; the kernels keep one in a buffer of fixed size.
constexpr int MAX_WIDTH = 1024;
// Query heads of one key head that are served together.
constexpr int MAX_SHARED = 4;

// Keys or values of one sample and head, one row a token: x ~ zero + scale * q.
// Number k of a row stands in the low (k even) or high half of byte k / 2; scale and zero are float16.
struct PackedRows {
    uint8_t* packed;
    uint16_t* scale;
    uint16_t* zero;
    int64_t packed_step, scale_step, zero_step;
};

// What is done to the channels of a head in front of the quantiser, and undone behind it: a rotation in blocks, or a map
// that has the rotation in it,
//
//     stored = x into + offset          read = stored back          queries meet what is stored as q back^T
//
// A matrix is [width, columns_of(width)], what is behind `width` zero, in panels of columns that fit the first-level
// cache.
struct HeadMap {
    int64_t hadamard;
    const float* into;  // null: the rotation
    const float* offset;
    const float* back;
};

constexpr int64_t PANEL_COLUMNS = 32;
constexpr int64_t columns_of(int64_t width) { return (width + 15) / 16 * 16; }
// Columns of the panel that a column is in, and where the panel's part of row `k` has that column.
constexpr int64_t panel_of(int64_t width, int64_t column) {
    const int64_t rest = columns_of(width) - column / PANEL_COLUMNS * PANEL_COLUMNS;
    return rest < PANEL_COLUMNS ? rest : PANEL_COLUMNS;
}
constexpr int64_t place_of(int64_t width, int64_t k, int64_t column) {
    return column / PANEL_COLUMNS * PANEL_COLUMNS * width + k * panel_of(width, column) + column % PANEL_COLUMNS;
}

// The same for all samples and heads: the layout that Python fills in, field by field.
struct PackedTensor {
    PackedRows first;
    int64_t packed_sample, packed_head, scale_sample, scale_head, zero_sample, zero_head;
    HeadMap maps;  // of the first head

    PackedRows rows(int64_t sample, int64_t head, int64_t token = 0) const {
        PackedRows rows = first;
        rows.packed += sample * packed_sample + head * packed_head + token * rows.packed_step;
        rows.scale += sample * scale_sample + head * scale_head + token * rows.scale_step;
        rows.zero += sample * zero_sample + head * zero_head + token * rows.zero_step;
        return rows;
    }
    HeadMap map(int64_t head, int64_t width) const {
        if (maps.into == nullptr) return maps;
        const int64_t columns = columns_of(width), matrix = head * width * columns;
        return {maps.hadamard, maps.into + matrix, maps.offset + head * columns, maps.back + matrix};
    }
};

// Keys or values that are stored: the layout that Python fills in, field by field.
struct KvInput {
    const void* x;  // The last dimension is contiguous.
    int64_t sample_step, head_step, token_step;
    PackedTensor to;
    int64_t slot;  // of the first token
    void* read;  // What is read of what is stored, contiguous; null: nothing.
};

// Some tokens of one head: their rows, where they are stored, and what is read of that.
struct KvBlock {
    const void* x;  // Rows `step` numbers apart; null: nothing to store, only to read.
    int64_t step;
    PackedRows stored;
    HeadMap map;
    void* read;  // [rows, width]; null: nothing to read.
    int type;
    int64_t rows, width;
};

// Tokens that the kernels map at a time.
constexpr int64_t KV_ROWS = 32;
// Floats of scratch that they need.
constexpr int64_t kv_scratch(int64_t width) { return 2 * KV_ROWS * columns_of(width); }

// Softmax over rows of logits, in place, and the weighted sums of its rows.
struct SoftmaxRows {
    int64_t rows, columns;
    int64_t first;           // Row i may see columns up to first + i.
    const uint8_t* visible;  // [columns]
    const uint8_t* sets;     // [set_count, set_step]: which rows each set has.
    int64_t set_count, set_step;
    float scaling;
    float* sums;  // [set_count, columns], added to.
};

// The visual tokens of one image [tokens, width], and memory for the products of `rows` of them, from `first` on, with
// all: [rows, tokens].
struct TokenProducts {
    const float* hidden;
    int64_t tokens, width, first, rows;
    float* products;

    // Rows that are done at a time; of several, `first` is a multiple of it.
    static constexpr int64_t BLOCK = 16;
};

// What the newest of the visual tokens that are chosen leaves of the variance of all others.
struct Conditioning {
    float* factor;          // [blocks, room, BLOCK]: what each chosen one has taken of the tokens
    const float* own;       // [steps]: what those before it had taken of the newest
    const float* products;  // of the newest with all
    float* left;            // [blocks, BLOCK]: variances, -infinity where a token is chosen or padding
    float inverse;          // of the root of the newest one's variance
    int64_t steps, room, tokens;

    static constexpr int64_t BLOCK = 64;
};

// Whether a head of `width` channels, rotated in blocks of `hadamard`, fits the kernels.
constexpr bool is_head(int64_t width, int64_t hadamard) {
    return width > 0 && width <= MAX_WIDTH && width % 8 == 0 && hadamard >= 0 && (hadamard & (hadamard - 1)) == 0 &&
           (hadamard == 0 || width % hadamard == 0);
}

// `type` of a tensor: 0 float32, 1 bfloat16, 2 float16. `scratch` is memory for the kernel's own use.
struct KvKernels {
    // Store and read; false, with nothing read, if float16 cannot hold a row's range.
    bool (*keep)(const KvBlock& block, float* scratch);
    // A query [width] in `type` to floats that meet what is stored. Writes whole vectors: up to 15 floats more.
    void (*query)(const void* x, int type, int64_t width, const HeadMap& map, float* out, float* scratch);
    // [width] floats to `type`, rotated.
    void (*rotate_out)(const float* rotated, int64_t width, int64_t hadamard, void* x, int type);
    // Attention of up to MAX_SHARED queries [shared, width] over tokens start .. tokens - 1, as floats [shared, width];
    // `added` [shared, tokens] goes to the scaled logits, or is null.
    void (*decode)(const float* query, int shared, int64_t width, const PackedRows& keys, const PackedRows& values,
                   const uint8_t* valid, const float* added, int64_t start, int64_t tokens, float scaling,
                   float* scratch, float* out);
    void (*softmax)(void* logits, int type, const SoftmaxRows& rows, float* scratch);
    // Of the block at `row` with columns start .. until - 1. If these are all, what lies on both sides of the diagonal is
    // made above it, for both.
    void (*products)(const TokenProducts& job, int64_t row, int64_t start, int64_t until);
    void (*condition)(const Conditioning& job, int64_t block);
};

// `keep` through a map in bfloat16 for processors with AMX, `width` a multiple of 16; each call lays out its tiles.
bool keep_amx(const KvBlock& block, float* scratch);
// Channels in whole tiles, and floats of scratch: sums, a line of totals, 32 tokens, two matrices in two parts.
constexpr int64_t tiles_side(int64_t width) { return (width + 31) / 32 * 32; }
constexpr int64_t keep_amx_scratch(int64_t width) {
    return tiles_side(width) * (KV_ROWS + 1 + KV_ROWS / 2 + 2 * tiles_side(width));
}

// Prefill attention of one sample in bfloat16. Rows of heads: number [head, token] starts at head * head_step + token *
// token_step.
struct Rows {
    uint16_t* first;
    int64_t head_step, token_step;

    uint16_t* at(int64_t head, int64_t token) const { return first + head * head_step + token * token_step; }
};

struct Prefill {
    Rows query, key, value, out;
    int64_t heads, groups, queries, length, width;
    bool causal;             // The queries are the last tokens and see none behind them; else all keys.
    const uint8_t* visible;  // [length]
    const uint8_t* sets;     // [set_count, queries]
    int64_t set_count;
    float scaling;
    float* sums;      // [heads, bands of PREFILL_BAND queries, set_count, length], zeros
    uint16_t* tiles;  // keys and values as products take them: [groups, prefill_tiles]

    // Keys in whole pairs of tiles.
    int64_t padded() const { return (length + 31) / 32 * 32; }
    int64_t side() const { return tiles_side(width); }
    int64_t prefill_tiles() const { return 2 * padded() * side(); }
    int64_t scratch() const { return 96 * (padded() + 32) + 32 * side() + 1024; }
};

constexpr int64_t PREFILL_BAND = 64;

struct PrefillKernels {
    // Keys and values of a group to their tiles.
    void (*arrange)(const Prefill& job, int64_t group);
    // A band of PREFILL_BAND queries of one head, when its keys are there.
    void (*attend)(const Prefill& job, int64_t head, int64_t band, float* scratch);
};

// Null without products in bfloat16.
const PrefillKernels* prefill_kernels(int isa);

// Floats of scratch that `decode` and `softmax` need for so many tokens.
constexpr int64_t decode_scratch(int64_t tokens) { return (MAX_SHARED + 2) * (tokens + 16); }
constexpr int64_t softmax_scratch(int64_t columns) { return columns + 16; }

// Bytes of a number of this type.
constexpr int64_t size_of(int type) { return type == 0 ? 4 : 2; }

// 0 portable, 1 AVX2, 2 and above AVX-512.
const KvKernels& kv_kernels(int isa);

}  // namespace quota
