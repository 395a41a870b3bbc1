// How much attention keys receive from given query rows: weights computed again from queries, keys and each row's log-sum-exp.
//
// A weight becomes a whole number of 2^-24, and whole numbers are added: a sum does not depend on which rows came together, or in what
// order. Products are those of attention.cpp, bit for bit.

#if defined(__AVX512F__) && defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#include <omp.h>
#include "attention_block.hpp"

extern "C" {

// Rows of one sequence and layer. A row sees the first `num_held - (num_rows - 1 - row)` keys of a head.
struct Rows {
    const int32_t *pages;     // [K, capacity]
    int64_t capacity;
    const int32_t *num_held;  // [K] keys that the last row sees
    int32_t num_rows, num_heads, num_kv_heads, position, window, num_threads;  // position: of the first row; window: 0 for none
    float softcap;            // 0 for none
    const uint16_t *q;        // [R, H, E] bfloat16
    int64_t q_stride;
    const float *lse;         // [R, H]
    const float *factors;     // [R] or null for ones
    int64_t *sums;            // [K, sums_stride], added to
    int64_t sums_stride;
};

}

namespace {

constexpr float WHOLE = 16777216.0f;  // weights are counted in parts of one: QUANTUM of core/evidence.py

template <int NV>
inline void score_packed(Room &room, int num_rows) {
#ifdef PONDER_HAS_TILES
    for (int row = 0; row < num_rows; row += 16) score_tile<NV>(room, row, room.scores);
#else
    constexpr int PAIRS = padded(NV * 16) / 2;
    int r = 0;
    for (; r + 4 <= num_rows; r += 4) score_rows<4, PAIRS>(room, r, room.scores);
    for (; r < num_rows; ++r) score_rows<1, PAIRS>(room, r, room.scores);
#endif
}

// Adds what rows first .. first + num - 1 give to the block of keys from `start` on.
template <int NV>
void add_rows(const Pool &pool, const Rows &rows, Room &room, int head, int first, int num, int start, const int32_t *pages, int num_pages, __m512i (&sums)[4]) {
    constexpr int E = NV * 16, EP = padded(E);
    const int group = rows.num_heads / rows.num_kv_heads;
    const float scale = 1.0f / std::sqrt(static_cast<float>(E)), log2e = 1.44269504f;
    const __m512 exponent = _mm512_set1_ps(rows.softcap > 0 ? log2e : scale * log2e), none = _mm512_set1_ps(MINUS_INF);
    for (int r = 0; r < num * group; ++r) {
        uint32_t *query = room.queries + r * (EP / 2);
        std::memcpy(query, rows.q + (first + r / group) * rows.q_stride + (head * group + r % group) * E, E * 2);
        if constexpr (EP > E) std::memset(query + E / 2, 0, (EP - E) * 2);
    }
    score_packed<NV>(room, num * group);
    for (int r = 0; r < num * group; ++r) {
        const int row = first + r / group, seen = rows.num_held[head] - (rows.num_rows - 1 - row) - start;
        const __m512 top = _mm512_set1_ps(rows.lse[static_cast<int64_t>(row) * rows.num_heads + head * group + r % group] * log2e);
        const __m512 whole = _mm512_set1_ps(rows.factors ? rows.factors[row] * WHOLE : WHOLE);
        for (int v = 0; v < num_pages; ++v) {
            const int left = seen - v * 16;
            if (left <= 0) break;
            __mmask16 is_seen = left >= 16 ? 0xffff : static_cast<__mmask16>((1u << left) - 1);
            if (rows.window) {
                const __m512i at = _mm512_loadu_si512(pool.positions + static_cast<int64_t>(pages[v]) * PAGE);
                is_seen &= _mm512_cmpgt_epi32_mask(at, _mm512_set1_epi32(rows.position + row - rows.window));
            }
            __m512 s = _mm512_loadu_ps(room.scores + r * BLOCK + v * 16);
            if (pool.is_int8) s = _mm512_mul_ps(s, _mm512_loadu_ps(pool.key_scales + static_cast<int64_t>(pages[v]) * PAGE));
            if (rows.softcap > 0) s = capped(s, scale, rows.softcap);
            s = _mm512_mask_blend_ps(is_seen, none, s);
            const __m512 p = _mm512_maskz_mov_ps(is_seen, exp2_ps(_mm512_fmsub_ps(s, exponent, top)));
            sums[v] = _mm512_add_epi32(sums[v], _mm512_cvtps_epi32(_mm512_mul_ps(p, whole)));
        }
    }
}

inline void flush(__m512i (&sums)[4], int64_t *out, int num_keys) {
    alignas(64) int32_t found[BLOCK];
    for (int v = 0; v < 4; ++v) {
        _mm512_store_si512(found + v * 16, sums[v]);
        sums[v] = _mm512_setzero_si512();
    }
    for (int j = 0; j < num_keys; ++j) out[j] += found[j];
}

template <int NV>
void sum_all(const Pool &pool, const Rows &rows) {
    const int group = rows.num_heads / rows.num_kv_heads, each = MAX_ROWS / group;
    int most = 0;
    for (int head = 0; head < rows.num_kv_heads; ++head) most = rows.num_held[head] > most ? rows.num_held[head] : most;
    const int num_blocks = (most + BLOCK - 1) / BLOCK;
#pragma omp parallel num_threads(rows.num_threads)
    {
#ifdef PONDER_HAS_TILES
        const ponder::Tiles tiles;
#endif
        static thread_local Room room;
#pragma omp for schedule(dynamic) collapse(2)
        for (int head = 0; head < rows.num_kv_heads; ++head) {
            for (int block = 0; block < num_blocks; ++block) {
                const int start = block * BLOCK, left = rows.num_held[head] - start, num_keys = left < BLOCK ? left : BLOCK;
                if (num_keys <= 0) continue;
                const int num_pages = (num_keys + PAGE - 1) / PAGE;
                const int32_t *pages = rows.pages + head * rows.capacity + start / PAGE;
                for (int p = 0; p < num_pages; ++p) pack_keys<NV>(pool, pages[p], room.keys + p * PAGE);
                __m512i sums[4] = {_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512()};
                int first = rows.num_rows - left;  // the first row that sees any of the block
                for (first = first > 0 ? first : 0; first < rows.num_rows; first += each) {
                    const int num = rows.num_rows - first < each ? rows.num_rows - first : each;
                    add_rows<NV>(pool, rows, room, head, first, num, start, pages, num_pages, sums);
                    flush(sums, rows.sums + head * rows.sums_stride + start, num_keys);
                }
            }
        }
    }
}

}  // namespace

extern "C" int attention_columns(const Pool *pool, const Rows *rows) {
    switch (pool->width) {
        case 16: sum_all<1>(*pool, *rows); return 1;
        case 32: sum_all<2>(*pool, *rows); return 1;
        case 48: sum_all<3>(*pool, *rows); return 1;
        case 64: sum_all<4>(*pool, *rows); return 1;
        case 80: sum_all<5>(*pool, *rows); return 1;
        case 96: sum_all<6>(*pool, *rows); return 1;
        case 112: sum_all<7>(*pool, *rows); return 1;
        case 128: sum_all<8>(*pool, *rows); return 1;
        case 160: sum_all<10>(*pool, *rows); return 1;
        case 192: sum_all<12>(*pool, *rows); return 1;
        case 256: sum_all<16>(*pool, *rows); return 1;
        default: return 0;
    }
}

#else

extern "C" int attention_columns(const void *, const void *) { return 0; }

#endif
