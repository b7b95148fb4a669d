// Entry points of KV4 storage: every head of every token, dealt out to the threads.
#include "kv.h"

#include <atomic>

#include "checks.h"
#include "team.h"

namespace quota {

extern const KvKernels kv_kernels_portable, kv_kernels_avx2, kv_kernels_avx512;

const KvKernels& kv_kernels(int isa) {
    return isa >= 2 ? kv_kernels_avx512 : isa == 1 ? kv_kernels_avx2 : kv_kernels_portable;
}

}  // namespace quota

using quota::is_head;
using quota::size_of;

// Rows for which waking threads would take longer than the work.
constexpr int64_t FEW = 64;

extern "C" {

// x [batch, heads, tokens, width] in `type` with these strides (the last dimension contiguous) -> packed, scale, zero,
// all contiguous. REFUSED if x holds what cannot be stored.
int quota_kv4_quantize(int isa, int threads, const void* x, int type, int64_t batch, int64_t heads, int64_t tokens,
                       int64_t width, int64_t sample_stride, int64_t head_stride, int64_t token_stride,
                       int64_t hadamard, uint8_t* packed, uint16_t* scale, uint16_t* zero) {
    if (!runs_here(isa, threads) || !is_type(type) || !are_sizes({batch, heads, tokens}) || !is_head(width, hadamard))
        return WRONG_SIZES;
    const quota::KvKernels& kernels = quota::kv_kernels(isa);
    std::atomic<bool> stored{true};
    deal(batch * heads * tokens > FEW ? threads : 1, batch * heads * tokens, [&](int64_t index) {
        const int64_t sample = index / tokens / heads, head = index / tokens % heads, token = index % tokens;
        const int64_t offset = sample * sample_stride + head * head_stride + token * token_stride;
        const char* from = static_cast<const char*>(x) + size_of(type) * offset;
        uint8_t* to = packed + index * (width / 2);
        if (!kernels.quantize(from, type, width, hadamard, to, scale + index, zero + index)) stored = false;
    });
    return stored ? DONE : REFUSED;
}

// The way back: x contiguous [batch, heads, tokens, width] in `type`.
int quota_kv4_dequantize(int isa, int threads, const quota::PackedTensor* stored, int64_t batch, int64_t heads,
                         int64_t tokens, int64_t width, void* x, int type) {
    if (!runs_here(isa, threads) || !is_type(type) || !are_sizes({batch, heads, tokens}) ||
        !is_head(width, stored->hadamard))
        return WRONG_SIZES;
    const quota::KvKernels& kernels = quota::kv_kernels(isa);
    deal(batch * heads * tokens > FEW ? threads : 1, batch * heads * tokens, [&](int64_t index) {
        const int64_t sample = index / tokens / heads, head = index / tokens % heads, token = index % tokens;
        char* to = static_cast<char*>(x) + size_of(type) * index * width;
        kernels.dequantize(stored->rows(sample, head), token, width, stored->hadamard, to, type);
    });
    return DONE;
}
}
