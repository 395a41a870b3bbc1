// Packed matrices, quantised activations, and the product of 16 outputs by up to 8 rows. See matrix.cpp for the arithmetic.

#pragma once

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__) && defined(__AVX512VNNI__) \
    && defined(__AVX512BF16__)
#define PONDER_HAS_MATRIX 1

#include <immintrin.h>
#include <omp.h>
#include <cstddef>
#include <cstdint>

namespace ponder {

constexpr int OUTPUTS = 16;  // of a block: the float lanes of a register
constexpr int GROUP = 32;    // inputs that share a scale
constexpr int TILE = 8;      // rows multiplied together

// [rows, columns] in blocks of OUTPUTS rows, padded with zeros. Weight w = scale * (code - zero), or scale * code + minimum.
struct Matrix {
    const uint8_t *codes;    // [blocks, groups, bytes of a group]
    const uint16_t *scales;  // float16 [blocks, groups, OUTPUTS], with minima [blocks, groups, 2, OUTPUTS]
    const float *row_scales; // [blocks * OUTPUTS] powers of two, of the row's scales and minima
    int32_t rows, columns, bits, has_minima;

    int blocks() const { return (rows + OUTPUTS - 1) / OUTPUTS; }
    int groups() const { return (columns + GROUP - 1) / GROUP; }
};

// Activations x = scale * code in tiles of TILE rows (the last one of fewer): codes [tile][group][GROUP / 4][rows of the tile][4].
struct Rows {
    int32_t *codes;  // four int8 each
    float *scales;   // [tile][group][rows of the tile]
    float *shifts;   // the same: scale * sum of codes
    int32_t *sums;   // the same: minus the sum of codes
    int num_rows, groups;

    int tiles() const { return (num_rows + TILE - 1) / TILE; }
    int tile_rows(int tile) const { return num_rows - tile * TILE < TILE ? num_rows - tile * TILE : TILE; }
    size_t tile_at(int tile) const { return static_cast<size_t>(tile) * TILE * groups; }
    static size_t nbytes(int num_rows, int groups) { return static_cast<size_t>(num_rows) * groups * (GROUP + 12) + 256; }
    static Rows at(char *memory, int num_rows, int groups) {
        const size_t n = static_cast<size_t>(num_rows) * groups;
        char *rest = memory + n * GROUP;
        return {reinterpret_cast<int32_t *>(memory), reinterpret_cast<float *>(rest), reinterpret_cast<float *>(rest + n * 4),
                reinterpret_cast<int32_t *>(rest + n * 8), num_rows, groups};
    }
};

// out[row of the tile][OUTPUTS] = the product of a block's outputs with a tile's rows.
void multiply(const Matrix &matrix, int block, const Rows &rows, int tile, float *out);

// Memory of the calling thread, kept between calls.
char *scratch(size_t nbytes);

inline int part(int total, int index, int num) { return static_cast<int>(static_cast<int64_t>(total) * index / num); }

inline __mmask16 first_lanes(int num) { return num >= 16 ? 0xffff : num <= 0 ? 0 : static_cast<__mmask16>((1u << num) - 1); }

inline __m512 load_bf16(const uint16_t *x, __mmask16 lanes) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, x)), 16));
}

inline void store_bf16(uint16_t *y, __mmask16 lanes, __m512 value) {
    _mm256_mask_storeu_epi16(y, lanes, reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(value)));
}

// Quantises one group of one row; a value that is no number makes the scale none either.
inline void quantise(__m512 a, __m512 b, const Rows &rows, int tile, int group, int row) {
    const float top = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(a), _mm512_abs_ps(b)));
    const __m512 inverse = _mm512_set1_ps(top > 0 ? 127.0f / top : 0.0f);
    const __m512i low = _mm512_cvtps_epi32(_mm512_mul_ps(a, inverse)), high = _mm512_cvtps_epi32(_mm512_mul_ps(b, inverse));
    const int sum = _mm512_reduce_add_epi32(_mm512_add_epi32(low, high));
    alignas(32) int32_t quads[8];
    _mm_store_si128(reinterpret_cast<__m128i *>(quads), _mm512_cvtsepi32_epi8(low));
    _mm_store_si128(reinterpret_cast<__m128i *>(quads + 4), _mm512_cvtsepi32_epi8(high));
    const int width = rows.tile_rows(tile);
    int32_t *codes = rows.codes + (rows.tile_at(tile) + static_cast<size_t>(group) * width) * 8 + row;
    for (int q = 0; q < 8; ++q) codes[q * width] = quads[q];
    const size_t at = rows.tile_at(tile) + static_cast<size_t>(group) * width + row;
    const float scale = _mm512_cmp_ps_mask(a, b, _CMP_UNORD_Q) ? top * 0.0f + __builtin_nanf("") : top / 127.0f;
    rows.scales[at] = scale;
    rows.shifts[at] = scale * static_cast<float>(sum);
    rows.sums[at] = -sum;
}

// Quantises groups first..last of all rows; load(row, group, half) gives 16 values. Zeros stand where a row has ended.
template <class Load>
void quantise_groups(const Rows &rows, int first, int last, const Load &load) {
    for (int tile = 0; tile < rows.tiles(); ++tile)
        for (int row = 0; row < rows.tile_rows(tile); ++row)
            for (int group = first; group < last; ++group)
                quantise(load(tile * TILE + row, group, 0), load(tile * TILE + row, group, 1), rows, tile, group, row);
}

}  // namespace ponder

#endif
