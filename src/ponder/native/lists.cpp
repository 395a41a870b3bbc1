// Attention by lists: each list is of keys of one head, by the numbers of their pages or one by one, and query rows that meet it, in its
// order. What is not listed costs nothing. A row is a (token, head) pair. Blocks, chunks and the order of sums are those of attention.cpp, so
// that rows with all their pages listed read what they read there, bit for bit; and a row depends on its own list and query alone.
// Single keys are read where they lie, a block of them at a time.
//
// Results are joined with what the same rows read before, of other keys: out and lse stand for all keys met so far.

#include <vector>

#if defined(__AVX512F__) && defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#include <omp.h>
#include <atomic>
#include "attention_block.hpp"

extern "C" {

struct Lists {
    int32_t num_lists, num_threads, are_pages, start, num_heads;  // start: place of token 0
    const int32_t *heads;     // [num_lists] key head of each
    const int32_t *rows;      // token * H + head
    const int32_t *row_ends;  // [num_lists]
    const int32_t *keys;      // ascending in a list: numbers of pages of the table, or places of single keys
    const int32_t *key_ends;  // [num_lists]
    const int32_t *table;     // [K, capacity]
    int64_t capacity;
    float log_weight;         // of every key met
};

}

namespace {

struct Reading {
    const Pool *pool;
    const Lists *lists;
    Scaling scaling;
    const uint16_t *q;
    int64_t q_stride;
    float *out, *lse;
};

struct Unit { int32_t list, first, last; };  // rows of a list that are met together

// Lists with more rows than fit are cut into nearly equal units.
inline std::vector<Unit> units_of(const Lists &lists) {
    std::vector<Unit> units;
    for (int32_t i = 0; i < lists.num_lists; ++i) {
        const int64_t start = i ? lists.row_ends[i - 1] : 0, size = lists.row_ends[i] - start, num = (size + MAX_ROWS - 1) / MAX_ROWS;
        for (int64_t part = 0; part < num; ++part)
            units.push_back({i, static_cast<int32_t>(start + size * part / num), static_cast<int32_t>(start + size * (part + 1) / num)});
    }
    return units;
}

// The keys of a list, by pages: pages and the places of their first keys. Single keys stand one after the other, as places 0, 1, 2 ..., in
// pages of their own that `fetch` fills, a block of keys at a time.
template <int NV>
struct Listed {
    static constexpr int E = NV * 16;
    const Pool *pool;
    const int32_t *keys, *table;
    int num_keys, num_pages;
    std::vector<int32_t> pages, places;
    alignas(64) uint16_t loose_keys[BLOCK * E] = {}, loose_values[BLOCK * E] = {};
    Pool loose;

    void open(const Pool &from, const Lists &lists, int list) {
        pool = &from;
        const int first = list ? lists.key_ends[list - 1] : 0;
        keys = lists.keys + first, num_keys = lists.key_ends[list] - first;
        table = lists.table + lists.heads[list] * lists.capacity;
        num_pages = lists.are_pages ? num_keys : (num_keys + PAGE - 1) / PAGE;
        pages.resize(num_pages), places.resize(num_pages);
        for (int i = 0; i < num_pages; ++i) {
            pages[i] = lists.are_pages ? table[keys[i]] : i % (BLOCK / PAGE);
            places[i] = lists.are_pages ? keys[i] * PAGE : i * PAGE;
        }
        loose = Pool{loose_keys, loose_values, nullptr, nullptr, nullptr, 0, E};
    }

    int64_t slot(int key) const { return static_cast<int64_t>(table[keys[key] / PAGE]) * PAGE + keys[key] % PAGE; }

    void fetch(int first_page) {
        const int first = first_page * PAGE, last = first + BLOCK < num_keys ? first + BLOCK : num_keys;
        const void *sides[2] = {pool->keys, pool->values};
        const float *scales[2] = {pool->key_scales, pool->value_scales};
        uint16_t *targets[2] = {loose_keys, loose_values};
        for (int key = first; key < last; ++key) {
            const int64_t at = slot(key);
            for (int side = 0; side < 2; ++side) {
                uint16_t *target = targets[side] + (key - first) * E;
                if (!pool->is_int8) {
                    std::memcpy(target, static_cast<const uint16_t *>(sides[side]) + at * E, E * 2);
                    continue;
                }
                const __m512 scale = _mm512_set1_ps(scales[side][at]);
                for (int v = 0; v < NV; ++v) {
                    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i *>(static_cast<const int8_t *>(sides[side]) + at * E + v * 16));
                    const __m512 x = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)), scale);
                    _mm256_storeu_si256(reinterpret_cast<__m256i *>(target + v * 16), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x)));
                }
            }
        }
    }

    // Asks ahead for the block of keys that begins with a page.
    void prefetch(int first_page, bool are_pages) const {
        if (are_pages) {
            for (int p = first_page; p < num_pages && p < first_page + BLOCK / PAGE; ++p) prefetch_page(*pool, pages[p]);
            return;
        }
        const int64_t nbytes = E * (pool->is_int8 ? 1 : 2);
        for (int key = first_page * PAGE; key < num_keys && key < first_page * PAGE + BLOCK; ++key) {
            const int64_t at = slot(key) * nbytes;
            for (int64_t i = 0; i < nbytes; i += 64) _mm_prefetch(static_cast<const char *>(pool->keys) + at + i, _MM_HINT_T0);
            for (int64_t i = 0; i < nbytes; i += 64) _mm_prefetch(static_cast<const char *>(pool->values) + at + i, _MM_HINT_T0);
        }
    }
};

