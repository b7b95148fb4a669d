// Sizes that do not fit one another: every entry point must refuse them before it touches memory, of which there is none.
#include <functional>
#include <iterator>
#include <vector>

#include "draw.h"

namespace {

using Sizes = std::vector<int64_t>;

// A call of which all sizes fit, and for each of them those that do not fit the rest.
struct Case {
    const char* name;
    Sizes right;
    std::vector<Sizes> wrong;
    std::function<int(const Sizes&)> call;
};

const Sizes NEGATIVE = {-1, -64, INT64_MIN}, THREADS = {0, -1}, TYPES = {-1, 3};
// Of heads of 64 channels, whose rotations are powers of two.
const Sizes WIDTHS = {0, -64, 4, 60, 68, 1032}, HEAD_BLOCKS = {-1, -64, 3, 24, 48, 128, 1024};
// Of 192 channels, of which blocks are powers of two up to 64; sums over 131,072 and more overflow.
const Sizes COLUMNS = {-192, 0, 191, 100, 32, 131072, 192 << 20}, BLOCKS = {-1, -64, 3, 24, 48, 96, 128, 192, 512};
const Sizes GROUPS = {0, 1, 2, 4, -64, 24, 48, 96, 128, 512}, BITS = {-1, 0, 1, 2, 3, 5, 16}, FUNCTIONS = {-1, quota::ACTIVATIONS};
// Of weights: only those of 8 bits have a group that is the row.
const Sizes FEW_BITS = {-1, 0, 2, 3, 5, 8, 16}, MANY_BITS = {-1, 0, 2, 3, 4, 5, 16}, NO_ROWS = {-192, 0, 1, 64, 384};

Weights of(int64_t outputs, int64_t group, int64_t bits) {
    return {nullptr, nullptr, nullptr, nullptr, nullptr, outputs, group, bits};
}
quota::PackedTensor of(int64_t hadamard) { return {{}, 0, 0, 0, 0, 0, 0, {hadamard, nullptr, nullptr, nullptr}}; }

int call_sums(const Sizes& s) {
    const Weights weight = of(s[4], s[5], s[6]);
    return quota_sums(int(s[0]), int(s[1]), nullptr, s[2], s[3], &weight);
}

std::vector<Case> cases() {
    const Sizes isas = {-1, quota_best_isa() + 1};
    std::vector<Case> all = {
        {"linear",
         {0, 1, 0, 3, 192, 64, 64, 4, 5, 64, 1, 4},
         {isas, THREADS, TYPES, NEGATIVE, COLUMNS, BLOCKS, GROUPS, BITS, NEGATIVE, GROUPS, NEGATIVE, FEW_BITS},
         [](const Sizes& s) {
             const Weights weight = of(s[8], s[9], s[11]);
             return quota_linear(int(s[0]), int(s[1]), nullptr, int(s[2]), s[3], s[4], s[5], s[6], int(s[7]), &weight,
                                 s[10]);
         }},
        {"sums",
         {0, 1, 3, 192, 5, 64, 4},
         {isas, THREADS, NEGATIVE, COLUMNS, NEGATIVE, GROUPS, FEW_BITS},
         call_sums},
        {"sums of bytes",
         {0, 1, 3, 192, 5, 192, 8},
         {isas, THREADS, NEGATIVE, COLUMNS, NEGATIVE, NO_ROWS, MANY_BITS},
         call_sums},
        {"quantize",
         {0, 1, 0, 3, 192, 64, 64, 4},
         {isas, THREADS, TYPES, NEGATIVE, COLUMNS, BLOCKS, GROUPS, BITS},
         [](const Sizes& s) {
             return quota_quantize(int(s[0]), int(s[1]), nullptr, int(s[2]), s[3], s[4], s[5], s[6], int(s[7]), nullptr,
                                   nullptr);
         }},
        {"kv4 store",
         {0, 1, 0, 2, 3, 5, 64, 64, 1, 0},
         {isas, THREADS, TYPES, NEGATIVE, NEGATIVE, NEGATIVE, WIDTHS, HEAD_BLOCKS, NEGATIVE, NEGATIVE},
         [](const Sizes& s) {
             const quota::KvInput input = {nullptr, 0, 0, 0, of(s[7]), s[9], nullptr};
             return quota_kv4_store(int(s[0]), int(s[1]), int(s[2]), s[3], s[4], s[5], s[6], &input, s[8]);
         }},
        {"kv4 dequantize",
         {0, 1, 0, 2, 3, 5, 64, 64},
         {isas, THREADS, TYPES, NEGATIVE, NEGATIVE, NEGATIVE, WIDTHS, HEAD_BLOCKS},
         [](const Sizes& s) {
             const quota::PackedTensor stored = of(s[7]);
             return quota_kv4_dequantize(int(s[0]), int(s[1]), &stored, s[3], s[4], s[5], s[6], nullptr, int(s[2]));
         }},
        {"kv4 decode",
         {0, 1, 0, 2, 3, 4, 64, 5, 64, 64},
         {isas, THREADS, TYPES, NEGATIVE, NEGATIVE, NEGATIVE, WIDTHS, NEGATIVE, HEAD_BLOCKS, HEAD_BLOCKS},
         [](const Sizes& s) {
             const quota::PackedTensor keys = of(s[8]), values = of(s[9]);
             return quota_kv4_decode(int(s[0]), int(s[1]), nullptr, int(s[2]), s[3], s[4], s[5], s[6], s[7], 0, 0, &keys,
                                     &values, nullptr, nullptr, 1, nullptr);
         }},
        {"softmax sums",
         {0, 1, 0, 2, 5, 9, 4, 2, 5, 64},
         {isas, THREADS, TYPES, NEGATIVE, {-1, 6, 10}, {-1, 0, 8}, {-1, 5, 10}, NEGATIVE, {-1, 0, 4}, {0, -64}},
         [](const Sizes& s) {
             return quota_softmax_sums(int(s[0]), int(s[1]), nullptr, int(s[2]), s[3], s[4], s[5], s[6], nullptr, nullptr,
                                       s[7], s[8], 1, s[9], nullptr);
         }},
        {"activation error",
         {0, 1, 0, 3, 192, 192, 64, 64, 4},
         {isas, THREADS, TYPES, NEGATIVE, COLUMNS, NEGATIVE, BLOCKS, GROUPS, BITS},
         [](const Sizes& s) {
             return quota_activation_error(int(s[0]), int(s[1]), nullptr, int(s[2]), s[3], s[4], s[5], s[6], s[7],
                                           int(s[8]), nullptr);
         }},
        {"information",
         {0, 1, 2, 5, 8},
         {isas, THREADS, NEGATIVE, NEGATIVE, {0, -1, INT64_MIN + 1}},
         [](const Sizes& s) {
             return quota_information(int(s[0]), int(s[1]), nullptr, nullptr, nullptr, s[2], s[3], s[4], 0, nullptr);
         }},
        {"cut",
         {0, 1, 2, 5, 2, 9},
         {isas, THREADS, NEGATIVE, NEGATIVE, NEGATIVE, NEGATIVE},
         [](const Sizes& s) {
             return quota_cut(int(s[0]), int(s[1]), nullptr, nullptr, nullptr, nullptr, s[2], s[3], nullptr, s[4], s[5],
                              nullptr, nullptr, nullptr);
         }},
        {"norm",
         {0, 1, 0, 3, 5},
         {isas, THREADS, TYPES, NEGATIVE, NEGATIVE},
         [](const Sizes& s) {
             return quota_norm(int(s[0]), int(s[1]), nullptr, int(s[2]), s[3], s[4], nullptr, nullptr, 1, 0, 0, nullptr);
         }},
        {"activate",
         {0, 1, 0, 3, 2},
         {isas, THREADS, TYPES, NEGATIVE, FUNCTIONS},
         [](const Sizes& s) {
             return quota_activate(int(s[0]), int(s[1]), nullptr, int(s[2]), s[3], int(s[4]), nullptr);
         }},
        {"gated",
         {0, 1, 0, 3, 2},
         {isas, THREADS, TYPES, NEGATIVE, FUNCTIONS},
         [](const Sizes& s) {
             return quota_gated(int(s[0]), int(s[1]), nullptr, int(s[2]), nullptr, s[3], int(s[4]), nullptr);
         }},
    };
    // On a machine without products of bfloat16 all is refused for the instruction set.
    const int64_t isa = quota_has_bf16(3) ? 3 : 2;
    const Case attention = {"attention",
                            {isa, 1, 4, 2, 5, 9, 64, 2},
                            {{-1, 0, 1, 4}, THREADS, {-4, 3}, {0, -2, 3}, {-1, 10}, {-1, 4}, {0, -32, INT64_MIN}, NEGATIVE},
                            [](const Sizes& s) {
                                return quota_attention(int(s[0]), int(s[1]), nullptr, nullptr, nullptr, nullptr, nullptr,
                                                       s[2], s[3], s[4], s[5], s[6], 1, nullptr, nullptr, s[7], 1, nullptr,
                                                       nullptr);
                            }};
    all.push_back(attention);
    return all;
}

}  // namespace

void wrong_sizes() {
    static const std::vector<Case> all = cases();
    const Case& one = all[draw(0, int64_t(all.size()) - 1)];
    Sizes sizes = one.right;
    const int64_t changed = draw(0, int64_t(sizes.size()) - 1);
    const Sizes& wrong = one.wrong[changed];
    sizes[changed] = wrong[draw(0, int64_t(wrong.size()) - 1)];
    if (one.call(sizes) == WRONG_SIZES) return;
    std::fprintf(stderr, "size %lld is %lld: ", static_cast<long long>(changed), static_cast<long long>(sizes[changed]));
    require(false, one.name);
}
