// What Python calls: checks nothing but the numbers in the activations, takes tokens MOST_ROWS at a time, and spreads
// rows, then blocks of outputs, over threads.
#include "linear.h"

#include <omp.h>

#include <cstdlib>
#include <memory>

#include "isa.h"

namespace {

enum Status { DONE = 0, NOT_FINITE = 1, NO_MEMORY = 2 };

// Below this many multiplications, starting threads takes longer than the work.
constexpr int64_t WORTH_THREADS = 1 << 19;

struct Kernels {
    Quantize quantize;
    Multiply multiply;
    int64_t block;
};

bool takes_tiles(int isa, int64_t rows, int64_t group) { return isa == AMX && rows >= TILE / 2 && group == CHUNK; }

Kernels kernels(int isa, bool tiles) {
    if (tiles) return {quantize_avx512, multiply_amx, BLOCK_AMX};
    if (isa >= AVX512) return {quantize_avx512, multiply_avx512, BLOCK_AVX512};
    if (isa == AVX2) return {quantize_avx2, multiply_avx2, BLOCK_AVX2};
    return {quantize_portable, multiply_portable, BLOCK_PORTABLE};
}

struct Free {
    void operator()(void* memory) const { std::free(memory); }
};

// Memory for the codes of one chunk of tokens, kept by the thread that calls and only ever grown.
class Workspace {
public:
    // A piece of `count` elements, aligned to 64 bytes; call `reserve` with the sum first.
    template <class T>
    T* take(int64_t count) {
        T* piece = reinterpret_cast<T*>(memory_.get() + used_);
        used_ += bytes<T>(count);
        return piece;
    }
    template <class T>
    static int64_t bytes(int64_t count) {
        return (count * int64_t(sizeof(T)) + 63) / 64 * 64;
    }
    bool reserve(int64_t size) {
        used_ = 0;
        if (size <= size_) return true;
        memory_.reset(static_cast<char*>(std::aligned_alloc(64, size)));
        size_ = memory_ ? size : 0;
        return memory_ != nullptr;
    }

private:
    std::unique_ptr<char, Free> memory_;
    int64_t size_ = 0, used_ = 0;
};

thread_local Workspace workspace;

// Room for `rows` tokens, and for `threads` rows of floats; false without memory.
bool make_room(Activations& x, int64_t rows, bool tiles, int threads, float** buffers) {
    const int64_t slots = divide_up(x.columns, CHUNK) * rows * CHUNK, places = rows * x.groups;
    const int64_t tile_rows = tiles ? divide_up(rows, TILE) * TILE : 0, tile_groups = divide_up(x.groups, 4) * 4;
    const int64_t floats = divide_up(x.columns, 16) * 16 * threads;
    const int64_t size = Workspace::bytes<int8_t>(slots) + 2 * Workspace::bytes<float>(places) +
                         Workspace::bytes<int8_t>(tile_rows * tile_groups * CHUNK) +
                         Workspace::bytes<float>(tile_rows * tile_groups) + Workspace::bytes<float>(floats);
    if (!workspace.reserve(size)) return false;
    x.codes = workspace.take<int8_t>(slots);
    x.scale = workspace.take<float>(places);
    x.offset = tiles ? nullptr : workspace.take<int32_t>(places);
    x.tiles = workspace.take<int8_t>(tile_rows * tile_groups * CHUNK);
    x.tile_scale = workspace.take<float>(tile_rows * tile_groups);
    *buffers = workspace.take<float>(floats);
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

// `fill(part, row, x, buffer)` sets the codes of one token of a part, whose first token is `part`; false if they are not finite.
template <class Fill>
Status run(int isa, int threads, int64_t rows, int64_t columns, int64_t group, const Weights& w, const Result& whole,
           Fill fill) {
    const int64_t most = rows < MOST_ROWS ? rows : MOST_ROWS;
    const bool tiles = takes_tiles(isa, most, group);
    Activations x = {most, columns, group, columns / group, nullptr, nullptr, nullptr, nullptr, nullptr};
    float* buffers;
    if (rows && !make_room(x, most, tiles, threads, &buffers)) return NO_MEMORY;
    const Kernels use = kernels(isa, tiles);

    for (int64_t part = 0; part < rows; part += MOST_ROWS) {
        x.rows = rows - part < MOST_ROWS ? rows - part : MOST_ROWS;
        const Result out = after(whole, part, w.outputs, x.groups);
        bool finite = true;
#pragma omp parallel num_threads(threads) if (x.rows * columns * w.outputs > WORTH_THREADS)
        {
            float* buffer = buffers + omp_get_thread_num() * divide_up(columns, 16) * 16;
#pragma omp for reduction(&& : finite)
            for (int64_t row = 0; row < x.rows; row++) finite = fill(part, row, x, buffer) && finite;
            if (finite) {
                if (tiles) {
#pragma omp for
                    for (int64_t tile = 0; tile < divide_up(x.rows, TILE); tile++) arrange_amx(x, tile);
                }
#pragma omp for
                for (int64_t first = 0; first < w.outputs; first += use.block) use.multiply(x, w, out, first);
            }
        }
        if (!finite) return NOT_FINITE;
    }
    return DONE;
}

}  // namespace

extern "C" {

// x [rows, columns] and y [rows, outputs] of type `type`; hadamard 0: no rotation. Everything contiguous.
int quota_linear(int isa, int threads, const void* x, int type, int64_t rows, int64_t columns, int64_t hadamard,
                        int64_t activation_group, const uint8_t* packed, const uint16_t* scale, int64_t scales,
                        int64_t outputs, const float* bias, void* y) {
    const int64_t weight_group = columns / scales;
    int64_t group = activation_group < weight_group ? activation_group : weight_group;
    if (group > CHUNK) group = CHUNK;
    const Weights w = {outputs, packed, scale, scales, weight_group / group};
    const Result out = {y, FloatType(type), bias, nullptr};
    const Quantize quantize = kernels(isa, false).quantize;
    return run(isa, threads, rows, columns, group, w, out,
               [&](int64_t part, int64_t row, Activations& to, float* buffer) {
                   const void* from = rows_after(x, FloatType(type), part, columns);
                   return quantize(from, FloatType(type), hadamard, activation_group, row, to, buffer);
               });
}

// For tests: S [rows, outputs, columns / group] of codes [rows, columns], by the kernel that quota_linear would take.
int quota_group_sums(int isa, int threads, const int8_t* codes, int64_t rows, int64_t columns, int64_t group,
                            const uint8_t* packed, int64_t outputs, int32_t* sums) {
    const uint16_t one = 0x3f80;
    const Weights w = {outputs, packed, &one, 0, columns};
    const Result out = {nullptr, FLOAT32, nullptr, sums};
    return run(isa, threads, rows, columns, group, w, out, [&](int64_t part, int64_t row, Activations& to, float*) {
        for (int64_t g = 0; g < to.groups; g++) {
            int32_t sum = 0;
            for (int64_t k = g * group; k < (g + 1) * group; k++) {
                const int8_t code = codes[(part + row) * columns + k];
                *place(to, row, k) = code;
                sum += code;
            }
            to.scale[g * to.rows + row] = 1;
            if (to.offset) to.offset[g * to.rows + row] = -8 * sum;
        }
        return true;
    });
}

// For tests: codes [rows, columns] and scale [rows, columns / group] of x.
int quota_quantize(int isa, const void* x, int type, int64_t rows, int64_t columns, int64_t hadamard,
                          int64_t group, int8_t* codes, float* scale) {
    // Groups of at most CHUNK stand for the caller's, if they are larger.
    const int64_t part = group < CHUNK ? group : CHUNK;
    float* buffer;
    Activations to = {1, columns, part, columns / part, nullptr, nullptr, nullptr, nullptr, nullptr};
    if (!make_room(to, 1, false, 1, &buffer)) return NO_MEMORY;
    for (int64_t row = 0; row < rows; row++) {
        const void* from = rows_after(x, FloatType(type), row, columns);
        if (!kernels(isa, false).quantize(from, FloatType(type), hadamard, group, 0, to, buffer)) return NOT_FINITE;
        for (int64_t k = 0; k < columns; k++) codes[row * columns + k] = *place(to, 0, k);
        for (int64_t g = 0; g < columns / group; g++) scale[row * (columns / group) + g] = to.scale[g * (group / part)];
    }
    return DONE;
}

}
