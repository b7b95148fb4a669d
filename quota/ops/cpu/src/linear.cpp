// What Python calls: checks sizes, and deals tokens or outputs out to threads.
#include "linear.h"

#include <atomic>
#include <cstring>

#include "checks.h"
#include "isa.h"
#include "team.h"
#include "workspace.h"

namespace {

// Channels in one word of packed weights, and in the largest group and rotation; more channels overflow a sum.
constexpr int64_t WORD = 8, LARGEST = 256, MOST_COLUMNS = 131071;

// Below this many multiplications, starting threads takes longer than the work.
constexpr int64_t WORTH_THREADS = 1 << 19;
// Tokens of each thread from which on it takes its own through all outputs.
constexpr int64_t WORTH_ROWS = 48;
// Bytes of quantised tokens that stay in a second-level cache.
constexpr int64_t MOST_BYTES = 1 << 20;

struct Kernels {
    Quantize quantize;
    Measure measure;
    Multiply multiply;
    int64_t together;
};

Kernels kernels(int isa, int64_t rows) {
    Kernels found = isa >= AVX512 ? Kernels{quantize_avx512, measure_avx512, multiply_avx512, ROWS_AVX512}
                    : isa == AVX2 ? Kernels{quantize_avx2, measure_avx2, multiply_avx2, ROWS_AVX2}
                                  : Kernels{quantize_portable, measure_portable, multiply_portable, ROWS_PORTABLE};
    // Tiles are for 16 rows; with half of them they are as fast as vectors.
    if (isa == AMX && rows >= 8) found.multiply = multiply_amx, found.together = ROWS_AMX;
    if (rows == 1) found.together = 1;
    return found;
}

// What all threads read belongs to the thread that calls, what one alone needs to itself.
thread_local Workspace common, own;

int64_t bytes_of(const Values& x) { return x.padded() * (x.chunks() * CHUNK + 8); }

void take(Workspace& memory, Values& x) {
    x.data = memory.take<int8_t>(x.padded() * x.chunks() * CHUNK);
    x.scale = memory.take<float>(x.padded());
    x.sum = memory.take<int32_t>(x.padded());
}

// Some tokens through some outputs of some weights.
struct Job {
    const Weights* weights;
    int64_t count, rows, columns;
    FloatType type;
    int64_t floats;  // that `fill` needs

