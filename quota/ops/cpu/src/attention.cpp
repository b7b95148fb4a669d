// Entry points of attention: one unit of work is a key head with its query heads, or a band of one head's logits.
#include <atomic>
#include <memory>
#include <new>

#include "checks.h"
#include "kv.h"
#include "team.h"

using quota::is_head;
using quota::MAX_SHARED;
using quota::PackedTensor;
using quota::size_of;

namespace {

// Memory that a thread keeps and that only ever grows; null without memory.
float* scratch_of(int64_t floats) {
    thread_local std::unique_ptr<float[]> memory;
    thread_local int64_t size = 0;
    if (floats > size) {
        memory.reset(new (std::nothrow) float[floats]);
        size = memory ? floats : 0;
    }
    return memory.get();
}

}  // namespace

namespace quota {

extern const PrefillKernels prefill_amx, prefill_bf16;

const PrefillKernels* prefill_kernels(int isa) {
    if (!has_bf16(isa)) return nullptr;
    return isa == AMX ? &prefill_amx : &prefill_bf16;
}

}  // namespace quota

extern "C" {

// query [batch, groups * shared, width] in `type`, heads and samples with these strides; valid [batch, tokens] or null,
// added [batch, groups * shared, tokens] to the scaled logits or null -> out contiguous [batch, groups * shared, width]
// in `type`. NO_MEMORY if it runs out.
int quota_kv4_decode(int isa, int threads, const void* query, int type, int64_t batch, int64_t groups, int64_t shared,
                     int64_t width, int64_t tokens, int64_t sample_stride, int64_t head_stride,
                     const PackedTensor* keys, const PackedTensor* values, const uint8_t* valid, const float* added,
                     float scaling, void* out) {
    if (!runs_here(isa, threads) || !is_type(type) || !are_sizes({batch, groups, shared, tokens}) ||
        !is_head(width, keys->maps.hadamard) || !is_head(width, values->maps.hadamard) ||
        values->maps.into != nullptr)
        return WRONG_SIZES;
    const quota::KvKernels& kernels = quota::kv_kernels(isa);
    const int64_t size = size_of(type);
    const int64_t longest = quota::decode_scratch(tokens);
    std::atomic<bool> enough{true};
    deal(threads, batch * groups, [&](int64_t unit) {
        float* const scratch = scratch_of(longest + 2 * MAX_SHARED * width + quota::columns_of(width) + 32);
        if (scratch == nullptr) {
            enough = false;
            return;
        }
        float *const result = scratch + longest, *const met = result + MAX_SHARED * width;
        float* const own = met + MAX_SHARED * width + 16;
        const int64_t sample = unit / groups, group = unit % groups;
        const uint8_t* seen = valid == nullptr ? nullptr : valid + sample * tokens;
        // Empty slots stand in front; without them a sample's arithmetic is the same alone and in a batch.
        int64_t start = 0;
        while (seen != nullptr && start < tokens && !seen[start]) ++start;
        for (int64_t head = 0; head < shared; head += MAX_SHARED) {
            const int together = int(shared - head < MAX_SHARED ? shared - head : MAX_SHARED);
            const int64_t first = group * shared + head;
            for (int i = 0; i < together; ++i) {
                const int64_t offset = sample * sample_stride + (first + i) * head_stride;
                kernels.query(static_cast<const char*>(query) + size * offset, type, width, keys->map(group, width),
                              met + i * width, own);
            }
            const float* more = added == nullptr ? nullptr : added + (sample * groups * shared + first) * tokens;
            kernels.decode(met, together, width, keys->rows(sample, group), values->rows(sample, group), seen, more,
                           start, tokens, scaling, scratch, result);
            for (int i = 0; i < together; ++i) {
                const int64_t offset = (sample * groups * shared + first + i) * width;
                kernels.rotate_out(result + i * width, width, values->maps.hadamard,
                                   static_cast<char*>(out) + size * offset, type);
            }
        }
    });
    return enough ? DONE : NO_MEMORY;
}

// Softmax in place over logits contiguous [heads, rows, columns] in `type`, row i seeing columns up to first + i that are
// `visible` [columns], all of these if `first` is `columns`; sums [heads, bands, set_count, columns] gets what each set of rows gives, in bands of
// `band` rows. sets [set_count, set_step]. NO_MEMORY if it runs out.
int quota_softmax_sums(int isa, int threads, void* logits, int type, int64_t heads, int64_t rows, int64_t columns,
                       int64_t first, const uint8_t* visible, const uint8_t* sets, int64_t set_count, int64_t set_step,
                       float scaling, int64_t band, float* sums) {
    if (!runs_here(isa, threads) || !is_type(type) || !are_sizes({heads, rows, columns, first, set_count, band - 1}) ||
        (first + rows > columns && first != columns) || set_step < rows)
        return WRONG_SIZES;
    const quota::KvKernels& kernels = quota::kv_kernels(isa);
    const int64_t bands = (rows + band - 1) / band;
    std::atomic<bool> enough{true};
    deal(threads, heads * bands, [&](int64_t unit) {
        float* const scratch = scratch_of(quota::softmax_scratch(columns));
        if (scratch == nullptr) {
            enough = false;
            return;
        }
        const int64_t head = unit / bands, start = unit % bands * band;
        const int64_t count = rows - start < band ? rows - start : band;
        // A sum of its own for each unit: the order of additions must not depend on the threads.
        float* own = sums + unit * set_count * columns;
        for (int64_t i = 0; i < set_count * columns; ++i) own[i] = 0.0f;
        // Without sets there is no memory to point into.
        const uint8_t* own_sets = set_count ? sets + start : sets;
        const quota::SoftmaxRows part = {count,     columns,  first + start, visible, own_sets,
                                         set_count, set_step, scaling,       own};
        kernels.softmax(static_cast<char*>(logits) + size_of(type) * (head * rows + start) * columns, type, part,
                        scratch);
    });
    return enough ? DONE : NO_MEMORY;
}

// Attention of one sample in bfloat16, where `quota_has_bf16`: query and out [heads, queries, width], key and value
// [groups, length, width], each with the strides of heads and tokens in `strides`. If `causal` the queries are the last
// tokens and see none behind them. visible [length], sets [set_count, queries]; `tiles` is memory for 2 * groups * width
// * length numbers, both rounded up to 32. sums [heads, bands of 64 queries, set_count, length], zeros at first.
// NO_MEMORY if it runs out.
int quota_attention(int isa, int threads, const void* query, const void* key, const void* value, void* out,
                    const int64_t* strides, int64_t heads, int64_t groups, int64_t queries, int64_t length,
                    int64_t width, int causal, const uint8_t* visible, const uint8_t* sets, int64_t set_count,
                    float scaling, float* sums, void* tiles) {
    if (!runs_here(isa, threads) || !has_bf16(isa) ||
        !are_sizes({heads, groups - 1, queries, length - (causal ? queries : 0), set_count}) || heads % groups != 0 ||
        width <= 0)
        return WRONG_SIZES;
    const quota::PrefillKernels& kernels = *quota::prefill_kernels(isa);
    const auto rows = [&](const void* first, int64_t index) {
        uint16_t* start = static_cast<uint16_t*>(const_cast<void*>(first));
        return quota::Rows{start, strides[2 * index], strides[2 * index + 1]};
    };
    const quota::Prefill job = {
        rows(query, 0), rows(key, 1), rows(value, 2), rows(out, 3), heads,   groups, queries, length,
        width,          causal != 0,  visible,        sets,         set_count, scaling, sums, static_cast<uint16_t*>(tiles)};
    const int64_t bands = (queries + quota::PREFILL_BAND - 1) / quota::PREFILL_BAND;
    std::atomic<bool> enough{true};
    deal(threads, groups, [&](int64_t group) { kernels.arrange(job, group); });
    // The last bands may see the most keys: they start first, so that no thread is left with one at the end.
    deal(threads, heads * bands, [&](int64_t unit) {
        float* const scratch = scratch_of(job.scratch());
        if (scratch == nullptr) {
            enough = false;
            return;
        }
        kernels.attend(job, unit % heads, bands - 1 - unit / heads, scratch);
    });
    return enough ? DONE : NO_MEMORY;
}
}
