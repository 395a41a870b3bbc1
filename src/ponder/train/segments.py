"""Models whose steps are segments (models/segments), trained from nothing on a text that is cut into segments. Minutes on a card.

A text is a row of tokens and of marks where something ends (a sentence). How it is cut is what makes the model: `ones` token by token, `by_chance`
into pieces of every length up to the most, so that the reader may decide at any place, `by_marks` into what ends at a mark. All are
measured in nats a token of the same text, signs that end segments counted with what they cost.

Shapes: B texts, T tokens of one, S segments, M most tokens of one, V words.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ponder.core.errors import BadField
from ponder.models.segments import SegmentModel, SegmentShape
from ponder.train.descent import step_down, steps

Cut = Callable[[np.ndarray, np.random.Generator], list[int]]  # marks of a stretch -> lengths of its segments, at most `most` each


@dataclass(frozen=True)
class MarkedText:
    """tokens int64 [T]; marks bool [T], true where a token is the last of a sentence."""

    tokens: np.ndarray
    marks: np.ndarray


@dataclass(frozen=True, kw_only=True)
class SegmentRecipe:
    """How a model is trained. Raises BadField."""

    batch: int = 64  # stretches of a step
    length: int = 256  # tokens of a stretch
    rate: float = 1e-3  # of AdamW at its highest; it falls to 0 along a cosine
    max_steps: int = 2000
    max_seconds: float = 600.0
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.batch, self.max_steps) < 1 or self.length < 2 or min(self.rate, self.max_seconds) <= 0:
            raise BadField(f"{self}: batch and max_steps at least 1, length at least 2, rate and max_seconds above 0")


def ones(marks: np.ndarray, rng: np.random.Generator) -> list[int]:
    return [1] * len(marks)


def by_chance(marks: np.ndarray, rng: np.random.Generator, most: int) -> list[int]:
    """Pieces of 1 to m tokens, m itself drawn for every stretch, so that short ones are as usual as long ones."""
    drawn = np.minimum(rng.integers(1, rng.integers(1, most + 1) + 1, len(marks)), most)
    ends = np.cumsum(drawn)
    num = int(np.searchsorted(ends, len(marks)))
    return [*drawn[:num].tolist(), *([int(len(marks) - (ends[num - 1] if num else 0))] if num < len(drawn) else [])]


def by_marks(marks: np.ndarray, rng: np.random.Generator, most: int) -> list[int]:
    """Pieces that end at a mark, or behind `most` tokens."""
    lengths, start = [], 0
    for end in [*(np.flatnonzero(marks) + 1).tolist(), len(marks)]:
        while end - start > most:
            lengths.append(most)
            start += most
        if end > start:
            lengths.append(end - start)
            start = end
    return lengths


def cut_for(shape: SegmentShape) -> Cut:
    if shape.has_end:
        return partial(by_marks, most=shape.most)
    return ones if shape.most == 1 else partial(by_chance, most=shape.most)


def segments_of(shape: SegmentShape, text: MarkedText, starts: np.ndarray, *, length: int, rng: np.random.Generator) -> Tensor:
    """[B, S, M] the stretches of that length in segments: pads behind the last token of each, END first among them where there is one,
    segments of pads alone behind the last of each stretch."""
    cut = cut_for(shape)
    rows = [cut(text.marks[start : start + length], rng) for start in starts]
    lengths_BS = np.zeros((len(rows), max(map(len, rows))), np.int64)
    for row, found in zip(lengths_BS, rows, strict=True):
        row[: len(found)] = found
    firsts_BS = starts[:, None] + np.cumsum(lengths_BS, 1) - lengths_BS
    places_M = np.arange(shape.most)
    at_BSM = np.minimum(firsts_BS[..., None] + places_M, len(text.tokens) - 1)
    segments = np.where(places_M < lengths_BS[..., None], text.tokens[at_BSM], shape.pad)
    if shape.has_end:
        is_over = (places_M == lengths_BS[..., None]) & (lengths_BS[..., None] > 0)
        segments[is_over] = shape.end
    return torch.from_numpy(segments)


def nats_of(model: SegmentModel, segments_BSM: Tensor, num_given: int = 1) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """By text, of the segments that begin behind num_given tokens, given those before: nats [B], tokens [B], how many of them are the
    likeliest [B], and segments [B]."""
    states_BSD, _ = model.states(model.composed(segments_BSM))
    wanted_BSM = segments_BSM[:, 1:]
    num_before_BS = (segments_BSM < model.shape.end).sum(2).cumsum(1)[:, :-1]
    is_there = ((wanted_BSM[..., 0] != model.shape.pad) & (num_before_BS >= num_given)).flatten()
    wanted_NM = wanted_BSM.flatten(0, 1)[is_there]
    logits_NMV = model.said(states_BSD[:, :-1].flatten(0, 1)[is_there], wanted_NM).float()
    known = wanted_NM.masked_fill(wanted_NM == model.shape.pad, -100)
    nats_N = F.cross_entropy(logits_NMV.flatten(0, 1), known.flatten(), reduction="none").view(known.shape).sum(1)
    is_token = wanted_NM < model.shape.end
    right_N = ((logits_NMV.argmax(-1) == wanted_NM) & is_token).sum(1)
    rows = torch.arange(len(segments_BSM), device=segments_BSM.device).repeat_interleave(wanted_BSM.shape[1])[is_there]
    found = (nats_N, is_token.sum(1), right_N, is_token[:, 0])
    return tuple(torch.zeros(len(segments_BSM), device=rows.device).index_add_(0, rows, x.float()) for x in found)  # type: ignore[return-value]


def batches(shape: SegmentShape, text: MarkedText, recipe: SegmentRecipe) -> Iterator[Tensor]:
    """Stretches from anywhere in the text, for ever."""
    rng = np.random.default_rng(recipe.seed)
    while True:
        starts = rng.integers(0, len(text.tokens) - recipe.length, recipe.batch)
        yield segments_of(shape, text, starts, length=recipe.length, rng=rng)


def fit_segments(
    shape: SegmentShape, text: MarkedText, recipe: SegmentRecipe | None = None, *, device: str = "cpu",
    on_step: Callable[[int, float], None] = lambda step, nats: None,
) -> tuple[SegmentModel, dict[str, object]]:  # fmt: skip
    """(model, facts of its training). Raises BadField for a text shorter than a stretch."""
    recipe, start = recipe or SegmentRecipe(), time.perf_counter()
    if len(text.tokens) <= recipe.length or len(text.tokens) != len(text.marks):
        raise BadField(
            f"text of {len(text.tokens)} tokens, {len(text.marks)} marks: more than length={recipe.length} are needed, and a mark for each"
        )
    model = SegmentModel(shape).filled(torch.Generator().manual_seed(recipe.seed)).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.rate, weight_decay=0.1, betas=(0.9, 0.95))
    losses: list[float] = []
    num = 0
    pace = steps(
        optimizer, rate=recipe.rate, max_steps=recipe.max_steps, max_seconds=recipe.max_seconds, warm=min(50, 1 + recipe.max_steps // 10)
    )  # fmt: skip
    for step, segments_BSM in zip(pace, batches(shape, text, recipe)):
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=device != "cpu"):
            nats_B, num_B, _, _ = nats_of(model, segments_BSM.to(device))
        loss = nats_B.sum() / num_B.sum()
        step_down(optimizer, loss, model.parameters())
        num = step + 1
        if step % 20 == 0:
            losses.append(float(loss.detach()))
            on_step(step, losses[-1])
    facts: dict[str, object] = {
        "num_steps": num, "num_tokens": num * recipe.batch * recipe.length, "train_seconds": round(time.perf_counter() - start, 1),
        "params": sum(p.numel() for p in model.parameters()), "train_nats": round(losses[-1], 4),
    }  # fmt: skip
    return model.eval(), facts


@torch.inference_mode()
def read_surely(model: SegmentModel, tokens_BT: Tensor, sure: float, num_given: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A text read as `write` would cut it: behind num_given tokens, one a step, a step is as long as the likeliest next token has a probability
    of at least `sure`. By text: nats, tokens, likeliest tokens that come, and steps, [B] each.

    Every step reads one segment of all texts; those that are at their end wait for the others.
    """
    shape, (batch, num) = model.shape, tokens_BT.shape
    padded_BT = F.pad(tokens_BT, (0, shape.most), value=shape.pad)
    states, past = model.states(model.composed(single_tokens(shape, tokens_BT[:, :num_given])))
    at_B = torch.full((batch,), num_given, device=tokens_BT.device)
    sums = [torch.zeros(batch, device=tokens_BT.device) for _ in range(4)]
    places_M = torch.arange(shape.most, device=tokens_BT.device)
    while bool((at_B < num).any()):
        coming_BM = padded_BT.gather(1, (at_B[:, None] + places_M).clamp_max(padded_BT.shape[1] - 1))
        logits_BMV = model.said(states[:, -1], coming_BM).float()
        is_sure = logits_BMV.softmax(-1).amax(-1) >= sure
        is_sure[:, 0] = True
        taken_BM = is_sure.cumprod(1).bool() & (coming_BM != shape.pad)
        log_p_BM = logits_BMV.log_softmax(-1).gather(-1, coming_BM.clamp_max(shape.vocab - 1)[..., None])[..., 0]
        right_BM = (logits_BMV.argmax(-1) == coming_BM) & taken_BM
        found = (-(log_p_BM * taken_BM).sum(1), taken_BM.sum(1), right_BM.sum(1), taken_BM[:, 0])
        sums = [total + some for total, some in zip(sums, found, strict=True)]
        at_B = at_B + taken_BM.sum(1)
        states, past = model.states(model.composed(torch.where(taken_BM, coming_BM, shape.pad)[:, None]), past)
    nats_B, num_B, right_B, steps_B = sums
    return nats_B, num_B, right_B, steps_B


def single_tokens(shape: SegmentShape, tokens_BT: Tensor) -> Tensor:
    """[B, T, M]: every token a segment."""
    return F.pad(tokens_BT[..., None], (0, shape.most - 1), value=shape.pad)