    int64_t panels() const {
        int64_t all = 0;
        for (int64_t i = 0; i < count; i++) all += divide_up(weights[i].outputs, PANEL);
        return all;
    }
    // The panels [first, last) of all weights, in their order.
    void multiply(Multiply kernel, const Values& x, int64_t row, int64_t first, int64_t last, int32_t* sums) const {
        for (int64_t i = 0; i < count; i++) {
            const int64_t panels = divide_up(weights[i].outputs, PANEL), from = first > 0 ? first : 0;
            const int64_t end = last * PANEL < weights[i].outputs ? last * PANEL : weights[i].outputs;
            if (from * PANEL < end) kernel({x, weights[i], from * PANEL, end, type, row, sums});
            first -= panels;
            last -= panels;
        }
    }
};

// Every thread takes tokens of its own through all outputs. `fill(first, count, x, row, buffer)` sets rows of x to
// tokens; false if one is not finite.
template <class Fill>
Status split_tokens(int isa, int threads, const Job& job, Fill fill) {
    int64_t parts = threads, size;
    const int64_t most = MOST_BYTES / job.columns < 64 ? 64 : MOST_BYTES / job.columns;
    while ((size = round_up(divide_up(job.rows, parts), 16)) > most) parts += threads;
    std::atomic<Status> status{DONE};
    std::atomic<int64_t> next{0};
    share(threads, [&](const Member&) {
        for (int64_t first; status == DONE && (first = size * next++) < job.rows;) {
            const int64_t count = job.rows - first < size ? job.rows - first : size;
            const Kernels use = kernels(isa, count);
            Values x = {count, job.columns, use.together, nullptr, nullptr, nullptr};
            if (!own.reserve(bytes_of(x) + 4 * (job.floats + x.padded() * PANEL))) {
                status = NO_MEMORY;
                continue;
            }
            take(own, x);
            float* buffer = own.take<float>(job.floats);
            if (fill(first, count, x, 0, buffer))
                job.multiply(use.multiply, x, first, 0, job.panels(), own.take<int32_t>(x.padded() * PANEL));
            else
                status = REFUSED;
        }
    });
    return status;
}

// All threads quantise tokens, then take outputs.
template <class Fill>
Status split_outputs(int isa, int threads, const Job& job, Fill fill) {
    const Kernels use = kernels(isa, job.rows);
    Values all = {job.rows, job.columns, use.together, nullptr, nullptr, nullptr};
    // One token is quantised by each thread for itself, which takes less time than to wait for another.
    const bool alone = job.rows == 1;
    if (!alone) {
        if (!common.reserve(bytes_of(all))) return NO_MEMORY;
        take(common, all);
    }
    const int64_t panels = job.panels(), jobs = 4 * threads, size = divide_up(panels, jobs);
    std::atomic<Status> status{DONE};
    std::atomic<int64_t> next{0};
    share(threads, [&](Member member) {
        Values x = all;
        if (own.reserve((alone ? bytes_of(x) : 0) + 4 * (job.floats + x.padded() * PANEL))) {
            if (alone) take(own, x);
            float* buffer = own.take<float>(job.floats);
            int64_t first = 0, last = 1;
            if (!alone) part(member, job.rows, first, last);
            if (!fill(first, last - first, x, first, buffer)) status = REFUSED;
        } else {
            status = NO_MEMORY;
        }
        if (!alone) member.wait();
        if (status != DONE) return;
        int32_t* sums = own.take<int32_t>(x.padded() * PANEL);
        for (int64_t first; (first = size * next++) < panels;)
            job.multiply(use.multiply, x, 0, first, first + size < panels ? first + size : panels, sums);
    });
    return status;
}

template <class Fill>
Status run(int isa, int threads, const Job& job, Fill fill) {
    if (job.rows == 0) return DONE;
    if (job.rows * job.columns * PANEL * job.panels() < WORTH_THREADS) threads = 1;
    return job.rows >= WORTH_ROWS * threads ? split_tokens(isa, threads, job, fill)
                                            : split_outputs(isa, threads, job, fill);
}

bool are_columns(int64_t columns) { return columns > 0 && columns <= MOST_COLUMNS && columns % WORD == 0; }

// Tokens as the kernels take them.
bool fits(const Tokens& x) {
    return are_columns(x.columns) && x.step >= 0 && is_rotation(x.hadamard, LARGEST, x.columns) &&
           (x.bits == 8 || (x.bits == 4 && is_block(x.group, WORD, LARGEST, x.columns)));
}

bool fits(const Weights& w, int64_t columns) {
    return w.outputs >= 0 && ((w.bits == 8 && w.group == columns) ||
                              (w.bits == 4 && is_block(w.group, WORD, LARGEST, columns)));
}

bool fits(const Weights* weights, int64_t count, int64_t columns) {
    for (int64_t i = 0; i < count; i++)
        if (!fits(weights[i], columns)) return false;
    return true;
}

}  // namespace

