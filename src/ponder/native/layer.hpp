// A decoder layer's shape and what its two kinds of bodies share: norms, activations, heads. Each is a function of one row alone.

#pragma once

#include "matrix.hpp"

#ifdef PONDER_HAS_MATRIX

#include <cmath>
#include "simd.hpp"

extern "C" {

// Pointers that are null stand for what a family does not have. Norms are float32 [dim], q_norm and k_norm [head_dim] or of all heads.
struct Layer {
    ponder::Matrix q, k, v, o, gate, up, down;
    const float *attn_norm, *ffn_norm, *attn_post_norm, *ffn_post_norm, *q_norm, *k_norm, *bias;
    float eps, query_scale;
    int32_t dim, num_heads, num_kv_heads, head_dim, ffn_dim, is_gelu, is_row_normed;
};

}

namespace ponder {

struct Thread { int index, num; };

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

inline void add_to(float *x, __mmask16 lanes, __m512 value) {
    _mm512_mask_storeu_ps(x, lanes, _mm512_add_ps(_mm512_maskz_loadu_ps(lanes, x), value));
}

// x = x + y normed, for this thread's share of the rows of y [rows, dim].
inline void add_normed(const Layer &layer, const float *norm, const Thread &thread, int num_rows, const float *y, float *x) {
    const size_t width = layer.dim;
    for (int row = part(num_rows, thread.index, thread.num); row < part(num_rows, thread.index + 1, thread.num); ++row) {
        const float *from = y + row * width;
        const __m512 factor = _mm512_set1_ps(norm_factor(from, layer.dim, layer.eps));
        for (int i = 0; i < layer.dim; i += 16) {
            const __mmask16 lanes = first_lanes(layer.dim - i);
            const __m512 normed = _mm512_mul_ps(_mm512_maskz_loadu_ps(lanes, from + i), factor);
            add_to(x + row * width + i, lanes, _mm512_mul_ps(normed, _mm512_maskz_loadu_ps(lanes, norm + i)));
        }
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

// Head `head` of a row of q, k, v -> out: q and k normed and rotated, v as it is.
inline void finish_head(const Layer &layer, const float *qkv, int head, const float *cos, const float *sin, uint16_t *out) {
    const int width = layer.head_dim, num_rotated = layer.num_heads + layer.num_kv_heads;
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

// q, k, v of all rows, float32 [rows, heads, width] -> out, shared out by heads.
inline void finish_heads(const Layer &layer, const Thread &thread, int num_rows, const float *qkv, const float *cos, const float *sin, uint16_t *out) {
    const int num_heads = layer.num_heads + 2 * layer.num_kv_heads, width = layer.head_dim;
    for (int i = part(num_rows * num_heads, thread.index, thread.num); i < part(num_rows * num_heads, thread.index + 1, thread.num); ++i) {
        const size_t row = i / num_heads, angle = row * width;
        finish_head(layer, qkv + row * num_heads * width, i % num_heads, cos + angle, sin + angle, out + static_cast<size_t>(i) * width);
    }
}

}  // namespace ponder

#endif
