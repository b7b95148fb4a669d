// The operator with AMX: one instruction makes S of 16 outputs, 16 tokens and a group of 64 channels.
//
// Outputs are the rows of the first operand, which comes straight from the packed rows; tokens are the columns of the
// second, laid out once for all outputs by `arrange_amx`. S of every group is stored, scaled and added to 16 vectors of
// floats. A panel of 64 outputs and 4 groups stays in the first-level cache while all tokens pass; several panels of the
// same groups follow one another, so that the tokens' tiles of these groups are read from the second-level cache.
#include "amx.h"
#include "avx512.h"

namespace {

constexpr int64_t GROUP = 64, TILE_BYTES = 1024, GROUPS = TILE_GROUPS, PANEL = BLOCK_AMX, TILES = PANEL / TILE;

// The weights of one output in one group, less 8 and times 16: even channels, then odd ones. A nibble that is not moved
// down is 16 times its value, and its top bit inverted makes it a signed number.
inline void unpack(const uint8_t* packed, int8_t* out) {
    const __m512i shift = _mm512_inserti64x4(_mm512_set1_epi16(4), _mm256_setzero_si256(), 1);
    const __m512i nibble = _mm512_set1_epi8(char(0xf0)), top = _mm512_set1_epi8(char(0x80));
    const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(packed));
    const __m512i moved = _mm512_sllv_epi16(_mm512_broadcast_i64x4(bytes), shift);
    // (moved & nibble) ^ top
    _mm512_store_si512(out, _mm512_ternarylogic_epi32(moved, nibble, top, 0x6a));
}

// The part of a block of outputs that lies in GROUPS groups.
struct Panel {
    alignas(4096) int8_t weights[GROUPS][TILES][TILE_BYTES];
    alignas(64) float scale[TILES][TILE][GROUPS];

    void load(const Activations& x, const Weights& w, int64_t first, int64_t g) {
        const int64_t groups = x.groups - g < GROUPS ? x.groups - g : GROUPS;
        for (int64_t i = 0; i < PANEL; i++) {
            // Rows past the last output do it again.
            const int64_t n = first + i < w.outputs ? first + i : w.outputs - 1, t = i / TILE, row = i % TILE;
            const uint8_t* packed = w.packed + (n * x.columns + g * GROUP) / 2;
            // Those of the next panel, which no prefetcher sees coming.
            for (int64_t j = GROUPS; j < 2 * GROUPS; j += 2) _mm_prefetch(packed + j * GROUP / 2, _MM_HINT_T0);
            for (int64_t j = 0; j < groups; j++) unpack(packed + j * GROUP / 2, weights[j][t] + row * GROUP);
            const uint16_t* scales = w.scale + n * w.scales;
            if (groups == GROUPS && w.groups_per_scale == 1) {
                const __m128i words = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(scales + g));
                const __m128i floats = _mm_slli_epi32(_mm_cvtepu16_epi32(words), 16);
                _mm_store_si128(reinterpret_cast<__m128i*>(scale[t][row]), floats);
            } else {
                for (int64_t j = 0; j < GROUPS; j++)
                    scale[t][row][j] = j < groups ? from_bfloat16(scales[(g + j) / w.groups_per_scale]) : 0;
            }
        }
    }
};

// S of one tile of outputs in group J of the panel, whose tokens are in tile register 4 + J.
template <int J>
inline void make_sums(const int8_t* weights, int32_t* sums) {
    _tile_zero(0);
    _tile_loadd(1, weights, 64);
    if constexpr (J == 0) _tile_dpbssd(0, 1, 4);
    if constexpr (J == 1) _tile_dpbssd(0, 1, 5);
    if constexpr (J == 2) _tile_dpbssd(0, 1, 6);
    if constexpr (J == 3) _tile_dpbssd(0, 1, 7);
    _tile_stored(0, sums, 64);
}

// The totals of one tile on their way through the groups of a panel.
struct Total {
    __m512 acc[TILE];
    float* place;
    const float (*weight_scale)[GROUPS];
    const float* token_scale;

    void start(float* total, const float (*weights)[GROUPS], const float* tokens, bool fresh) {
        place = total;
        weight_scale = weights;
        token_scale = tokens;
        for (int i = 0; i < TILE; i++) acc[i] = fresh ? _mm512_setzero_ps() : _mm512_load_ps(place + i * TILE);
    }
    void add(int j, const int32_t* sums) {
        const __m512 scale = _mm512_load_ps(token_scale + j * TILE);
        for (int i = 0; i < TILE; i++) {
            const __m512 step = _mm512_mul_ps(scale, _mm512_set1_ps(weight_scale[i][j]));
            acc[i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_load_si512(sums + i * TILE)), step, acc[i]);
        }
    }
    void save() const {
        for (int i = 0; i < TILE; i++) _mm512_store_ps(place + i * TILE, acc[i]);
    }
};

inline void write_sums(const int32_t (*sums)[TILE * TILE], const Activations& x, const Weights& w, const Result& out,
                       int64_t tile, int64_t first, int64_t g) {
    for (int64_t j = 0; j < GROUPS && g + j < x.groups; j++)
        for (int64_t i = 0; i < TILE && first + i < w.outputs; i++)
            for (int64_t m = 0; m < TILE && tile * TILE + m < x.rows; m++)
                out.sums[((tile * TILE + m) * w.outputs + first + i) * x.groups + g + j] = sums[j][i * TILE + m] / 16;
}

