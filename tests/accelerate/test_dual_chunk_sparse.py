"""Dual chunks with sparse prefill: equal to dual_chunk with all listed and to vertical_slash within a chunk, bit for bit; what it recalls, and
wrong plans that these must find fault with."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from accelerate.attend_meet import config_of, meet_together, meet_with, open_attention
from ponder.accelerate.attend.chunks import in_chunks
from ponder.accelerate.attend.dual_chunk import DualChunk
from ponder.accelerate.attend.dual_chunk_sparse import DualChunkSparse
from ponder.accelerate.attend.slashes import kept_pages
from ponder.accelerate.attend.vertical_slash import VerticalSlash
from ponder.core.attention_plan import View
from ponder.core.errors import BadField
from ponder.models.decoder import rotate
from ponder.models.rotary import rotary_rows, turned
from ponder.native.build import library
from ponder.testing.laws_attend import Rows, drawn_rows, law_cuts_do_not_matter, law_later_tokens_do_not_matter

needs_kernel = pytest.mark.skipif(library() is None, reason="no compiled kernel here")
KERNELS = [pytest.param(True, marks=needs_kernel), False]
PATTERN = {"mass": 0.7, "window": 16, "segment": 128, "dense_below": 128, "every": 8}
PLAN = DualChunkSparse(chunk=128, local=48, check=64, **PATTERN)


def rows_of(num: int, seed: int = 0, *, layer: int = 2) -> Rows:
    return drawn_rows(torch.Generator().manual_seed(seed), num, num_heads=6, num_kv_heads=2, width=16, layer=layer, num_layers=6)


@pytest.mark.parametrize("is_native", KERNELS)
def test_with_everything_listed_it_is_dual_chunk(is_native: bool):
    rows, num = rows_of(500 if is_native else 300), 500 if is_native else 300
    meet = meet_with(is_native=is_native)
    wanted = meet(DualChunk(chunk=128, local=48), rows, [num])
    for setting in ({"mass": 1.0}, {"dense_below": 512}):
        assert torch.equal(meet(replace(PLAN, **setting), rows, [num]), wanted)
    assert not torch.equal(meet(PLAN, rows, [num]), wanted)


@pytest.mark.parametrize("is_native", KERNELS)
@pytest.mark.parametrize("check", [0, 64])
@pytest.mark.parametrize("is_continuous", [False, True])
def test_within_a_chunk_it_is_vertical_slash(is_native: bool, check: int, is_continuous: bool):
    rows, num = rows_of(500 if is_native else 300), 500 if is_native else 300
    meet = meet_with(is_native=is_native)
    plan = DualChunkSparse(chunk=512, local=64, check=check, is_continuous=is_continuous, **PATTERN)
    found = meet(plan, rows, [num])
    assert torch.equal(found, meet(VerticalSlash(check=check, **PATTERN), rows, [num]))
    assert not torch.equal(found, meet(replace(plan, chunk=128, local=48), rows, [num]))


@needs_kernel
def test_answers_meet_everything_by_their_chunks():
    """Whatever the prompt met: both plans give an answer's tokens the same, as the rows do not come from a layer below."""
    rows = rows_of(420)
    outs = [
        meet_together(open_attention(plan, config_of(rows), is_native=True), [(rows, 300)], [[256], [300], [301], [420]])[0]
        for plan in (PLAN, DualChunk(chunk=128, local=48))
    ]
    assert torch.equal(outs[0][300:], outs[1][300:])
    assert not torch.equal(outs[0][:300], outs[1][:300])


@needs_kernel
@pytest.mark.parametrize("plan", [PLAN, replace(PLAN, is_continuous=True), replace(PLAN, check=0)], ids=["met", "continuous", "one look"])
def test_cuts_and_later_tokens_do_not_matter(plan: DualChunkSparse):
    rows = rows_of(500)
    law_cuts_do_not_matter(meet_with(is_native=True), plan, rows, [128, 384])
    for num in (130, 200, 330, 400):
        law_later_tokens_do_not_matter(meet_with(is_native=True), plan, rows, num)


class Foresight(DualChunkSparse):
    """Looks a block ahead."""

    def sampled(self, view: View, first: int, rows: Tensor) -> Tensor:
        return super().sampled(replace(view, q_NHE=view.q_NHE.roll(-64, 0)), first, rows)


