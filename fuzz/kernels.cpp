// Random calls of everything that Python can call in the kernels, under AddressSanitizer and UBSan (`make fuzz`).
//
//     fuzz SEED CALLS
//
// Every buffer is as large as the call may touch and no larger. Shapes, strides, types and threads are drawn; so are the
// numbers: ordinary ones, zeros, outliers of 1e4, denormals, and now and then infinity or NaN, which must be refused or
// pass through, never crash; and sizes that do not fit one another (sizes.cpp). Each call is made with every instruction
// set that the machine has; integers and linear layers must be the same in all of them, other floats close. The first
// difference ends the program with the seed of its call.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "draw.h"

namespace {

float number(bool finite) {
    static const float odd[] = {0.0f, -0.0f, 1e4f, -1e4f, 1e-40f, INFINITY, -INFINITY, NAN};
    if (chance(20)) return odd[draw(0, finite ? 4 : 7)];
    return std::normal_distribution<float>()(random_bits);
}

uint16_t bfloat16(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return uint16_t(bits >> 16);
}

// Floats in one of the types, float32 or bfloat16.
struct Numbers {
    int type;
    std::vector<float> wide;
    std::vector<uint16_t> narrow;

    Numbers(int type, int64_t count, bool finite) : type(type) {
        for (int64_t i = 0; i < count; i++) {
            const float x = number(finite);
            if (type == FLOAT32) wide.push_back(x);
            else narrow.push_back(bfloat16(x));
        }
        wide.shrink_to_fit();
        narrow.shrink_to_fit();
    }
    void* data() { return type == FLOAT32 ? static_cast<void*>(wide.data()) : narrow.data(); }
    float at(size_t i) const {
        if (type == FLOAT32) return wide[i];
        const uint32_t bits = uint32_t(narrow[i]) << 16;
        float x;
        std::memcpy(&x, &bits, 4);
        return x;
    }
    bool same(const Numbers& other) const {
        const auto alike = [](float a, float b) { return std::memcmp(&a, &b, sizeof a) == 0; };
        return std::equal(wide.begin(), wide.end(), other.wide.begin(), alike) && narrow == other.narrow;
    }
    size_t size() const { return type == FLOAT32 ? wide.size() : narrow.size(); }
    bool close(const Numbers& other, float tolerance) const {
        float most = 1e-30f;
        for (size_t i = 0; i < size(); i++)
            if (std::isfinite(at(i))) most = std::max(most, std::fabs(at(i)));
        for (size_t i = 0; i < size(); i++)
            if (std::isfinite(at(i)) && !(std::fabs(at(i) - other.at(i)) <= tolerance * most)) return false;
        return true;
    }
};

template <class T>
std::vector<T> bits(int64_t count) {
    std::vector<T> all(count);
    for (T& one : all) one = T(random_bits());
    return all;
}

std::vector<uint8_t> flags(int64_t count) {
    std::vector<uint8_t> all(count);
    for (uint8_t& one : all) one = !chance(4);
    return all;
}

// A row longer than the blocks of its rotation and groups: the largest power of two that divides, as Python chooses it.
int64_t part_of(int64_t columns, int64_t limit) { return std::min(limit, columns & -columns); }

// A random weight, as the checkpoint holds it and as the kernels take it.
struct Weight {
    int64_t outputs, columns, bits, group;
    std::vector<uint8_t> packed, steps;
    std::vector<float> scale, bias;

