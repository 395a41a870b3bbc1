// What one query gives each key before it: the weights of its attention, for all keys of all heads.

#if defined(__AVX512F__) && defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#include <omp.h>
#include <vector>
#include "attention_block.hpp"

namespace {

struct Row {
    const Pool *pool;
    const int32_t *table;
    int64_t capacity;
    int32_t num_keys, group;
    Scaling scaling;
};

// out[key] = the weights of a head's query rows, added up.
template <int NV>
void weigh_head(const Row &row, int head, const uint16_t *q, float *out) {
    constexpr int E = NV * 16, EP = padded(E);
    static thread_local Room room;
    static thread_local std::vector<float> scores;
    const Pool &pool = *row.pool;
    const int32_t *pages = row.table + head * row.capacity;
    const int num = row.num_keys, num_pages = (num + PAGE - 1) / PAGE, stride = num_pages * PAGE;
    scores.resize(static_cast<size_t>(row.group) * stride);
    for (int r = 0; r < row.group; ++r) {
        uint32_t *query = room.queries + r * (EP / 2);
        std::memcpy(query, q + static_cast<int64_t>(head * row.group + r) * E, E * 2);
        if constexpr (EP > E) std::memset(query + E / 2, 0, (EP - E) * 2);
    }
    begin_scores<NV>(pool, room, row.group);
    for (int at = 0; at < num_pages; at += BLOCK / PAGE) {
        const int some = num_pages - at < BLOCK / PAGE ? num_pages - at : BLOCK / PAGE;
        score_all<NV>(pool, room, row.group, pages + at, some);
        for (int r = 0; r < row.group; ++r)
            for (int p = 0; p < some; ++p) {
                __m512 s = _mm512_loadu_ps(room.scores + r * BLOCK + p * PAGE);
                if (pool.is_int8) s = _mm512_mul_ps(s, _mm512_loadu_ps(pool.key_scales + static_cast<int64_t>(pages[at + p]) * PAGE));
                if (row.scaling.softcap > 0) s = capped(s, row.scaling.scale, row.scaling.softcap);
                const int left = num - (at + p) * PAGE;
                if (left < PAGE) s = _mm512_mask_blend_ps(static_cast<__mmask16>((1u << left) - 1), _mm512_set1_ps(MINUS_INF), s);
                _mm512_storeu_ps(scores.data() + static_cast<int64_t>(r) * stride + (at + p) * PAGE, s);
            }
    }
    const __m512 unit = _mm512_set1_ps(row.scaling.exponent);
    for (int r = 0; r < row.group; ++r) {
        float *mine = scores.data() + static_cast<int64_t>(r) * stride;
        __m512 top = _mm512_set1_ps(MINUS_INF), sum = _mm512_setzero_ps();
        for (int i = 0; i < stride; i += 16) top = _mm512_max_ps(top, _mm512_loadu_ps(mine + i));
        top = _mm512_set1_ps(_mm512_reduce_max_ps(top));
        for (int i = 0; i < stride; i += 16) {
            const __m512 p = exp2_ps(_mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(mine + i), top), unit));
            _mm512_storeu_ps(mine + i, p);
            sum = _mm512_add_ps(sum, p);
        }
        const __m512 inverse = _mm512_set1_ps(1.0f / _mm512_reduce_add_ps(sum));
        for (int i = 0; i < num; i += 16) {
            const __mmask16 some = num - i >= 16 ? 0xffff : static_cast<__mmask16>((1u << (num - i)) - 1);
            const __m512 before = r ? _mm512_maskz_loadu_ps(some, out + i) : _mm512_setzero_ps();
            _mm512_mask_storeu_ps(out + i, some, _mm512_fmadd_ps(_mm512_loadu_ps(mine + i), inverse, before));
        }
    }
}

template <int NV>
int weigh_all(const Row &row, int num_kv_heads, int num_threads, const uint16_t *q, float *out) {
#pragma omp parallel num_threads(num_threads)
    {
#ifdef PONDER_HAS_TILES
        const ponder::Tiles tiles;
#endif
#pragma omp for schedule(dynamic)
        for (int head = 0; head < num_kv_heads; ++head) weigh_head<NV>(row, head, q, out + static_cast<int64_t>(head) * row.num_keys);
    }
    return 1;
}

}  // namespace

// q [H, E] bfloat16 of one token, that sees the first num_keys keys of the table [K, capacity] -> out [K, num_keys] float32. 0 when the width is
// unknown.
extern "C" int row_weights(const Pool *pool, const int32_t *table, int64_t capacity, int num_keys, int num_heads, int num_kv_heads, int num_threads,
                           float softcap, const uint16_t *q, float *out) {
    const Row row{pool, table, capacity, num_keys, num_heads / num_kv_heads, scaling_of(*pool, softcap)};
    switch (pool->width) {
        case 16: return weigh_all<1>(row, num_kv_heads, num_threads, q, out);
        case 32: return weigh_all<2>(row, num_kv_heads, num_threads, q, out);
        case 48: return weigh_all<3>(row, num_kv_heads, num_threads, q, out);
        case 64: return weigh_all<4>(row, num_kv_heads, num_threads, q, out);
        case 80: return weigh_all<5>(row, num_kv_heads, num_threads, q, out);
        case 96: return weigh_all<6>(row, num_kv_heads, num_threads, q, out);
        case 112: return weigh_all<7>(row, num_kv_heads, num_threads, q, out);
        case 128: return weigh_all<8>(row, num_kv_heads, num_threads, q, out);
        case 160: return weigh_all<10>(row, num_kv_heads, num_threads, q, out);
        case 192: return weigh_all<12>(row, num_kv_heads, num_threads, q, out);
        case 256: return weigh_all<16>(row, num_kv_heads, num_threads, q, out);
        default: return 0;
    }
}

#else

extern "C" int row_weights(const void *, const void *, long, int, int, int, int, float, const void *, void *) { return 0; }

#endif
