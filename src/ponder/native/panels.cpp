// What a query would make of many vectors at once: products with panels of them, the best of all, the groups that pass a test.
//
// A panel holds vectors of bfloat16 sixteen by sixteen, [head][16 vectors][pair of dims][vector], so that a product needs no turning and
// a vector's is, bit for bit, the same wherever it stands and whatever stands beside it.

#if defined(__AVX512F__) && defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#include <omp.h>
#include <cmath>
#include <cstring>
#include <vector>
#include "best.hpp"
#include "simd.hpp"

extern "C" {

struct Panel {
    const uint32_t *pairs;
    int64_t head_stride;  // in pairs
    int32_t num;          // vectors that are looked at
};

// Groups of keys, each by one vector that stands for all of them.
struct Level {
    Panel panel;
    const float *log_sizes;  // [K, num] of each group's keys
    const int32_t *above;    // [K, num] the group of groups that each is in, or null
    float log_least;         // a group passes if a key of it has at least this share, as a logarithm
};

// Query rows of one token: [K, R, width] bfloat16, side by side.
struct Asked {
    const uint16_t *q;
    int32_t num_kv_heads, num_rows, width, num_threads;
    float scale;
};

}

namespace {

constexpr int SIDE = 16;

// out[row * stride + i] = query row times vector i, for NR rows.
template <int NR>
void multiply(const uint32_t *pairs, int num, const uint32_t *queries, int num_pairs, float *out, int64_t stride) {
    for (int at = 0; at < num; at += 2 * SIDE) {
        const uint32_t *first = pairs + static_cast<int64_t>(at) * num_pairs;
        const bool has_second = at + SIDE < num;
        const uint32_t *second = has_second ? first + static_cast<int64_t>(SIDE) * num_pairs : first;
        __m512 a[NR], b[NR];
        for (int r = 0; r < NR; ++r) a[r] = b[r] = _mm512_setzero_ps();
        for (int e = 0; e < num_pairs; ++e) {
            _mm_prefetch(reinterpret_cast<const char *>(first + (2 * static_cast<int64_t>(num_pairs) + e) * SIDE), _MM_HINT_T0);
            _mm_prefetch(reinterpret_cast<const char *>(first + (3 * static_cast<int64_t>(num_pairs) + e) * SIDE), _MM_HINT_T0);
            const __m512bh x = reinterpret_cast<__m512bh>(_mm512_loadu_si512(first + e * SIDE));
            const __m512bh y = reinterpret_cast<__m512bh>(_mm512_loadu_si512(second + e * SIDE));
            for (int r = 0; r < NR; ++r) {
                const __m512bh q = reinterpret_cast<__m512bh>(_mm512_set1_epi32(static_cast<int>(queries[r * num_pairs + e])));
                a[r] = _mm512_dpbf16_ps(a[r], x, q);
                b[r] = _mm512_dpbf16_ps(b[r], y, q);
            }
        }
        for (int r = 0; r < NR; ++r) {
            _mm512_mask_storeu_ps(out + r * stride + at, lanes(num - at), a[r]);
            if (has_second) _mm512_mask_storeu_ps(out + r * stride + at + SIDE, lanes(num - at - SIDE), b[r]);
        }
    }
}

inline void multiply_all(const Panel &panel, int head, const std::vector<uint32_t> &queries, int num_rows, int num_pairs, float *out, int64_t stride) {
    const uint32_t *pairs = panel.pairs + head * panel.head_stride;
    int r = 0;
    for (; r + 4 <= num_rows; r += 4) multiply<4>(pairs, panel.num, queries.data() + r * num_pairs, num_pairs, out + r * stride, stride);
    if (num_rows - r == 3) multiply<3>(pairs, panel.num, queries.data() + r * num_pairs, num_pairs, out + r * stride, stride);
    if (num_rows - r == 2) multiply<2>(pairs, panel.num, queries.data() + r * num_pairs, num_pairs, out + r * stride, stride);
    if (num_rows - r == 1) multiply<1>(pairs, panel.num, queries.data() + r * num_pairs, num_pairs, out + r * stride, stride);
}

// Rows of a head as pairs. is_split: (max(q, 0), min(q, 0)), twice as wide; times (largest, least) of a box it is the most that the box can give.
inline void pairs_of(const Asked &asked, int head, bool is_split, std::vector<uint32_t> &out) {
    const int width = asked.width, wide = is_split ? 2 * width : width;
    out.resize(static_cast<size_t>(asked.num_rows) * wide / 2);
    uint16_t *target = reinterpret_cast<uint16_t *>(out.data());
    for (int r = 0; r < asked.num_rows; ++r) {
        const uint16_t *q = asked.q + static_cast<int64_t>(head * asked.num_rows + r) * width;
        for (int e = 0; e < width; ++e) {
            const bool is_negative = q[e] >> 15;
            target[r * wide + e] = is_split && is_negative ? 0 : q[e];
            if (is_split) target[r * wide + width + e] = is_negative ? q[e] : 0;
        }
    }
}

// log of sum exp(x + bias) over those that `is_in`, numbers of 0.
inline float log_sum(const float *x, const float *bias, const uint8_t *is_in, int num, float top) {
    __m512 sum = _mm512_setzero_ps();
    for (int i = 0; i < num; i += 16) {
        __mmask16 some = lanes(num - i);
        if (is_in) some &= _mm_test_epi8_mask(_mm_maskz_loadu_epi8(some, is_in + i), _mm_set1_epi8(1));
        const __m512 s = _mm512_add_ps(_mm512_maskz_loadu_ps(some, x + i), _mm512_maskz_loadu_ps(some, bias + i));
        sum = _mm512_add_ps(sum, _mm512_maskz_mov_ps(some, exp_ps(_mm512_sub_ps(s, _mm512_set1_ps(top)))));
    }
    return _mm512_reduce_add_ps(sum);
}

inline float largest(const float *x, const float *bias, const uint8_t *is_in, int num) {
    __m512 top = _mm512_set1_ps(-INFINITY);
    for (int i = 0; i < num; i += 16) {
        __mmask16 some = lanes(num - i);
        if (is_in) some &= _mm_test_epi8_mask(_mm_maskz_loadu_epi8(some, is_in + i), _mm_set1_epi8(1));
        top = _mm512_mask_max_ps(top, some, top, _mm512_add_ps(_mm512_maskz_loadu_ps(some, x + i), _mm512_maskz_loadu_ps(some, bias + i)));
    }
    return _mm512_reduce_max_ps(top);
}

struct Side {
    std::vector<float> scores, coarse;
    std::vector<uint32_t> queries;
    std::vector<uint8_t> is_open, is_closed, is_seen;
    std::vector<int32_t> is_met;
};

inline void scaled(std::vector<float> &scores, float scale) {
    for (float &x : scores) x *= scale;
}

// side.is_met[i] = 1 for groups of a head that one of its rows lets pass.
void pass_groups(const Asked &asked, int head, const Level &fine, const Level *coarse, Side &side) {
    const int num = fine.panel.num, num_rows = asked.num_rows, num_above = coarse ? coarse->panel.num : 0;
    const float *sizes = fine.log_sizes + static_cast<int64_t>(head) * num, *sizes_above = coarse ? coarse->log_sizes + static_cast<int64_t>(head) * num_above : nullptr;
    pairs_of(asked, head, false, side.queries);
    side.scores.resize(static_cast<size_t>(num_rows) * num);
    multiply_all(fine.panel, head, side.queries, num_rows, asked.width / 2, side.scores.data(), num);
    scaled(side.scores, asked.scale);
    if (coarse) {
        side.coarse.resize(static_cast<size_t>(num_rows) * num_above);
        multiply_all(coarse->panel, head, side.queries, num_rows, asked.width / 2, side.coarse.data(), num_above);
        scaled(side.coarse, asked.scale);
        side.is_open.resize(num_above), side.is_closed.resize(num_above), side.is_seen.resize(num);
    }
    side.is_met.assign(num, 0);
    for (int r = 0; r < num_rows; ++r) {
        const float *x = side.scores.data() + static_cast<int64_t>(r) * num, *y = side.coarse.data() + static_cast<int64_t>(r) * num_above;
        const uint8_t *seen = nullptr;
        if (coarse) {
            const float top = largest(y, sizes_above, nullptr, num_above), total = top + std::log(log_sum(y, sizes_above, nullptr, num_above, top));
            for (int g = 0; g < num_above; ++g) side.is_open[g] = y[g] - total >= coarse->log_least, side.is_closed[g] = !side.is_open[g];
            for (int i = 0; i < num; ++i) side.is_seen[i] = side.is_open[fine.above[static_cast<int64_t>(head) * num + i]];
            seen = side.is_seen.data();
        }
        float top = largest(x, sizes, seen, num);
        if (coarse) top = std::fmax(top, largest(y, sizes_above, side.is_closed.data(), num_above));
        float sum = log_sum(x, sizes, seen, num, top);
        if (coarse) sum += log_sum(y, sizes_above, side.is_closed.data(), num_above, top);
        const float least = top + std::log(sum) + fine.log_least;
        for (int i = 0; i < num; ++i) side.is_met[i] |= x[i] >= least && (!seen || seen[i]);
    }
}

// Places whose group is met, ascending.
inline int members(const int32_t *labels, int num, const int32_t *is_met, int32_t *out) {
    const __m512i place = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    int at = 0;
    for (int i = 0; i < num; i += 16) {
        const __mmask16 some = lanes(num - i);
        const __m512i of = _mm512_maskz_loadu_epi32(some, labels + i);
        const __mmask16 kept = some & _mm512_test_epi32_mask(_mm512_mask_i32gather_epi32(_mm512_setzero_si512(), some, of, is_met, 4), _mm512_set1_epi32(1));
        _mm512_mask_compressstoreu_epi32(out + at, kept, _mm512_add_epi32(place, _mm512_set1_epi32(i)));
        at += __builtin_popcount(kept);
    }
    return at;
}

}  // namespace

