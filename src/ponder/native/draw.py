"""The draw by Triton kernels, seen from Python: three launches where PyTorch needs sixty. Absent without Triton (native/paged.is_here).

Shapes: R rows, V vocabulary, P parts of a row, N blocks.
"""

import torch
from torch import Tensor

try:
    from ponder.native import draw_triton as kernels
except ImportError:  # Triton is no dependency
    kernels = None  # type: ignore[assignment]

SLICE = 2048  # logits of a program
BLOCK = 128  # logits that are summed in float32, as engine.sampler does


def draw_rows(logits_RV: Tensor, seeds_R: Tensor, positions_R: Tensor, temperatures_R: Tensor) -> Tensor:
    """float64 [R, 4]: token, log_p, log_q and certainty of one draw per row of float32 logits. int64 seeds and positions; see
    engine.draw_device.draw_rows, whose sums these are but for their order."""
    num, vocab_size = logits_RV.shape
    num_parts = -(-vocab_size // SLICE)
    num_blocks, device = num_parts * (SLICE // BLOCK), logits_RV.device
    tops = torch.empty(num, num_parts, dtype=torch.float32, device=device)
    places = torch.empty(num, num_parts, dtype=torch.int32, device=device)
    weights = torch.empty(num, num_blocks, dtype=torch.float64, device=device)
    totals, belows = torch.empty(2, num, num_parts, dtype=torch.float64, device=device)
    out = torch.empty(num, 4, dtype=torch.float64, device=device)
    block_p, block_n = (1 << (size - 1).bit_length() for size in (num_parts, num_blocks))
    logits_RV = logits_RV.contiguous()
    kernels.find_tops[(num, num_parts)](logits_RV, tops, places, V=vocab_size, SLICE=SLICE)
    kernels.sum_blocks[(num, num_parts)](
        logits_RV, tops, temperatures_R, weights, totals, belows, V=vocab_size, P=num_parts, BLOCK_P=block_p, SLICE=SLICE, BLOCK=BLOCK
    )
    kernels.choose[(num,)](
        logits_RV, tops, places, temperatures_R, weights, totals, belows, seeds_R, positions_R, out, V=vocab_size, P=num_parts, BLOCK_P=block_p,
        N=num_blocks, BLOCK_N=block_n, BLOCK=BLOCK,
    )  # fmt: skip
    return out
