// Draws one token per row of float32 logits, by one uniform number per row.
//
// Logits are moved (penalties, biases, what a form allows), then their weights exp((logit - top) / temperature) are cut (top_k, top_p,
// min_p), then one is picked at the place of the uniform number in their running sum. A row meets its vocabulary in blocks of 128, in
// order: sums are float32 within a block, 16 lanes that are added in halves, and float64 over blocks. A row's result depends on the row
// alone, and is, but for the rounding of exp, what sampler.py computes, bit for bit.

#include <cmath>
#include <cstdint>
#include <vector>

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#include <omp.h>
#include <algorithm>
#include <cstring>
#include <functional>
#include <utility>
#include "simd.hpp"

namespace {

constexpr int BLOCK = 128;
constexpr float STEP = 0.25f, SMALLEST = 1e-38f;  // weights are searched from the largest, 1, down in such steps

struct Cut {
    int64_t top_k;  // 0: all
    double top_p;   // 1: all
    float min_p, unused;
};

// In this order: penalties of tokens seen, biases, tokens that are not allowed. Null where there are none.
struct Move {
    const int64_t *seen;
    int64_t num_seen;
    float repetition, frequency, presence, unused;
    const int64_t *ids;
    const float *biases;
    int64_t num_biases;
    const uint8_t *allowed;  // one a token
    int64_t width;           // of `allowed`; no token beyond is
};

inline __m512 load_some(const float *row, int64_t at, int64_t size, float fill) {
    const int64_t left = size - at;
    if (left >= 16) return _mm512_loadu_ps(row + at);
    if (left <= 0) return _mm512_set1_ps(fill);
    return _mm512_mask_loadu_ps(_mm512_set1_ps(fill), static_cast<__mmask16>((1u << left) - 1), row + at);
}

inline double sum_of(const double *values, int64_t num) {
    double total = 0;
    for (int64_t i = 0; i < num; ++i) total += values[i];
    return total;
}

// The weights exp((logit - top) * scale) of a block, and their sum.
inline float block_weights(const float *row, int64_t start, int64_t size, __m512 top, __m512 scale, float *weights) {
    __m512 sum = _mm512_setzero_ps();
    for (int i = 0; i < BLOCK; i += 16) {
        const __m512 x = load_some(row, start + i, size, -INFINITY);
        const __m512 w = exp_ps(_mm512_mul_ps(_mm512_sub_ps(x, top), scale));
        if (weights) _mm512_storeu_ps(weights + i, w);
        sum = _mm512_add_ps(sum, w);
    }
    return _mm512_reduce_add_ps(sum);
}

// A row of logits, and the sums of its weights at one temperature.
struct Row {
    const float *logits;
    int64_t size;
    float top;
    double mean;               // of the logits
    std::vector<double> sums;  // of blocks of weights

    Row(const float *logits, int64_t size) : logits(logits), size(size), sums((size + BLOCK - 1) / BLOCK) {
        __m512 top16 = _mm512_set1_ps(-INFINITY);
        double total = 0;
        for (int64_t start = 0; start < size; start += BLOCK) {
            __m512 sum = _mm512_setzero_ps();
            for (int i = 0; i < BLOCK; i += 16) {
                top16 = _mm512_max_ps(top16, load_some(logits, start + i, size, -INFINITY));
                sum = _mm512_add_ps(sum, load_some(logits, start + i, size, 0.0f));
            }
            total += _mm512_reduce_add_ps(sum);
        }
        top = _mm512_reduce_max_ps(top16), mean = total / static_cast<double>(size);
    }

    int64_t num_blocks() const { return static_cast<int64_t>(sums.size()); }

    // Log of the sum of the weights at 1 / scale. weights: where they go, or null.
    double weigh(float scale, float *weights) {
        for (int64_t b = 0; b < num_blocks(); ++b)
            sums[b] = block_weights(logits, b * BLOCK, size, _mm512_set1_ps(top), _mm512_set1_ps(scale), weights ? weights + b * BLOCK : nullptr);
        return std::log(sum_of(sums.data(), num_blocks()));
    }

    // The same of weights that were cut.
    double resum(const float *weights) {
        for (int64_t b = 0; b < num_blocks(); ++b) {
            __m512 sum = _mm512_setzero_ps();
            for (int i = 0; i < BLOCK; i += 16) sum = _mm512_add_ps(sum, _mm512_loadu_ps(weights + b * BLOCK + i));
            sums[b] = _mm512_reduce_add_ps(sum);
        }
        return std::log(sum_of(sums.data(), num_blocks()));
    }

    int64_t largest() const {
        int64_t token = 0;
        while (logits[token] != top && token + 1 < size) ++token;
        return token;
    }

