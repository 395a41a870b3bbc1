// A decoder layer around its attention, for tokens of prompts: products of bfloat16 in the CPU's matrix registers.
//
// Prompts come many tokens at a time, so arithmetic is what they wait for. Weights become bfloat16 as they are needed, 32 outputs
// at a time, and meet all rows of a chunk; activations are rounded to bfloat16, sums and all else are float32. A sum runs over its
// inputs in order, 32 to an instruction, and depends, bit for bit, on its own row alone. Generated tokens go through layer.cpp,
// whose arithmetic is another: which of the two a token gets is a matter of its place in its sequence, never of its neighbours.

#include "layer.hpp"
#include "tiles.hpp"

#if defined(PONDER_HAS_MATRIX) && defined(PONDER_HAS_TILES)

#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <memory>

using namespace ponder;

namespace {

constexpr int CHUNK = 512;  // rows that pass through a layer together
constexpr int SLAB = 32;    // groups of inputs between two stores of the sums: what is widened at once stays near the core
constexpr int PAIR = 2 * TILE_ROWS;
constexpr int SUMS = TILE_ROWS * OUTPUTS;
constexpr int WEIGHTS = GROUP * OUTPUTS;  // of a group of a block

inline int padded(int num, int to) { return (num + to - 1) / to * to; }

struct Inputs {  // bfloat16 [tiles of rows][groups][TILE_ROWS][GROUP], zeros behind the last column: a group of a tile is one load
    uint16_t *values;
    int num_rows, groups;

    int width() const { return groups * GROUP; }
    uint16_t *tile(int at) const { return values + static_cast<size_t>(at) * TILE_ROWS * width(); }
    uint16_t *at(int row, int column) const {
        return tile(row / TILE_ROWS) + (column / GROUP * TILE_ROWS + row % TILE_ROWS) * GROUP + column % GROUP;
    }
    static size_t nbytes(int num_rows, int columns) { return static_cast<size_t>(padded(num_rows, PAIR)) * padded(columns, GROUP) * 2; }
};

// float32 weights, scale (1 + code / 256) + shift, of one byte of each lane; moved: the register with that byte at bits 15 to 22.
inline __m512 widen(__m512i moved, __m512 scale, __m512 shift) {
    const __m512i code = _mm512_ternarylogic_epi32(moved, _mm512_set1_epi32(0x7f8000), _mm512_set1_epi32(0x3f800000), 0xea);  // (a & b) | c
    return _mm512_fmadd_ps(_mm512_castsi512_ps(code), scale, shift);
}

inline __m512i pair_up(__m512 even, __m512 odd) {  // rounded to bfloat16, side by side
    const __m512i half = _mm512_set1_epi32(0x8000), upper = _mm512_set4_epi32(0x0f0e0f0e, 0x0b0a0b0a, 0x07060706, 0x03020302);
    const __m512i a = _mm512_add_epi32(_mm512_castps_si512(even), half), b = _mm512_add_epi32(_mm512_castps_si512(odd), half);
    return _mm512_mask_shuffle_epi8(b, 0x3333333333333333, a, upper);
}

inline void widen_register(__m512i codes, __m512 scale, __m512 shift, uint32_t *out) {  // 4 inputs of 16 outputs: 2 rows of pairs
    const __m512 a = widen(_mm512_slli_epi32(codes, 15), scale, shift), b = widen(_mm512_slli_epi32(codes, 7), scale, shift);
    const __m512 c = widen(_mm512_srli_epi32(codes, 1), scale, shift), d = widen(_mm512_srli_epi32(codes, 9), scale, shift);
    _mm512_storeu_si512(out, pair_up(a, b));
    _mm512_storeu_si512(out + 16, pair_up(c, d));
}

// Groups first..last of a block as bfloat16 pairs of inputs: [group][TILE_PAIRS][OUTPUTS][2].
template <int BITS>
void widen_block(const Matrix &matrix, int block, int first, int last, uint32_t *out) {
    constexpr int NBYTES = WEIGHTS * BITS / 8;
    const int planes = matrix.has_minima ? 2 : 1;
    const size_t start = static_cast<size_t>(block) * matrix.groups();
    const __m512 row_scale = _mm512_loadu_ps(matrix.row_scales + block * OUTPUTS), steps = _mm512_set1_ps(256.0f);
    const __m512 zero = _mm512_set1_ps(-static_cast<float>(1 << (BITS - 1)));
    const __m512i nibble = _mm512_set1_epi8(15), fifth = _mm512_set1_epi8(16);
    for (int group = first; group < last; ++group, out += TILE_PAIRS * OUTPUTS) {
        const uint8_t *codes = matrix.codes + (start + group) * NBYTES;
        const __m256i *halves = reinterpret_cast<const __m256i *>(matrix.scales) + (start + group) * planes;
        const __m512 scale = _mm512_mul_ps(_mm512_cvtph_ps(_mm256_loadu_si256(halves)), row_scale), wide = _mm512_mul_ps(scale, steps);
        const __m512 minimum = matrix.has_minima ? _mm512_mul_ps(_mm512_cvtph_ps(_mm256_loadu_si256(halves + 1)), row_scale) : _mm512_mul_ps(scale, zero);
        const __m512 shift = _mm512_sub_ps(minimum, wide);
        const __mmask64 *bits = reinterpret_cast<const __mmask64 *>(codes + 256);
        for (int q = 0; q < 4; ++q) {
            if constexpr (BITS == 8) {
                widen_register(_mm512_loadu_si512(codes + q * 128), wide, shift, out + q * 64);
                widen_register(_mm512_loadu_si512(codes + q * 128 + 64), wide, shift, out + q * 64 + 32);
            } else {
                const __m512i both = _mm512_loadu_si512(codes + q * 64);
                __m512i low = _mm512_and_si512(both, nibble), high = _mm512_and_si512(_mm512_srli_epi16(both, 4), nibble);
                if constexpr (BITS == 5) {
                    low = _mm512_mask_add_epi8(low, bits[q], low, fifth);
                    high = _mm512_mask_add_epi8(high, bits[q + 4], high, fifth);
                }
                widen_register(low, wide, shift, out + q * 32);
                widen_register(high, wide, shift, out + (q + 4) * 32);
            }
        }
    }
}

void widen_block(const Matrix &matrix, int block, int first, int last, uint32_t *out) {
    if (matrix.bits == 4) widen_block<4>(matrix, block, first, last, out);
    else if (matrix.bits == 5) widen_block<5>(matrix, block, first, last, out);
    else widen_block<8>(matrix, block, first, last, out);
}

// sums [2 row tiles][2 blocks][16][16] += two tiles of rows times two blocks, over `groups` groups of inputs.
inline void multiply_pair(const uint16_t *rows, const uint16_t *below, const uint32_t *a, const uint32_t *b, int groups, bool is_first, float *sums) {
    if (is_first) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    } else {
        _tile_loadd(0, sums, 64);
        _tile_loadd(1, sums + SUMS, 64);
        _tile_loadd(2, sums + 2 * SUMS, 64);
        _tile_loadd(3, sums + 3 * SUMS, 64);
    }
    for (int group = 0; group < groups; ++group) {
        _tile_loadd(6, a + group * (WEIGHTS / 2), 64);
        _tile_loadd(4, rows + group * WEIGHTS, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, b + group * (WEIGHTS / 2), 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, below + group * WEIGHTS, 64);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, sums, 64);
    _tile_stored(1, sums + SUMS, 64);
    _tile_stored(2, sums + 2 * SUMS, 64);
    _tile_stored(3, sums + 3 * SUMS, 64);
}

