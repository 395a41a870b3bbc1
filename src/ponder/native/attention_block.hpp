// What query rows read of one block of keys: packing, scores, softmax, weighted values. A row of everything is a function of its own
// row and of the keys alone; the order of sums is fixed, whatever rows stand beside it.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include "simd.hpp"
#include "tiles.hpp"

extern "C" {

// The pages of a process: [num_pages, PAGE, width] keys and values; scales and positions [num_pages, PAGE].
struct Pool {
    void *keys, *values;
    float *key_scales, *value_scales;  // int8 only
    int32_t *positions;
    int32_t is_int8, width;
};

}

namespace {

constexpr int PAGE = 16;            // keys of a page
constexpr int BLOCK = 64;           // keys met together
constexpr int CHUNK = 512;          // keys of one running sum
constexpr int MAX_ROWS = 96;        // query rows of a unit
constexpr int MAX_WIDTH = 256;      // largest head width
constexpr float MINUS_INF = -INFINITY;

inline void transpose16(__m512i r[16]) {
    __m512i t[16];
    for (int i = 0; i < 8; ++i) {
        t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
    for (int i = 0; i < 4; ++i) {
        r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
        r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
    }
    for (int i = 0; i < 4; ++i) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0x88);
        t[4 + i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0xdd);
        t[8 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0x88);
        t[12 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0xdd);
    }
    for (int i = 0; i < 4; ++i) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0x88);
        r[8 + i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0xdd);
        r[4 + i] = _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0x88);
        r[12 + i] = _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0xdd);
    }
}

constexpr int padded(int width) { return (width + 31) / 32 * 32; }  // a head in whole rows of pairs, zeros behind its end

// What a thread holds of a unit: its query rows, one block of keys and values, and where each row stands.
struct alignas(64) Room {
    uint32_t keys[MAX_WIDTH / 2 * BLOCK];      // [pair of dims][key]
    uint32_t values[BLOCK / 2 * MAX_WIDTH];    // [pair of keys][dim]
    uint32_t queries[MAX_ROWS * MAX_WIDTH / 2];
    uint32_t turned[16 * MAX_WIDTH / 2];       // queries of up to 16 rows: [pair of dims][row]
    uint32_t weights[MAX_ROWS * BLOCK / 2];    // [row][pair of keys]
    float scores[MAX_ROWS * BLOCK], sums[MAX_ROWS * MAX_WIDTH];
    float tops[MAX_ROWS], totals[MAX_ROWS], factors[MAX_ROWS];  // tops: of scores as they are before they are scaled
    int visible[MAX_ROWS], tokens[MAX_ROWS];   // keys that a row sees, but for its tail
};

// Pairs of width 2 e, 2 e + 1 of 16 keys: out[e][16], rows BLOCK apart, zeros behind the last.
template <int NV>
inline void pack_keys(const Pool &pool, int64_t page, uint32_t *out) {
    constexpr int E = NV * 16;
    for (int part = 0; part < padded(E) / 32; ++part) {
        const bool is_half = E - part * 32 < 32;
        __m512i rows[16];
        for (int j = 0; j < 16; ++j) {
            const int64_t at = (page * PAGE + j) * E + part * 32;
            if (pool.is_int8) {
                const int8_t *source = static_cast<const int8_t *>(pool.keys) + at;
                const __m512 low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(source))));
                const __m512 high = is_half ? _mm512_setzero_ps()
                    : _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(source + 16))));
                rows[j] = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
            } else {
                const uint16_t *source = static_cast<const uint16_t *>(pool.keys) + at;
                rows[j] = is_half ? _mm512_zextsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(source)))
                                  : _mm512_loadu_si512(source);
            }
        }
        transpose16(rows);
        for (int e = 0; e < 16; ++e) _mm512_storeu_si512(out + (part * 16 + e) * BLOCK, rows[e]);
    }
}

