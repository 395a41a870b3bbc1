// Products of packed matrices with rows quantised as they come.
//
// Activations get int8 codes for every row and group of 32 inputs, scale = largest / 127 (what the Q8_0 activations of llama.cpp
// are). Codes are multiplied and summed within a group as integers, exactly; the groups' sums are added in float32 in the order
// of the groups. So a row of the result depends, bit for bit, on its own row alone: not on the number of rows, which rows share a
// tile, or which thread computes a block.
//
// y = sum over groups of weight_scale * row_scale * dot(code - zero, row_code)  [ + minimum * row_scale * sum(row_code) ]

#include "matrix.hpp"

#ifdef PONDER_HAS_MATRIX

#include <cstdlib>
#include <memory>

namespace ponder {

namespace {

constexpr int SMALL = 1 << 17;  // products below which one thread is faster than two

template <int BITS>
constexpr int group_nbytes() { return GROUP * OUTPUTS * BITS / 8; }

template <int BITS>
constexpr int zero_shift() { return BITS == 4 ? 3 : BITS == 5 ? 4 : 7; }  // zero = 2^this

template <int NR>
inline void dot(__m512i (&sums)[NR], __m512i codes, const int32_t *quads) {
#pragma GCC unroll 8
    for (int r = 0; r < NR; ++r) sums[r] = _mm512_dpbusd_epi32(sums[r], codes, _mm512_set1_epi32(quads[r]));
}

// The integer dot products of one group. Few rows sum in two halves, so that a sum need not wait for the one before.
template <int NR, int BITS>
inline void dot_group(__m512i (&sums)[NR], const uint8_t *codes, const int32_t *quads) {
    constexpr bool IS_SPLIT = NR <= 3;
    __m512i others[NR];
#pragma GCC unroll 8
    for (int r = 0; r < NR; ++r) others[r] = _mm512_setzero_si512();
    const __m512i nibble = _mm512_set1_epi8(15), fifth = _mm512_set1_epi8(16);
    const __mmask64 *bits = reinterpret_cast<const __mmask64 *>(codes + 256);
#pragma GCC unroll 4
    for (int q = 0; q < 4; ++q) {
        __m512i low, high;
        if constexpr (BITS == 8) {
            low = _mm512_loadu_si512(codes + q * 128);
            high = _mm512_loadu_si512(codes + q * 128 + 64);
        } else {
            const __m512i both = _mm512_loadu_si512(codes + q * 64);
            low = _mm512_and_si512(both, nibble), high = _mm512_and_si512(_mm512_srli_epi16(both, 4), nibble);
        }
        if constexpr (BITS == 5) {
            low = _mm512_mask_add_epi8(low, bits[q], low, fifth);
            high = _mm512_mask_add_epi8(high, bits[q + 4], high, fifth);
        }
        dot(sums, low, quads + (BITS == 8 ? 2 * q : q) * NR);
        dot(IS_SPLIT ? others : sums, high, quads + (BITS == 8 ? 2 * q + 1 : q + 4) * NR);
    }
    if constexpr (IS_SPLIT) {
#pragma GCC unroll 8
        for (int r = 0; r < NR; ++r) sums[r] = _mm512_add_epi32(sums[r], others[r]);
    }
}

// Asks for what the next block has at this group: the memory would else rest while rows are multiplied, whatever their number.
template <int BITS, bool HAS_MINIMA>
inline void fetch_next(const uint8_t *codes, const __m256i *halves, int groups) {
    const char *next = reinterpret_cast<const char *>(codes) + static_cast<size_t>(groups) * group_nbytes<BITS>();
#pragma GCC unroll 8
    for (int line = 0; line < BITS; ++line) _mm_prefetch(next + line * 64, _MM_HINT_T1);
    _mm_prefetch(reinterpret_cast<const char *>(halves + groups * (HAS_MINIMA ? 2 : 1)), _MM_HINT_T1);
}

template <int NR, int BITS, bool HAS_MINIMA>
void multiply_tile(const Matrix &matrix, int block, const Rows &rows, int tile, float *out) {
    const int groups = rows.groups;
    const uint8_t *codes = matrix.codes + static_cast<size_t>(block) * groups * group_nbytes<BITS>();
    const __m256i *halves = reinterpret_cast<const __m256i *>(matrix.scales) + static_cast<size_t>(block) * groups * (HAS_MINIMA ? 2 : 1);
    const int32_t *quads = rows.codes + rows.tile_at(tile) * 8, *minus = rows.sums + rows.tile_at(tile);
    const float *scales = rows.scales + rows.tile_at(tile), *shifts = rows.shifts + rows.tile_at(tile);
    __m512 acc[NR];
#pragma GCC unroll 8
    for (int r = 0; r < NR; ++r) acc[r] = _mm512_setzero_ps();
    for (int group = 0; group < groups; ++group) {
        __m512i sums[NR];
#pragma GCC unroll 8
        for (int r = 0; r < NR; ++r)
            sums[r] = HAS_MINIMA ? _mm512_setzero_si512() : _mm512_slli_epi32(_mm512_set1_epi32(minus[r]), zero_shift<BITS>());
        fetch_next<BITS, HAS_MINIMA>(codes, halves, groups);
        dot_group<NR, BITS>(sums, codes, quads);
        const __m512 scale = _mm512_cvtph_ps(_mm256_loadu_si256(halves));
#pragma GCC unroll 8
        for (int r = 0; r < NR; ++r)
            acc[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[r]), _mm512_mul_ps(scale, _mm512_set1_ps(scales[r])), acc[r]);
        if constexpr (HAS_MINIMA) {
            const __m512 minimum = _mm512_cvtph_ps(_mm256_loadu_si256(halves + 1));
#pragma GCC unroll 8
            for (int r = 0; r < NR; ++r) acc[r] = _mm512_fmadd_ps(minimum, _mm512_set1_ps(shifts[r]), acc[r]);
        }
        codes += group_nbytes<BITS>();
        halves += HAS_MINIMA ? 2 : 1;
        quads += 8 * NR, scales += NR, shifts += NR, minus += NR;
    }
    const __m512 row_scale = _mm512_loadu_ps(matrix.row_scales + block * OUTPUTS);
#pragma GCC unroll 8
    for (int r = 0; r < NR; ++r) _mm512_storeu_ps(out + r * OUTPUTS, _mm512_mul_ps(acc[r], row_scale));
}

template <int BITS, bool HAS_MINIMA>
inline void multiply_rows(const Matrix &matrix, int block, const Rows &rows, int tile, float *out) {
    switch (rows.tile_rows(tile)) {
        case 1: return multiply_tile<1, BITS, HAS_MINIMA>(matrix, block, rows, tile, out);
        case 2: return multiply_tile<2, BITS, HAS_MINIMA>(matrix, block, rows, tile, out);
        case 3: return multiply_tile<3, BITS, HAS_MINIMA>(matrix, block, rows, tile, out);
        case 4: return multiply_tile<4, BITS, HAS_MINIMA>(matrix, block, rows, tile, out);
        case 5: return multiply_tile<5, BITS, HAS_MINIMA>(matrix, block, rows, tile, out);
        case 6: return multiply_tile<6, BITS, HAS_MINIMA>(matrix, block, rows, tile, out);
        case 7: return multiply_tile<7, BITS, HAS_MINIMA>(matrix, block, rows, tile, out);
        default: return multiply_tile<8, BITS, HAS_MINIMA>(matrix, block, rows, tile, out);
    }
}

template <int BITS>
inline void multiply_bits(const Matrix &matrix, int block, const Rows &rows, int tile, float *out) {
    if (matrix.has_minima) multiply_rows<BITS, true>(matrix, block, rows, tile, out);
    else multiply_rows<BITS, false>(matrix, block, rows, tile, out);
}

}  // namespace

