// Entry point of the scores of visual tokens, a row of products each.
#include <cmath>
#include <memory>
#include <new>

#include "kv.h"

extern "C" {

// products contiguous [batch, rows, tokens], of tokens `first` .. first + rows - 1 with all; lengths, weights and valid
// [batch, tokens] -> scores [batch, rows], 0 at padding. Returns 0, or 2 if memory runs out.
int quota_peaks(int isa, int threads, const float* products, const float* lengths, const float* weights,
                const uint8_t* valid, int64_t batch, int64_t rows, int64_t tokens, int64_t first, float* scores) {
    const quota::KvKernels& kernels = quota::kv_kernels(isa);
    // Whole vectors of the widest kind: lengths, weights, and the weights by which tokens are ordered.
    const int64_t padded = (tokens + 15) / 16 * 16;
    const std::unique_ptr<float[]> memory(new (std::nothrow) float[3 * batch * padded]);
    if (!memory) return 2;
    for (int64_t sample = 0; sample < batch; ++sample) {
        float* own = memory.get() + 3 * sample * padded;
        for (int64_t j = 0; j < padded; ++j) {
            const bool there = j < tokens && valid[sample * tokens + j];
            own[j] = there ? lengths[sample * tokens + j] : 1.0f;
            own[padded + j] = there ? weights[sample * tokens + j] : 0.0f;
            own[2 * padded + j] = there ? weights[sample * tokens + j] : -INFINITY;
        }
    }
    // Few numbers are done before other threads have started.
#pragma omp parallel for collapse(2) schedule(static) num_threads(threads) if (batch * rows * tokens > 1 << 16)
    for (int64_t sample = 0; sample < batch; ++sample) {
        for (int64_t row = 0; row < rows; ++row) {
            const float* own = memory.get() + 3 * sample * padded;
            const quota::PeakRow peak = {products + (sample * rows + row) * tokens,
                                         own,
                                         own + padded,
                                         own + 2 * padded,
                                         own[first + row],
                                         first + row,
                                         tokens};
            scores[sample * rows + row] = valid[sample * tokens + first + row] ? kernels.peak(peak) : 0.0f;
        }
    }
    return 0;
}
}
