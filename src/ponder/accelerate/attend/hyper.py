"""Far keys are met by a query where they are like it, exactly, and elsewhere through a sample.

Paper      HyperAttention (Han et al. 2023); angular hashing in Gray order as in KDEformer (Zandieh et al. 2023).
Equation   Places are cut in halves of halves until parts are `dense` long; a query meets all of its own part. In each left half to the
           left of it, of n keys sorted by hash and cut in blocks of `block`, it meets the block in which its own hash falls, exactly,
           and of the other n - block keys `sample` drawn uniformly, each with weight (n - block) / sample.
           hash(x): the rank in Gray order of the signs of `bits` projections of x.
Shapes     a piece per half (block and sample) of gathered keys, shared by the query heads of a key head.
Guarantee  approximate: numerator and denominator of the softmax are each unbiased over the sample, their quotient is not.
Error law  for weights w_j = exp(s_j) of the n - b other keys, the denominator's sampled part has variance
           (n - b)^2 / m * var(w) * (1 - (m - 1) / (n - b - 1)), drawn without replacement: small where w is flat outside the block.
Cost       dense / 2 + (block + sample) log2(context / dense) keys a query, and a sort of the keys of each half.
Choose     for contexts much longer than `dense` where attention is spread, or follows likeness of query and key. dense >= context is
           plain attention, bit for bit.
Differs    a query's block is where its own hash falls among the sorted keys (the paper sorts queries too, and pairs blocks by rank), so
           that what it reads depends on no later query; samples are drawn from outside the block, so that no key is met twice.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ponder.core.attention_plan import KEY_BLOCK, QUERY_BLOCK, Piece, View, everything, gathered, listed
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee


@dataclass(frozen=True, kw_only=True)
class Hyper:
    """Settings in tokens unless it says otherwise."""

    dense: int = 2048  # parts that are met whole; a multiple of 64
    block: int = 256  # keys of a block of like ones
    sample: int = 256  # keys that stand for the rest of a half
    bits: int = 7  # signs of a hash
    seed: int = 0
    name: ClassVar[str] = "hyper"
    guarantee: ClassVar[Guarantee] = Guarantee.APPROXIMATE
    segment: ClassVar[int] = 1
    answer_segment: ClassVar[int] = 1
    is_for_prompts: ClassVar[bool] = True
    is_for_answers: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.dense < QUERY_BLOCK or self.dense % QUERY_BLOCK or not 0 < self.block < self.dense or self.dense % self.block:
            raise BadField(f"hyper dense={self.dense}, block={self.block}: dense must be a multiple of {QUERY_BLOCK} and of block, and larger")
        if not 0 < self.sample <= self.dense - self.block or not 1 <= self.bits <= 16:
            raise BadField(f"hyper sample={self.sample}, bits={self.bits}: give 1 to {self.dense - self.block} and 1 to 16")

    def reach(self, context_len: int) -> int:
        return context_len

    def pieces(self, view: View) -> Sequence[Piece]:
        if view.stop <= self.dense:
            return [everything(view)]
        page, block = np.arange(view.num_pages), np.array(view.blocks)[:, None]
        own = listed(view, (page * KEY_BLOCK // self.dense == block * QUERY_BLOCK // self.dense)[None])
        return [own, *(piece for half in self.halves(view.start, view.stop) for piece in self.of_half(view, *half))]

    def halves(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """(first key, number of keys, last query): left halves that queries of start..stop meet; those queries are behind the half."""
        size = self.dense
        while size < stop:
            for first in range(0, stop - size, 2 * size):
                if first + size < stop and start < first + 2 * size:
                    yield first, size, first + 2 * size
            size *= 2

    def of_half(self, view: View, first: int, num: int, last: int) -> list[Piece]:
        """The piece of like keys and the piece of sampled ones, of the keys first..first + num, for queries up to `last`."""
        lo, hi = max(view.start, first + num) - view.start, min(view.stop, last) - view.start
        keys, queries = view.keys(first, first + num), view.q_NHE[lo:hi]
        planes = torch.randn(view.q_NHE.shape[2], self.bits, generator=torch.Generator().manual_seed(self.seed))
        sorted_keys, order = self.hashed(keys, planes).sort(dim=0, stable=True)  # [n, K]
        hashes = self.hashed(queries, planes).unflatten(1, (view.num_kv_heads, -1))  # [N, K, G]
        heads, rows, like, drawn = [], [], [], []
        for head in range(view.num_kv_heads):
            mine = order[:, head].numpy()
            known, asked = sorted_keys[:, head].contiguous(), hashes[:, head].flatten().contiguous()
            middle = (torch.searchsorted(known, asked) + torch.searchsorted(known, asked, right=True)) // 2  # of the keys with its hash
            of_row = (middle.clamp_(max=num - 1) // self.block).numpy()
            at = np.argsort(of_row, kind="stable")
            row = (lo + at // view.group) * view.num_heads + head * view.group + at % view.group
            numbers, starts = np.unique(of_row[at], return_index=True)
            for number, some in zip(numbers, np.split(row, starts[1:]), strict=True):
                heads.append(head)
                rows.append(some)
                like.append(first + np.sort(mine[number * self.block : (number + 1) * self.block]))
                drawn.append(first + np.sort(mine[self.draw(num, int(number), (view.layer, head, first))]))
        return [gathered(heads, rows, like), gathered(heads, rows, drawn, float(np.log((num - self.block) / self.sample)))]

    def draw(self, num: int, number: int, name: tuple[int, ...]) -> np.ndarray:
        """Ranks of `sample` of `num` sorted keys outside block `number`, drawn without replacement; the same for the same name."""
        found = np.random.default_rng((self.seed, *name, num, number)).choice(num - self.block, self.sample, replace=False)
        return np.where(found >= number * self.block, found + self.block, found)

    def hashed(self, x: Tensor, planes: Tensor) -> Tensor:
        """int64 [n, J]: ranks in Gray order of rows x [n, J, E]; neighbours differ in one sign."""
        bits = ((x.double() @ planes.double()) > 0).long()  # in double, so that no sign depends on how many rows stand beside it
        code = (bits << torch.arange(self.bits)).sum(-1)
        for shift in (1, 2, 4, 8):
            code ^= code >> shift
        return code
