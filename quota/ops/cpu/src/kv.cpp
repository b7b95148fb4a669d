// Entry points of KV4 storage: every head of every token, dealt out to the threads in blocks of tokens.
#include "kv.h"

#include <algorithm>
#include <atomic>

#include "checks.h"
#include "team.h"
#include "workspace.h"

namespace quota {

extern const KvKernels kv_kernels_portable, kv_kernels_avx2, kv_kernels_avx512;

const KvKernels& kv_kernels(int isa) {
    return isa >= 2 ? kv_kernels_avx512 : isa == 1 ? kv_kernels_avx2 : kv_kernels_portable;
}

}  // namespace quota

using quota::is_head;
using quota::KvBlock;
using quota::KvInput;
using quota::PackedTensor;
using quota::size_of;

namespace {

// Rows for which waking threads would take longer than the work; one that is mapped counts for as many.
constexpr int64_t FEW = 64, MAPPED = 16;

// `block(tensor, sample, head, token, rows)` for all that there is to do, dealt out to the threads.
template <class Block>
int deal_blocks(int isa, int threads, int type, int64_t batch, int64_t heads, int64_t tokens, int64_t width,
                bool mapped, int64_t count, Block block) {
    if (!batch || !heads || !tokens || !count) return DONE;
    const quota::KvKernels& kernels = quota::kv_kernels(isa);
    // A single token, as a step stores, is not worth laying out tiles for.
    const bool tiles = isa == AMX && type == 1 && tokens > 1 && width % 16 == 0;
    const int64_t need = tiles ? quota::keep_amx_scratch(width) : quota::kv_scratch(width);
    if (batch * heads * tokens * count * (mapped ? MAPPED : 1) <= FEW) threads = 1;
    // Heads in one piece where they are enough, as tiles are laid out for each piece.
    const int64_t pieces = std::min(1 + 4 * threads / (batch * heads * count), (tokens - 1) / quota::KV_ROWS + 1);
    const int64_t rows = ((tokens - 1) / pieces / quota::KV_ROWS + 1) * quota::KV_ROWS;
    std::atomic<int> status{DONE};
    deal(threads, count * batch * heads * pieces, [&](int64_t unit) {
        thread_local Workspace workspace;
        if (!workspace.reserve(need * int64_t(sizeof(float)))) {
            status = NO_MEMORY;
            return;
        }
        const int64_t token = unit % pieces * rows, head = unit / pieces % heads;
        if (token >= tokens) return;
        const int64_t sample = unit / pieces / heads % batch, tensor = unit / pieces / heads / batch;
        const KvBlock part = block(tensor, sample, head, token, std::min(rows, tokens - token));
        float* const scratch = workspace.take<float>(need);
        const bool kept = tiles && part.map.into ? quota::keep_amx(part, scratch) : kernels.keep(part, scratch);
        if (!kept) status = REFUSED;
    });
    return status;
}

}  // namespace

extern "C" {

// Keys and values [batch, heads, tokens, width] in `type`, stored and read in one pass. REFUSED if there is one that
// float16 cannot hold, and then nothing is to be read; NO_MEMORY if it runs out.
int quota_kv4_store(int isa, int threads, int type, int64_t batch, int64_t heads, int64_t tokens, int64_t width,
                    const KvInput* tensors, int64_t count) {
    if (!runs_here(isa, threads) || !is_type(type) || !are_sizes({batch, heads, tokens, count})) return WRONG_SIZES;
    bool mapped = false;
    for (int64_t i = 0; i < count; ++i) {
        if (!is_head(width, tensors[i].to.maps.hadamard) || tensors[i].slot < 0) return WRONG_SIZES;
        mapped |= tensors[i].to.maps.into != nullptr;
    }
    const auto block = [&](int64_t index, int64_t sample, int64_t head, int64_t token, int64_t rows) {
        const KvInput& tensor = tensors[index];
        const int64_t at = sample * tensor.sample_step + head * tensor.head_step + token * tensor.token_step;
        const int64_t read = ((sample * heads + head) * tokens + token) * width;
        return KvBlock{static_cast<const char*>(tensor.x) + size_of(type) * at,
                       tensor.token_step,
                       tensor.to.rows(sample, head, tensor.slot + token),
                       tensor.to.map(head, width),
                       tensor.read == nullptr ? nullptr : static_cast<char*>(tensor.read) + size_of(type) * read,
                       type,
                       rows,
                       width};
    };
    return deal_blocks(isa, threads, type, batch, heads, tokens, width, mapped, count, block);
}

// What `quota_kv4_store` reads, of what is stored: x contiguous [batch, heads, tokens, width] in `type`.
int quota_kv4_dequantize(int isa, int threads, const PackedTensor* stored, int64_t batch, int64_t heads, int64_t tokens,
                         int64_t width, void* x, int type) {
    if (!runs_here(isa, threads) || !is_type(type) || !are_sizes({batch, heads, tokens}) ||
        !is_head(width, stored->maps.hadamard))
        return WRONG_SIZES;
    const auto block = [&](int64_t, int64_t sample, int64_t head, int64_t token, int64_t rows) {
        const int64_t at = ((sample * heads + head) * tokens + token) * width;
        return KvBlock{nullptr, 0,    stored->rows(sample, head, token), stored->map(head, width),
                       static_cast<char*>(x) + size_of(type) * at, type, rows, width};
    };
    return deal_blocks(isa, threads, type, batch, heads, tokens, width, stored->maps.into != nullptr, 1, block);
}
}