    // The token at which the running sum passes probe * total. weights: all of them, or null, then those at 1 / scale.
    int64_t pick(float scale, double probe, const float *weights) const {
        const double target = probe * sum_of(sums.data(), num_blocks());
        double passed = 0, before = 0;
        int64_t block = 0, last = 0;
        for (; block < num_blocks(); ++block) {
            if (sums[block] > 0) last = block, before = passed;
            if (passed + sums[block] > target && sums[block] > 0) break;
            passed += sums[block];
        }
        if (block == num_blocks()) block = last; else before = passed;
        float own[BLOCK];
        if (!weights) block_weights(logits, block * BLOCK, size, _mm512_set1_ps(top), _mm512_set1_ps(scale), own);
        const float *some = weights ? weights + block * BLOCK : own;
        int64_t found = 0;
        double inside = before;
        for (int i = 0; i < BLOCK; ++i) {
            if (some[i] <= 0) continue;
            found = i;
            inside += some[i];
            if (inside > target) break;
        }
        return block * BLOCK + found;
    }
};

// Cuts weights of one row; size is a whole number of blocks, whose padding has weight 0.
class Cutter {
  public:
    Cutter(float *weights, int64_t size) : weights(weights), size(size) {}

    void keep_num(int64_t num) {
        for (float least = STEP;; least *= STEP) {
            const bool is_all = gather(least);
            if (static_cast<int64_t>(found.size()) >= num) break;
            if (is_all) return;  // fewer have any weight
        }
        std::nth_element(found.begin(), found.begin() + num - 1, found.end(), std::greater<float>());
        keep(found[num - 1], num);
    }

    // The smallest set of largest weights that holds at least `wanted`.
    void keep_mass(double wanted) {
        for (float least = STEP;; least *= STEP) {
            const bool is_all = gather(least);
            double mass = 0;
            for (float w : found) mass += w;
            if (mass < wanted && !is_all) continue;
            sort();
            mass = 0;
            size_t num = 0;
            while (num < found.size() && mass < wanted) mass += found[num++];
            if (mass < wanted && !is_all) continue;  // the order of a sum changes its last bits
            if (num) keep(found[num - 1], static_cast<int64_t>(num));
            return;
        }
    }

    void keep_above(float least) {
        for (int64_t i = 0; i < size; i += 16) {
            const __m512 w = _mm512_loadu_ps(weights + i);
            _mm512_storeu_ps(weights + i, _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(w, _mm512_set1_ps(least), _CMP_GE_OQ), w));
        }
    }

  private:
    float *weights;
    int64_t size;
    std::vector<float> found, spare;

    // `found`, largest first; many by their bits, 11 at a time, for positive floats are in the order of their bits.
    void sort() {
        if (found.size() < 1024) return std::sort(found.begin(), found.end(), std::greater<float>());
        spare.resize(found.size());
        for (int shift = 0; shift < 32; shift += 11) {
            const auto digit = [shift](float w) {
                uint32_t bits;
                std::memcpy(&bits, &w, sizeof bits);
                return 2047 - (bits >> shift & 2047);
            };
            size_t starts[2049] = {};
            for (float w : found) ++starts[digit(w) + 1];
            for (int d = 0; d < 2048; ++d) starts[d + 1] += starts[d];
            for (float w : found) spare[starts[digit(w)]++] = w;
            found.swap(spare);
        }
    }

    // Puts all weights of at least `least` in `found`; true where no other is above 0.
    bool gather(float least) {
        const bool is_all = least < SMALLEST;
        const __m512 bound = _mm512_set1_ps(is_all ? SMALLEST : least);
        found.resize(size + 16);
        float *end = found.data();
        for (int64_t i = 0; i < size; i += 16) {
            const __m512 w = _mm512_loadu_ps(weights + i);
            const __mmask16 some = _mm512_cmp_ps_mask(w, bound, _CMP_GE_OQ);
            if (some) _mm512_storeu_ps(end, _mm512_maskz_compress_ps(some, w)), end += __builtin_popcount(some);
        }
        found.resize(end - found.data());
        return is_all;
    }

    // Zeroes all but the `num` largest, of which `smallest` is the least; the first of equals.
    void keep(float smallest, int64_t num) {
        const __m512 least = _mm512_set1_ps(smallest);
        for (int64_t i = 0; i < size; i += 16) num -= __builtin_popcount(_mm512_cmp_ps_mask(_mm512_loadu_ps(weights + i), least, _CMP_GT_OQ));
        for (int64_t i = 0; i < size; i += 16) {
            const __m512 w = _mm512_loadu_ps(weights + i);
            unsigned kept = _mm512_cmp_ps_mask(w, least, _CMP_GT_OQ);
            for (unsigned equal = _mm512_cmp_ps_mask(w, least, _CMP_EQ_OQ); equal && num > 0; equal &= equal - 1, --num) kept |= equal & -equal;
            _mm512_storeu_ps(weights + i, _mm512_maskz_mov_ps(static_cast<__mmask16>(kept), w));
        }
    }
};

