// Attention over pages of keys and values, for a step's tokens of many sequences at once.
//
// What a token reads depends, bit for bit, on its own query and its keys alone. Every (query, head) meets its keys in blocks
// of 64 in the order of their index; a running (max, sum, accumulator) is carried from block to block and starts anew every
// CHUNK keys; the chunks are merged in order at the end. Which queries meet a block together (a shared prefix is read once for
// all sequences that have it: Hydragen, also as a tree) and which thread does it changes no bit.
//
// Keys and values are bfloat16, or int8 with a float scale per slot. Products are of bfloat16, their sums and all else float32.

#include <utility>
#include <vector>

#if defined(__AVX512F__) && defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#include <omp.h>
#include <atomic>
#include "attention_block.hpp"

extern "C" {

// One step. Tokens are flat; sequences are numbered; groups are ranges of tokens that share the pages of a block range.
struct Step {
    int32_t num_tokens, num_heads, num_kv_heads, num_groups, tail_words, num_threads, num_copies;
    const int32_t *sequence;       // [T] which sequence a token belongs to
    const int32_t *index;          // [T] its place among the keys of its sequence
    const int32_t *limit;          // [T] keys it sees: those of index below this ...
    const uint64_t *tail;          // [T, tail_words] ... and, where set, those at limit + bit (tree), or null
    const int32_t *position;       // [T]
    const int32_t *const *pages;   // per sequence: [L, K, capacity]
    const int64_t *capacity;       // per sequence
    const int32_t *const *dropped; // per sequence: [L, K] keys that a head no longer holds, or null
    const int32_t *groups;         // [num_groups, 6]: first token, last token, sequence, first block, last block or -1, level
    const int32_t *copies;         // [num_copies, 3]: a token that is written to that sequence too, at that place
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

struct Call {
    const Pool *pool;
    const Plan *plan;
    int layer, window;
    Scaling scaling;
    const uint16_t *q;
    int64_t q_stride;
};

inline float *state_of(const Plan &plan, int token, int head, int chunk, int width) {
    return scratch.data() + ((plan.states[token] + chunk) * plan.step.num_heads + head) * (width + 2);
}

inline void prefetch_block(const Call &call, const Unit &unit, const int32_t *pages, int block) {
    int stop = (block + 1) * (BLOCK / PAGE);
    if (stop > unit.num_pages) stop = unit.num_pages;
    for (int p = block * (BLOCK / PAGE); p < stop; ++p) prefetch_page(*call.pool, pages[p]);
}

// What a row sees of a register of keys: those below its limit, its tail, and within its window.
inline __mmask16 seen_of(const Call &call, const Room &room, int row, int start, const int32_t *pages, int num_pages, int v) {
    const Step &step = call.plan->step;
    const int token = room.tokens[row], left = room.visible[row] - start - v * 16;
    if (v >= num_pages) return 0;
    __mmask16 seen = left >= 16 ? 0xffff : left <= 0 ? 0 : static_cast<__mmask16>((1u << left) - 1);
    if (step.tail && left < 16) {
        const uint64_t *bits = step.tail + static_cast<int64_t>(token) * step.tail_words;
        for (int j = left < 0 ? 0 : left; j < 16; ++j) {
            const int bit = j - left;
            if (bit < step.tail_words * 64 && (bits[bit / 64] >> (bit % 64) & 1)) seen |= 1u << j;
        }
    }
    if (seen && call.window) {
        const __m512i at = _mm512_loadu_si512(call.pool->positions + static_cast<int64_t>(pages[start / PAGE + v]) * PAGE);
        seen &= _mm512_cmpgt_epi32_mask(at, _mm512_set1_epi32(step.position[token] - call.window));
    }
    return seen;
}

// Takes up the rows of a unit where an earlier one of the same chunk left them. Returns the most and the fewest keys that a row sees.
template <int NV>
std::pair<int, int> begin_unit(const Call &call, const Unit &unit, Room &room, int num_rows, int chunk) {
    constexpr int E = NV * 16, EP = padded(E);
    const Step &step = call.plan->step;
    const int group = step.num_heads / step.num_kv_heads;
    int most = 0, fewest = 1 << 30;
    for (int r = 0; r < num_rows; ++r) {
        const int token = unit.first + r / group, head = unit.head * group + r % group;
        const int32_t *gone = step.dropped ? step.dropped[step.sequence[token]] : nullptr;
        const int dropped = gone ? gone[call.layer * step.num_kv_heads + unit.head] : 0, all = count_keys(step, token) - dropped;
        room.tokens[r] = token, room.visible[r] = step.limit[token] - dropped;
        if (all > most) most = all;
        if (room.visible[r] < fewest) fewest = room.visible[r];
        uint32_t *query = room.queries + r * (EP / 2);
        std::memcpy(query, call.q + token * call.q_stride + head * E, E * 2);
        if constexpr (EP > E) std::memset(query + E / 2, 0, (EP - E) * 2);
        if (unit.is_fresh || chunk >= call.plan->states[token + 1] - call.plan->states[token]) {
            room.tops[r] = MINUS_INF, room.totals[r] = 0;
            std::memset(room.sums + r * E, 0, E * sizeof(float));
        } else {
            const float *state = state_of(*call.plan, token, head, chunk, E);
            room.tops[r] = state[0], room.totals[r] = state[1];
            std::memcpy(room.sums + r * E, state + 2, E * sizeof(float));
        }
    }
    return {most, fewest};
}

// Whether all keys of a block are too old for every row of a unit: then nothing changes.
inline bool is_too_old(const Call &call, const Room &room, int num_rows, const int32_t *pages, int start, int num_keys) {
    int newest = -1, oldest = 1 << 30;
    for (int r = 0; r < num_rows; ++r)
        if (call.plan->step.position[room.tokens[r]] < oldest) oldest = call.plan->step.position[room.tokens[r]];
    for (int j = 0; j < num_keys; ++j) {
        const int at = call.pool->positions[static_cast<int64_t>(pages[(start + j) / PAGE]) * PAGE + (start + j) % PAGE];
        if (at > newest) newest = at;
    }
    return newest <= oldest - call.window;
}

template <int NV>
void run_unit(const Call &call, const Unit &unit) {
    constexpr int E = NV * 16;
    static thread_local Room room;
    const Step &step = call.plan->step;
    const Pool &pool = *call.pool;
    const int group = step.num_heads / step.num_kv_heads, num_rows = (unit.last - unit.first) * group, chunk = unit.begin * BLOCK / CHUNK;
    const int32_t *pages = step.pages[unit.sequence] + (static_cast<int64_t>(call.layer) * step.num_kv_heads + unit.head) * step.capacity[unit.sequence];
    const auto [most, fewest] = begin_unit<NV>(call, unit, room, num_rows, chunk);
    begin_scores<NV>(pool, room, num_rows);
    const bool is_simple = !call.window && call.scaling.softcap == 0 && !pool.is_int8;
    for (int block = unit.begin; block < unit.end; ++block) {
        const int start = block * BLOCK, num_keys = most - start < BLOCK ? most - start : BLOCK;
        if (num_keys <= 0) break;
        if (block + 1 < unit.end) prefetch_block(call, unit, pages, block + 1);
        const int num_pages = (num_keys + PAGE - 1) / PAGE;
        if (call.window && is_too_old(call, room, num_rows, pages, start, num_keys)) continue;
        score_all<NV>(pool, room, num_rows, pages + start / PAGE, num_pages);
        for (int first = 0; first < num_rows; first += 16) {
            const int num = num_rows - first < 16 ? num_rows - first : 16;
            const auto sees = [&](int row, int v) { return seen_of(call, room, row, start, pages, num_pages, v); };
            if (is_simple && fewest >= start + BLOCK) weigh<true>(pool, call.scaling, room, first, num, pages + start / PAGE, sees);
            else weigh<false>(pool, call.scaling, room, first, num, pages + start / PAGE, sees);
        }
        gather_block<NV>(pool, room, num_rows, pages + start / PAGE, num_keys);
    }
    for (int r = 0; r < num_rows; ++r) {
        const int token = room.tokens[r];
        if (chunk >= call.plan->states[token + 1] - call.plan->states[token]) continue;  // sees none of this chunk
        float *state = state_of(*call.plan, token, unit.head * group + r % group, chunk, E);
        state[0] = room.tops[r], state[1] = room.totals[r];
        std::memcpy(state + 2, room.sums + r * E, E * sizeof(float));
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
#ifdef PONDER_HAS_TILES
        const ponder::Tiles tiles;
#endif
#pragma omp for schedule(static)
        for (int i = 0; i < step.num_tokens + step.num_copies; ++i) {
            const int32_t *copy = step.copies + (i - step.num_tokens) * 3;
            const bool is_copy = i >= step.num_tokens;
            const int token = is_copy ? copy[0] : i, sequence = is_copy ? copy[1] : step.sequence[i], place = is_copy ? copy[2] : step.index[i];
            for (int head = 0; head < step.num_kv_heads; ++head) {
                const int64_t row = static_cast<int64_t>(call.layer) * step.num_kv_heads + head;
                const int32_t *gone = step.dropped ? step.dropped[sequence] : nullptr;
                const int at = place - (gone ? gone[row] : 0);
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
                __m512 sum[NV];
                const auto state = [&](int c) { return state_of(plan, token, head, c, E); };
                const float log_total = join_chunks<NV>(*call.pool, call.scaling, num_chunks, state, sum);
                for (int w = 0; w < NV; ++w)
                    _mm256_storeu_si256(reinterpret_cast<__m256i *>(out + (static_cast<int64_t>(token) * step.num_heads + head) * E + w * 16),
                                        reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(sum[w])));
                if (lse) lse[static_cast<int64_t>(token) * step.num_heads + head] = log_total;
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
    const Call call{pool, static_cast<const Plan *>(plan), layer, window, scaling_of(*pool, softcap), q, q_stride};
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