inline void join_row(float *out, float &lse, const __m512 *sum, int num, float log_total) {
    if (log_total == MINUS_INF) return;
    if (lse == MINUS_INF) {
        for (int w = 0; w < num; ++w) _mm512_storeu_ps(out + w * 16, sum[w]);
        lse = log_total;
        return;
    }
    const float top = std::fmax(lse, log_total), before = std::exp(lse - top), now = std::exp(log_total - top), total = before + now;
    const __m512 a = _mm512_set1_ps(before / total), b = _mm512_set1_ps(now / total);
    for (int w = 0; w < num; ++w) _mm512_storeu_ps(out + w * 16, _mm512_fmadd_ps(_mm512_loadu_ps(out + w * 16), a, _mm512_mul_ps(sum[w], b)));
    lse = top + std::log(total);
}

// Returns how many keys its rows met, all rows together.
template <int NV>
int64_t run_list(const Reading &reading, const Unit &unit) {
    constexpr int E = NV * 16, EP = padded(E), EACH = BLOCK / PAGE, CHUNK_PAGES = CHUNK / PAGE;
    static thread_local Room room;
    static thread_local Listed<NV> listed;
    static thread_local std::vector<float> states;  // [row][chunk][E + 2]
    const Lists &lists = *reading.lists;
    const bool are_pages = lists.are_pages;
    const int num_rows = unit.last - unit.first;
    const int32_t *rows = lists.rows + unit.first;
    listed.open(*reading.pool, lists, unit.list);
    const Pool &pool = are_pages ? *reading.pool : listed.loose;
    const int32_t *pages = listed.pages.data(), *places = listed.places.data();
    int most = 0, fewest = 1 << 30;
    for (int r = 0; r < num_rows; ++r) {
        room.visible[r] = are_pages ? lists.start + rows[r] / lists.num_heads + 1 : listed.num_keys;
        if (room.visible[r] > most) most = room.visible[r];
        if (room.visible[r] < fewest) fewest = room.visible[r];
        uint32_t *query = room.queries + r * (EP / 2);
        std::memcpy(query, reading.q + rows[r] / lists.num_heads * reading.q_stride + rows[r] % lists.num_heads * E, E * 2);
        if constexpr (EP > E) std::memset(query + E / 2, 0, (EP - E) * 2);
    }
    int num_pages = listed.num_pages;
    while (num_pages && places[num_pages - 1] >= most) --num_pages;  // none of its rows sees it
    int64_t num_met = static_cast<int64_t>(num_pages) * PAGE * num_rows;
    for (int r = 0; r < num_rows; ++r)
        for (int p = num_pages - 1; p >= 0 && places[p] + PAGE > room.visible[r]; --p)
            num_met -= places[p] < room.visible[r] ? places[p] + PAGE - room.visible[r] : PAGE;
    const int num_chunks = (num_pages + CHUNK_PAGES - 1) / CHUNK_PAGES;
    begin_scores<NV>(pool, room, num_rows);
    if (states.size() < static_cast<size_t>(num_rows) * num_chunks * (E + 2)) states.resize(static_cast<size_t>(num_rows) * num_chunks * (E + 2));
    const auto state_of = [&](int row, int chunk) { return states.data() + (static_cast<size_t>(row) * num_chunks + chunk) * (E + 2); };
    for (int chunk = 0; chunk < num_chunks; ++chunk) {
        for (int r = 0; r < num_rows; ++r) room.tops[r] = MINUS_INF, room.totals[r] = 0;
        std::memset(room.sums, 0, static_cast<size_t>(num_rows) * E * sizeof(float));
        const int stop = (chunk + 1) * CHUNK_PAGES < num_pages ? (chunk + 1) * CHUNK_PAGES : num_pages;
        for (int at = chunk * CHUNK_PAGES; at < stop; at += EACH) {
            const int num = stop - at < EACH ? stop - at : EACH, last = most - places[at + num - 1];
            if (at + EACH < num_pages) listed.prefetch(at + EACH, are_pages);
            if (!are_pages) listed.fetch(at);
            score_all<NV>(pool, room, num_rows, pages + at, num);
            const bool is_plain = num == EACH && fewest >= places[at + num - 1] + PAGE && reading.scaling.softcap == 0 && !pool.is_int8;
            const auto sees = [&](int row, int v) -> __mmask16 {
                const int left = v < num ? room.visible[row] - places[at + v] : 0;
                return left >= PAGE ? 0xffff : left <= 0 ? 0 : static_cast<__mmask16>((1u << left) - 1);
            };
            for (int first = 0; first < num_rows; first += 16) {
                const int some = num_rows - first < 16 ? num_rows - first : 16;
                if (is_plain) weigh<true>(pool, reading.scaling, room, first, some, pages + at, sees);
                else weigh<false>(pool, reading.scaling, room, first, some, pages + at, sees);
            }
            gather_block<NV>(pool, room, num_rows, pages + at, (num - 1) * PAGE + (last < PAGE ? last : PAGE));
        }
        for (int r = 0; r < num_rows; ++r) {
            float *state = state_of(r, chunk);
            state[0] = room.tops[r], state[1] = room.totals[r];
            std::memcpy(state + 2, room.sums + r * E, E * sizeof(float));
        }
    }
    for (int r = 0; r < num_rows; ++r) {
        __m512 sum[NV];
        const float log_total = join_chunks<NV>(pool, reading.scaling, num_chunks, [&](int c) { return state_of(r, c); }, sum);
        join_row(reading.out + static_cast<int64_t>(rows[r]) * E, reading.lse[rows[r]], sum, NV, log_total + lists.log_weight);
    }
    return num_met;
}

