"""Attention plans x laws, by the compiled kernel and by PyTorch; every law with a wrong plan that it must fail."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from accelerate.attend_meet import config_of, meet_together, meet_with, open_attention
from ponder.accelerate.attend.dual_chunk import DualChunk
from ponder.accelerate.attend.hyper import Hyper
from ponder.accelerate.attend.longgen import LongGen
from ponder.accelerate.attend.s2 import S2
from ponder.accelerate.attend.vertical_slash import VerticalSlash
from ponder.core.attention_plan import Piece, View, everything, listed
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee
from ponder.engine.pages import INT8, PLAIN, KVFormat
from ponder.native.build import library
from ponder.testing.laws_attend import (
    Rows,
    Rule,
    drawn_rows,
    law_cuts_do_not_matter,
    law_is_its_rule,
    law_later_tokens_do_not_matter,
    law_unit_is_plain,
)

needs_kernel = pytest.mark.skipif(library() is None, reason="no compiled kernel here")
KERNELS = [pytest.param(True, marks=needs_kernel), False]
TOLERANCE = {True: 0.05, False: 2e-5}  # bfloat16 rows and weights; float32


def rows_of(num: int, seed: int = 0, *, layer: int = 2, num_heads: int = 6, width: int = 16) -> Rows:
    return drawn_rows(torch.Generator().manual_seed(seed), num, num_heads=num_heads, num_kv_heads=2, width=width, layer=layer, num_layers=6)


UNITS = [
    S2(stride=1),
    S2(num_dense=6),
    LongGen(window=10_000),
    DualChunk(chunk=448, local=64),
    VerticalSlash(mass=1.0),
    VerticalSlash(dense_below=512),
]
PLANS = [
    S2(window=64, stride=3),
    LongGen(window=96, sinks=16),
    DualChunk(chunk=128, local=48),
    VerticalSlash(mass=0.7, window=16, segment=128, dense_below=128),
    Hyper(dense=64, block=16, sample=16, bits=5),
]


@dataclass(frozen=True)
class Split:
    """Everything, in pieces that share no page."""

    num: int = 5
    name: str = "split"
    guarantee = Guarantee.EXACT
    segment = answer_segment = 1
    is_for_prompts = is_for_answers = True

    def reach(self, context_len: int) -> int:
        return context_len

    def pieces(self, view: View) -> list[Piece]:
        of = np.random.default_rng(7).integers(0, self.num, 10_000)[: view.num_pages]
        return [listed(view, np.broadcast_to(of == i, (1, len(view.blocks), view.num_pages))) for i in range(self.num)]


def rule_of(plan, rows: Rows) -> Rule:
    """The plans' cards once more, token by token."""
    i, j, heads = torch.arange(len(rows))[:, None], torch.arange(len(rows)), torch.arange(rows.q_NHE.shape[1])[:, None, None]
    block, page = i // 64 * 64, j // 16
    if isinstance(plan, DualChunk):
        a, r, m = i // plan.chunk, i % plan.chunk, j // plan.chunk
        stand = torch.where(a == m, r, torch.where(a == m + 1, (r + plan.chunk).clamp(max=plan.chunk + plan.local), plan.chunk + plan.local))
        return Rule(torch.ones(1, len(rows), len(rows), dtype=torch.bool), stand - j % plan.chunk)
    near = (j < plan.sinks) | (page * 16 + 15 >= block - plan.window)
    if isinstance(plan, LongGen):
        is_whole = rows.num_layers // 3 <= rows.layer < rows.num_layers - rows.num_layers // 3
        return Rule((near | torch.tensor(is_whole))[None])
    return Rule(near[None] | (j // plan.shard % plan.stride == heads % plan.stride) | torch.tensor(rows.layer < plan.num_dense))


@pytest.mark.parametrize("is_native", KERNELS)
@pytest.mark.parametrize("unit", [*UNITS, Split(num=1)])
def test_the_unit_setting_is_plain_attention(is_native: bool, unit):
    rows = rows_of(448 if is_native else 260)
    if is_native:
        law_unit_is_plain(meet_with(is_native=True), unit, rows)
    else:
        assert (meet_with(is_native=False)(unit, rows, [90, 260]) - meet_with(is_native=False)(None, rows, [260])).abs().max() < 1e-5


@needs_kernel
@pytest.mark.parametrize("kv", [PLAIN, INT8], ids=lambda x: x.name)
@pytest.mark.parametrize("settings", [{}, {"attn_softcap": 4.0}, {"windows": (None, None, 40, None, None, None)}], ids=["plain", "cap", "window"])
@pytest.mark.parametrize(("num_heads", "width"), [(6, 32), (14, 64), (4, 80), (2, 16)])
def test_all_keys_listed_is_plain_attention_for_every_model(kv: KVFormat, settings: dict, num_heads: int, width: int):
    rows = rows_of(330, num_heads=num_heads, width=width)
    crowd, stops = [(rows, 300), (rows_of(90, 1, num_heads=num_heads, width=width), 90)], [[64, 7], [301, 90], [330, 90]]
    found = [meet_together(open_attention(plan, config_of(rows, **settings), is_native=True, kv=kv), crowd, stops) for plan in (None, Split(num=1))]
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("is_native", KERNELS)
@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("plan", PLANS[:3])
def test_a_plan_is_its_rule(is_native: bool, layer: int, plan):
    rows = rows_of(330, layer=layer)
    law_is_its_rule(meet_with(is_native=is_native), plan, rows, rule_of(plan, rows), tolerance=TOLERANCE[is_native])


@pytest.mark.parametrize(("chunk", "local"), [(64, 0), (64, 16), (128, 128), (192, 7)])
def test_no_distance_of_dual_chunk_is_longer_than_it_says(chunk: int, local: int):
    """Nor negative, and those up to `local` are the true ones."""
    plan = DualChunk(chunk=chunk, local=local)
    places = torch.arange(5 * chunk + 3)
    for m in range(5):
        keys = torch.arange(m * chunk, (m + 1) * chunk)
        seen = places[places >= m * chunk]
        distance = (seen + plan.turn(seen, m))[:, None] - keys
        is_before = seen[:, None] >= keys
        assert distance[is_before].min() >= 0
        assert distance.max() <= chunk + local
        is_near = is_before & (seen[:, None] - keys <= local)
        assert torch.equal(distance[is_near], (seen[:, None] - keys)[is_near])


@pytest.mark.parametrize("stride", [1, 3, 6])
def test_the_heads_of_s2_meet_everything_together(stride: int):
    rows = rows_of(330)
    seen = rule_of(S2(stride=stride, window=0, sinks=0), rows).seen_HNN
    assert seen.any(0).tril().equal(torch.ones(330, 330, dtype=torch.bool).tril())
    assert stride == 1 or not seen[0].tril().equal(seen.any(0).tril())


@pytest.mark.parametrize("is_native", KERNELS)
def test_pieces_merge_exactly(is_native: bool):
    rows = rows_of(330)
    law_is_its_rule(meet_with(is_native=is_native), Split(), rows, Rule(torch.ones(1, 330, 330, dtype=torch.bool)), tolerance=TOLERANCE[is_native])


@pytest.mark.parametrize("plan", PLANS)
@needs_kernel
def test_cuts_and_later_tokens_do_not_matter(plan):
    rows = rows_of(500)
    stops = [128, 384] if plan.segment > 1 else [1, 65, 70, 384]
    law_cuts_do_not_matter(meet_with(is_native=True), plan, rows, stops)
    for num in (130, 200, 400):
        law_later_tokens_do_not_matter(meet_with(is_native=True), plan, rows, num)


@needs_kernel
@pytest.mark.parametrize("plan", PLANS)
def test_together_as_alone(plan):
    """Prompts, answers and prompts that end in mid-step, beside each other, read what they read alone, bit for bit."""
    crowd = [(rows_of(420, 1), 400), (rows_of(300, 2), 256), (rows_of(70, 3), 60)]
    stops = [[256, 256, 60], [384, 257, 61], [400, 258, 65], [401, 300, 70], [420, 300, 70]]
    together = meet_together(open_attention(plan, config_of(crowd[0][0]), is_native=True), crowd, stops)
    for i, one in enumerate(crowd):
        alone = meet_together(open_attention(plan, config_of(one[0]), is_native=True), [one], [[one[1]], [len(one[0])]])[0]
        assert torch.equal(together[i], alone), i


# what the laws must find fault with


class LateWindow(LongGen):
    """Its window begins a page late."""

    def pieces(self, view: View) -> list[Piece]:
        return LongGen(window=self.window - 16, sinks=self.sinks).pieces(view)


class NextShard(S2):
    """Head h has the share of head h + 1."""

    def pieces(self, view: View) -> list[Piece]:
        if view.layer < self.num_dense:
            return [everything(view)]
        page, block = np.arange(view.num_pages), np.array(view.blocks)[:, None] * 64
        near = ((page + 1) * 16 > block - self.window) | (page * 16 < self.sinks)
        mine = page // (self.shard // 16) % self.stride == (np.arange(view.num_heads)[:, None] + 1) % self.stride
        return [listed(view, near[None] | mine[:, None])]


class ShortTurn(DualChunk):
    """Queries stand one position off when they meet earlier chunks."""

    def turn(self, places, m):
        return super().turn(places, m) - (places // self.chunk > m).long()


class MovedKeys(DualChunk):
    """As if keys were stored at their place in the chunk."""

    def turn(self, places, m):
        return super().turn(places, m) - m * self.chunk


class Twice(Split):
    """A page stands in two pieces."""

    def pieces(self, view: View) -> list[Piece]:
        first = np.zeros((1, len(view.blocks), view.num_pages), bool)
        first[:, :, 0] = True
        return [everything(view), listed(view, first)]


@pytest.mark.parametrize("is_native", KERNELS)
@pytest.mark.parametrize(
    "mutant", [LateWindow(window=96, sinks=16), NextShard(window=64, stride=3), ShortTurn(chunk=128, local=48), MovedKeys(chunk=128, local=48)]
)
def test_a_wrong_mask_or_place_is_found(is_native: bool, mutant):
    rows = rows_of(330, layer=0 if isinstance(mutant, LongGen) else 2)
    with pytest.raises(AssertionError):
        law_is_its_rule(meet_with(is_native=is_native), mutant, rows, rule_of(mutant, rows), tolerance=TOLERANCE[is_native])


@pytest.mark.parametrize("is_native", KERNELS)
def test_a_key_met_twice_is_found(is_native: bool):
    rows = rows_of(330)
    with pytest.raises(AssertionError):
        law_is_its_rule(
            meet_with(is_native=is_native), Twice(), rows, Rule(torch.ones(1, 330, 330, dtype=torch.bool)), tolerance=TOLERANCE[is_native]
        )


class Foresight(VerticalSlash):
    """Samples the last rows that it is shown."""

    def sampled(self, view: View, first: int, rows):
        return super().sampled(view, first, torch.arange(0, min(64, view.stop - first)))[:, -len(rows) :].flip(1)

    def pieces(self, view: View) -> list[Piece]:
        shown = replace(view, q_NHE=view.q_NHE.flip(0))
        return super().pieces(shown)


@needs_kernel
def test_a_pattern_from_later_rows_is_found():
    with pytest.raises(AssertionError):
        law_cuts_do_not_matter(meet_with(is_native=True), Foresight(mass=0.7, window=16, segment=128, dense_below=128), rows_of(500), [128, 384])
    with pytest.raises(AssertionError):
        law_later_tokens_do_not_matter(meet_with(is_native=True), Foresight(mass=0.7, window=16, segment=128, dense_below=128), rows_of(500), 400)


@needs_kernel
def test_a_unit_that_leaves_out_a_page_is_found():
    with pytest.raises(AssertionError):
        law_unit_is_plain(meet_with(is_native=True), S2(num_dense=0, stride=2, window=64), rows_of(448))


@pytest.mark.parametrize(
    "bad", [lambda: S2(stride=0), lambda: S2(shard=24), lambda: LongGen(window=-1), lambda: DualChunk(chunk=100),
            lambda: DualChunk(chunk=64, local=65),
            lambda: DualChunk().reach(4096), lambda: VerticalSlash(mass=0), lambda: VerticalSlash(segment=100), lambda: VerticalSlash(every=17)],
)  # fmt: skip
def test_bad_settings_are_refused(bad):
    with pytest.raises(BadField):
        bad()