// Dims at .. at + 15 of two keys' values, side by side as bfloat16 pairs; zeros for the second where there is none.
inline __m512i load_pair(const Pool &pool, int64_t first, int64_t second, bool has_second) {
    if (pool.is_int8) {
        const int8_t *values = static_cast<const int8_t *>(pool.values);
        const __m512 a = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(values + first))));
        const __m512 b = has_second ? _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(values + second))))
                                    : _mm512_setzero_ps();
        return _mm512_or_si512(_mm512_srli_epi32(_mm512_castps_si512(a), 16), _mm512_castps_si512(b));  // small integers: exact in bfloat16
    }
    const uint16_t *values = static_cast<const uint16_t *>(pool.values);
    const __m512i a = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(values + first)));
    if (!has_second) return a;
    return _mm512_or_si512(a, _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(values + second))), 16));
}

// Whether pairs of values, and so the sums of a unit, lie as `interleave` leaves them: 32 dims in the order of in_order's arguments.
template <int NV>
inline bool is_shuffled(const Pool &pool) { return NV % 2 == 0 && !pool.is_int8; }

// Sums a, b of 32 dims, shuffled, as they belong.
inline void in_order(__m512 &a, __m512 &b) {
    const __m512i low = _mm512_set_epi32(23, 22, 21, 20, 7, 6, 5, 4, 19, 18, 17, 16, 3, 2, 1, 0);
    const __m512i high = _mm512_set_epi32(31, 30, 29, 28, 15, 14, 13, 12, 27, 26, 25, 24, 11, 10, 9, 8);
    const __m512 first = _mm512_permutex2var_ps(a, low, b), second = _mm512_permutex2var_ps(a, high, b);
    a = first, b = second;
}

// Values of two keys as pairs, shuffled within each 32 dims: cheaper than in order, by half.
template <int NV>
inline void interleave(const uint16_t *first, const uint16_t *second, uint32_t *out) {
    for (int v = 0; v < NV; v += 2) {
        const __m512i a = _mm512_loadu_si512(first + v * 16), b = second ? _mm512_loadu_si512(second + v * 16) : _mm512_setzero_si512();
        _mm512_storeu_si512(out + v * 16, _mm512_unpacklo_epi16(a, b));
        _mm512_storeu_si512(out + v * 16 + 16, _mm512_unpackhi_epi16(a, b));
    }
}

// Values of the first num_keys keys of a block's pages, zeros behind them up to whole tiles.
template <int NV>
inline void pack_values(const Pool &pool, const int32_t *pages, int num_keys, uint32_t *out) {
    constexpr int E = NV * 16;
    const int num_pairs = num_keys > BLOCK / 2 ? BLOCK / 2 : BLOCK / 4;
    for (int j = 0; j < num_pairs; ++j) {
        uint32_t *row = out + j * E;
        if (2 * j >= num_keys) {
            for (int v = 0; v < NV; ++v) _mm512_storeu_si512(row + v * 16, _mm512_setzero_si512());
            continue;
        }
        const int64_t slot = static_cast<int64_t>(pages[2 * j / PAGE]) * PAGE + 2 * j % PAGE;
        const bool has_second = 2 * j + 1 < num_keys;
        if (is_shuffled<NV>(pool)) {
            const uint16_t *values = static_cast<const uint16_t *>(pool.values) + slot * E;
            interleave<NV & ~1>(values, has_second ? values + E : nullptr, row);
        } else {
            for (int v = 0; v < NV; ++v) _mm512_storeu_si512(row + v * 16, load_pair(pool, slot * E + v * 16, (slot + 1) * E + v * 16, has_second));
        }
    }
}