void multiply(const Matrix &matrix, int block, const Rows &rows, int tile, float *out) {
    if (matrix.bits == 4) multiply_bits<4>(matrix, block, rows, tile, out);
    else if (matrix.bits == 5) multiply_bits<5>(matrix, block, rows, tile, out);
    else multiply_bits<8>(matrix, block, rows, tile, out);
}

char *scratch(size_t nbytes) {
    static thread_local std::unique_ptr<char, void (*)(void *)> memory(nullptr, std::free);
    static thread_local size_t held = 0;
    if (nbytes > held) {
        held = (nbytes + 4095) / 4096 * 4096;
        memory.reset(static_cast<char *>(std::aligned_alloc(4096, held)));
    }
    return memory.get();
}

namespace {

constexpr int CHUNK = 256;  // rows quantised at a time

struct Product {
    const Matrix *parts;
    int num_parts, num_outputs, is_x_bf16, is_y_bf16;
    const void *x;
    void *y;
};

inline __m512 load_value(const Product &p, int row, int column) {
    const __mmask16 lanes = first_lanes(p.parts->columns - column);
    const size_t at = static_cast<size_t>(row) * p.parts->columns + column;
    return p.is_x_bf16 ? load_bf16(static_cast<const uint16_t *>(p.x) + at, lanes)
                       : _mm512_maskz_loadu_ps(lanes, static_cast<const float *>(p.x) + at);
}

void store_block(const Product &p, const float *tile, int row, int num_rows, int column, int width) {
    const __mmask16 lanes = first_lanes(width);
    for (int r = 0; r < num_rows; ++r) {
        const size_t at = static_cast<size_t>(row + r) * p.num_outputs + column;
        const __m512 value = _mm512_loadu_ps(tile + r * OUTPUTS);
        if (p.is_y_bf16) store_bf16(static_cast<uint16_t *>(p.y) + at, lanes, value);
        else _mm512_mask_storeu_ps(static_cast<float *>(p.y) + at, lanes, value);
    }
}

void multiply_share(const Product &p, const Rows &rows, int first_row, int index, int num) {
    alignas(64) float tile[TILE * OUTPUTS];
    int column = 0;
    for (int m = 0; m < p.num_parts; ++m) {
        const Matrix &matrix = p.parts[m];
        for (int block = part(matrix.blocks(), index, num); block < part(matrix.blocks(), index + 1, num); ++block)
            for (int t = 0; t < rows.tiles(); ++t) {
                multiply(matrix, block, rows, t, tile);
                store_block(p, tile, first_row + t * TILE, rows.tile_rows(t), column + block * OUTPUTS, matrix.rows - block * OUTPUTS);
            }
        column += matrix.rows;
    }
}

}  // namespace

}  // namespace ponder

