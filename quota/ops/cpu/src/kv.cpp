// Entry points of KV4 storage: every head of every token, shared out among the threads.
#include "kv.h"

#include <atomic>

namespace quota {

extern const KvKernels kv_kernels_portable, kv_kernels_avx2, kv_kernels_avx512;

const KvKernels& kv_kernels(int isa) {
    return isa >= 2 ? kv_kernels_avx512 : isa == 1 ? kv_kernels_avx2 : kv_kernels_portable;
}

}  // namespace quota

using quota::size_of;

extern "C" {

// x [batch, heads, tokens, width] in `type` with these strides (the last dimension contiguous) -> packed, scale, zero,
// all contiguous. Returns 0, or 1 if x holds what cannot be stored.
int quota_kv4_quantize(int isa, const void* x, int type, int64_t batch, int64_t heads, int64_t tokens, int64_t width,
                       int64_t sample_stride, int64_t head_stride, int64_t token_stride, int64_t hadamard,
                       uint8_t* packed, uint16_t* scale, uint16_t* zero) {
    const quota::KvKernels& kernels = quota::kv_kernels(isa);
    const int64_t total = batch * heads * tokens;
    std::atomic<bool> stored{true};
#pragma omp parallel for schedule(static) if (total > 64)
    for (int64_t index = 0; index < total; ++index) {
        const int64_t sample = index / (heads * tokens), head = index / tokens % heads, token = index % tokens;
        const int64_t offset = sample * sample_stride + head * head_stride + token * token_stride;
        const char* from = static_cast<const char*>(x) + size_of(type) * offset;
        if (!kernels.quantize(from, type, width, hadamard, packed + index * (width / 2), scale + index, zero + index)) {
            stored = false;
        }
    }
    return stored ? 0 : 1;
}

// The way back: x contiguous [batch, heads, tokens, width] in `type`.
void quota_kv4_dequantize(int isa, const quota::PackedTensor* stored, int64_t batch, int64_t heads, int64_t tokens,
                          int64_t width, void* x, int type) {
    const quota::KvKernels& kernels = quota::kv_kernels(isa);
    const int64_t total = batch * heads * tokens;
#pragma omp parallel for schedule(static) if (total > 64)
    for (int64_t index = 0; index < total; ++index) {
        const quota::PackedRows rows = stored->rows(index / (heads * tokens), index / tokens % heads);
        char* to = static_cast<char*>(x) + size_of(type) * index * width;
        kernels.dequantize(rows, index % tokens, width, stored->hadamard, to, type);
    }
}
}