// scores[row][key] = query times key, unscaled.
template <int NR, int PAIRS>
inline void score_rows(const Room &room, int row, float *scores) {
    __m512 acc[NR][4];
    for (int r = 0; r < NR; ++r)
        for (int v = 0; v < 4; ++v) acc[r][v] = _mm512_setzero_ps();
    for (int e = 0; e < PAIRS; ++e) {
        __m512bh k[4];
        for (int v = 0; v < 4; ++v) k[v] = reinterpret_cast<__m512bh>(_mm512_loadu_si512(room.keys + e * BLOCK + v * 16));
        for (int r = 0; r < NR; ++r) {
            const __m512bh q = reinterpret_cast<__m512bh>(_mm512_set1_epi32(static_cast<int>(room.queries[(row + r) * PAIRS + e])));
            for (int v = 0; v < 4; ++v) acc[r][v] = _mm512_dpbf16_ps(acc[r][v], k[v], q);
        }
    }
    for (int r = 0; r < NR; ++r)
        for (int v = 0; v < 4; ++v) _mm512_storeu_ps(scores + (row + r) * BLOCK + v * 16, acc[r][v]);
}

// sums[row] += weights[row] times values, for NR rows and NW registers of dims from `at` on.
template <int NR, int NW>
inline void gather_rows(Room &room, int row, int width, int at, int num_pairs) {
    __m512 sum[NR][NW];
    for (int r = 0; r < NR; ++r)
        for (int w = 0; w < NW; ++w) sum[r][w] = _mm512_loadu_ps(room.sums + (row + r) * width + at + w * 16);
    for (int j = 0; j < num_pairs; ++j) {
        __m512bh value[NW];
        for (int w = 0; w < NW; ++w) value[w] = reinterpret_cast<__m512bh>(_mm512_loadu_si512(room.values + j * width + at + w * 16));
        for (int r = 0; r < NR; ++r) {
            const __m512bh p = reinterpret_cast<__m512bh>(_mm512_set1_epi32(static_cast<int>(room.weights[(row + r) * (BLOCK / 2) + j])));
            for (int w = 0; w < NW; ++w) sum[r][w] = _mm512_dpbf16_ps(sum[r][w], value[w], p);
        }
    }
    for (int r = 0; r < NR; ++r)
        for (int w = 0; w < NW; ++w) _mm512_storeu_ps(room.sums + (row + r) * width + at + w * 16, sum[r][w]);
}

template <int NV, int NR>
inline void gather_dims(Room &room, int row, int num_pairs) {
    int v = 0;
    for (; v + 4 <= NV; v += 4) gather_rows<NR, 4>(room, row, NV * 16, v * 16, num_pairs);
    for (; v < NV; ++v) gather_rows<NR, 1>(room, row, NV * 16, v * 16, num_pairs);
}

#ifdef PONDER_HAS_TILES

template <int NV>
inline void score_tile(const Room &room, int row, float *scores) {
    constexpr int EP = padded(NV * 16), STRIDE = BLOCK * 4;
    const uint32_t *queries = room.queries + row * (EP / 2);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int k = 0; k < EP / 32; ++k) {
        const uint32_t *keys = room.keys + k * 16 * BLOCK;
        _tile_loadd(4, queries + k * 16, EP * 2);
        _tile_loadd(5, keys, STRIDE);
        _tile_dpbf16ps(0, 4, 5);
        _tile_loadd(6, keys + 16, STRIDE);
        _tile_dpbf16ps(1, 4, 6);
        _tile_loadd(7, keys + 32, STRIDE);
        _tile_dpbf16ps(2, 4, 7);
        _tile_loadd(5, keys + 48, STRIDE);
        _tile_dpbf16ps(3, 4, 5);
    }
    _tile_stored(0, scores + row * BLOCK, STRIDE);
    _tile_stored(1, scores + row * BLOCK + 16, STRIDE);
    _tile_stored(2, scores + row * BLOCK + 32, STRIDE);
    _tile_stored(3, scores + row * BLOCK + 48, STRIDE);
}