extern "C" {

// Of the vectors of all panels, one after the other, the `num` that give most to any row of a head: out [K, num], ascending, rows `stride` apart.
void panels_best(const Asked *asked, const Panel *panels, int num_panels, int is_split, int num, int32_t *out, int64_t stride) {
    int64_t total = 0;
    for (int p = 0; p < num_panels; ++p) total += panels[p].num;
#pragma omp parallel for num_threads(asked->num_threads) if (asked->num_threads > 1)
    for (int head = 0; head < asked->num_kv_heads; ++head) {
        static thread_local Side side;
        pairs_of(*asked, head, is_split, side.queries);
        side.scores.resize(static_cast<size_t>(asked->num_rows) * total);
        int64_t at = 0;
        for (int p = 0; p < num_panels; at += panels[p].num, ++p)
            multiply_all(panels[p], head, side.queries, asked->num_rows, asked->width / (is_split ? 1 : 2), side.scores.data() + at, total);
        for (int64_t i = 0; i < total; i += 16) {
            const __mmask16 some = lanes(static_cast<int>(total - i > 16 ? 16 : total - i));
            __m512 top = _mm512_maskz_loadu_ps(some, side.scores.data() + i);
            for (int r = 1; r < asked->num_rows; ++r) top = _mm512_max_ps(top, _mm512_maskz_loadu_ps(some, side.scores.data() + r * total + i));
            _mm512_mask_storeu_ps(side.scores.data() + i, some, top);
        }
        best_places(side.scores.data(), static_cast<int>(total), num, out + head * stride);
    }
}

// Keys of the groups that pass, by their labels [K, num_keys], ascending, and first .. last - 1 behind them: of one head after the other in `out`,
// of K * (num_keys + last - first); ends [K].
void panels_pass(const Asked *asked, const Level *fine, const Level *coarse, const int32_t *labels, int num_keys, int first, int last, int32_t *out,
                 int32_t *ends) {
    const int64_t most = num_keys + last - first;
#pragma omp parallel for num_threads(asked->num_threads) if (asked->num_threads > 1)
    for (int head = 0; head < asked->num_kv_heads; ++head) {
        static thread_local Side side;
        pass_groups(*asked, head, *fine, coarse, side);
        int32_t *mine = out + head * most;
        int num = members(labels + static_cast<int64_t>(head) * num_keys, num_keys, side.is_met.data(), mine);
        for (int place = first; place < last; ++place) mine[num++] = place;
        ends[head] = num;
    }
    for (int head = 1; head < asked->num_kv_heads; ++head) {
        std::memmove(out + ends[head - 1], out + head * most, sizeof(int32_t) * ends[head]);
        ends[head] += ends[head - 1];
    }
}

// The `num` largest of each row of scores [K, num_scores], num <= num_scores: out [K, num], ascending.
void panels_largest(const float *scores, int num_kv_heads, int num_scores, int num, int32_t *out) {
    for (int head = 0; head < num_kv_heads; ++head)
        best_places(scores + static_cast<int64_t>(head) * num_scores, num_scores, num, out + static_cast<int64_t>(head) * num);
}

}

#endif
