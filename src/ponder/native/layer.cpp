// All that a decoder layer computes around its attention, in two calls with one parallel region each.
//
// The threads stay together from part to part and meet at barriers: a matrix is shared out by outputs, the rows' quantisation by
// groups of inputs (few rows: each thread makes its own). Between matrices all is float32. As in matrix.cpp, a row of every
// result depends, bit for bit, on its own row alone.

#include "matrix.hpp"

#ifdef PONDER_HAS_MATRIX

#include <cmath>
#include <initializer_list>
#include "simd.hpp"

using namespace ponder;

extern "C" {

// Pointers that are null stand for what a family does not have. Norms are float32 [dim], q_norm and k_norm [head_dim] or of all heads.
struct Layer {
    Matrix q, k, v, o, gate, up, down;
    const float *attn_norm, *ffn_norm, *attn_post_norm, *ffn_post_norm, *q_norm, *k_norm, *bias;
    float eps, query_scale;
    int32_t dim, num_heads, num_kv_heads, head_dim, ffn_dim, is_gelu, is_row_normed;
};

}

namespace {

constexpr int CHUNK = 128;  // rows that pass through a layer together
constexpr int ALONE = 128;  // groups that a thread quantises sooner than it meets another

struct Thread { int index, num; };

struct Room {  // memory of one call
    char *shared, *own;
    float *wide;  // [rows, width]
};

size_t own_nbytes() { return (Rows::nbytes(ALONE, 1) + 63) / 64 * 64; }

size_t rows_nbytes(int num_rows, int columns) { return (Rows::nbytes(num_rows, (columns + GROUP - 1) / GROUP) + 63) / 64 * 64; }

inline __m512 logistic(__m512 x) {
    const __m512 one = _mm512_set1_ps(1.0f);
    return _mm512_div_ps(one, _mm512_add_ps(one, exp_ps(_mm512_sub_ps(_mm512_setzero_ps(), x))));
}

inline __m512 activate(__m512 x, bool is_gelu) {  // gelu, tanh form: (1 + tanh z) / 2 = logistic(2 z)
    if (!is_gelu) return _mm512_mul_ps(x, logistic(x));
    const __m512 cube = _mm512_mul_ps(_mm512_mul_ps(x, x), x);
    const __m512 z = _mm512_fmadd_ps(cube, _mm512_set1_ps(0.044715f), x);
    return _mm512_mul_ps(x, logistic(_mm512_mul_ps(z, _mm512_set1_ps(1.5957691216057308f))));
}

inline float norm_factor(const float *x, int width, float eps) {
    __m512 sum = _mm512_setzero_ps();
    for (int i = 0; i < width; i += 16) {
        const __m512 value = _mm512_maskz_loadu_ps(first_lanes(width - i), x + i);
        sum = _mm512_fmadd_ps(value, value, sum);
    }
    return 1.0f / std::sqrt(_mm512_reduce_add_ps(sum) / static_cast<float>(width) + eps);
}

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

inline void add_to(float *x, __mmask16 lanes, __m512 value) {
    _mm512_mask_storeu_ps(x, lanes, _mm512_add_ps(_mm512_maskz_loadu_ps(lanes, x), value));
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
        for (int row = part(rows.num_rows, thread.index, thread.num); row < part(rows.num_rows, thread.index + 1, thread.num); ++row) {
            const float *y = room.wide + row * width;
            const __m512 factor = _mm512_set1_ps(norm_factor(y, layer.dim, layer.eps));
            for (int i = 0; i < layer.dim; i += 16) {
                const __mmask16 lanes = first_lanes(layer.dim - i);
                const __m512 normed = _mm512_mul_ps(_mm512_maskz_loadu_ps(lanes, y + i), factor);
                add_to(x + row * width + i, lanes, _mm512_mul_ps(normed, _mm512_maskz_loadu_ps(lanes, post_norm + i)));
            }
        }
    }
    if (!is_last) {
#pragma omp barrier
    }
}

// One head, rotated: (a, b) -> (a cos + b sin, b cos' + a sin') over halves, the sign in sin.
inline void rotate_head(const float *x, int width, float factor, const float *norm, const float *cos, const float *sin, float scale, uint16_t *out) {
    const int half = width / 2;
    const __m512 by = _mm512_set1_ps(factor), scaled = _mm512_set1_ps(scale);
    for (int i = 0; i < half; i += 16) {
        const __mmask16 lanes = first_lanes(half - i);
        __m512 a = _mm512_maskz_loadu_ps(lanes, x + i), b = _mm512_maskz_loadu_ps(lanes, x + half + i);
        if (norm) {
            a = _mm512_mul_ps(_mm512_mul_ps(a, by), _mm512_maskz_loadu_ps(lanes, norm + i));
            b = _mm512_mul_ps(_mm512_mul_ps(b, by), _mm512_maskz_loadu_ps(lanes, norm + half + i));
        }
        const __m512 low = _mm512_fmadd_ps(b, _mm512_maskz_loadu_ps(lanes, sin + i), _mm512_mul_ps(a, _mm512_maskz_loadu_ps(lanes, cos + i)));
        const __m512 high =
            _mm512_fmadd_ps(a, _mm512_maskz_loadu_ps(lanes, sin + half + i), _mm512_mul_ps(b, _mm512_maskz_loadu_ps(lanes, cos + half + i)));
        store_bf16(out + i, lanes, _mm512_mul_ps(low, scaled));
        store_bf16(out + half + i, lanes, _mm512_mul_ps(high, scaled));
    }
}

// Heads of `row` in room.wide -> out: q and k normed and rotated, v as it is.
void finish_head(const Layer &layer, const Room &room, int row, int head, const float *cos, const float *sin, uint16_t *out) {
    const int width = layer.head_dim, num_rotated = layer.num_heads + layer.num_kv_heads;
    const float *qkv = room.wide + static_cast<size_t>(row) * (num_rotated + layer.num_kv_heads) * width;
    const float *x = qkv + static_cast<size_t>(head) * width;
    if (head >= num_rotated) {
        for (int i = 0; i < width; i += 16) store_bf16(out + i, first_lanes(width - i), _mm512_maskz_loadu_ps(first_lanes(width - i), x + i));
        return;
    }
    const bool is_q = head < layer.num_heads;
    const float *norm = is_q ? layer.q_norm : layer.k_norm;
    float factor = 1;
    if (norm && layer.is_row_normed) {
        const int first = is_q ? 0 : layer.num_heads;
        factor = norm_factor(qkv + static_cast<size_t>(first) * width, width * (is_q ? layer.num_heads : layer.num_kv_heads), layer.eps);
        norm += static_cast<size_t>(head - first) * width;
    } else if (norm) {
        factor = norm_factor(x, width, layer.eps);
    }
    rotate_head(x, width, factor, norm, cos, sin, is_q ? layer.query_scale : 1.0f, out);
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
    for (int i = part(num_rows * num_heads, thread.index, thread.num); i < part(num_rows * num_heads, thread.index + 1, thread.num); ++i) {
        const int row = i / num_heads;
        finish_head(layer, room, row, i % num_heads, cos + static_cast<size_t>(row) * width, sin + static_cast<size_t>(row) * width,
                    out + static_cast<size_t>(i) * width);
    }
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