template <int NW>
inline void gather_tile(Room &room, int row, int width, int at, int depth) {
    float *sums = room.sums + row * width + at;
    const size_t stride = width * 4;
    _tile_loadd(0, sums, stride);
    if constexpr (NW > 1) _tile_loadd(1, sums + 16, stride);
    if constexpr (NW > 2) _tile_loadd(2, sums + 32, stride);
    if constexpr (NW > 3) _tile_loadd(3, sums + 48, stride);
    for (int k = 0; k < depth; ++k) {
        const uint32_t *values = room.values + k * 16 * width + at;
        _tile_loadd(4, room.weights + row * (BLOCK / 2) + k * 16, BLOCK * 2);
        _tile_loadd(5, values, stride);
        _tile_dpbf16ps(0, 4, 5);
        if constexpr (NW > 1) {
            _tile_loadd(6, values + 16, stride);
            _tile_dpbf16ps(1, 4, 6);
        }
        if constexpr (NW > 2) {
            _tile_loadd(7, values + 32, stride);
            _tile_dpbf16ps(2, 4, 7);
        }
        if constexpr (NW > 3) {
            _tile_loadd(5, values + 48, stride);
            _tile_dpbf16ps(3, 4, 5);
        }
    }
    _tile_stored(0, sums, stride);
    if constexpr (NW > 1) _tile_stored(1, sums + 16, stride);
    if constexpr (NW > 2) _tile_stored(2, sums + 32, stride);
    if constexpr (NW > 3) _tile_stored(3, sums + 48, stride);
}

// Up to 16 rows: keys as they lie in their pages meet the queries, packed once, and only the scores are turned. The same products
// in the same order.
template <int NV>
inline void score_few(const Pool &pool, const int32_t *pages, int num_pages, int num_rows, const uint32_t *queries, float *scores) {
    constexpr int E = NV * 16;
    for (int p = 0; p < num_pages; ++p) {
        const uint16_t *keys = static_cast<const uint16_t *>(pool.keys) + static_cast<int64_t>(pages[p]) * PAGE * E;
        alignas(64) float turned[16 * 16];
        _tile_zero(0);
        for (int k = 0; k < E / 32; ++k) {
            _tile_loadd(4, keys + k * 32, E * 2);
            _tile_loadd(5, queries + k * 256, 64);
            _tile_dpbf16ps(0, 4, 5);
        }
        _tile_stored(0, turned, 64);
        if (num_rows <= 4) {
            __m512 rows[4];
            for (int i = 0; i < 4; ++i) {  // lane q of row i: key 4 q + i
                rows[i] = _mm512_castps128_ps512(_mm_load_ps(turned + i * 16));
                rows[i] = _mm512_insertf32x4(rows[i], _mm_load_ps(turned + (4 + i) * 16), 1);
                rows[i] = _mm512_insertf32x4(rows[i], _mm_load_ps(turned + (8 + i) * 16), 2);
                rows[i] = _mm512_insertf32x4(rows[i], _mm_load_ps(turned + (12 + i) * 16), 3);
            }
            const __m512d a = _mm512_castps_pd(_mm512_unpacklo_ps(rows[0], rows[1])), b = _mm512_castps_pd(_mm512_unpacklo_ps(rows[2], rows[3]));
            const __m512d c = _mm512_castps_pd(_mm512_unpackhi_ps(rows[0], rows[1])), d = _mm512_castps_pd(_mm512_unpackhi_ps(rows[2], rows[3]));
            _mm512_storeu_pd(reinterpret_cast<double *>(scores + p * 16), _mm512_unpacklo_pd(a, b));
            if (num_rows > 1) _mm512_storeu_pd(reinterpret_cast<double *>(scores + BLOCK + p * 16), _mm512_unpackhi_pd(a, b));
            if (num_rows > 2) _mm512_storeu_pd(reinterpret_cast<double *>(scores + 2 * BLOCK + p * 16), _mm512_unpacklo_pd(c, d));
            if (num_rows > 3) _mm512_storeu_pd(reinterpret_cast<double *>(scores + 3 * BLOCK + p * 16), _mm512_unpackhi_pd(c, d));
        } else {
            __m512i rows[16];
            for (int j = 0; j < 16; ++j) rows[j] = _mm512_load_si512(turned + j * 16);
            transpose16(rows);
            for (int r = 0; r < num_rows; ++r) _mm512_storeu_si512(scores + r * BLOCK + p * 16, rows[r]);
        }
    }
}