struct Block { const Matrix *matrix; int at; };

template <class T>
T *own(size_t num) {  // memory of this thread, kept
    static thread_local std::unique_ptr<T, void (*)(void *)> memory(nullptr, std::free);
    static thread_local size_t held = 0;
    if (num > held) memory.reset(static_cast<T *>(std::aligned_alloc(64, (held = num) * sizeof(T))));
    return memory.get();
}

// take(row, a, b) for every row: its 16 sums with block a and with block b.
template <class Take>
void multiply_blocks(const Block &a, const Block &b, const Inputs &x, const Take &take) {
    const int num_pairs = padded(x.num_rows, PAIR) / PAIR;
    float *sums = own<float>(static_cast<size_t>(CHUNK) / PAIR * 4 * SUMS);
    uint32_t *weights = own<uint32_t>(2 * SLAB * WEIGHTS / 2), *others = weights + SLAB * WEIGHTS / 2;
    for (int first = 0; first < x.groups; first += SLAB) {
        const int last = first + SLAB < x.groups ? first + SLAB : x.groups;
        widen_block(*a.matrix, a.at, first, last, weights);
        if (b.matrix) widen_block(*b.matrix, b.at, first, last, others);
        for (int pair = 0; pair < num_pairs; ++pair) {
            float *own_sums = sums + pair * 4 * SUMS;
            multiply_pair(x.tile(2 * pair) + first * WEIGHTS, x.tile(2 * pair + 1) + first * WEIGHTS, weights, b.matrix ? others : weights,
                          last - first, first == 0, own_sums);
            if (last < x.groups) continue;
            for (int r = 0; r < PAIR && pair * PAIR + r < x.num_rows; ++r) {
                const float *row = own_sums + r / TILE_ROWS * 2 * SUMS + r % TILE_ROWS * OUTPUTS;
                take(pair * PAIR + r, _mm512_loadu_ps(row), _mm512_loadu_ps(row + SUMS));
            }
        }
    }
}

