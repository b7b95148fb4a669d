// All rows times a range of outputs: unpack a panel of weights, multiply it with all rows, scale.
//
// V is one instruction set's:
//
//     panel, rows                  outputs of a panel, at most PANEL; rows that `multiply` takes at once
//     Weight                       an unpacked weight; a panel of CHUNKS chunks has panel * CHUNKS * CHUNK of them
//     unpack(job, first, chunk, chunks, out)    g q of the outputs from `first` on, however `multiply` likes them
//     unpack_bytes                 the same of 8-bit weights
//     multiply(x, row, rows, chunk, chunks, weights, sums, behind)    adds the products of such rows and chunks to
//                                  `sums` [rows, PANEL]; sets them with chunk 0. Calls behind() when most is done.
//     width, F, set, load, whole, store_result   vectors of floats; from int32; to any type
#pragma once

#include "floats.h"

namespace {

// What becomes of the sums of a panel.
template <class V>
struct Finish {
    const Product& job;
    const int64_t first, count;
    alignas(64) float scale[PANEL], bias[PANEL];

    // Of so many outputs from `first` on, or fewer at the end.
    Finish(const Product& job, int64_t first, int64_t most)
        : job(job), first(first), count(job.last - first < most ? job.last - first : most) {
        for (int64_t i = 0; i < count; i++) scale[i] = job.w.scale[first + i];
        for (int64_t i = 0; i < count; i++) bias[i] = job.w.bias ? job.w.bias[first + i] : 0;
        for (int64_t i = count; i < most; i++) scale[i] = bias[i] = 0;
    }

    // ((S s_n) s_t) + b_n of row `row`, and of so many rows behind it.
    void operator()(int64_t row, int64_t rows) const {
        for (int64_t m = row; m < row + rows; m++) {
            const int32_t* sums = job.sums + m * PANEL;
            const int64_t at = (job.row + m) * job.w.outputs + first;
            if (job.type == INTEGERS) {
                std::memcpy(static_cast<int32_t*>(job.w.y) + at, sums, count * sizeof *sums);
                continue;
            }
            const typename V::F token = V::set(job.x.scale[m]);
            for (int64_t i = 0; i < count; i += V::width) {
                typename V::F y = V::whole(sums + i) * V::load(scale + i) * token;
                if (job.w.bias) y = y + V::load(bias + i);
                V::store_result(job.w.y, job.type, at + i, count - i < V::width ? count - i : V::width, y);
            }
        }
    }
};

template <class V>
inline void multiply(const Product& job) {
    const Values& x = job.x;
    static thread_local struct alignas(4096) { typename V::Weight weights[V::panel * CHUNKS * CHUNK]; } unpacked;
    for (int64_t first = job.first; first < job.last; first += V::panel) {
        const Finish<V> finish(job, first, V::panel);
        for (int64_t chunk = 0; chunk < x.chunks(); chunk += CHUNKS) {
            const int64_t chunks = x.chunks() - chunk < CHUNKS ? x.chunks() - chunk : CHUNKS;
            if (job.w.bits == 8) V::unpack_bytes(job, first, chunk, chunks, unpacked.weights);
            else V::unpack(job, first, chunk, chunks, unpacked.weights);
            // The sums of some rows are finished while those of the next are made.
            int64_t ready = 0;
            const bool last = chunk + chunks == x.chunks();
            for (int64_t m = 0; m < x.rows; m += V::rows) {
                const int64_t rows = x.rows - m < V::rows ? x.rows - m : V::rows;
                V::multiply(x, m, rows, chunk, chunks, unpacked.weights, job.sums + m * PANEL, [&] {
                    if (last && m > ready) finish(ready, m - ready), ready = m;
                });
            }
            if (last) finish(ready, x.rows - ready);
        }
    }
}

// What is stored from `channel`, a multiple of 8, on: the pointers of so many rows. Those past the last output are the
// last once more.
template <int COUNT>
struct Rows {
    const uint8_t* packed[COUNT];

    Rows(const Product& job, int64_t first, int64_t channel) {
        const int64_t bytes = job.w.bytes(job.x.columns), last = job.w.outputs - 1;
        for (int64_t i = 0; i < COUNT; i++)
            packed[i] = job.w.packed + (first + i < last ? first + i : last) * bytes + job.w.bytes(channel);
    }
};

// The steps of the OUTPUTS outputs around `output` in the group of `channel`; past the last output those of others.
inline const uint8_t* steps_of(const Product& job, int64_t output, int64_t channel) {
    const int64_t last = (job.w.outputs - 1) / OUTPUTS, place = output / OUTPUTS < last ? output / OUTPUTS : last;
    const int shift = __builtin_ctzll(uint64_t(job.w.group));
    return job.w.steps + (place * (job.x.columns >> shift) + (channel >> shift)) * OUTPUTS;
}

// Fetches a share of the `outputs` rows behind those from `first` on, which lie in one piece: what `count` channels from
// `channel` on take up in so many rows. Processors do not foresee jumps from row to row. Into the second-level cache:
// rows whose lengths are powers of two would push one another out of the first. Always inlined: GCC drops the calls of a
// function that does nothing but this.
[[gnu::always_inline]] inline void prefetch(const Product& job, int64_t first, int64_t outputs, int64_t channel, int64_t count) {
    const uint8_t* next = job.w.packed + (first + outputs) * job.w.bytes(job.x.columns);
    const int64_t end = job.w.bytes(channel + count) * outputs;
    for (int64_t at = job.w.bytes(channel) * outputs; at < end; at += 64) __builtin_prefetch(next + at, 0, 2);
}

}  // namespace