// Queries of up to 16 rows as `score_few` wants them: [pair of dims][row].
template <int NV>
inline void turn_queries(const Room &room, uint32_t *out) {
    constexpr int PAIRS = NV * 8;
    for (int k = 0; k < PAIRS / 16; ++k) {
        __m512i rows[16];
        for (int r = 0; r < 16; ++r) rows[r] = _mm512_loadu_si512(room.queries + r * PAIRS + k * 16);
        transpose16(rows);
        for (int e = 0; e < 16; ++e) _mm512_storeu_si512(out + k * 256 + e * 16, rows[e]);
    }
}

template <int NV>
inline bool is_few(const Pool &pool, int num_rows) { return num_rows <= 16 && NV % 2 == 0 && !pool.is_int8; }

template <int NV>
inline void begin_scores(const Pool &pool, Room &room, int num_rows) {
    if constexpr (NV % 2 == 0)
        if (is_few<NV>(pool, num_rows)) turn_queries<NV>(room, room.turned);
}

// scores[row][key] = query times key, unscaled, of the keys of a block's pages.
template <int NV>
inline void score_all(const Pool &pool, Room &room, int num_rows, const int32_t *pages, int num_pages) {
    if constexpr (NV % 2 == 0)
        if (is_few<NV>(pool, num_rows)) return score_few<NV>(pool, pages, num_pages, num_rows, room.turned, room.scores);
    for (int p = 0; p < num_pages; ++p) pack_keys<NV>(pool, pages[p], room.keys + p * PAGE);
    for (int row = 0; row < num_rows; row += 16) score_tile<NV>(room, row, room.scores);
}

template <int NV>
inline void gather_all(Room &room, int num_rows, int num_keys) {
    const int depth = num_keys > BLOCK / 2 ? 2 : 1;
    for (int row = 0; row < num_rows; row += 16) {
        int v = 0;
        for (; v + 4 <= NV; v += 4) gather_tile<4>(room, row, NV * 16, v * 16, depth);
        if (NV - v == 3) gather_tile<3>(room, row, NV * 16, v * 16, depth);
        if (NV - v == 2) gather_tile<2>(room, row, NV * 16, v * 16, depth);
        if (NV - v == 1) gather_tile<1>(room, row, NV * 16, v * 16, depth);
    }
}

#else

template <int NV>
inline void begin_scores(const Pool &, Room &, int) {}

template <int NV>
inline void score_all(const Pool &pool, Room &room, int num_rows, const int32_t *pages, int num_pages) {
    for (int p = 0; p < num_pages; ++p) pack_keys<NV>(pool, pages[p], room.keys + p * PAGE);
    constexpr int PAIRS = padded(NV * 16) / 2;
    int r = 0;
    for (; r + 4 <= num_rows; r += 4) score_rows<4, PAIRS>(room, r, room.scores);
    if (num_rows - r == 3) score_rows<3, PAIRS>(room, r, room.scores);
    if (num_rows - r == 2) score_rows<2, PAIRS>(room, r, room.scores);
    if (num_rows - r == 1) score_rows<1, PAIRS>(room, r, room.scores);
}

template <int NV>
inline void gather_all(Room &room, int num_rows, int num_keys) {
    const int num_pairs = (num_keys + 1) / 2;
    int r = 0;
    for (; r + 4 <= num_rows; r += 4) gather_dims<NV, 4>(room, r, num_pairs);
    if (num_rows - r == 3) gather_dims<NV, 3>(room, r, num_pairs);
    if (num_rows - r == 2) gather_dims<NV, 2>(room, r, num_pairs);
    if (num_rows - r == 1) gather_dims<NV, 1>(room, r, num_pairs);
}

