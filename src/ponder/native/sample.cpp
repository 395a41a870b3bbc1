// Draws one token per row of float32 logits, at a temperature, by one uniform number per row.
//
// A row meets its vocabulary in blocks of 128, in order; sums over blocks are float64. A row's result depends on the row alone.

#include <cmath>
#include <cstdint>
#include <vector>

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#include <omp.h>
#include "simd.hpp"

namespace {

constexpr int BLOCK = 128;

inline __m512 load_some(const float *row, int64_t at, int64_t size, float fill) {
    const int64_t left = size - at;
    if (left >= 16) return _mm512_loadu_ps(row + at);
    if (left <= 0) return _mm512_set1_ps(fill);
    return _mm512_mask_loadu_ps(_mm512_set1_ps(fill), static_cast<__mmask16>((1u << left) - 1), row + at);
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

int64_t pick(const float *row, int64_t size, float top, float scale, double probe, const std::vector<double> &sums) {
    const int64_t num_blocks = static_cast<int64_t>(sums.size());
    double total = 0;
    for (double sum : sums) total += sum;
    const double target = probe * total;
    double passed = 0;
    int64_t block = 0, last = 0;
    double before = 0;
    for (; block < num_blocks; ++block) {
        if (sums[block] > 0) last = block, before = passed;
        if (passed + sums[block] > target && sums[block] > 0) break;
        passed += sums[block];
    }
    if (block == num_blocks) block = last; else before = passed;
    float weights[BLOCK];
    block_weights(row, block * BLOCK, size, _mm512_set1_ps(top), _mm512_set1_ps(scale), weights);
    int64_t found = 0;
    double inside = before;
    for (int i = 0; i < BLOCK; ++i) {
        if (weights[i] <= 0) continue;
        found = i;
        inside += weights[i];
        if (inside > target) break;
    }
    return block * BLOCK + found;
}

}  // namespace

extern "C" {

// logits [R, V]; temperature and probe [R] -> token, log_p (model), log_q (drawn from), certainty (KL(uniform || model)), all [R].
int sample_rows(const float *logits, int64_t num_rows, int64_t size, const float *temperatures, const double *probes, int64_t *tokens,
                double *log_p, double *log_q, double *certainty, int num_threads) {
    const int64_t num_blocks = (size + BLOCK - 1) / BLOCK;
#pragma omp parallel for schedule(dynamic, 1) num_threads(num_threads < num_rows ? num_threads : static_cast<int>(num_rows))
    for (int64_t r = 0; r < num_rows; ++r) {
        const float *row = logits + r * size;
        __m512 top16 = _mm512_set1_ps(-INFINITY);
        double sum_logits = 0;
        for (int64_t b = 0; b < num_blocks; ++b) {
            __m512 sum = _mm512_setzero_ps();
            for (int i = 0; i < BLOCK; i += 16) {
                top16 = _mm512_max_ps(top16, load_some(row, b * BLOCK + i, size, -INFINITY));
                sum = _mm512_add_ps(sum, load_some(row, b * BLOCK + i, size, 0.0f));
            }
            sum_logits += _mm512_reduce_add_ps(sum);
        }
        const float top = _mm512_reduce_max_ps(top16), temperature = temperatures[r];
        const __m512 tops = _mm512_set1_ps(top), one = _mm512_set1_ps(1.0f);
        std::vector<double> sums(num_blocks);
        double total = 0;
        for (int64_t b = 0; b < num_blocks; ++b) total += sums[b] = block_weights(row, b * BLOCK, size, tops, one, nullptr);
        const double log_sum = std::log(total);
        int64_t token = 0;
        double q = 0;
        if (temperature == 0) {
            while (row[token] != top && token + 1 < size) ++token;
        } else if (temperature == 1) {
            token = pick(row, size, top, 1.0f, probes[r], sums);
            q = static_cast<double>(row[token] - top) - log_sum;
        } else {
            const float scale = 1.0f / temperature;
            double shaped = 0;
            for (int64_t b = 0; b < num_blocks; ++b) shaped += sums[b] = block_weights(row, b * BLOCK, size, tops, _mm512_set1_ps(scale), nullptr);
            token = pick(row, size, top, scale, probes[r], sums);
            q = static_cast<double>((row[token] - top) * scale) - std::log(shaped);
        }
        tokens[r] = token;
        log_p[r] = static_cast<double>(row[token] - top) - log_sum;
        log_q[r] = q;
        certainty[r] = log_sum - (sum_logits / static_cast<double>(size) - top) - std::log(static_cast<double>(size));
    }
    return 1;
}

}

#else

extern "C" int sample_rows(...) { return 0; }

#endif
