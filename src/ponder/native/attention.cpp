// Attention over pages of keys and values, for a step's tokens of many sequences at once.
//
// What a token reads depends, bit for bit, on its own query and its keys alone. Every (query, head) meets its keys in blocks
// of 64 in the order of their index; a running (max, sum, accumulator) is carried from block to block and starts anew every
// CHUNK keys; the chunks are merged in order at the end. Which queries meet a block together (a shared prefix is read once for
// all sequences that have it: Hydragen, also as a tree) and which thread does it changes no bit.
//
// Keys and values are bfloat16, or int8 with a float scale per slot. Products are of bfloat16, their sums and all else float32.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__AVX512F__) && defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#include <omp.h>
#include <atomic>
#include "simd.hpp"

namespace {

constexpr int PAGE = 16;            // keys of a page
constexpr int BLOCK = 64;           // keys met together
constexpr int CHUNK = 512;          // keys of one running sum
constexpr int MAX_ROWS = 48;        // query rows of a unit
constexpr int MAX_WIDTH = 256;      // largest head width
constexpr float MINUS_INF = -INFINITY;

}  // namespace

extern "C" {

// The pages of a process: [num_pages, PAGE, width] keys and values; scales and positions [num_pages, PAGE].
struct Pool {
    void *keys, *values;
    float *key_scales, *value_scales;  // int8 only
    int32_t *positions;
    int32_t is_int8, width;
};

// One step. Tokens are flat; sequences are numbered; groups are ranges of tokens that share the pages of a block range.
struct Step {
    int32_t num_tokens, num_heads, num_kv_heads, num_groups, tail_words, num_threads;
    const int32_t *sequence;       // [T] which sequence a token belongs to
    const int32_t *index;          // [T] its place among the keys of its sequence
    const int32_t *limit;          // [T] keys it sees: those of index below this ...
    const uint64_t *tail;          // [T, tail_words] ... and, where set, those at limit + bit (tree), or null
    const int32_t *position;       // [T]
    const int32_t *const *pages;   // per sequence: [L, K, capacity]
    const int64_t *capacity;       // per sequence
    const int32_t *const *dropped; // per sequence: [L, K] keys that a head no longer holds, or null
    const int32_t *groups;         // [num_groups, 6]: first token, last token, sequence, first block, last block or -1, level
};

}

