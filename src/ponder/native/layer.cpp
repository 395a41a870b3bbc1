// All that a decoder layer computes around its attention, in two calls with one parallel region each.
//
// The threads stay together from part to part and meet at barriers: a matrix is shared out by outputs, the rows' quantisation by
// groups of inputs (few rows: each thread makes its own). Between matrices all is float32. As in matrix.cpp, a row of every
// result depends, bit for bit, on its own row alone.

#include "layer.hpp"

#ifdef PONDER_HAS_MATRIX

#include <initializer_list>

using namespace ponder;

namespace {

constexpr int CHUNK = 128;  // rows that pass through a layer together
constexpr int ALONE = 128;  // groups that a thread quantises sooner than it meets another

struct Room {  // memory of one call
    char *shared, *own;
    float *wide;  // [rows, width]
};

size_t own_nbytes() { return (Rows::nbytes(ALONE, 1) + 63) / 64 * 64; }

size_t rows_nbytes(int num_rows, int columns) { return (Rows::nbytes(num_rows, (columns + GROUP - 1) / GROUP) + 63) / 64 * 64; }

// Rows made by load(row, group, half), complete when this returns.
template <class Load>
Rows quantised(const Room &room, const Thread &thread, int num_rows, int groups, const Load &load) {
    const bool is_own = thread.num == 1 || num_rows * groups <= ALONE;
    const Rows rows = Rows::at(is_own && thread.num > 1 ? room.own : room.shared, num_rows, groups);
    if (is_own) {
        quantise_groups(rows, 0, groups, load);
        return rows;
    }
    quantise_groups(rows, part(groups, thread.index, thread.num), part(groups, thread.index + 1, thread.num), load);
#pragma omp barrier
    return rows;
}

// Rows of float32 [num_rows, width], normed where there is a weight.
Rows quantised_normed(const Room &room, const Thread &thread, int num_rows, const float *x, int width, const float *weight, float eps) {
    float factors[CHUNK];
    if (weight)
        for (int row = 0; row < num_rows; ++row) factors[row] = norm_factor(x + static_cast<size_t>(row) * width, width, eps);
    return quantised(room, thread, num_rows, (width + GROUP - 1) / GROUP, [&](int row, int group, int half) {
        const int at = group * GROUP + half * 16;
        const __mmask16 lanes = first_lanes(width - at);
        const __m512 value = _mm512_maskz_loadu_ps(lanes, x + static_cast<size_t>(row) * width + at);
        if (!weight) return value;
        return _mm512_mul_ps(_mm512_mul_ps(value, _mm512_set1_ps(factors[row])), _mm512_maskz_loadu_ps(lanes, weight + at));
    });
}

// take(row, column, lanes, value) for every 16 outputs of this thread's share of a matrix.
template <class Take>
void multiply_share(const Matrix &matrix, const Thread &thread, const Rows &rows, const Take &take) {
    alignas(64) float tile[TILE * OUTPUTS];
    for (int block = part(matrix.blocks(), thread.index, thread.num); block < part(matrix.blocks(), thread.index + 1, thread.num); ++block)
        for (int t = 0; t < rows.tiles(); ++t) {
            multiply(matrix, block, rows, t, tile);
            for (int r = 0; r < rows.tile_rows(t); ++r)
                take(t * TILE + r, block * OUTPUTS, first_lanes(matrix.rows - block * OUTPUTS), _mm512_load_ps(tile + r * OUTPUTS));
        }
}

// x = x + matrix times rows, normed on the way where there is a weight; complete when this returns, except at `is_last`.
void add_product(const Layer &layer, const Matrix &matrix, const float *post_norm, const Room &room, const Thread &thread, const Rows &rows,
                 float *x, bool is_last) {
    const size_t width = layer.dim;
    multiply_share(matrix, thread, rows, [&](int row, int column, __mmask16 lanes, __m512 value) {
        if (post_norm) _mm512_mask_storeu_ps(room.wide + row * width + column, lanes, value);
        else add_to(x + row * width + column, lanes, value);
    });
    if (post_norm) {
#pragma omp barrier
        add_normed(layer, post_norm, thread, rows.num_rows, room.wide, x);
    }
    if (!is_last) {
#pragma omp barrier
    }
}

void before_rows(const Layer &layer, const Room &room, const Thread &thread, int num_rows, const float *x, const float *cos, const float *sin,
                 uint16_t *out) {
    const int num_heads = layer.num_heads + 2 * layer.num_kv_heads, width = layer.head_dim;
    const Rows rows = quantised_normed(room, thread, num_rows, x, layer.dim, layer.attn_norm, layer.eps);
    int first = 0;
    for (const Matrix *matrix : {&layer.q, &layer.k, &layer.v}) {
        multiply_share(*matrix, thread, rows, [&](int row, int column, __mmask16 lanes, __m512 value) {
            if (layer.bias) value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(lanes, layer.bias + first + column));
            _mm512_mask_storeu_ps(room.wide + static_cast<size_t>(row) * num_heads * width + first + column, lanes, value);
        });
        first += matrix->rows;
    }
#pragma omp barrier
    finish_heads(layer, thread, num_rows, room.wide, cos, sin, out);
}