// take(row, column, lanes, value) for this thread's share of a matrix, two blocks at a time.
template <class Take>
void multiply_share(const Matrix &matrix, const Thread &thread, const Inputs &x, const Take &take) {
    const int blocks = matrix.blocks(), pairs = (blocks + 1) / 2;
    for (int pair = part(pairs, thread.index, thread.num); pair < part(pairs, thread.index + 1, thread.num); ++pair) {
        const int at = 2 * pair, column = at * OUTPUTS;
        const bool is_whole = at + 1 < blocks;
        multiply_blocks({&matrix, at}, {is_whole ? &matrix : nullptr, at + 1}, x, [&](int row, __m512 low, __m512 high) {
            take(row, column, first_lanes(matrix.rows - column), low);
            if (is_whole) take(row, column + OUTPUTS, first_lanes(matrix.rows - column - OUTPUTS), high);
        });
    }
}

// This thread's share of the rows, made by load(row, column, lanes); complete when this returns.
template <class Load>
void fill(const Inputs &x, const Thread &thread, int columns, const Load &load) {
    for (int row = part(x.num_rows, thread.index, thread.num); row < part(x.num_rows, thread.index + 1, thread.num); ++row)
        for (int i = 0; i < x.width(); i += 16) store_bf16(x.at(row, i), 0xffff, load(row, i, first_lanes(columns - i)));
#pragma omp barrier
}

void fill_normed(const Inputs &x, const Thread &thread, const float *stream, int width, const float *weight, float eps) {
    const size_t step = width;
    for (int row = part(x.num_rows, thread.index, thread.num); row < part(x.num_rows, thread.index + 1, thread.num); ++row) {
        const float *from = stream + row * step;
        const __m512 factor = _mm512_set1_ps(weight ? norm_factor(from, width, eps) : 1.0f);
        for (int i = 0; i < x.width(); i += 16) {
            const __mmask16 lanes = first_lanes(width - i);
            __m512 value = _mm512_maskz_loadu_ps(lanes, from + i);
            if (weight) value = _mm512_mul_ps(_mm512_mul_ps(value, factor), _mm512_maskz_loadu_ps(lanes, weight + i));
            store_bf16(x.at(row, i), 0xffff, value);
        }
    }
#pragma omp barrier
}

// x = x + matrix times rows, normed on the way where there is a weight; complete when this returns.
void add_product(const Layer &layer, const Matrix &matrix, const float *post_norm, const Thread &thread, const Inputs &rows, float *wide, float *x) {
    const size_t width = layer.dim;
    multiply_share(matrix, thread, rows, [&](int row, int column, __mmask16 lanes, __m512 value) {
        if (post_norm) _mm512_mask_storeu_ps(wide + row * width + column, lanes, value);
        else add_to(x + row * width + column, lanes, value);
    });
#pragma omp barrier
    if (post_norm) {
        add_normed(layer, post_norm, thread, rows.num_rows, wide, x);
#pragma omp barrier
    }
}

void before_rows(const Layer &layer, const Thread &thread, int num_rows, const float *x, const float *cos, const float *sin, uint16_t *out,
                 uint16_t *memory, float *wide) {
    const size_t width = static_cast<size_t>(layer.num_heads + 2 * layer.num_kv_heads) * layer.head_dim;
    const Inputs rows{memory, num_rows, layer.q.groups()};
    fill_normed(rows, thread, x, layer.dim, layer.attn_norm, layer.eps);
    int first = 0;
    for (const Matrix *matrix : {&layer.q, &layer.k, &layer.v}) {
        multiply_share(*matrix, thread, rows, [&](int row, int column, __mmask16 lanes, __m512 value) {
            if (layer.bias) value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(lanes, layer.bias + first + column));
            _mm512_mask_storeu_ps(wide + row * width + first + column, lanes, value);
        });
        first += matrix->rows;
    }
#pragma omp barrier
    finish_heads(layer, thread, num_rows, wide, cos, sin, out);
}

void after_rows(const Layer &layer, const Thread &thread, int num_rows, float *x, const uint16_t *out, uint16_t *memory, uint16_t *more, float *wide) {
    const int out_width = layer.num_heads * layer.head_dim;
    const Inputs read{memory, num_rows, layer.o.groups()}, normed{memory, num_rows, layer.gate.groups()}, acts{more, num_rows, layer.down.groups()};
    fill(read, thread, out_width, [&](int row, int column, __mmask16 lanes) { return load_bf16(out + static_cast<size_t>(row) * out_width + column, lanes); });
    add_product(layer, layer.o, layer.attn_post_norm, thread, read, wide, x);
    fill_normed(normed, thread, x, layer.dim, layer.ffn_norm, layer.eps);
    const int blocks = layer.gate.blocks();
    for (int block = part(blocks, thread.index, thread.num); block < part(blocks, thread.index + 1, thread.num); ++block)
        multiply_blocks({&layer.gate, block}, {&layer.up, block}, normed, [&](int row, __m512 gate, __m512 up) {
            const __mmask16 lanes = first_lanes(acts.width() - block * OUTPUTS);  // outputs behind the last are zero
            store_bf16(acts.at(row, block * OUTPUTS), lanes, _mm512_mul_ps(activate(gate, layer.is_gelu), up));
        });
    if (blocks * OUTPUTS < acts.width() && thread.index == 0)
        for (int row = 0; row < num_rows; ++row) store_bf16(acts.at(row, blocks * OUTPUTS), 0xffff, _mm512_setzero_ps());
#pragma omp barrier
    add_product(layer, layer.down, layer.ffn_post_norm, thread, acts, wide, x);
}

