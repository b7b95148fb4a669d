// What Python calls: checks sizes and the numbers in the activations, takes tokens MOST_ROWS at a time, and spreads
// rows, then blocks of outputs, over threads.
#include "linear.h"

#include <atomic>
#include <cstdlib>
#include <memory>

#include "checks.h"
#include "isa.h"

namespace {

// Channels in one word of packed weights, and in the largest group and rotation.
constexpr int64_t WORD = 8, LARGEST = 256;

// Below this many multiplications, starting threads takes longer than the work.
constexpr int64_t WORTH_THREADS = 1 << 19;

struct Kernels {
    Quantize quantize;
    Multiply multiply;
    int64_t block;
};

bool takes_tiles(int isa, int64_t rows, int64_t group) { return isa == AMX && rows >= TILE / 2 && group == CHUNK; }

Kernels kernels(int isa, bool tiles, bool wide) {
    if (tiles) return {quantize_avx512, multiply_amx, wide ? WIDE_BLOCK_AMX : BLOCK_AMX};
    if (isa >= AVX512) return {quantize_avx512, multiply_avx512, BLOCK_AVX512};
    if (isa == AVX2) return {quantize_avx2, multiply_avx2, BLOCK_AVX2};
    return {quantize_portable, multiply_portable, BLOCK_PORTABLE};
}

struct Free {
    void operator()(void* memory) const { std::free(memory); }
};

// Memory that a thread keeps and that only ever grows.
class Workspace {
public:
    bool reserve(int64_t size) {
        used_ = 0;
        if (size <= size_) return true;
        memory_.reset(static_cast<char*>(std::aligned_alloc(LINE, divide_up(size, LINE) * LINE)));
        size_ = memory_ ? size : 0;
        return memory_ != nullptr;
    }
    // The next `count` elements of what was reserved, with up to LINE bytes lost in front of them.
    template <class T>
    T* take(int64_t count) {
        used_ = divide_up(used_, LINE) * LINE;
        T* piece = reinterpret_cast<T*>(memory_.get() + used_);
        used_ += count * int64_t(sizeof(T));
        return piece;
    }
    static constexpr int64_t LINE = 64;

private:
    std::unique_ptr<char, Free> memory_;
    int64_t size_ = 0, used_ = 0;
};

// What all threads read belongs to the thread that calls, what one alone needs to itself.
thread_local Workspace common, own;

// Codes of x.rows tokens and `floats` floats; false without memory.
bool take_codes(Workspace& memory, Activations& x, int64_t floats, float** buffer) {
    const int64_t codes = divide_up(x.columns, CHUNK) * CHUNK * x.rows, places = x.groups * x.rows;
    if (!memory.reserve(codes + 8 * places + 4 * floats + 4 * Workspace::LINE)) return false;
    x.codes = memory.take<int8_t>(codes);
    x.scale = memory.take<float>(places);
    x.offset = memory.take<int32_t>(places);
    *buffer = memory.take<float>(floats);
    return true;
}

bool take_tiles(Workspace& memory, Activations& x) {
    const int64_t places = divide_up(x.rows, TILE) * TILE * divide_up(x.groups, TILE_GROUPS) * TILE_GROUPS;
    if (!memory.reserve(places * (CHUNK + 4) + 2 * Workspace::LINE)) return false;
    x.tiles = memory.take<int8_t>(places * CHUNK);
    x.tile_scale = memory.take<float>(places);
    return true;
}

const void* rows_after(const void* x, FloatType type, int64_t row, int64_t columns) {
    return static_cast<const char*>(x) + row * columns * (type == FLOAT32 ? 4 : 2);
}

Result after(Result out, int64_t row, int64_t outputs, int64_t groups) {
    if (out.sums)
        out.sums += row * outputs * groups;
    else
        out.y = const_cast<void*>(rows_after(out.y, out.type, row, outputs));
    return out;
}

// Where the code of channel k stands.
int8_t* place(const Activations& x, int64_t row, int64_t k) {
    return x.codes + (k / CHUNK * x.rows + row) * CHUNK + k % CHUNK / 8 * 8 + k % 8 / 2 + k % 2 * 4;
}

// `fill(token, row, x, buffer)` sets row `row` of x to the codes of a token; false if it is not finite.
template <class Fill>
Status run(int isa, int threads, int64_t rows, int64_t columns, int64_t group, Weights w, const Result& whole,
           Fill fill) {
    Activations x = {rows < MOST_ROWS ? rows : MOST_ROWS, columns, group, columns / group, {}, {}, {}, {}, {}};
    const bool tiles = takes_tiles(isa, x.rows, group);
    float* none;
    if (!(tiles ? take_tiles(common, x) : take_codes(common, x, 0, &none))) return NO_MEMORY;
    const Kernels use = kernels(isa, tiles, w.outputs >= 2 * threads * WIDE_BLOCK_AMX);
    w.block = use.block;
    std::atomic<Status> status{DONE};

    // In parts as large as each other: each goes through all the weights.
    const int64_t parts = divide_up(rows, MOST_ROWS), most = divide_up(divide_up(rows, TILE), parts ? parts : 1) * TILE;
    for (int64_t part = 0; part < rows && status == DONE; part += most) {
        x.rows = rows - part < most ? rows - part : most;
        const Result out = after(whole, part, w.outputs, x.groups);
#pragma omp parallel num_threads(threads) if (x.rows * columns * w.outputs > WORTH_THREADS)
        {
            Activations draft = x;
            draft.rows = tiles ? TILE : 0;
            float* buffer = nullptr;
            if (!take_codes(own, draft, columns, &buffer)) status = NO_MEMORY;
            Activations& to = tiles ? draft : x;
            const int64_t step = tiles ? TILE : 1;
#pragma omp for
            for (int64_t first = 0; first < x.rows; first += step) {
                const int64_t count = x.rows - first < step ? x.rows - first : step;
                for (int64_t row = 0; row < count && buffer; row++)
                    if (!fill(part + first + row, tiles ? row : first, to, buffer)) status = REFUSED;
                if (tiles && buffer) arrange_amx(draft, count, first / TILE, x);
            }
            if (status == DONE) {
#pragma omp for
                for (int64_t first = 0; first < w.outputs; first += w.block) use.multiply(x, w, out, first);
            }
        }
    }
    return status;
}

}  // namespace