void penalise(const Move &move, float *row) {
    std::vector<int64_t> seen(move.seen, move.seen + move.num_seen);
    std::sort(seen.begin(), seen.end());
    for (size_t i = 0, next; i < seen.size(); i = next) {
        for (next = i + 1; next < seen.size() && seen[next] == seen[i]; ++next) {}
        float &z = row[seen[i]];
        z = z > 0 ? z / move.repetition : z * move.repetition;
        z = z - move.frequency * static_cast<float>(next - i) - move.presence;
    }
}

void forbid(const Move &move, float *row, int64_t size) {
    for (int64_t i = 0; i < size; i += 16) {
        const int64_t num = std::min<int64_t>(16, size - i), known = std::max<int64_t>(0, std::min(num, move.width - i));
        const __m128i bytes = _mm_maskz_loadu_epi8(static_cast<__mmask16>((1u << known) - 1), move.allowed + i);
        const __mmask16 forbidden = _mm_testn_epi8_mask(bytes, bytes);
        _mm512_mask_storeu_ps(row + i, forbidden & static_cast<__mmask16>((1u << num) - 1), _mm512_set1_ps(-INFINITY));
    }
}

void apply(const Move &move, const float *logits, float *row, int64_t size) {
    std::copy(logits, logits + size, row);
    if (move.num_seen) penalise(move, row);
    for (int64_t i = 0; i < move.num_biases; ++i) row[move.ids[i]] += move.biases[i];
    if (move.allowed) forbid(move, row, size);
}

struct Wish {
    float temperature;
    double probe;
    const Cut *cut;
};

struct Made {
    int64_t token;
    double log_q;
};

// log_sum: of the row's weights at temperature 1, which row.sums holds.
Made draw(Row &row, double log_sum, const Wish &wish) {
    if (wish.temperature == 0) return {row.largest(), 0.0};
    const float scale = 1.0f / wish.temperature;
    static thread_local std::vector<float> weights;
    float *all = nullptr;
    if (wish.cut) {
        const int64_t num = row.num_blocks() * BLOCK;
        weights.resize(num), all = weights.data();
        log_sum = row.weigh(scale, all);
        Cutter cutter(all, num);
        if (wish.cut->top_k > 0 && wish.cut->top_k < row.size) cutter.keep_num(wish.cut->top_k), log_sum = row.resum(all);
        if (wish.cut->top_p < 1) cutter.keep_mass(wish.cut->top_p * sum_of(row.sums.data(), row.num_blocks()));
        if (wish.cut->min_p > 0) cutter.keep_above(wish.cut->min_p);
        log_sum = row.resum(all);
    } else if (wish.temperature != 1) {
        log_sum = row.weigh(scale, nullptr);
    }
    const int64_t token = row.pick(scale, wish.probe, all);
    return {token, static_cast<double>((row.logits[token] - row.top) * scale) - log_sum};
}

}  // namespace

extern "C" {

// logits [R, V]; temperature and probe [R]; cuts [R], or null; moves [R] of pointers or nulls, or null
// -> token, log_p (model), log_q (drawn from), certainty (KL(uniform || model)), all [R].
int sample_rows(const float *logits, int64_t num_rows, int64_t size, const float *temperatures, const double *probes, const Cut *cuts,
                const Move *const *moves, int64_t *tokens, double *log_p, double *log_q, double *certainty, int num_threads) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(num_threads < num_rows ? num_threads : static_cast<int>(num_rows))
    for (int64_t r = 0; r < num_rows; ++r) {
        Row model(logits + r * size, size);
        const double log_sum = model.weigh(1.0f, nullptr);
        const Cut *cut = cuts && (cuts[r].top_k > 0 || cuts[r].top_p < 1 || cuts[r].min_p > 0) ? cuts + r : nullptr;
        const Wish wish{temperatures[r], probes[r], cut};
        Made made;
        if (moves && moves[r]) {
            static thread_local std::vector<float> moved;
            moved.resize(size);
            apply(*moves[r], model.logits, moved.data(), size);
            Row proposal(moved.data(), size);
            made = draw(proposal, wish.temperature == 1 && !cut ? proposal.weigh(1.0f, nullptr) : 0.0, wish);
        } else {
            made = draw(model, log_sum, wish);
        }
        tokens[r] = made.token;
        log_p[r] = static_cast<double>(model.logits[made.token] - model.top) - log_sum;
        log_q[r] = made.log_q;
        certainty[r] = log_sum - (model.mean - model.top) - std::log(static_cast<double>(size));
    }
    return 1;
}

}

#else

extern "C" int sample_rows(...) { return 0; }

#endif