inline void write_tile(const float* y, const Activations& x, const Weights& w, const Result& out, int64_t tile,
                       int64_t first) {
    __m512i v[TILE];
    for (int i = 0; i < TILE; i++) v[i] = _mm512_load_si512(y + i * TILE);
    transpose(v);
    const int64_t count = w.outputs - first < TILE ? w.outputs - first : TILE;
    for (int64_t m = 0; m < TILE && tile * TILE + m < x.rows; m++)
        store_vector(out, w, tile * TILE + m, first, count, _mm512_castsi512_ps(v[m]));
}

void multiply_panel(const Activations& x, const Weights& w, const Result& out, int64_t first, int64_t g, const Panel& panel,
                    float (*y)[TILES][TILE * TILE], int32_t (*sums)[TILE * TILE]) {
    const int64_t row_tiles = divide_up(x.rows, TILE);
    stored_before();
    // S is used two steps after it is made: used at once, it would wait for the store.
    Total total;
    for (int64_t step = 0; step <= row_tiles * TILES; step++) {
        const int64_t m = step / TILES, t = step % TILES, at = g * row_tiles + m * GROUPS;
        const bool more = step < row_tiles * TILES;
        if (more && t == 0) {
            const int8_t* tokens = x.tiles + at * TILE_BYTES;
            _tile_loadd(4, tokens, 64);
            _tile_loadd(5, tokens + TILE_BYTES, 64);
            _tile_loadd(6, tokens + 2 * TILE_BYTES, 64);
            _tile_loadd(7, tokens + 3 * TILE_BYTES, 64);
        }
        if (more) make_sums<0>(panel.weights[0][t], sums[0]);
        if (step) total.add(2, sums[2]);
        if (more) make_sums<1>(panel.weights[1][t], sums[1]);
        if (step) total.add(3, sums[3]);
        if (step) total.save();
        if (!more) break;
        total.start(y[m][t], panel.scale[t], x.tile_scale + at * TILE, g == 0);
        make_sums<2>(panel.weights[2][t], sums[2]);
        total.add(0, sums[0]);
        make_sums<3>(panel.weights[3][t], sums[3]);
        total.add(1, sums[1]);
        if (out.sums) write_sums(sums, x, w, out, m, first + t * TILE, g);
    }
}

}  // namespace

// tiles [panels, row tiles, GROUPS, 16, 16, 4]: four codes of 16 tokens, in the order of `unpack`; tile_scale [panels, row
// tiles, GROUPS, 16], a 16th of the scale. Tokens and groups past the last have scale zero.
void arrange_amx(const Activations& codes, int64_t count, int64_t tile, Activations& x) {
    const __mmask16 present = __mmask16((1u << count) - 1);
    const int64_t row_tiles = divide_up(x.rows, TILE);
    for (int64_t g = 0; g < divide_up(x.groups, GROUPS) * GROUPS; g++) {
        const int64_t place = (g / GROUPS * row_tiles + tile) * GROUPS + g % GROUPS;
        if (g >= x.groups) {
            _mm512_store_ps(x.tile_scale + place * TILE, _mm512_setzero_ps());
            continue;
        }
        __m512i v[TILE];
        for (int i = 0; i < TILE; i++) v[i] = _mm512_load_si512(codes.codes + (g * TILE + i) * CHUNK);
        transpose(v);
        int8_t* out = x.tiles + place * TILE_BYTES;
        for (int i = 0; i < 8; i++) {
            _mm512_store_si512(out + i * 64, v[2 * i]);
            _mm512_store_si512(out + (i + 8) * 64, v[2 * i + 1]);
        }
        const __m512 scale = _mm512_maskz_loadu_ps(present, codes.scale + g * TILE);
        _mm512_store_ps(x.tile_scale + place * TILE, _mm512_mul_ps(scale, _mm512_set1_ps(0.0625f)));
    }
}

void multiply_amx(const Activations& x, const Weights& w, const Result& out, int64_t first) {
    configure_tiles();
    const int64_t row_tiles = divide_up(x.rows, TILE);
    const int64_t panels = divide_up(w.outputs - first < w.block ? w.outputs - first : w.block, PANEL);
    Panel panel;
    alignas(4096) int32_t sums[GROUPS][TILE * TILE];
    static thread_local struct alignas(4096) { float y[WIDE_BLOCK_AMX / PANEL][MOST_ROWS / TILE][TILES][TILE * TILE]; } totals;
    for (int64_t g = 0; g < x.groups; g += GROUPS) {
        for (int64_t p = 0; p < panels; p++) {
            panel.load(x, w, first + p * PANEL, g);
            multiply_panel(x, w, out, first + p * PANEL, g, panel, totals.y[p], sums);
        }
    }
    _tile_release();
    if (out.sums) return;
    for (int64_t m = 0; m < row_tiles; m++)
        for (int64_t t = 0; t < TILES * panels && first + t * TILE < w.outputs; t++)
            write_tile(totals.y[t / TILES][m][t % TILES], x, w, out, m, first + t * TILE);
}