void after_rows(const Layer &layer, const Room &room, const Thread &thread, int num_rows, float *x, const uint16_t *out) {
    const int out_width = layer.num_heads * layer.head_dim;
    const size_t wide = layer.ffn_dim;
    const Rows read = quantised(room, thread, num_rows, layer.o.groups(), [&](int row, int group, int half) {
        const int at = group * GROUP + half * 16;
        return load_bf16(out + static_cast<size_t>(row) * out_width + at, first_lanes(out_width - at));
    });
    add_product(layer, layer.o, layer.attn_post_norm, room, thread, read, x, false);
    const Rows normed = quantised_normed(room, thread, num_rows, x, layer.dim, layer.ffn_norm, layer.eps);
    alignas(64) float gate[TILE * OUTPUTS], up[TILE * OUTPUTS];
    for (int block = part(layer.gate.blocks(), thread.index, thread.num); block < part(layer.gate.blocks(), thread.index + 1, thread.num); ++block)
        for (int t = 0; t < normed.tiles(); ++t) {
            multiply(layer.gate, block, normed, t, gate);
            multiply(layer.up, block, normed, t, up);
            for (int r = 0; r < normed.tile_rows(t); ++r) {
                const __m512 act = activate(_mm512_load_ps(gate + r * OUTPUTS), layer.is_gelu);
                _mm512_mask_storeu_ps(room.wide + (t * TILE + r) * wide + block * OUTPUTS, first_lanes(layer.ffn_dim - block * OUTPUTS),
                                      _mm512_mul_ps(act, _mm512_load_ps(up + r * OUTPUTS)));
            }
        }
#pragma omp barrier
    const Rows acts = quantised_normed(room, thread, num_rows, room.wide, layer.ffn_dim, nullptr, 0);
    if (layer.ffn_post_norm && num_rows * acts.groups <= ALONE) {  // others may still read what the product is written over
#pragma omp barrier
    }
    add_product(layer, layer.down, layer.ffn_post_norm, room, thread, acts, x, true);
}

// run(room, thread, first row, rows) for chunks of rows, by all threads.
template <class Run>
void by_chunks(int num_rows, int columns, int width, int num_threads, const Run &run) {
    const int most = num_rows < CHUNK ? num_rows : CHUNK;
    const size_t shared = rows_nbytes(most, columns), own = own_nbytes();
    char *memory = scratch(shared + own * num_threads + static_cast<size_t>(most) * width * sizeof(float));
#pragma omp parallel num_threads(num_threads)
    {
        const Thread thread{omp_get_thread_num(), omp_get_num_threads()};
        const Room room{memory, memory + shared + own * thread.index, reinterpret_cast<float *>(memory + shared + own * num_threads)};
        for (int first = 0; first < num_rows; first += CHUNK) {
            run(room, thread, first, num_rows - first < CHUNK ? num_rows - first : CHUNK);
            if (first + CHUNK < num_rows) {
#pragma omp barrier
            }
        }
    }
}

inline int larger(int a, int b) { return a > b ? a : b; }

}  // namespace

extern "C" {

size_t layer_nbytes() { return sizeof(Layer); }

// x float32 [T, dim]; cos, sin float32 [T, head_dim] -> out bfloat16 [T, num_heads + 2 num_kv_heads, head_dim].
void layer_before(const Layer *layer, int num_rows, const float *x, const float *cos, const float *sin, uint16_t *out, int num_threads) {
    const int width = (layer->num_heads + 2 * layer->num_kv_heads) * layer->head_dim;
    by_chunks(num_rows, layer->dim, width, num_threads, [&](const Room &room, const Thread &thread, int first, int num) {
        const size_t row = first, at = row * layer->head_dim;
        before_rows(*layer, room, thread, num, x + row * layer->dim, cos + at, sin + at, out + row * width);
    });
}

// x float32 [T, dim], which becomes the stream after the layer; out bfloat16 [T, num_heads * head_dim].
void layer_after(const Layer *layer, int num_rows, float *x, const uint16_t *out, int num_threads) {
    const int out_width = layer->num_heads * layer->head_dim, columns = larger(larger(layer->dim, layer->ffn_dim), out_width);
    by_chunks(num_rows, columns, larger(layer->dim, layer->ffn_dim), num_threads, [&](const Room &room, const Thread &thread, int first, int num) {
        after_rows(*layer, room, thread, num, x + static_cast<size_t>(first) * layer->dim, out + static_cast<size_t>(first) * out_width);
    });
}

}

#else

extern "C" int layer_nbytes() { return 0; }

#endif