@needs_kernel
def test_a_look_ahead_is_found():
    plan = Foresight(chunk=128, local=48, check=64, is_continuous=True, **PATTERN)
    with pytest.raises(AssertionError):
        law_later_tokens_do_not_matter(meet_with(is_native=True), plan, rows_of(500), 330)


# what is recalled, at the distances that keys are met from


def view_of(rows: Rows) -> View:
    """The whole sequence as one view, in float64."""
    cos, sin = (x.double() for x in rotary_rows(config_of(rows), "global", 0, len(rows)))
    q, k = (rotate(x, cos, sin).double() for x in (rows.q_NHE, rows.k_NKE))
    return View(
        layer=rows.layer, num_layers=rows.num_layers, start=0, stop=len(rows), num_kv_heads=k.shape[1], is_rotary=True, q_NHE=q, num_prompt=len(rows),
        keys=lambda a, b: k[a:b], turned=lambda at, positions: turned(q[at], rows.frequency, positions),
    )  # fmt: skip


def weights_of(rows: Rows, chunk: int, local: int) -> Tensor:
    """float64 [H, N, N]: attention by every pair's distance in chunks, slow and obvious."""
    i, j = torch.arange(len(rows))[:, None], torch.arange(len(rows))
    a, r, m = i // chunk, i % chunk, j // chunk
    stand = torch.where(a == m, r, torch.where(a == m + 1, (r + chunk).clamp(max=chunk + local), chunk + local)) - j % chunk
    cos, sin = ((stand[..., None] * rows.frequency).cos(), (stand[..., None] * rows.frequency).sin())
    found = []
    for head in range(rows.q_NHE.shape[1]):
        (qa, qb), (ka, kb) = rows.q_NHE[:, head, None].chunk(2, -1), rows.k_NKE[None, :, head // 3].chunk(2, -1)
        scores = ((qa * cos - qb * sin) * ka + (qb * cos + qa * sin) * kb).sum(-1) / math.sqrt(rows.q_NHE.shape[-1])
        found.append(scores.masked_fill(j > i, -math.inf).softmax(-1))
    return torch.stack(found)


def recalled(rows: Rows, weights: Tensor, pages_HBP: np.ndarray) -> Tensor:
    """float64 [H, N]: how much of each row's attention lies on the pages that its block meets: exp(lse of those - lse of all)."""
    listed = torch.from_numpy(pages_HBP).repeat_interleave(64, 1)[:, : len(rows)].repeat_interleave(16, 2)[:, :, : len(rows)]
    return (weights * listed).sum(-1)


def moving_rows(num: int) -> Rows:
    """Queries that all look at one far stretch of keys, and from a quarter of a segment of 256 on at another: their scores there are high."""
    rows = rows_of(num, 4)
    flat = rows.frequency < 0.002  # parts that hardly rotate
    flat = torch.cat([flat, flat])
    q, k = 0.3 * rows.q_NHE, 0.3 * rows.k_NKE
    q[..., flat], k[..., flat] = 0.0, 0.0
    ways = [flat.nonzero()[0, 0], flat.nonzero()[1, 0]]
    at = torch.arange(num)
    for way, is_now, stretch in zip(ways, (at % 256 < 128, at % 256 >= 128), (slice(32, 48), slice(160, 176)), strict=True):
        q[:, :, way] = 10.0 * is_now[:, None].double()
        k[stretch, :, way] = 4.0
    return replace(rows, q_NHE=q, k_NKE=k)


def sampled_recall(plan: DualChunkSparse, rows: Rows, weights: Tensor) -> Tensor:
    """[H, looks]: of the rows that were looked at, the mean share that the blocks behind the look, which know of it, would have recalled."""
    pages = kept_pages(view_of(rows), plan, plan.sampled)
    found = []
    for segment in range(plan.dense_below, len(rows), plan.segment):
        looks = range(segment, min(segment + plan.segment, len(rows)) - 64, plan.check or plan.segment)
        for first in looks:
            behind = torch.from_numpy(pages[:, first // 64 + 1]).repeat_interleave(16, 1)[:, : first + 64]
            mine = weights[:, first + plan.every - 1 : first + 64 : plan.every, : first + 64]
            # a diagonal is counted from each row: pages of the next block stand one block further on
            moved = torch.cat([torch.zeros_like(behind[:, :64]), behind[:, :-64]], 1)
            found.append((mine * (behind | moved)[:, None]).sum(-1).mean(-1))
    return torch.stack(found, 1)


class Unturned(DualChunkSparse):
    """Looks with queries as they are: at true distances."""

    def sampled(self, view: View, first: int, rows: Tensor) -> Tensor:
        return super().sampled(replace(view, turned=lambda at, positions: view.q_NHE[at]), first, rows)


class OffByOne(DualChunkSparse):
    """Its sampled mass is counted a page too far."""

    def sampled(self, view: View, first: int, rows: Tensor) -> Tensor:
        return super().sampled(view, first, rows).roll(1, -1)


def law_mass_by_page(plan: DualChunkSparse, rows: Rows, weights: Tensor, first: int) -> None:
    """What a plan sees of sampled rows is their attention at the distances that they meet keys from, page by page."""
    at = torch.arange(plan.every - 1, 64, plan.every)
    found, wanted = plan.sampled(view_of(rows), first, at), weights[:, first + at, : first + 64].unflatten(-1, (-1, 16)).sum(-1)
    assert (found - wanted).abs().max() < 1e-5


def test_the_pattern_is_found_at_the_distances_that_keys_are_met_from():
    rows = rows_of(512)
    weights = weights_of(rows, 128, 48)
    for first in (64, 128, 320, 448):
        law_mass_by_page(PLAN, rows, weights, first)
        mutants = [OffByOne(chunk=128, local=48, **PATTERN)]
        if first >= 256:  # there are keys two chunks back
            mutants += [Unturned(chunk=128, local=48, **PATTERN), replace(PLAN, local=47), replace(PLAN, is_continuous=True)]
        for mutant in mutants:
            with pytest.raises(AssertionError):
                law_mass_by_page(mutant, rows, weights, first)


def test_as_much_is_recalled_as_was_said_of_every_row_looked_at():
    rows = rows_of(640)
    weights = weights_of(rows, 256, 64)
    for mass in (0.5, 0.7, 0.9, 0.98):
        plan = replace(PLAN, mass=mass, chunk=256, segment=256, local=64, dense_below=256)
        assert sampled_recall(plan, rows, weights).min() >= mass - 1e-6
        assert sampled_recall(replace(plan, mass=mass / 4), rows, weights).min() < mass


def test_refinement_recalls_what_one_look_misses():
    """Attention that moves in the midst of a segment."""
    plan = replace(PLAN, mass=0.9, chunk=256, segment=256, local=64, dense_below=256)
    rows = moving_rows(768)
    last = (torch.arange(768) >= 512 + 192) & (torch.arange(768) < 768)  # behind the look at row 128 of the last segment
    weights, plans = weights_of(rows, 256, 64), (plan, replace(plan, check=0))
    refined, once = (recalled(rows, weights, kept_pages(view_of(rows), p, p.sampled))[:, last].mean(1) for p in plans)
    assert refined.min() >= 0.9
    assert once.max() < 0.6


@needs_kernel
def test_what_is_met_is_what_was_kept():
    """The plan's pieces hold its pages, each once, by its chunks' turns."""
    rows = rows_of(500)
    view = view_of(rows)
    pieces, pages = PLAN.pieces(view), kept_pages(view, PLAN, PLAN.sampled)
    found = np.zeros(pages.shape, int)
    for piece in pieces:
        starts = np.concatenate([[0], piece.row_ends]), np.concatenate([[0], piece.key_ends])
        for i in range(len(piece.heads)):
            mine = piece.rows[starts[0][i] : starts[0][i + 1]]
            for head, block in {(row % 6, row // 6 // 64) for row in mine.tolist()}:
                found[head, block, piece.keys[starts[1][i] : starts[1][i + 1]]] += 1
    seen = np.arange(pages.shape[2]) * 16 < (np.arange(pages.shape[1])[:, None] + 1) * 64
    assert (found == pages * seen).all()
    assert len(pieces) == 4
    assert not any(pieces[m].turn[m * 128 : (m + 1) * 128].any() for m in range(4))
    assert torch.equal(in_chunks(view, pages, 128, PLAN.chunks.turn)[0].turn, pieces[0].turn)


@pytest.mark.parametrize(
    "bad", [lambda: DualChunkSparse(chunk=1000), lambda: DualChunkSparse(chunk=1536, segment=1024), lambda: DualChunkSparse(check=100),
            lambda: DualChunkSparse(mass=0.0), lambda: DualChunkSparse().reach(4096), lambda: VerticalSlash(check=-64)],
)  # fmt: skip
def test_bad_settings_are_refused(bad):
    with pytest.raises(BadField):
        bad()
