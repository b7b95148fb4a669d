// One token, which waits for memory: rows are multiplied as they lie there, and what is transposed is their sums.
//
// A vector of a row holds V::groups groups of 64 channels, as nibbles; their products with the token are partial sums
// of each group. Those of V::width rows are added and transposed together, with a fraction of the shuffles that
// transposing the weights takes, and multiplied with the rows' steps. V has besides what quantize.h and multiply.h say:
//
//     groups                     of CHUNK channels in a vector of packed weights
//     Token(values, count)       those of a token that belong to it, `count` of the groups being there
//     token.times(row)           partial sums of one row
//     token.offset[g]            what the 8 in every nibble adds to the sum of a group, with the other sign
//     add_up(parts, sums)        those of V::width rows -> the sums of each group, a row in each lane
//     plus_scaled(total, sums, offset, steps)    total + (sums + offset) * steps
//
// Bytes have one step a row, so partial sums go on to its end:
//
//     ByteToken(values)          CHUNK of a token, in the order of channels
//     token.add(sums, row)       sums + their products with so many weights, which are 128 more than they are
//     repeat, add                a number in every lane; sums of lanes
#pragma once

#include "multiply.h"

namespace {

// Groups of steps must be whole chunks; of bytes, rows.
inline bool is_one_token(const Product& job) { return job.x.rows == 1 && job.w.group % CHUNK == 0; }

template <class V>
inline void multiply_one_token(const Product& job) {
    using I = typename V::I;
    const int64_t chunks = job.x.chunks();
    for (int64_t first = job.first; first < job.last; first += V::width) {
        const Rows<V::width> rows(job, first, 0);
        I total = {};
        for (int64_t chunk = 0; chunk < chunks; chunk += V::groups) {
            const int64_t count = chunks - chunk < V::groups ? chunks - chunk : V::groups;
            const typename V::Token token(job.x.data + chunk * CHUNK, count);
            I parts[V::width], sums[V::groups];
            for (int64_t i = 0; i < V::width; i++) parts[i] = token.times(rows.packed[i] + chunk * CHUNK / 2);
            prefetch(job, first, V::width, chunk * CHUNK, count * CHUNK);
            V::add_up(parts, sums);
            for (int64_t g = 0; g < count; g++) {
                const uint8_t* steps = steps_of(job, first, (chunk + g) * CHUNK) + first % OUTPUTS;
                total = V::plus_scaled(total, sums[g], token.offset[g], steps);
            }
        }
        V::store_integers(job.sums, total);
        Finish<V>(job, first, V::width)(0, 1);
    }
}

template <class V>
inline void multiply_one_token_by_bytes(const Product& job) {
    using I = typename V::I;
    const int64_t chunks = job.x.chunks();
    // Not job.x.sum, which not every V fills in.
    int32_t offset = 0;
    for (int64_t k = 0; k < chunks * CHUNK; k++) offset -= 128 * job.x.data[k];
    for (int64_t first = job.first; first < job.last; first += V::width) {
        const Rows<V::width> rows(job, first, 0);
        I parts[V::width] = {}, sums[V::groups];
        for (int64_t chunk = 0; chunk < chunks; chunk++) {
            const typename V::ByteToken token(job.x.data + chunk * CHUNK);
#pragma GCC unroll 16
            for (int64_t i = 0; i < V::width; i++) parts[i] = token.add(parts[i], rows.packed[i] + chunk * CHUNK);
            prefetch(job, first, V::width, chunk * CHUNK, CHUNK);
        }
        V::add_up(parts, sums);
        I total = V::repeat(offset);
        for (const I& sum : sums) total = V::add(total, sum);
        V::store_integers(job.sums, total);
        Finish<V>(job, first, V::width)(0, 1);
    }
}

}  // namespace