template <int NV>
int64_t run_lists(const Reading &reading) {
    const std::vector<Unit> units = units_of(*reading.lists);
    std::atomic<int> next(0);
    std::atomic<int64_t> num_met(0);
#pragma omp parallel num_threads(reading.lists->num_threads)
    {
#ifdef PONDER_HAS_TILES
        const ponder::Tiles tiles;
#endif
        int64_t mine = 0;
        for (int i; (i = next.fetch_add(1, std::memory_order_relaxed)) < static_cast<int>(units.size());) mine += run_list<NV>(reading, units[i]);
        num_met += mine;
    }
    return num_met;
}

int64_t run_width(const Reading &reading, int width) {
    switch (width) {
        case 16: return run_lists<1>(reading);
        case 32: return run_lists<2>(reading);
        case 48: return run_lists<3>(reading);
        case 64: return run_lists<4>(reading);
        case 80: return run_lists<5>(reading);
        case 96: return run_lists<6>(reading);
        case 112: return run_lists<7>(reading);
        case 128: return run_lists<8>(reading);
        case 160: return run_lists<10>(reading);
        case 192: return run_lists<12>(reading);
        case 256: return run_lists<16>(reading);
        default: return -1;
    }
}

}  // namespace

extern "C" {

// Rows k, v [n, K, E] bfloat16 into slots [n, K] (page * PAGE + place), at positions [n].
void lists_write(const Pool *pool, int n, int num_kv_heads, const int64_t *slots, const int32_t *positions, const uint16_t *k, int64_t k_stride,
                 const uint16_t *v, int64_t v_stride) {
    for (int i = 0; i < n; ++i)
        for (int head = 0; head < num_kv_heads; ++head)
            write_slot(*pool, slots[i * num_kv_heads + head], k + i * k_stride + head * pool->width, v + i * v_stride + head * pool->width, positions[i]);
}

// q [T, H, E] bfloat16, tokens q_stride elements apart. Joins what rows read of their lists with out float32 [T * H, E] and lse [T * H];
// -inf where nothing was met yet; is_fresh: of all rows. A row stands in one list at most. into: where all rows go, as bfloat16, or null.
// Returns how many pairs of a row and a key met, -1 when the width is unknown.
int64_t lists_run(const Lists *lists, const Pool *pool, float softcap, const uint16_t *q, int64_t q_stride, int num_tokens, int is_fresh, float *out,
                  float *lse, uint16_t *into) {
    const int64_t num_rows = static_cast<int64_t>(num_tokens) * lists->num_heads, num = num_rows * pool->width;
    if (is_fresh) {
        std::memset(out, 0, num * sizeof(float));
        for (int64_t i = 0; i < num_rows; ++i) lse[i] = MINUS_INF;
    }
    const int64_t found = run_width({pool, lists, scaling_of(*pool, softcap), q, q_stride, out, lse}, pool->width);
    if (into)
        for (int64_t i = 0; i < num; i += 16)
            _mm256_storeu_si256(reinterpret_cast<__m256i *>(into + i), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(_mm512_loadu_ps(out + i))));
    return found;
}

}

#else
#include <cstdint>

extern "C" int64_t lists_run(const void *, const void *, float, const void *, int64_t, int, int, void *, void *, void *) { return -1; }

#endif