namespace {

struct Unit { int32_t first, last, head, sequence, begin, end, num_pages; bool is_fresh; };  // blocks begin..end of one chunk

struct Plan {
    Step step;
    std::vector<std::vector<Unit>> levels;
    std::vector<int64_t> states;  // [T + 1] first chunk state of a token
};

std::vector<float> scratch;  // chunk states; one process computes at a time

inline int count_keys(const Step &step, int token) {
    int visible = step.limit[token];
    if (step.tail) visible = step.index[token] + 1;  // the last of its tail is itself
    return visible;
}

inline float exp_one(float x) { return _mm512_cvtss_f32(exp_ps(_mm512_set1_ps(x))); }

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

// Pairs of width 2 e, 2 e + 1 of 16 keys: out[e][16], rows BLOCK apart. A width of 16 fills half a register.
template <int NV>
inline void pack_keys(const Pool &pool, int64_t page, uint32_t *out) {
    constexpr int E = NV * 16;
    for (int part = 0; part < (E + 31) / 32; ++part) {
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
        for (int e = 0; e < (is_half ? 8 : 16); ++e) _mm512_storeu_si512(out + (part * 16 + e) * BLOCK, rows[e]);
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

template <int NR>
inline void score(const uint32_t *const *queries, const uint32_t *keys, int pairs, float *scores) {
    __m512 acc[NR][4];
    for (int r = 0; r < NR; ++r)
        for (int v = 0; v < 4; ++v) acc[r][v] = _mm512_setzero_ps();
    for (int e = 0; e < pairs; ++e) {
        __m512bh k[4];
        for (int v = 0; v < 4; ++v) k[v] = reinterpret_cast<__m512bh>(_mm512_loadu_si512(keys + e * BLOCK + v * 16));
        for (int r = 0; r < NR; ++r) {
            const __m512bh q = reinterpret_cast<__m512bh>(_mm512_set1_epi32(static_cast<int>(queries[r][e])));
            for (int v = 0; v < 4; ++v) acc[r][v] = _mm512_dpbf16_ps(acc[r][v], k[v], q);
        }
    }
    for (int r = 0; r < NR; ++r)
        for (int v = 0; v < 4; ++v) _mm512_storeu_ps(scores + r * BLOCK + v * 16, acc[r][v]);
}

// acc = acc * factor + sum over keys of weight * value, for NR rows and NW registers of width; keys two by two, weights in bfloat16.
template <int NR, int NW, bool FROM_POOL>
inline void gather(const Pool &pool, const int64_t *slots, const uint32_t *values, int width, int at, int num_keys,
                   const uint32_t *weights, const float *factors, float *const *acc) {
    __m512 sum[NR][NW];
    for (int r = 0; r < NR; ++r)
        for (int w = 0; w < NW; ++w) sum[r][w] = _mm512_mul_ps(_mm512_loadu_ps(acc[r] + at + w * 16), _mm512_set1_ps(factors[r]));
    for (int j = 0; j < (num_keys + 1) / 2; ++j) {
        __m512bh value[NW];
        for (int w = 0; w < NW; ++w)
            value[w] = reinterpret_cast<__m512bh>(
                FROM_POOL ? load_pair(pool, slots[2 * j] * width + at + w * 16, slots[2 * j + 1] * width + at + w * 16, 2 * j + 1 < num_keys)
                          : _mm512_loadu_si512(values + j * width + at + w * 16));
        for (int r = 0; r < NR; ++r) {
            const __m512bh p = reinterpret_cast<__m512bh>(_mm512_set1_epi32(static_cast<int>(weights[r * (BLOCK / 2) + j])));
            for (int w = 0; w < NW; ++w) sum[r][w] = _mm512_dpbf16_ps(sum[r][w], value[w], p);
        }
    }
    for (int r = 0; r < NR; ++r)
        for (int w = 0; w < NW; ++w) _mm512_storeu_ps(acc[r] + at + w * 16, sum[r][w]);
}

template <int NV, int NR, bool FROM_POOL>
inline void gather_all(const Pool &pool, const int64_t *slots, const uint32_t *values, int num_keys, const uint32_t *weights,
                       const float *factors, float *const *acc) {
    int v = 0;
    for (; v + 4 <= NV; v += 4) gather<NR, 4, FROM_POOL>(pool, slots, values, NV * 16, v * 16, num_keys, weights, factors, acc);
    for (; v < NV; ++v) gather<NR, 1, FROM_POOL>(pool, slots, values, NV * 16, v * 16, num_keys, weights, factors, acc);
}

template <int NV, bool FROM_POOL>
inline void gather_rows(int num_rows, const Pool &pool, const int64_t *slots, const uint32_t *values, int num_keys, const uint32_t *weights,
                        const float *factors, float *const *acc) {
    constexpr int HALF = BLOCK / 2;
    int r = 0;
    for (; r + 4 <= num_rows; r += 4) gather_all<NV, 4, FROM_POOL>(pool, slots, values, num_keys, weights + r * HALF, factors + r, acc + r);
    if (num_rows - r == 3) gather_all<NV, 3, FROM_POOL>(pool, slots, values, num_keys, weights + r * HALF, factors + r, acc + r);
    if (num_rows - r == 2) gather_all<NV, 2, FROM_POOL>(pool, slots, values, num_keys, weights + r * HALF, factors + r, acc + r);
    if (num_rows - r == 1) gather_all<NV, 1, FROM_POOL>(pool, slots, values, num_keys, weights + r * HALF, factors + r, acc + r);
}

struct Call {
    const Pool *pool;
    const Plan *plan;
    int layer, window;
    float scale, softcap;
    const uint16_t *q;
    int64_t q_stride;
};

inline float *state_of(const Plan &plan, int token, int head, int chunk, int width) {
    return scratch.data() + ((plan.states[token] + chunk) * plan.step.num_heads + head) * (width + 2);
}

// Keys are scattered and met once: without asking ahead a core waits for memory half of its time.
inline void prefetch_block(const Call &call, const Unit &unit, int block) {
    const Step &step = call.plan->step;
    const Pool &pool = *call.pool;
    const int32_t *pages = step.pages[unit.sequence] + (static_cast<int64_t>(call.layer) * step.num_kv_heads + unit.head) * step.capacity[unit.sequence];
    const int64_t nbytes = static_cast<int64_t>(PAGE) * pool.width * (pool.is_int8 ? 1 : 2);
    int stop = (block + 1) * (BLOCK / PAGE);
    if (stop > unit.num_pages) stop = unit.num_pages;
    for (int p = block * (BLOCK / PAGE); p < stop; ++p) {
        const char *keys = static_cast<const char *>(pool.keys) + pages[p] * nbytes, *values = static_cast<const char *>(pool.values) + pages[p] * nbytes;
        for (int64_t at = 0; at < nbytes; at += 64) _mm_prefetch(keys + at, _MM_HINT_T0);
        for (int64_t at = 0; at < nbytes; at += 64) _mm_prefetch(values + at, _MM_HINT_T0);
    }
}

template <int NV>
void run_unit(const Call &call, const Unit &unit) {
    constexpr int E = NV * 16;
    const Step &step = call.plan->step;
    const Pool &pool = *call.pool;
    const int group = step.num_heads / step.num_kv_heads, num_rows = (unit.last - unit.first) * group;
    const int32_t *pages = step.pages[unit.sequence] + (static_cast<int64_t>(call.layer) * step.num_kv_heads + unit.head) * step.capacity[unit.sequence];
    alignas(64) static thread_local uint32_t keys[MAX_WIDTH / 2 * BLOCK];
    alignas(64) static thread_local uint32_t values[BLOCK / 2 * MAX_WIDTH], weights[MAX_ROWS * BLOCK / 2];
    alignas(64) static thread_local float scores[MAX_ROWS * BLOCK], sums[MAX_ROWS * MAX_WIDTH];
    float tops[MAX_ROWS], totals[MAX_ROWS], factors[MAX_ROWS];
    float *acc[MAX_ROWS];
    const uint32_t *queries[MAX_ROWS];
    int dropped[MAX_ROWS];
    const int chunk = unit.begin * BLOCK / CHUNK;
    int most = 0, oldest = 1 << 30;
    for (int r = 0; r < num_rows; ++r) {
        const int token = unit.first + r / group, head = unit.head * group + r % group;
        const int32_t *gone = step.dropped ? step.dropped[step.sequence[token]] : nullptr;
        dropped[r] = gone ? gone[call.layer * step.num_kv_heads + unit.head] : 0;
        queries[r] = reinterpret_cast<const uint32_t *>(call.q + token * call.q_stride + head * E);
        acc[r] = sums + r * E;
        const int visible = count_keys(step, token) - dropped[r];
        if (visible > most) most = visible;
        if (step.position[token] < oldest) oldest = step.position[token];
        if (unit.is_fresh || chunk >= call.plan->states[token + 1] - call.plan->states[token]) {
            tops[r] = MINUS_INF, totals[r] = 0;
            std::memset(acc[r], 0, E * sizeof(float));
        } else {
            const float *state = state_of(*call.plan, token, head, chunk, E);
            tops[r] = state[0], totals[r] = state[1];
            std::memcpy(acc[r], state + 2, E * sizeof(float));
        }
    }
    for (int block = unit.begin; block < unit.end; ++block) {
        const int start = block * BLOCK, num_keys = most - start < BLOCK ? most - start : BLOCK;
        if (num_keys <= 0) break;
        if (block + 1 < unit.end) prefetch_block(call, unit, block + 1);
        const int num_pages = (num_keys + PAGE - 1) / PAGE;
        if (call.window) {  // all keys too old for every row: nothing changes
            int newest = -1;
            for (int j = 0; j < num_keys; ++j) {
                const int at = pool.positions[static_cast<int64_t>(pages[(start + j) / PAGE]) * PAGE + (start + j) % PAGE];
                if (at > newest) newest = at;
            }
            if (newest <= oldest - call.window) continue;
        }
        for (int p = 0; p < num_pages; ++p) pack_keys<NV>(pool, pages[start / PAGE + p], keys + p * PAGE);
        int r = 0;
        for (; r + 4 <= num_rows; r += 4) score<4>(queries + r, keys, E / 2, scores + r * BLOCK);
        if (num_rows - r == 3) score<3>(queries + r, keys, E / 2, scores + r * BLOCK);
        if (num_rows - r == 2) score<2>(queries + r, keys, E / 2, scores + r * BLOCK);
        if (num_rows - r == 1) score<1>(queries + r, keys, E / 2, scores + r * BLOCK);
        for (r = 0; r < num_rows; ++r) {
            const int token = unit.first + r / group;
            const int visible = step.limit[token] - dropped[r];
            __m512 s[4];
            __m512 top = _mm512_set1_ps(MINUS_INF);
            __mmask16 seen[4];
            for (int v = 0; v < 4; ++v) {
                const int left = visible - start - v * 16;
                seen[v] = left >= 16 ? 0xffff : left <= 0 ? 0 : static_cast<__mmask16>((1u << left) - 1);
                if (step.tail && left < 16) {
                    const uint64_t *bits = step.tail + static_cast<int64_t>(token) * step.tail_words;
                    for (int j = left < 0 ? 0 : left; j < 16; ++j) {
                        const int bit = j - left;
                        if (bit < step.tail_words * 64 && (bits[bit / 64] >> (bit % 64) & 1)) seen[v] |= 1u << j;
                    }
                }
                if (v >= num_pages) seen[v] = 0;
                if (seen[v] && call.window) {
                    const __m512i at = _mm512_loadu_si512(pool.positions + static_cast<int64_t>(pages[start / PAGE + v]) * PAGE);
                    seen[v] &= _mm512_cmpgt_epi32_mask(at, _mm512_set1_epi32(step.position[token] - call.window));
                }
                s[v] = _mm512_mul_ps(_mm512_loadu_ps(scores + r * BLOCK + v * 16), _mm512_set1_ps(call.scale));
                if (pool.is_int8 && seen[v])
                    s[v] = _mm512_mul_ps(s[v], _mm512_loadu_ps(pool.key_scales + static_cast<int64_t>(pages[start / PAGE + v]) * PAGE));
                if (call.softcap > 0) {  // cap * tanh(s / cap)
                    const __m512 e = exp_ps(_mm512_mul_ps(_mm512_abs_ps(s[v]), _mm512_set1_ps(-2.0f / call.softcap)));
                    const __m512 t = _mm512_div_ps(_mm512_sub_ps(_mm512_set1_ps(1.0f), e), _mm512_add_ps(_mm512_set1_ps(1.0f), e));
                    const __m512 sign = _mm512_and_ps(s[v], _mm512_set1_ps(-0.0f));
                    s[v] = _mm512_or_ps(_mm512_mul_ps(t, _mm512_set1_ps(call.softcap)), sign);
                }
                s[v] = _mm512_mask_blend_ps(seen[v], _mm512_set1_ps(MINUS_INF), s[v]);
                top = _mm512_max_ps(top, s[v]);
            }
            const float best = _mm512_reduce_max_ps(top);
            if (best == MINUS_INF) {
                factors[r] = 1;
                std::memset(weights + r * (BLOCK / 2), 0, BLOCK / 2 * sizeof(uint32_t));
                continue;
            }
            const float now = best > tops[r] ? best : tops[r];
            factors[r] = tops[r] == MINUS_INF ? 0.0f : exp_one(tops[r] - now);
            __m512 total = _mm512_setzero_ps();
            __m512 p[4];
            for (int v = 0; v < 4; ++v) {
                p[v] = _mm512_maskz_mov_ps(seen[v], exp_ps(_mm512_sub_ps(s[v], _mm512_set1_ps(now))));
                total = _mm512_add_ps(total, p[v]);
                if (pool.is_int8 && seen[v])
                    p[v] = _mm512_maskz_mul_ps(seen[v], p[v], _mm512_loadu_ps(pool.value_scales + static_cast<int64_t>(pages[start / PAGE + v]) * PAGE));
            }
            for (int v = 0; v < 4; v += 2)
                _mm512_storeu_si512(weights + r * (BLOCK / 2) + v * 8, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(p[v + 1], p[v])));
            totals[r] = totals[r] * factors[r] + _mm512_reduce_add_ps(total);
            tops[r] = now;
        }
        int64_t slots[BLOCK + 1];
        for (int j = 0; j < num_keys; ++j) slots[j] = static_cast<int64_t>(pages[(start + j) / PAGE]) * PAGE + (start + j) % PAGE;
        slots[num_keys] = slots[num_keys - 1];
        if (num_rows <= 4) {
            gather_rows<NV, true>(num_rows, pool, slots, nullptr, num_keys, weights, factors, acc);
        } else {
            for (int j = 0; j < num_keys; j += 2)
                for (int v = 0; v < NV; ++v)
                    _mm512_storeu_si512(values + j / 2 * E + v * 16, load_pair(pool, slots[j] * E + v * 16, slots[j + 1] * E + v * 16, j + 1 < num_keys));
            gather_rows<NV, false>(num_rows, pool, slots, values, num_keys, weights, factors, acc);
        }
    }
    for (int r = 0; r < num_rows; ++r) {
        const int token = unit.first + r / group;
        if (chunk >= call.plan->states[token + 1] - call.plan->states[token]) continue;  // sees none of this chunk
        float *state = state_of(*call.plan, token, unit.head * group + r % group, chunk, E);
        state[0] = tops[r], state[1] = totals[r];
        std::memcpy(state + 2, acc[r], E * sizeof(float));
    }
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

template <int NV>
void run_all(const Call &call, const uint16_t *k, int64_t k_stride, const uint16_t *v, int64_t v_stride, uint16_t *out, float *lse) {
    constexpr int E = NV * 16;
    const Plan &plan = *call.plan;
    const Step &step = plan.step;
    const size_t needed = static_cast<size_t>(plan.states[step.num_tokens]) * step.num_heads * (E + 2);
    if (scratch.size() < needed) scratch.resize(needed);
    std::vector<std::atomic<int>> next(plan.levels.size());
    for (auto &n : next) n.store(0, std::memory_order_relaxed);
#pragma omp parallel num_threads(step.num_threads)
    {
#pragma omp for schedule(static)
        for (int token = 0; token < step.num_tokens; ++token) {
            const int sequence = step.sequence[token];
            for (int head = 0; head < step.num_kv_heads; ++head) {
                const int64_t row = static_cast<int64_t>(call.layer) * step.num_kv_heads + head;
                const int32_t *gone = step.dropped ? step.dropped[sequence] : nullptr;
                const int at = step.index[token] - (gone ? gone[row] : 0);
                const int64_t page = step.pages[sequence][row * step.capacity[sequence] + at / PAGE];
                write_slot(*call.pool, page * PAGE + at % PAGE, k + token * k_stride + head * E, v + token * v_stride + head * E, step.position[token]);
            }
        }
        for (size_t level = 0; level < plan.levels.size(); ++level) {
            const auto &units = plan.levels[level];
            for (int i; (i = next[level].fetch_add(1, std::memory_order_relaxed)) < static_cast<int>(units.size());) run_unit<NV>(call, units[i]);
#pragma omp barrier
        }
#pragma omp for schedule(static)
        for (int token = 0; token < step.num_tokens; ++token) {
            const int num_chunks = static_cast<int>(plan.states[token + 1] - plan.states[token]);
            for (int head = 0; head < step.num_heads; ++head) {
                float top = MINUS_INF, total = 0;
                for (int c = 0; c < num_chunks; ++c) top = std::fmax(top, state_of(plan, token, head, c, E)[0]);
                __m512 sum[NV];
                for (int w = 0; w < NV; ++w) sum[w] = _mm512_setzero_ps();
                for (int c = 0; c < num_chunks; ++c) {
                    const float *state = state_of(plan, token, head, c, E);
                    if (state[0] == MINUS_INF) continue;
                    const float factor = exp_one(state[0] - top);
                    total = std::fma(state[1], factor, total);
                    for (int w = 0; w < NV; ++w) sum[w] = _mm512_fmadd_ps(_mm512_loadu_ps(state + 2 + w * 16), _mm512_set1_ps(factor), sum[w]);
                }
                const __m512 inverse = _mm512_set1_ps(total > 0 ? 1.0f / total : 0.0f);
                for (int w = 0; w < NV; ++w)
                    _mm256_storeu_si256(reinterpret_cast<__m256i *>(out + (static_cast<int64_t>(token) * step.num_heads + head) * E + w * 16),
                                        reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(_mm512_mul_ps(sum[w], inverse))));
                if (lse) lse[static_cast<int64_t>(token) * step.num_heads + head] = top + std::log(total);
            }
        }
    }
}

}  // namespace

extern "C" {

int attention_is_supported(int width) {
    switch (width) {
        case 16: case 32: case 48: case 64: case 80: case 96: case 112: case 128: case 160: case 192: case 256: return 1;
        default: return 0;
    }
}

// The arrays of `step` must live until attention_free.
void *attention_plan(const Step *step) {
    Plan *plan = new Plan{*step, {}, {}};
    const int tokens_each = MAX_ROWS / (step->num_heads / step->num_kv_heads) > 0 ? MAX_ROWS / (step->num_heads / step->num_kv_heads) : 1;
    plan->states.resize(step->num_tokens + 1);
    plan->states[0] = 0;
    for (int t = 0; t < step->num_tokens; ++t) plan->states[t + 1] = plan->states[t] + (count_keys(*step, t) + CHUNK - 1) / CHUNK;
    for (int g = 0; g < step->num_groups; ++g) {
        const int32_t *group = step->groups + g * 6;
        if (static_cast<int>(plan->levels.size()) <= group[5]) plan->levels.resize(group[5] + 1);
        auto &units = plan->levels[group[5]];
        for (int first = group[0]; first < group[1]; first += tokens_each) {
            const int last = first + tokens_each < group[1] ? first + tokens_each : group[1];
            int most = 0;
            for (int t = first; t < last; ++t) most = count_keys(*step, t) > most ? count_keys(*step, t) : most;
            const int num_pages = step->dropped ? 0 : (most + PAGE - 1) / PAGE;  // to ask ahead for; unknown where heads differ
            int stop = (most + BLOCK - 1) / BLOCK;
            if (group[4] >= 0 && group[4] < stop) stop = group[4];
            for (int begin = group[3]; begin < stop;) {
                const int whole = (begin * BLOCK / CHUNK + 1) * (CHUNK / BLOCK), end = whole < stop ? whole : stop;
                for (int head = 0; head < step->num_kv_heads; ++head)
                    units.push_back({first, last, head, group[2], begin, end, num_pages, begin * BLOCK % CHUNK == 0});
                begin = end;
            }
        }
    }
    return plan;
}

void attention_free(void *plan) { delete static_cast<Plan *>(plan); }

// q [T, H, E], k and v [T, K, E] bfloat16, rows `stride` elements apart -> out [T, H, E] bfloat16, lse [T, H] or null. 0 when the width is unknown.
int attention_run(void *plan, const Pool *pool, int layer, int window, float softcap, const uint16_t *q, int64_t q_stride,
                  const uint16_t *k, int64_t k_stride, const uint16_t *v, int64_t v_stride, uint16_t *out, float *lse) {
    const Call call{pool, static_cast<const Plan *>(plan), layer, window, 1.0f / std::sqrt(static_cast<float>(pool->width)), softcap, q, q_stride};
    switch (pool->width) {
        case 16: run_all<1>(call, k, k_stride, v, v_stride, out, lse); return 1;
        case 32: run_all<2>(call, k, k_stride, v, v_stride, out, lse); return 1;
        case 48: run_all<3>(call, k, k_stride, v, v_stride, out, lse); return 1;
        case 64: run_all<4>(call, k, k_stride, v, v_stride, out, lse); return 1;
        case 80: run_all<5>(call, k, k_stride, v, v_stride, out, lse); return 1;
        case 96: run_all<6>(call, k, k_stride, v, v_stride, out, lse); return 1;
        case 112: run_all<7>(call, k, k_stride, v, v_stride, out, lse); return 1;
        case 128: run_all<8>(call, k, k_stride, v, v_stride, out, lse); return 1;
        case 160: run_all<10>(call, k, k_stride, v, v_stride, out, lse); return 1;
        case 192: run_all<12>(call, k, k_stride, v, v_stride, out, lse); return 1;
        case 256: run_all<16>(call, k, k_stride, v, v_stride, out, lse); return 1;
        default: return 0;
    }
}

}

#else

extern "C" int attention_is_supported(int) { return 0; }

#endif