// run(thread, first row, rows) for chunks of rows, by all threads.
template <class Run>
void by_chunks(int num_rows, int num_threads, const Run &run) {
#pragma omp parallel num_threads(num_threads)
    {
        const Tiles tiles;
        const Thread thread{omp_get_thread_num(), omp_get_num_threads()};
        for (int first = 0; first < num_rows; first += CHUNK) {
            run(thread, first, num_rows - first < CHUNK ? num_rows - first : CHUNK);
#pragma omp barrier
        }
    }
}

inline int larger(int a, int b) { return a > b ? a : b; }

}  // namespace

extern "C" {

int prompt_is_supported() { return 1; }

// As layer_before and layer_after.
void prompt_before(const Layer *layer, int num_rows, const float *x, const float *cos, const float *sin, uint16_t *out, int num_threads) {
    const int most = num_rows < CHUNK ? num_rows : CHUNK, width = (layer->num_heads + 2 * layer->num_kv_heads) * layer->head_dim;
    const size_t inputs = padded(static_cast<int>(Inputs::nbytes(most, layer->dim)), 64);
    char *memory = scratch(inputs + static_cast<size_t>(most) * width * sizeof(float));
    by_chunks(num_rows, num_threads, [&](const Thread &thread, int first, int num) {
        const size_t row = first, at = row * layer->head_dim;
        before_rows(*layer, thread, num, x + row * layer->dim, cos + at, sin + at, out + row * width, reinterpret_cast<uint16_t *>(memory),
                    reinterpret_cast<float *>(memory + inputs));
    });
}

void prompt_after(const Layer *layer, int num_rows, float *x, const uint16_t *out, int num_threads) {
    const int most = num_rows < CHUNK ? num_rows : CHUNK, out_width = layer->num_heads * layer->head_dim;
    const size_t inputs = padded(static_cast<int>(Inputs::nbytes(most, larger(layer->dim, out_width))), 64);
    const size_t acts = padded(static_cast<int>(Inputs::nbytes(most, layer->ffn_dim)), 64);
    char *memory = scratch(inputs + acts + static_cast<size_t>(most) * layer->dim * sizeof(float));
    by_chunks(num_rows, num_threads, [&](const Thread &thread, int first, int num) {
        after_rows(*layer, thread, num, x + static_cast<size_t>(first) * layer->dim, out + static_cast<size_t>(first) * out_width,
                   reinterpret_cast<uint16_t *>(memory), reinterpret_cast<uint16_t *>(memory + inputs), reinterpret_cast<float *>(memory + inputs + acts));
    });
}

// y float32 [num_kept, sum of the parts' rows]: row r of x bfloat16 [num_rows, columns] times the parts stacked is written to row
// r % num_kept. With fewer rows kept than there are, what is measured is not the way of results to memory, which a body's never go.
void prompt_apply(const Matrix *parts, int num_parts, int num_rows, const uint16_t *x, float *y, int num_kept, int num_threads) {
    const int most = num_rows < CHUNK ? num_rows : CHUNK, columns = parts->columns;
    size_t num_outputs = 0;
    for (int m = 0; m < num_parts; ++m) num_outputs += parts[m].rows;
    char *memory = scratch(Inputs::nbytes(most, columns));
    by_chunks(num_rows, num_threads, [&](const Thread &thread, int first, int num) {
        const Inputs rows{reinterpret_cast<uint16_t *>(memory), num, parts->groups()};
        fill(rows, thread, columns, [&](int row, int column, __mmask16 lanes) {
            return load_bf16(x + static_cast<size_t>(first + row) * columns + column, lanes);
        });
        size_t start = 0;
        for (int m = 0; m < num_parts; start += parts[m++].rows)
            multiply_share(parts[m], thread, rows, [&](int row, int column, __mmask16 lanes, __m512 value) {
                _mm512_mask_storeu_ps(y + (first + row) % num_kept * num_outputs + start + column, lanes, value);
            });
    });
}

}

#else

extern "C" int prompt_is_supported() { return 0; }

#endif
