// Attention by lists: each unit is up to MAX_ROWS query rows that meet the same list of pages, in its order. What is not listed costs
// nothing. A row is a (token, head) pair. Blocks, chunks and the order of sums are those of attention.cpp, so that rows with all their
// pages listed read what they read there, bit for bit; and a row depends on its own list and query alone.
//
// Results are joined with what the same rows read before, of other keys: out and lse stand for all keys met so far.

#include <vector>

#if defined(__AVX512F__) && defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#include <omp.h>
#include <atomic>
#include "attention_block.hpp"

extern "C" {

struct Lists {
    int32_t num_units, num_threads;
    const int32_t *units;   // [num_units, 4]: first row, last row, first page, last page
    const int32_t *rows;    // token * H + head
    const int32_t *limits;  // beside each row: it sees keys at places below this
    const int32_t *pages;   // ascending in their places
    const int32_t *places;  // beside each page: place of its first key
    float log_weight;       // of every key met
};

}

namespace {

struct Reading {
    const Pool *pool;
    const Lists *lists;
    Scaling scaling;
    const uint16_t *q;
    int64_t q_stride;
    int num_heads;
    float *out, *lse;
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

template <int NV>
void run_list(const Reading &reading, const int32_t *unit) {
    constexpr int E = NV * 16, EP = padded(E), EACH = BLOCK / PAGE, CHUNK_PAGES = CHUNK / PAGE;
    static thread_local Room room;
    static thread_local std::vector<float> states;  // [row][chunk][E + 2]
    const Pool &pool = *reading.pool;
    const Lists &lists = *reading.lists;
    const int num_rows = unit[1] - unit[0];
    const int32_t *rows = lists.rows + unit[0], *pages = lists.pages + unit[2], *places = lists.places + unit[2];
    int most = 0, fewest = 1 << 30;
    for (int r = 0; r < num_rows; ++r) {
        room.visible[r] = lists.limits[unit[0] + r];
        if (room.visible[r] > most) most = room.visible[r];
        if (room.visible[r] < fewest) fewest = room.visible[r];
        uint32_t *query = room.queries + r * (EP / 2);
        std::memcpy(query, reading.q + rows[r] / reading.num_heads * reading.q_stride + rows[r] % reading.num_heads * E, E * 2);
        if constexpr (EP > E) std::memset(query + E / 2, 0, (EP - E) * 2);
    }
    int num_pages = unit[3] - unit[2];
    while (num_pages && places[num_pages - 1] >= most) --num_pages;  // none of its rows sees it
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
            for (int p = at + EACH; p < num_pages && p < at + 2 * EACH; ++p) prefetch_page(pool, pages[p]);
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
}

template <int NV>
void run_lists(const Reading &reading) {
    std::atomic<int> next(0);
#pragma omp parallel num_threads(reading.lists->num_threads)
    {
#ifdef PONDER_HAS_TILES
        const ponder::Tiles tiles;
#endif
        for (int i; (i = next.fetch_add(1, std::memory_order_relaxed)) < reading.lists->num_units;) run_list<NV>(reading, reading.lists->units + i * 4);
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
// -inf where nothing was met yet. A row stands in one unit at most. 0 when the width is unknown.
int lists_run(const Lists *lists, const Pool *pool, float softcap, const uint16_t *q, int64_t q_stride, int num_heads, float *out, float *lse) {
    const Reading reading{pool, lists, scaling_of(*pool, softcap), q, q_stride, num_heads, out, lse};
    switch (pool->width) {
        case 16: run_lists<1>(reading); return 1;
        case 32: run_lists<2>(reading); return 1;
        case 48: run_lists<3>(reading); return 1;
        case 64: run_lists<4>(reading); return 1;
        case 80: run_lists<5>(reading); return 1;
        case 96: run_lists<6>(reading); return 1;
        case 112: run_lists<7>(reading); return 1;
        case 128: run_lists<8>(reading); return 1;
        case 160: run_lists<10>(reading); return 1;
        case 192: run_lists<12>(reading); return 1;
        case 256: run_lists<16>(reading); return 1;
        default: return 0;
    }
}

}

#else

extern "C" int lists_run(const void *, const void *, float, const void *, long, int, void *, void *) { return 0; }

#endif