#endif

inline __m512 exp2_ps(__m512 x) {  // relative error below 2e-7; 2^0 is 1
    const __m512 n = _mm512_roundscale_ps(x, 0), r = _mm512_sub_ps(x, n);
    __m512 y = _mm512_fmadd_ps(_mm512_set1_ps(1.3276469e-3f), r, _mm512_set1_ps(9.6755416e-3f));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(5.5507133e-2f));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(2.4022120e-1f));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(6.9314697e-1f));
    return _mm512_scalef_ps(_mm512_fmadd_ps(y, r, _mm512_set1_ps(1.0f)), n);
}

inline __m512 capped(__m512 score, float scale, float cap) {  // cap * tanh(score / cap)
    const __m512 s = _mm512_mul_ps(score, _mm512_set1_ps(scale));
    const __m512 e = exp_ps(_mm512_mul_ps(_mm512_abs_ps(s), _mm512_set1_ps(-2.0f / cap)));
    const __m512 t = _mm512_div_ps(_mm512_sub_ps(_mm512_set1_ps(1.0f), e), _mm512_add_ps(_mm512_set1_ps(1.0f), e));
    return _mm512_or_ps(_mm512_mul_ps(t, _mm512_set1_ps(cap)), _mm512_and_ps(s, _mm512_set1_ps(-0.0f)));
}

// Lane i: the sum, or the largest, of the lanes of rows[i].
template <class Join>
inline __m512 reduce_rows(const __m512 (&rows)[16], const Join &join) {
    __m512 quads[4];
    for (int i = 0; i < 4; ++i) {
        const __m512 *r = rows + 4 * i;
        const __m512 a = join(_mm512_unpacklo_ps(r[0], r[1]), _mm512_unpackhi_ps(r[0], r[1]));
        const __m512 b = join(_mm512_unpacklo_ps(r[2], r[3]), _mm512_unpackhi_ps(r[2], r[3]));
        const __m512d c = _mm512_castps_pd(a), d = _mm512_castps_pd(b);
        quads[i] = join(_mm512_castpd_ps(_mm512_unpacklo_pd(c, d)), _mm512_castpd_ps(_mm512_unpackhi_pd(c, d)));
    }
    const __m512 low = join(_mm512_shuffle_f32x4(quads[0], quads[1], 0x88), _mm512_shuffle_f32x4(quads[0], quads[1], 0xdd));
    const __m512 high = join(_mm512_shuffle_f32x4(quads[2], quads[3], 0x88), _mm512_shuffle_f32x4(quads[2], quads[3], 0xdd));
    return join(_mm512_shuffle_f32x4(low, high, 0x88), _mm512_shuffle_f32x4(low, high, 0xdd));
}

inline void write_slot(const Pool &pool, int64_t slot, const uint16_t *k, const uint16_t *v, int position) {
    const int width = pool.width;
    pool.positions[slot] = position;
    if (!pool.is_int8) {
        std::memcpy(static_cast<uint16_t *>(pool.keys) + slot * width, k, width * 2);
        std::memcpy(static_cast<uint16_t *>(pool.values) + slot * width, v, width * 2);
        return;
    }
    const uint16_t *sources[2] = {k, v};
    int8_t *targets[2] = {static_cast<int8_t *>(pool.keys) + slot * width, static_cast<int8_t *>(pool.values) + slot * width};
    float *scales[2] = {pool.key_scales + slot, pool.value_scales + slot};
    for (int i = 0; i < 2; ++i) {
        float row[MAX_WIDTH], top = 0;
        for (int e = 0; e < width; ++e) {
            const uint32_t bits = static_cast<uint32_t>(sources[i][e]) << 16;
            std::memcpy(&row[e], &bits, 4);
            if (std::fabs(row[e]) > top) top = std::fabs(row[e]);
        }
        *scales[i] = top / 127.0f;
        const float inverse = top > 0 ? 127.0f / top : 0.0f;
        for (int e = 0; e < width; ++e) targets[i][e] = static_cast<int8_t>(std::nearbyintf(row[e] * inverse));
    }
}

