// The CPU's matrix registers (AMX): eight of 16 rows by 64 bytes. PONDER_TILES says that the system gives them (build.py asks).
//
// A product of bfloat16 adds, for each of its 16 x 16 sums, 32 terms in an order that the instruction fixes; so a sum depends on
// its own row and column alone, whatever stands in the others.

#pragma once

#include <immintrin.h>
#include <cstdint>

#if defined(PONDER_TILES) && defined(__AMX_TILE__) && defined(__AMX_BF16__)
#define PONDER_HAS_TILES 1

namespace ponder {

constexpr int TILE_ROWS = 16;
constexpr int TILE_PAIRS = 16;  // bfloat16 pairs of a row
constexpr int TILE_DEPTH = 32;  // terms that one product adds

// The registers of this thread, all of full size, for as long as it lives.
class Tiles {
public:
    Tiles() {
        struct Shape {
            uint8_t palette = 1, start = 0, reserved[14] = {};
            uint16_t row_nbytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
            uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
        };
        static const Shape shape;
        _tile_loadconfig(&shape);
    }
    ~Tiles() { _tile_release(); }
    Tiles(const Tiles &) = delete;
    Tiles &operator=(const Tiles &) = delete;
};

}  // namespace ponder

#endif