using namespace ponder;

extern "C" {

int matrix_is_supported() { return 1; }

// y [num_rows, sum of the parts' rows] = x [num_rows, columns] times the parts stacked; both float32 or bfloat16, contiguous.
void matrix_apply(const Matrix *parts, int num_parts, int num_rows, const void *x, int is_x_bf16, void *y, int is_y_bf16, int num_threads) {
    Product p{parts, num_parts, 0, is_x_bf16, is_y_bf16, x, y};
    for (int m = 0; m < num_parts; ++m) p.num_outputs += parts[m].rows;
    const int groups = parts->groups(), most = num_rows < CHUNK ? num_rows : CHUNK;
    char *memory = scratch(Rows::nbytes(most, groups));
    if (static_cast<int64_t>(num_rows) * p.num_outputs * parts->columns < SMALL) num_threads = 1;
#pragma omp parallel num_threads(num_threads)
    {
        const int index = omp_get_thread_num(), num = omp_get_num_threads();
        for (int first = 0; first < num_rows; first += CHUNK) {
            const Rows rows = Rows::at(memory, num_rows - first < CHUNK ? num_rows - first : CHUNK, groups);
            quantise_groups(rows, part(groups, index, num), part(groups, index + 1, num),
                            [&](int row, int group, int half) { return load_value(p, first + row, group * GROUP + half * 16); });
#pragma omp barrier
            multiply_share(p, rows, first, index, num);
            if (first + CHUNK < num_rows) {
#pragma omp barrier
            }
        }
    }
}

}

#else

extern "C" int matrix_is_supported() { return 0; }

#endif
