// Entry points of the scores of visual tokens, and of the choice of those that go on.
#include <algorithm>
#include <cmath>
#include <memory>
#include <new>

#include "checks.h"
#include "kv.h"
#include "team.h"

namespace {

using quota::Conditioning, quota::TokenProducts;

// Products that are kept: the square of 4,096 tokens.
constexpr int64_t LARGEST = 1 << 24;
constexpr float SMALLEST = 1e-30f;

int64_t count_of(const uint8_t* valid, int64_t tokens) { return tokens - std::count(valid, valid + tokens, uint8_t{0}); }

// The choice of up to `room` tokens of one image after another.
struct Choice {
    const quota::KvKernels& kernels;
    int threads;
    int64_t tokens, width, room;
    const float* hidden = nullptr;
    float *left = nullptr, *own = nullptr, *products = nullptr, *factor = nullptr;

    static constexpr int64_t BLOCK = Conditioning::BLOCK;
    int64_t blocks() const { return (tokens + BLOCK - 1) / BLOCK; }
    int64_t padded() const { return blocks() * BLOCK; }
    // All products at once, unless an image has very many tokens: then those of a token when it is chosen.
    bool whole() const { return tokens <= LARGEST / std::max<int64_t>(tokens, 1); }
    int64_t rows() const { return whole() ? tokens : 1; }
    int64_t floats() const { return padded() + room + rows() * tokens + room * padded(); }

    void take(float* memory) {
        left = memory, own = left + padded(), products = own + room, factor = products + rows() * tokens;
    }
    // Little is done before other threads have woken.
    int helpers() const { return rows() * tokens * width > 1 << 16 ? threads : 1; }
    TokenProducts rows_from(int64_t first) const { return {hidden, tokens, width, first, rows(), products}; }

    // The variances of an image where tokens are valid; their sum.
    float open(const float* image, const uint8_t* valid) {
        hidden = image;
        if (whole()) {
            constexpr int64_t ROWS = TokenProducts::BLOCK;
            // The first rows have the most to do, as they do it for others.
            deal(helpers(), (tokens + ROWS - 1) / ROWS,
                 [&](int64_t block) { kernels.products(rows_from(0), block * ROWS, 0, tokens); });
        } else {
            deal(helpers(), tokens, [&](int64_t j) { kernels.products(rows_from(j), j, j, j + 1); });
        }
        double sum = 0;
        std::fill(left, left + padded(), -INFINITY);
        for (int64_t j = 0; j < tokens; ++j)
            if (valid[j]) sum += left[j] = products[whole() ? j * tokens + j : j];
        return float(sum);
    }
    // What the choice of token `best`, behind `steps` others, leaves of all variances.
    void choose(int64_t best, int64_t steps, float spread) {
        const float inverse = 1.0f / std::sqrt(std::max(left[best] + spread, SMALLEST));
        const float* column = factor + best / BLOCK * room * BLOCK + best % BLOCK;
        for (int64_t step = 0; step < steps; ++step) own[step] = column[step * BLOCK];
        left[best] = -INFINITY;
        if (!whole()) {
            deal(helpers(), blocks(), [&](int64_t block) {
                kernels.products(rows_from(best), best, block * BLOCK, std::min((block + 1) * BLOCK, tokens));
            });
        }
        const float* row = products + (whole() ? best * tokens : 0);
        const Conditioning job = {factor, own, row, left, inverse, steps, room, tokens};
        deal(steps * tokens > 1 << 20 ? threads : 1, blocks(), [&](int64_t block) { kernels.condition(job, block); });
    }
};

}  // namespace

extern "C" {

// hidden contiguous [batch, tokens, width], valid [batch, tokens], counts [batch] -> scores [batch, tokens], 0 at padding;
// all NaN in a sample whose variances have no finite sum. NO_MEMORY if it runs out.
int quota_information(int isa, int threads, const float* hidden, const uint8_t* valid, const int64_t* counts,
                      int64_t batch, int64_t tokens, int64_t width, float noise, float* scores) {
    if (!runs_here(isa, threads) || !are_sizes({batch, tokens, width - 1})) return WRONG_SIZES;
    Choice choice = {quota::kv_kernels(isa), threads, tokens, width, 0};
    for (int64_t sample = 0; sample < batch; ++sample)
        choice.room = std::max(choice.room, std::min(counts[sample], count_of(valid + sample * tokens, tokens)));
    const std::unique_ptr<float[]> memory(new (std::nothrow) float[choice.floats()]);
    if (!memory) return NO_MEMORY;
    choice.take(memory.get());
    for (int64_t sample = 0; sample < batch; ++sample, valid += tokens, scores += tokens) {
        const float sum = choice.open(hidden + sample * tokens * width, valid);
        const int64_t there = count_of(valid, tokens), count = std::isfinite(sum) ? std::min(counts[sample], there) : 0;
        const float spread = noise * sum / float(std::max<int64_t>(there, 1));
        const float* left = choice.left;
        std::fill(scores, scores + tokens, 0.0f);
        for (int64_t step = 0; step < count; ++step) {
            const int64_t best = std::max_element(left, left + tokens) - left;
            // All that could be chosen has become NaN.
            if (left[best] == -INFINITY) break;
            scores[best] = left[best];
            choice.choose(best, step, spread);
        }
        for (int64_t j = 0; j < tokens; ++j)
            if (left[j] != -INFINITY) scores[j] = std::isfinite(sum) ? left[j] : NAN;
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
