// Entry points of the scores of visual tokens, and of the choice of those that go on.
#include <algorithm>
#include <cmath>
#include <memory>
#include <new>

#include "checks.h"
#include "kv.h"
#include "team.h"

namespace {

// Products at a time: the square of 4,096 tokens.
constexpr int64_t LARGEST = 1 << 24;
constexpr float SMALLEST = 1e-12f;

}  // namespace

extern "C" {

// hidden contiguous [batch, tokens, width], weights and valid [batch, tokens] -> scores [batch, tokens], 0 at padding.
// NO_MEMORY if it runs out.
int quota_peaks(int isa, int threads, const float* hidden, const float* weights, const uint8_t* valid, int64_t batch,
                int64_t tokens, int64_t width, float* scores) {
    if (!runs_here(isa, threads) || !are_sizes({batch, tokens, width - 1})) return WRONG_SIZES;
    using quota::TokenProducts;
    const quota::KvKernels& kernels = quota::kv_kernels(isa);
    // Whole vectors of the widest kind: inverse lengths, weights, and the weights by which tokens are ordered.
    const int64_t padded = (tokens + 15) / 16 * 16;
    // All products at once, unless an image has very many tokens.
    const int64_t panel = std::min(tokens, std::max<int64_t>(LARGEST / std::max<int64_t>(tokens, 1), 1));
    const int64_t rows = (panel + TokenProducts::BLOCK - 1) / TokenProducts::BLOCK * TokenProducts::BLOCK;
    const std::unique_ptr<float[]> memory(new (std::nothrow) float[3 * padded + rows * tokens]);
    if (!memory) return NO_MEMORY;
    float *inverses = memory.get(), *weight = inverses + padded, *order = weight + padded, *products = order + padded;
    for (int64_t sample = 0; sample < batch; ++sample) {
        const float* own = hidden + sample * tokens * width;
        const uint8_t* there = valid + sample * tokens;
        for (int64_t j = 0; j < padded; ++j) {
            const bool counts = j < tokens && there[j];
            inverses[j] = counts ? 1.0f / std::max(kernels.length(own + j * width, width), SMALLEST) : 1.0f;
            weight[j] = counts ? weights[sample * tokens + j] : 0.0f;
            order[j] = counts ? weights[sample * tokens + j] : -INFINITY;
        }
        for (int64_t first = 0; first < tokens; first += rows) {
            const TokenProducts job = {own, tokens, width, first, std::min(rows, tokens - first), products};
            const int64_t blocks = (job.rows + TokenProducts::BLOCK - 1) / TokenProducts::BLOCK;
            // Little is done before other threads have woken.
            const int helpers = job.rows * tokens * width > 1 << 16 ? threads : 1;
            // The first rows have the most to do, as they do it for others.
            deal(helpers, blocks, [&](int64_t block) { kernels.products(job, first + block * TokenProducts::BLOCK); });
            deal(helpers, job.rows, [&](int64_t index) {
                const int64_t row = first + index;
                const quota::PeakRow peak = {
                    products + index * tokens, inverses, weight, order, inverses[row], row, tokens};
                scores[sample * tokens + row] = there[row] ? kernels.peak(peak) : 0.0f;
            });
        }
    }
    return DONE;
}

// Which of `length` places of each sample go on: those of text [batch, length], copied to kept, and of the visual tokens
// at places [rows, tokens] of the flattened batch the counts[row] highest scores among the valid, ties by index. Then
// slots and filled, contiguous [batch, most]: what stands at the right end of a sample is kept, in order; before it, the
// last that it drops. Their memory is for batch * length. REFUSED if a valid score is NaN, WRONG_SIZES for a place
// beyond the batch.
int quota_cut(int isa, int threads, const float* scores, const uint8_t* valid, const int64_t* places,
              const int64_t* counts, int64_t rows, int64_t tokens, uint8_t* kept, int64_t batch, int64_t length,
              int64_t* slots, uint8_t* filled, int64_t* most) {
    if (!runs_here(isa, threads) || !are_sizes({rows, tokens, batch, length})) return WRONG_SIZES;
    const std::unique_ptr<int64_t[]> memory(new (std::nothrow) int64_t[std::max(tokens, batch) + 1]);
    if (!memory) return NO_MEMORY;
    for (int64_t row = 0; row < rows; ++row) {
        const float* score = scores + row * tokens;
        int64_t there = 0;
        for (int64_t j = 0; j < tokens; ++j) {
            if (!valid[row * tokens + j]) continue;
            if (std::isnan(score[j])) return REFUSED;
            const int64_t place = places[row * tokens + j];
            if (place < 0 || place >= batch * length) return WRONG_SIZES;
            memory[there++] = j;
        }
        const int64_t count = std::clamp<int64_t>(counts[row], 0, there);
        const auto ahead = [score](int64_t a, int64_t b) { return score[a] != score[b] ? score[a] > score[b] : a < b; };
        std::nth_element(memory.get(), memory.get() + count, memory.get() + there, ahead);
        for (int64_t i = 0; i < count; ++i) kept[places[row * tokens + memory[i]]] = 1;
    }
    *most = 0;
    for (int64_t sample = 0; sample < batch; ++sample) {
        const uint8_t* own = kept + sample * length;
        memory[sample] = length - std::count(own, own + length, uint8_t{0});
        *most = std::max(*most, memory[sample]);
    }
    for (int64_t sample = 0; sample < batch; ++sample) {
        const uint8_t* own = kept + sample * length;
        int64_t *slot = slots + sample * *most, empty = *most - memory[sample], skip = length - *most, at = empty;
        std::fill_n(filled + sample * *most, empty, uint8_t{0});
        std::fill_n(filled + sample * *most + empty, memory[sample], uint8_t{1});
        // Of the dropped the last ones fill what is empty.
        for (int64_t j = 0, dropped = 0; j < length; ++j) {
            if (own[j]) {
                slot[at++] = j;
            } else if (dropped++ >= skip) {
                slot[dropped - 1 - skip] = j;
            }
        }
    }
    return DONE;
}
}
