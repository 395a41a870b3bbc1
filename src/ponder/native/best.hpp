// The largest of many numbers, by their places.
#pragma once

#include <immintrin.h>
#include <cstdint>

namespace {

// Whole numbers in the order of the floats; both zeros are one.
inline __m512i ordered(__m512 x) {
    const __m512i bits = _mm512_castps_si512(_mm512_add_ps(x, _mm512_setzero_ps()));
    return _mm512_xor_si512(bits, _mm512_and_si512(_mm512_srai_epi32(bits, 31), _mm512_set1_epi32(0x7fffffff)));
}

inline __mmask16 lanes(int left) { return left >= 16 ? 0xffff : left <= 0 ? 0 : static_cast<__mmask16>((1u << left) - 1); }

// Places of the `num` largest of `scores`, ascending; of equal ones the earlier. Writes at most `num` and returns how many.
// The number that the last of them has is found by halving: no sort, and the same work whatever the scores are.
inline int best_places(const float *scores, int num_scores, int num, int32_t *out) {
    if (num_scores <= num) {
        for (int i = 0; i < num_scores; ++i) out[i] = i;
        return num_scores;
    }
    const auto count = [&](int32_t least) {
        const __m512i bound = _mm512_set1_epi32(least);
        int found = 0;
        for (int i = 0; i < num_scores; i += 16) {
            const __mmask16 some = lanes(num_scores - i);
            found += __builtin_popcount(_mm512_mask_cmpge_epi32_mask(some, ordered(_mm512_maskz_loadu_ps(some, scores + i)), bound));
        }
        return found;
    };
    int64_t low = INT32_MIN, high = static_cast<int64_t>(INT32_MAX) + 1;  // at least num are >= low, fewer are >= high
    int above = 0;                                                        // how many are >= high
    while (high - low > 1) {
        const int64_t middle = low + (high - low) / 2;
        const int found = count(static_cast<int32_t>(middle));
        if (found == num) {
            low = middle, high = middle, above = num;
            break;
        }
        if (found > num) low = middle;
        else high = middle, above = found;
    }
    const bool has_ties = high != low;
    const __m512i bound = _mm512_set1_epi32(static_cast<int32_t>(low));
    int left = num - above, at = 0;  // of those that are `low` itself
    const __m512i place = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (int i = 0; i < num_scores; i += 16) {
        const __mmask16 some = lanes(num_scores - i);
        const __m512i x = ordered(_mm512_maskz_loadu_ps(some, scores + i));
        __mmask16 kept = _mm512_mask_cmpge_epi32_mask(some, x, bound);
        if (has_ties) {
            uint32_t ties = _mm512_mask_cmpeq_epi32_mask(some, x, bound);
            for (; ties; ties &= ties - 1) {
                if (left > 0) --left;
                else kept &= ~static_cast<__mmask16>(ties & -ties);
            }
        }
        _mm512_mask_compressstoreu_epi32(out + at, kept, _mm512_add_epi32(place, _mm512_set1_epi32(i)));
        at += __builtin_popcount(kept);
    }
    return at;
}

}  // namespace
