// Entry points of norms and activations: rows, or runs of numbers, are dealt out to threads.
#include "rows.h"

#include <algorithm>

#include "checks.h"
#include "team.h"

namespace quota {

extern const RowKernels row_kernels_portable, row_kernels_avx2, row_kernels_avx512;

static const RowKernels& row_kernels(int isa) {
    return isa >= AVX512 ? row_kernels_avx512 : isa == AVX2 ? row_kernels_avx2 : row_kernels_portable;
}

}  // namespace quota

// Numbers for which starting threads takes longer than the work, and those of one run: whole lines of the cache.
constexpr int64_t FEW = 1 << 15, RUN = 1 << 10;

static int activate(int isa, int threads, const quota::Activated& job, int64_t count) {
    const quota::RowKernels& kernels = quota::row_kernels(isa);
    share(count < FEW ? 1 : threads, [&](const Member& member) {
        int64_t first, last;
        part(member, (count + RUN - 1) / RUN, first, last);
        kernels.activate(job, first * RUN, std::min(last * RUN, count));
    });
    return DONE;
}

static bool is_activation(int activation) { return activation >= 0 && activation < quota::ACTIVATIONS; }

extern "C" {

// x [rows, columns] in `type` -> y, alike; weight [columns], bias [columns] or null.
int quota_norm(int isa, int threads, const void* x, int type, int64_t rows, int64_t columns, const void* weight,
               const void* bias, float eps, int centred, int offset, void* y) {
    if (!runs_here(isa, threads) || !is_type(type) || !are_sizes({rows, columns})) return WRONG_SIZES;
    const quota::RowKernels& kernels = quota::row_kernels(isa);
    const quota::NormRows job = {x, type, columns, weight, bias, eps, centred != 0, offset != 0, y};
    share(rows * columns < FEW ? 1 : threads, [&](const Member& member) {
        int64_t first, last;
        part(member, rows, first, last);
        kernels.norm(job, first, last);
    });
    return DONE;
}

// gate, up and y: `count` numbers in `type` each.
int quota_gated(int isa, int threads, const void* gate, int type, const void* up, int64_t count, int activation,
                void* y) {
    if (!runs_here(isa, threads) || !is_type(type) || !are_sizes({count}) || !is_activation(activation))
        return WRONG_SIZES;
    return activate(isa, threads, {gate, up, type, quota::Activation(activation), y}, count);
}

// x and y: `count` numbers in `type` each.
int quota_activate(int isa, int threads, const void* x, int type, int64_t count, int activation, void* y) {
    if (!runs_here(isa, threads) || !is_type(type) || !are_sizes({count}) || !is_activation(activation))
        return WRONG_SIZES;
    return activate(isa, threads, {x, nullptr, type, quota::Activation(activation), y}, count);
}
}