    explicit Weight(int64_t columns)
        : outputs(draw(0, 150)), columns(columns), bits(chance(3) ? 8 : 4),
          group(bits == 8 ? columns : part_of(columns, power(3, 8))) {
        packed = ::bits<uint8_t>(outputs * columns * bits / 8);
        // A weight of the lowest numbers alone makes the largest sums.
        if (chance(10)) std::fill(packed.begin(), packed.end(), uint8_t(0));
        if (bits == 4) steps.resize(round_up(outputs, OUTPUTS) * (columns / group));
        for (uint8_t& step : steps) step = uint8_t(chance(3) ? 16 : draw(1, 16));
        for (int64_t n = 0; n < outputs; n++) scale.push_back(0.01f * float(draw(1, 100)));
        if (chance(2)) bias.resize(outputs, 0.5f);
        scale.shrink_to_fit();
    }
    int whole(int64_t n, int64_t k) const {
        if (bits == 8) return packed[n * columns + k] - 128;
        const int q = (packed[(n * columns + k) / 2] >> (k % 2 * 4) & 15) - 8;
        return q * steps[(n / OUTPUTS * (columns / group) + k / group) * OUTPUTS + n % OUTPUTS];
    }
    Weights into(void* y) const {
        const float* const added = bias.empty() ? nullptr : bias.data();
        return {packed.data(), steps.data(), scale.data(), added, y, outputs, group, bits};
    }
};

// Mostly few, sometimes enough for several threads to take tokens of their own, or several blocks of channels; often one
// token, and whole chunks, as kernels of one token take them.
int64_t draw_rows() { return chance(4) ? 1 : chance(4) ? draw(41, 170) : draw(0, 40); }
int64_t draw_columns() { return chance(3) ? CHUNK * draw(1, 25) : 8 * (chance(4) ? draw(41, 200) : draw(1, 40)); }

void linear() {
    const int64_t rows = draw_rows(), columns = draw_columns(), count = draw(0, 3);
    const int64_t group = part_of(columns, power(3, 8)), hadamard = chance(3) ? 0 : part_of(columns, power(0, 8));
    const int bits = chance(3) ? 8 : 4;
    Numbers x(draw(0, 1), rows * columns, !chance(10));
    std::vector<Weight> all;
    for (int64_t i = 0; i < count; i++) all.emplace_back(columns);
    std::vector<Numbers> expected;
    int status = 0;
    for (int isa = 0; isa <= quota_best_isa(); isa++) {
        std::vector<Numbers> found;
        std::vector<Weights> weights;
        for (const Weight& one : all) found.emplace_back(x.type, rows * one.outputs, true);
        for (int64_t i = 0; i < count; i++) weights.push_back(all[i].into(found[i].data()));
        const int other = quota_linear(isa, isa ? threads() : 1, x.data(), x.type, rows, columns, hadamard, group, bits,
                                       weights.data(), count);
        require(isa == 0 || status == other, "linear refuses with one instruction set only");
        status = other;
        if (status) continue;
        if (isa == 0) expected = found;
        for (int64_t i = 0; i < count; i++) require(found[i].same(expected[i]), "linear differs");
    }
}

void sums() {
    const int64_t rows = draw_rows(), columns = draw_columns();
    const Weight weight(columns);
    auto values = bits<int8_t>(rows * columns);
    // Values of one size alone make the largest sums.
    if (chance(10)) std::fill(values.begin(), values.end(), int8_t(chance(2) ? 127 : -127));
    std::vector<int32_t> expected(rows * weight.outputs);
    for (int64_t n = 0; n < weight.outputs; n++)
        for (int64_t k = 0; k < columns; k++) {
            const int whole = weight.whole(n, k);
            for (int64_t m = 0; m < rows; m++) expected[m * weight.outputs + n] += whole * values[m * columns + k];
        }
    for (int isa = 0; isa <= quota_best_isa(); isa++) {
        std::vector<int32_t> found(expected.size());
        const Weights into = weight.into(found.data());
        require(!quota_sums(isa, threads(), values.data(), rows, columns, &into), "sums are refused");
        require(found == expected, "sums differ");
    }
}

void quantize() {
    const int64_t rows = draw(0, 20), columns = draw_columns(), group = part_of(columns, power(3, 8));
    const int64_t hadamard = chance(3) ? 0 : part_of(columns, power(0, 8));
    const int bits = chance(3) ? 8 : 4;
    Numbers x(draw(0, 1), rows * columns, !chance(10));
    std::vector<int8_t> expected;
    std::vector<float> scale, errors;
    int status = 0;
    for (int isa = 0; isa <= quota_best_isa(); isa++) {
        std::vector<int8_t> values(rows * columns);
        std::vector<float> found(rows), lost(rows);
        const int other = quota_quantize(isa, threads(), x.data(), x.type, rows, columns, hadamard, group, bits,
                                         values.data(), found.data());
        require(!quota_activation_error(isa, threads(), x.data(), x.type, rows, columns, columns, hadamard, group, bits,
                                        lost.data()),
                "errors are refused");
        require(isa == 0 || status == other, "quantize refuses with one instruction set only");
        if (isa == 0) status = other, expected = values, scale = found, errors = lost;
        require(status || (values == expected && found == scale), "values differ");
        require(status || lost == errors, "errors differ");
        require(status || std::count(values.begin(), values.end(), -128) == 0, "a value is out of range");
    }
}

// A map of each head's channels that keeps numbers of their size, and the way back.
struct Maps {
    std::vector<float> into, offset, back;