extern "C" {

// x [rows, columns] of `type` times `count` weights, whose results are of that type. hadamard 0: no rotation; bits 4 or
// 8. Everything contiguous.
int quota_linear(int isa, int threads, const void* x, int type, int64_t rows, int64_t columns, int64_t hadamard,
                 int64_t group, int bits, const Weights* weights, int64_t count) {
    const Tokens tokens = {x, FloatType(type), columns, columns, hadamard, group, bits};
    if (!runs_here(isa, threads) || !are_sizes({rows, count}) || !is_type(type) || !fits(tokens) ||
        !fits(weights, count, columns))
        return WRONG_SIZES;
    const Job job = {weights, count, rows, columns, FloatType(type), Pieces(tokens).floats()};
    const Quantize quantize = kernels(isa, rows).quantize;
    return run(isa, threads, job, [&](int64_t first, int64_t number, Values& to, int64_t row, float* buffer) {
        return quantize(tokens, first, number, to, row, buffer);
    });
}

// For tests: S [rows, outputs] int32 of v [rows, columns], by the kernel that quota_linear would take, as y of the weight.
int quota_sums(int isa, int threads, const int8_t* values, int64_t rows, int64_t columns, const Weights* weight) {
    if (!runs_here(isa, threads) || !are_sizes({rows}) || !are_columns(columns) || !fits(*weight, columns))
        return WRONG_SIZES;
    const Job job = {weight, 1, rows, columns, INTEGERS, 0};
    return run(isa, threads, job, [&](int64_t first, int64_t number, Values& to, int64_t row, float*) {
        for (int64_t i = 0; i < number; i++) {
            const int8_t* from = values + (first + i) * columns;
            to.scale[row + i] = 1;
            to.sum[row + i] = 0;
            for (int64_t k = 0; k < to.chunks() * CHUNK; k++) {
                const int8_t value = k < columns ? from[k] : 0;
                to.at(row + i, k / CHUNK)[k % CHUNK / 8 * 8 + k % 8 / 2 + k % 2 * 4] = value;
                to.sum[row + i] += value;
            }
        }
        return true;
    });
}

// For tests: v [rows, columns] and s [rows] of x.
int quota_quantize(int isa, int threads, const void* x, int type, int64_t rows, int64_t columns, int64_t hadamard,
                   int64_t group, int bits, int8_t* values, float* scale) {
    const Tokens tokens = {x, FloatType(type), columns, columns, hadamard, group, bits};
    if (!runs_here(isa, threads) || !are_sizes({rows}) || !is_type(type) || !fits(tokens)) return WRONG_SIZES;
    const Kernels use = kernels(isa, rows);
    const int64_t floats = Pieces(tokens).floats();
    Values to = {rows, columns, use.together, nullptr, nullptr, nullptr};
    if (!own.reserve(bytes_of(to) + 4 * floats)) return NO_MEMORY;
    take(own, to);
    if (!use.quantize(tokens, 0, rows, to, 0, own.take<float>(floats))) return REFUSED;
    for (int64_t row = 0; row < rows; row++) {
        for (int64_t k = 0; k < columns; k++)
            values[row * columns + k] = to.at(row, k / CHUNK)[k % CHUNK / 8 * 8 + k % 8 / 2 + k % 2 * 4];
        scale[row] = to.scale[row];
    }
    return DONE;
}

// s ||v - t|| of each row of x [rows, columns] of `type`, rows `step` apart -> errors [rows].
int quota_activation_error(int isa, int threads, const void* x, int type, int64_t rows, int64_t columns, int64_t step,
                           int64_t hadamard, int64_t group, int bits, float* errors) {
    const Tokens tokens = {x, FloatType(type), columns, step, hadamard, group, bits};
    if (!runs_here(isa, threads) || !are_sizes({rows}) || !is_type(type) || !fits(tokens)) return WRONG_SIZES;
    const Measure measure = kernels(isa, rows).measure;
    const int64_t floats = Pieces(tokens).floats();
    std::atomic<Status> status{DONE};
    share(rows * columns < WORTH_THREADS / PANEL ? 1 : threads, [&](const Member& member) {
        int64_t first, last;
        part(member, rows, first, last);
        if (!own.reserve(4 * floats)) status = NO_MEMORY;
        else measure(tokens, first, last - first, errors + first, own.take<float>(floats));
    });
    return status;
}

}