struct Scaling { float scale, softcap, exponent; };  // exponent: what makes of scores, as tops are kept, powers of two

inline Scaling scaling_of(const Pool &pool, float softcap) {
    const float scale = 1.0f / std::sqrt(static_cast<float>(pool.width)), log2e = 1.44269504f;
    return {scale, softcap, softcap > 0 ? log2e : scale * log2e};
}

inline float exp2_one(float x) { return _mm512_cvtss_f32(exp2_ps(_mm512_set1_ps(x))); }

// Scores of up to 16 rows from `first` on become weights; tops, totals and the factors of what was summed before are carried on.
// pages: of the block. sees(row, v): which keys of its page v a row sees. IS_PLAIN: all of all, and scores need nothing but the scale.
template <bool IS_PLAIN, class Sees>
inline void weigh(const Pool &pool, const Scaling &scaling, Room &room, int first, int num_rows, const int32_t *pages, const Sees &sees) {
    const __m512 none = _mm512_set1_ps(MINUS_INF), unit = _mm512_set1_ps(scaling.exponent);
    __m512 rows[16];
    __mmask16 seen[16][4];
    for (int r = 0; r < num_rows; ++r) {
        float *scores = room.scores + (first + r) * BLOCK;
        __m512 s[4];
        for (int v = 0; v < 4; ++v) {
            s[v] = _mm512_loadu_ps(scores + v * 16);
            if constexpr (!IS_PLAIN) {
                seen[r][v] = sees(first + r, v);
                if (pool.is_int8 && seen[r][v])
                    s[v] = _mm512_mul_ps(s[v], _mm512_loadu_ps(pool.key_scales + static_cast<int64_t>(pages[v]) * PAGE));
                if (scaling.softcap > 0) s[v] = capped(s[v], scaling.scale, scaling.softcap);
                s[v] = _mm512_mask_blend_ps(seen[r][v], none, s[v]);
                _mm512_storeu_ps(scores + v * 16, s[v]);
            }
        }
        rows[r] = _mm512_max_ps(_mm512_max_ps(s[0], s[1]), _mm512_max_ps(s[2], s[3]));
    }
    for (int r = num_rows; r < 16; ++r) rows[r] = none;
    const __m512 tops = _mm512_loadu_ps(room.tops + first);
    const __m512 now = _mm512_max_ps(tops, reduce_rows(rows, [](__m512 a, __m512 b) { return _mm512_max_ps(a, b); }));
    const __mmask16 was_there = _mm512_cmp_ps_mask(tops, none, _CMP_NEQ_OQ);
    const __m512 factors = _mm512_maskz_mov_ps(was_there, exp2_ps(_mm512_mul_ps(_mm512_sub_ps(tops, now), unit)));
    _mm512_storeu_ps(room.tops + first, now);
    _mm512_storeu_ps(room.factors + first, factors);
    for (int r = 0; r < num_rows; ++r) {
        const float *scores = room.scores + (first + r) * BLOCK;
        const __m512 top = _mm512_set1_ps(room.tops[first + r]);
        __m512 p[4];
        for (int v = 0; v < 4; ++v) {
            p[v] = exp2_ps(_mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(scores + v * 16), top), unit));
            if constexpr (!IS_PLAIN) p[v] = _mm512_maskz_mov_ps(seen[r][v], p[v]);
        }
        rows[r] = _mm512_add_ps(_mm512_add_ps(p[0], p[1]), _mm512_add_ps(p[2], p[3]));
        if constexpr (!IS_PLAIN)
            for (int v = 0; v < 4; ++v)
                if (pool.is_int8 && seen[r][v])
                    p[v] = _mm512_maskz_mul_ps(seen[r][v], p[v], _mm512_loadu_ps(pool.value_scales + static_cast<int64_t>(pages[v]) * PAGE));
        for (int v = 0; v < 4; v += 2)
            _mm512_storeu_si512(room.weights + (first + r) * (BLOCK / 2) + v * 8, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(p[v + 1], p[v])));
    }
    for (int r = num_rows; r < 16; ++r) rows[r] = _mm512_setzero_ps();
    const __m512 total = reduce_rows(rows, [](__m512 a, __m512 b) { return _mm512_add_ps(a, b); });
    _mm512_storeu_ps(room.totals + first, _mm512_fmadd_ps(_mm512_loadu_ps(room.totals + first), factors, total));
}