    Maps(int64_t heads, int64_t width) {
        const int64_t columns = quota::columns_of(width);
        into.resize(heads * width * columns), back.resize(into.size()), offset.resize(heads * columns);
        for (int64_t head = 0; head < heads; head++)
            for (int64_t i = 0; i < width; i++) {
                // Twice a reflection, which is its own inverse.
                for (int64_t j = 0; j < width; j++) {
                    const float entry = float(i == j) - 2.0f / float(width) * (i % 2 ? -1 : 1) * (j % 2 ? -1 : 1);
                    const int64_t at = head * width * columns + quota::place_of(width, i, j);
                    into[at] = 2 * entry;
                    back[at] = entry / 2;
                }
                offset[head * columns + i] = number(true);
            }
    }
    quota::HeadMap first(int64_t hadamard) const { return {hadamard, into.data(), offset.data(), back.data()}; }
};

struct Cache {
    std::vector<uint8_t> packed;
    std::vector<uint16_t> scale, zero;
    quota::PackedTensor tensor;

    Cache(int64_t samples, int64_t heads, int64_t tokens, int64_t width, quota::HeadMap map)
        : packed(samples * heads * tokens * width / 2), scale(samples * heads * tokens), zero(scale.size()) {
        const int64_t row = width / 2;
        tensor = {{packed.data(), scale.data(), zero.data(), row, 1, 1},
                  heads * tokens * row, tokens * row, heads * tokens, tokens, heads * tokens, tokens, map};
    }
    bool same(const Cache& other) const {
        return packed == other.packed && scale == other.scale && zero == other.zero;
    }
    quota::KvInput filled_from(Numbers& x, int64_t heads, int64_t tokens, int64_t width, Numbers* read) const {
        return {x.data(), heads * tokens * width, tokens * width, width, tensor, 0, read ? read->data() : nullptr};
    }
};

void cache() {
    const int64_t samples = draw(0, 2), groups = draw(0, 3), shared = draw(0, 6), tokens = draw(0, 70);
    const int64_t width = 8 * draw(1, 20), hadamard = chance(2) ? 0 : part_of(width, 64);
    Numbers keys(draw(0, 1), samples * groups * tokens * width, !chance(10)), values(keys.type, keys.size(), true);
    const Maps maps(groups, width);
    const quota::HeadMap plain = {0, nullptr, nullptr, nullptr};
    const quota::HeadMap map = chance(2) ? maps.first(hadamard) : quota::HeadMap{hadamard, nullptr, nullptr, nullptr};
    const auto valid = flags(samples * tokens);
    const int64_t heads = groups * shared;
    const std::vector<float> added(chance(2) ? samples * heads * tokens : 0, 0.5f);
    Numbers query(keys.type, samples * heads * width, true);
    Numbers expected(keys.type, keys.size(), true), attended(keys.type, query.size(), true);
    Cache first(samples, groups, tokens, width, plain), mapped(samples, groups, tokens, width, map);
    int status = 0;
    for (int isa = 0; isa <= quota_best_isa(); isa++) {
        // Keys as they are and values, stored at once: the same with every instruction set.
        Cache stored(samples, groups, tokens, width, plain), content(samples, groups, tokens, width, plain);
        Numbers read(keys.type, keys.size(), true), again(keys.type, keys.size(), true);
        const quota::KvInput both[] = {stored.filled_from(keys, groups, tokens, width, chance(2) ? &read : nullptr),
                                       content.filled_from(values, groups, tokens, width, nullptr)};
        const int other = quota_kv4_store(isa, threads(), keys.type, samples, groups, tokens, width, both, 2);
        require(isa == 0 || status == other, "a cache is refused by one only");
        if (isa == 0) std::swap(first, stored), status = other;
        else require(status || stored.same(first), "caches differ");
        // Mapped or rotated keys: what is read at once is what is read later, and about the same everywhere.
        Cache own(samples, groups, tokens, width, map);
        const quota::KvInput input = own.filled_from(keys, groups, tokens, width, &read);
        if (quota_kv4_store(isa, threads(), keys.type, samples, groups, tokens, width, &input, 1) || status) continue;
        quota_kv4_dequantize(isa, threads(), &own.tensor, samples, groups, tokens, width, again.data(), again.type);
        require(read.same(again), "what is read at once is not what is stored");
        if (isa == 0) std::swap(mapped, own);
        Numbers found(keys.type, keys.size(), true), out(keys.type, query.size(), true);
        quota_kv4_dequantize(isa, threads(), &mapped.tensor, samples, groups, tokens, width, found.data(), found.type);
        quota_kv4_decode(isa, threads(), query.data(), query.type, samples, groups, shared, width, tokens, heads * width,
                         width, &mapped.tensor, &content.tensor, valid.data(),
                         added.empty() ? nullptr : added.data(), 1e-3f, out.data());
        if (isa == 0) std::swap(expected, found), std::swap(attended, out);
        else require(expected.close(found, 1e-2f) && attended.close(out, 2e-2f), "what is read from a cache differs");
    }
}

void softmax() {
    const int64_t heads = draw(0, 3), rows = draw(0, 80), columns = rows + draw(0, 30), sets = draw(0, 2), band = 64;
    const int64_t seen = chance(2) ? columns - rows : columns;
    const auto visible = flags(columns), given = flags(sets * rows);
    Numbers logits(draw(0, 1), heads * rows * columns, true);
    std::vector<float> expected;
    for (int isa = 0; isa <= quota_best_isa(); isa++) {
        Numbers own = logits;
        std::vector<float> sums(heads * ((rows + band - 1) / band) * sets * columns);
        quota_softmax_sums(isa, threads(), own.data(), own.type, heads, rows, columns, seen, visible.data(),
                           given.data(), sets, rows, 1e-3f, band, sums.data());
        if (!isa) expected = sums;
        for (size_t i = 0; i < sums.size(); i++)
            require(std::fabs(sums[i] - expected[i]) <= 1e-3f * (1 + rows), "softmax sums differ");
    }
}

void attention() {
    const int64_t groups = draw(1, 2), heads = groups * draw(1, 3), queries = draw(1, 150);
    const bool causal = chance(2);
    const int64_t length = causal ? queries + draw(0, 40) : draw(1, 150);
    const int64_t width = chance(2) ? 32 * draw(1, 4) : draw(1, 130), sets = draw(1, 2), bands = (queries + 63) / 64;
    const int64_t side = (width + 31) / 32 * 32;
    Numbers query(BFLOAT16, heads * queries * width, true), key(BFLOAT16, groups * length * width, true);
    Numbers value(BFLOAT16, groups * length * width, true), expected(BFLOAT16, query.size(), true);
    const auto visible = flags(length), given = flags(sets * queries);
    const int64_t strides[] = {queries * width, width, length * width, width, length * width, width, queries * width, width};
    bool first = true;
    for (int isa = 0; isa <= quota_best_isa(); isa++) {
        if (!quota_has_bf16(isa)) continue;
        Numbers out(BFLOAT16, query.size(), true);
        std::vector<float> sums(heads * bands * sets * length);
        std::vector<uint16_t> tiles(2 * groups * side * ((length + 31) / 32 * 32));
        require(!quota_attention(isa, threads(), query.data(), key.data(), value.data(), out.data(), strides, heads, groups,
                                 queries, length, width, causal, visible.data(), given.data(), sets, 1e-3f, sums.data(),
                                 tiles.data()),
                "attention is refused");
        double total = 0;
        for (const float sum : sums) total += sum;
        require(std::isfinite(total) && total <= 1.01 * double(heads * queries * sets), "attention gives more than it has");
        if (first) std::swap(expected, out);
        else require(expected.close(out, 2e-2f), "attention differs");
        first = false;
    }
}

// The tokens of one image: as they are, or such as have little or nothing to choose between, or none beside which others
// are too small to be checked.
void draw_tokens(float* hidden, int64_t tokens, int64_t width) {
    const int64_t kind = draw(0, 10), count = tokens * width;
    if (kind > 7 || count == 0) return;
    if (kind > 4) std::generate_n(hidden, count, [] { return std::normal_distribution<float>()(random_bits); });
    if (kind == 0) std::fill(hidden, hidden + count, 0.0f);
    if (kind == 1) std::fill(hidden, hidden + count, chance(2) ? 1e-40f : 1e-20f);
    if (kind == 2) hidden[draw(0, count - 1)] = chance(2) ? 1e4f : 1e15f;
    for (int64_t i = 1; i < tokens; i++) {
        float* const token = hidden + i * width;
        if (kind == 3) std::copy_n(hidden, width, token);
        if (kind == 4) std::fill(token, token + width, *token);
    }
}

// Chosen in the order of their scores, the tokens must have been the best each time, and all scores what is left of their
// variances: in double, the choice taken as it is.
void check_choice(const float* hidden, const uint8_t* valid, int64_t count, int64_t tokens, int64_t width, float noise,
                  const float* scores) {
    std::vector<int64_t> order;
    std::vector<double> left(tokens);
    double sum = 0, most = 0;
    for (int64_t i = 0; i < tokens; i++) {
        require(valid[i] || scores[i] == 0, "padding has a score");
        if (!valid[i]) continue;
        order.push_back(i);
        for (int64_t k = 0; k < width; k++) left[i] += double(hidden[i * width + k]) * hidden[i * width + k];
        sum += left[i];
        most = std::max(most, left[i]);
    }
    const auto is_nan = [scores](int64_t i) { return std::isnan(scores[i]); };
    if (!std::isfinite(float(sum))) return require(std::all_of(order.begin(), order.end(), is_nan), "what is no number is hidden");
    // Without noise nothing holds up rounding once all is said.
    if (noise == 0) return;
    require(std::none_of(order.begin(), order.end(), is_nan), "a score is no number");
    std::stable_sort(order.begin(), order.end(), [scores](int64_t a, int64_t b) { return scores[a] > scores[b]; });
    const int64_t there = int64_t(order.size());
    const double spread = noise * sum / double(there), near = 1e-5 * most + 1e-30;
    std::vector<std::vector<double>> factor;
    for (int64_t step = 0; step < std::min(count, there); step++) {
        const int64_t best = order[step];
        require(std::fabs(scores[best] - left[best]) <= near, "a score is not the variance");
        for (int64_t i = step; i < there; i++) require(left[order[i]] <= left[best] + near, "not the best is chosen");
        std::vector<double> taken(tokens);
        for (int64_t i = step + 1; i < there; i++) {
            const int64_t j = order[i];
            for (int64_t k = 0; k < width; k++) taken[j] += double(hidden[best * width + k]) * hidden[j * width + k];
            for (const auto& row : factor) taken[j] -= row[best] * row[j];
            taken[j] /= std::sqrt(std::max(left[best] + spread, 1e-30));
            left[j] -= taken[j] * taken[j];
        }
        factor.push_back(taken);
    }
    for (int64_t i = std::clamp<int64_t>(count, 0, there); i < there; i++)
        require(std::fabs(scores[order[i]] - left[order[i]]) <= near, "what is left is wrong");
}

void information() {
    // Now and then too many for all their products at once, or enough for several threads.
    const bool many = chance(20);
    const int64_t batch = draw(0, 3), tokens = many ? draw(4097, 4200) : draw(0, 150), width = draw(1, many ? 8 : 70);
    Numbers hidden(FLOAT32, batch * tokens * width, !chance(10));
    float* const all = hidden.wide.data();
    const auto valid = flags(batch * tokens);
    std::vector<int64_t> counts(batch);
    for (int64_t row = 0; row < batch; row++) {
        counts[row] = draw(-1, many ? 9 : tokens + 3);
        draw_tokens(all + row * tokens * width, tokens, width);
    }
    for (size_t i = 0; i < valid.size(); i++)
        if (!valid[i]) std::fill_n(all + int64_t(i) * width, width, chance(2) ? NAN : INFINITY);
    const float noise = chance(8) ? 0.0f : std::pow(10.0f, float(draw(-3, 0)));
    for (int isa = 0; isa <= quota_best_isa(); isa++) {
        std::vector<float> scores(batch * tokens), again(batch * tokens);
        for (auto* found : {&scores, &again})
            require(!quota_information(isa, threads(), all, valid.data(), counts.data(), batch, tokens, width, noise,
                                       found->data()),
                    "tokens are refused");
        require(scores.empty() || !std::memcmp(scores.data(), again.data(), scores.size() * sizeof(float)), "threads differ");
        for (int64_t row = 0; row < batch; row++) {
            const int64_t at = row * tokens;
            check_choice(all + at * width, valid.data() + at, counts[row], tokens, width, noise, scores.data() + at);
        }
    }
}

void choice() {
    const int64_t batch = draw(0, 3), tokens = draw(0, 80);
    Numbers weights(FLOAT32, batch * tokens, true);
    const auto valid = flags(batch * tokens);
    // One image a sample, behind as many places of text.
    const int64_t length = tokens + draw(0, 20);
    std::vector<int64_t> counts(batch), places(batch * tokens), slots(batch * length);
    auto kept = flags(batch * length);
    std::vector<uint8_t> filled(batch * length);
    for (int64_t row = 0; row < batch; row++) {
        counts[row] = draw(0, tokens + 3);
        for (int64_t i = 0; i < tokens; i++) {
            places[row * tokens + i] = (row + 1) * length - tokens + i;
            kept[places[row * tokens + i]] = 0;
        }
    }
    const auto text = kept;
    int64_t most = -1, largest = 0;
    require(!quota_cut(0, 1, static_cast<const float*>(weights.data()), valid.data(), places.data(), counts.data(), batch,
                       tokens, kept.data(), batch, length, slots.data(), filled.data(), &most),
            "numbers are refused");
    for (int64_t row = 0; row < batch; row++) {
        const auto begin = kept.begin() + row * length;
        const int64_t there = std::count(valid.begin() + row * tokens, valid.begin() + (row + 1) * tokens, 1);
        const int64_t before = std::count(text.begin() + row * length, text.begin() + (row + 1) * length, 1);
        const int64_t found = std::count(begin, begin + length, 1);
        require(found == before + std::min(there, counts[row]), "not as many as asked for are chosen");
        largest = std::max(largest, found);
        for (int64_t i = 0; i < most; i++) {
            const int64_t slot = slots[row * most + i];
            require(filled[row * most + i] == (i >= most - found), "a wrong place is filled");
            require(slot >= 0 && slot < length && kept[row * length + slot] == filled[row * most + i], "a wrong slot");
            require(i <= most - found || slot > slots[row * most + i - 1], "slots are not in order");
        }
    }
    require(most == largest, "not as wide as the longest");
}

void rows() {
    // Now and then enough for several threads.
    const int64_t rows = draw(0, 12), columns = chance(10) ? draw(3000, 6000) : draw(0, 200);
    const int64_t count = rows * columns, centred = draw(0, 1), offset = draw(0, 1);
    const int activation = int(draw(0, quota::ACTIVATIONS - 1));
    Numbers x(draw(0, 1), count, !chance(10)), up(x.type, count, true);
    Numbers weight(x.type, columns, true), bias(x.type, columns, true);
    void* const added = centred && chance(2) ? bias.data() : nullptr;
    Numbers normed = x, activated = x, gated = x;
    for (int isa = 0; isa <= quota_best_isa(); isa++) {
        Numbers one = x, two = x, three = x;
        require(!quota_norm(isa, threads(), x.data(), x.type, rows, columns, weight.data(), added, 1e-5f, int(centred),
                            int(offset), one.data()) &&
                    !quota_activate(isa, threads(), x.data(), x.type, count, activation, two.data()) &&
                    !quota_gated(isa, threads(), x.data(), x.type, up.data(), count, activation, three.data()),
                "rows are refused");
        if (!isa) std::swap(normed, one), std::swap(activated, two), std::swap(gated, three);
        else require(normed.close(one, 1e-2f) && activated.close(two, 1e-2f) && gated.close(three, 1e-2f), "rows differ");
    }
}

}  // namespace

int main(int count, char** arguments) {
    if (count != 3) return std::fprintf(stderr, "usage: %s SEED CALLS\n", arguments[0]), 2;
    const uint64_t start = std::strtoull(arguments[1], nullptr, 10), calls = std::strtoull(arguments[2], nullptr, 10);
    void (*const jobs[])() = {linear, sums, quantize, cache, softmax, attention, information, choice, rows, wrong_sizes};
    for (seed = start; seed < start + calls; seed++) {
        random_bits.seed(seed);
        jobs[seed % std::size(jobs)]();
    }
    std::printf("%llu calls, instruction sets up to %d\n", static_cast<unsigned long long>(calls), quota_best_isa());
}