extern "C" {

// x [rows, columns] and y [rows, outputs] of type `type`; hadamard 0: no rotation. Everything contiguous.
int quota_linear(int isa, int threads, const void* x, int type, int64_t rows, int64_t columns, int64_t hadamard,
                        int64_t activation_group, const uint8_t* packed, const uint16_t* scale, int64_t scales,
                        int64_t outputs, const float* bias, void* y) {
    const int64_t weight_group = scales > 0 && columns % scales == 0 ? columns / scales : 0;
    int64_t group = activation_group < weight_group ? activation_group : weight_group;
    if (group > CHUNK) group = CHUNK;
    if (!runs_here(isa, threads) || !is_type(type) || !are_sizes({rows, columns, outputs}) ||
        !is_block(activation_group, WORD, LARGEST, columns) || !is_rotation(hadamard, LARGEST, columns) ||
        !is_block(group, WORD, CHUNK, columns) || weight_group % group != 0)
        return WRONG_SIZES;
    const Weights w = {outputs, packed, scale, scales, weight_group / group, 0};
    const Result out = {y, FloatType(type), bias, nullptr};
    const Quantize quantize = kernels(isa, false, false).quantize;
    return run(isa, threads, rows, columns, group, w, out,
               [&](int64_t token, int64_t row, Activations& to, float* buffer) {
                   const void* from = rows_after(x, FloatType(type), token, columns);
                   return quantize(from, FloatType(type), hadamard, activation_group, row, to, buffer);
               });
}

// For tests: S [rows, outputs, columns / group] of codes [rows, columns], by the kernel that quota_linear would take.
int quota_group_sums(int isa, int threads, const int8_t* codes, int64_t rows, int64_t columns, int64_t group,
                            const uint8_t* packed, int64_t outputs, int32_t* sums) {
    if (!runs_here(isa, threads) || !are_sizes({rows, columns, outputs}) || !is_block(group, WORD, CHUNK, columns))
        return WRONG_SIZES;
    const uint16_t one = 0x3f80;
    const Weights w = {outputs, packed, &one, 0, columns, 0};
    const Result out = {nullptr, FLOAT32, nullptr, sums};
    return run(isa, threads, rows, columns, group, w, out, [&](int64_t token, int64_t row, Activations& to, float*) {
        for (int64_t g = 0; g < to.groups; g++) {
            int32_t sum = 0;
            for (int64_t k = g * group; k < (g + 1) * group; k++) {
                const int8_t code = codes[token * columns + k];
                *place(to, row, k) = code;
                sum += code;
            }
            to.scale[g * to.rows + row] = 1;
            to.offset[g * to.rows + row] = -8 * sum;
        }
        return true;
    });
}

// For tests: codes [rows, columns] and scale [rows, columns / group] of x.
int quota_quantize(int isa, int threads, const void* x, int type, int64_t rows, int64_t columns, int64_t hadamard,
                   int64_t group, int8_t* codes, float* scale) {
    if (!runs_here(isa, threads) || !is_type(type) || !are_sizes({rows, columns}) ||
        !is_block(group, WORD, LARGEST, columns) || !is_rotation(hadamard, LARGEST, columns))
        return WRONG_SIZES;
    // Groups of at most CHUNK stand for the caller's, if they are larger.
    const int64_t part = group < CHUNK ? group : CHUNK;
    float* buffer;
    Activations to = {1, columns, part, columns / part, {}, {}, {}, {}, {}};
    if (!take_codes(own, to, columns, &buffer)) return NO_MEMORY;
    for (int64_t row = 0; row < rows; row++) {
        const void* from = rows_after(x, FloatType(type), row, columns);
        if (!kernels(isa, false, false).quantize(from, FloatType(type), hadamard, group, 0, to, buffer)) return REFUSED;
        for (int64_t k = 0; k < columns; k++) codes[row * columns + k] = *place(to, 0, k);
        for (int64_t g = 0; g < columns / group; g++) scale[row * (columns / group) + g] = to.scale[g * (group / part)];
    }
    return DONE;
}

}