// What a row read of all its keys: its chunks joined in order. state_of(chunk): its top, total and sums. Returns the log of the total.
template <int NV, class StateOf>
inline float join_chunks(const Pool &pool, const Scaling &scaling, int num_chunks, const StateOf &state_of, __m512 (&sum)[NV]) {
    float top = MINUS_INF, total = 0;
    for (int c = 0; c < num_chunks; ++c) top = std::fmax(top, state_of(c)[0]);
    for (int w = 0; w < NV; ++w) sum[w] = _mm512_setzero_ps();
    for (int c = 0; c < num_chunks; ++c) {
        const float *state = state_of(c);
        if (state[0] == MINUS_INF) continue;
        const float factor = exp2_one((state[0] - top) * scaling.exponent);
        total = std::fma(state[1], factor, total);
        for (int w = 0; w < NV; ++w) sum[w] = _mm512_fmadd_ps(_mm512_loadu_ps(state + 2 + w * 16), _mm512_set1_ps(factor), sum[w]);
    }
    if (is_shuffled<NV>(pool))
        for (int w = 0; w + 1 < NV; w += 2) in_order(sum[w], sum[w + 1]);
    const __m512 inverse = _mm512_set1_ps(total > 0 ? 1.0f / total : 0.0f);
    for (int w = 0; w < NV; ++w) sum[w] = _mm512_mul_ps(sum[w], inverse);
    return top * scaling.exponent * 0.693147181f + std::log(total);
}

// Sums of all rows, times what the new tops make of them; then the values of a block are added.
template <int NV>
inline void gather_block(const Pool &pool, Room &room, int num_rows, const int32_t *pages, int num_keys) {
    constexpr int E = NV * 16;
    for (int r = 0; r < num_rows; ++r) {
        if (room.factors[r] == 1.0f) continue;
        const __m512 factor = _mm512_set1_ps(room.factors[r]);
        for (int v = 0; v < NV; ++v) {
            float *sums = room.sums + r * E + v * 16;
            _mm512_storeu_ps(sums, _mm512_mul_ps(_mm512_loadu_ps(sums), factor));
        }
    }
    pack_values<NV>(pool, pages, num_keys, room.values);
    gather_all<NV>(room, num_rows, num_keys);
}

// Keys are scattered and met once: without asking ahead a core waits for memory half of its time.
inline void prefetch_page(const Pool &pool, int64_t page) {
    const int64_t nbytes = static_cast<int64_t>(PAGE) * pool.width * (pool.is_int8 ? 1 : 2);
    const char *keys = static_cast<const char *>(pool.keys) + page * nbytes, *values = static_cast<const char *>(pool.values) + page * nbytes;
    for (int64_t at = 0; at < nbytes; at += 64) _mm_prefetch(keys + at, _MM_HINT_T0);
    for (int64_t at = 0; at < nbytes; at += 64) _mm_prefetch(values + at, _MM_HINT_T0);
}

}  // namespace
