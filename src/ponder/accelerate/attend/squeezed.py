"""A prompt's keys are clustered once; a query meets the clusters whose centroid is enough like it, and all keys behind them.

Paper      Squeezed Attention (Hooper et al. 2024), with one level of centroids or two.
Equation   Per key head, k-means on the directions of the n keys of the prompt's full pages gives C = clusters n groups of N_i keys, with
           mean c_i, rounded to the keys' type. To query q a key of group i promises the share
               p_i = exp(q . c_i) / sum_j N_j exp(q . c_j)
           and group i is met if n p_i >= threshold for one of the head's query heads: its promise against that of even attention.
           Two levels (coarse > 0): k-means on the means gives coarse n groups of groups with means of all their keys; only in those that
           pass the same test, with `coarse_threshold`, are the c_i looked at, and the sum is over what was looked at: groups passed
           over count as one, at their coarse mean.
Shapes     means [K, C, E] as a panel, labels int32 [K, n]; lists of single keys per key head and query.
Guarantee  approximate: a group is left out by its mean, and one key of it may have mattered.
Cost       n C E products a round of k-means, once per prompt; C centroids and the keys of the groups that are met for each token.
Choose     for a prompt that many questions are asked about. threshold=0 is plain attention, bit for bit. What share of keys a threshold
           meets depends on model and text: calibrate it on a prompt of the kind (`benchmarks/looked_up.py calibrate`).
Differs    one number for all heads and layers, as in the paper, but against even attention, so that it holds for prompts of other
           lengths; the prompt's last, not full page and all that follows it is always met; query heads that share a key head share a list.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ponder.core.attention_plan import KEY_BLOCK, Piece, View, everything, of_answer, of_answer_flat
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee
from ponder.native.panels import Level, packed, passing

EACH = 2048  # rows that meet all means at a time


@dataclass(frozen=True, kw_only=True)
class Squeezed:
    """Settings; shares are of the prompt's keys."""

    clusters: float = 0.05  # means, as a share of the keys
    threshold: float = 0.15  # of a group's promised attention, where even attention is 1
    coarse: float = 0.0  # means of means, as a share of the keys; 0: one level
    coarse_threshold: float = 0.1
    rounds: int = 6  # of k-means
    name: ClassVar[str] = "squeezed"
    guarantee: ClassVar[Guarantee] = Guarantee.APPROXIMATE
    segment: ClassVar[int] = 1
    answer_segment: ClassVar[int] = 1
    is_for_prompts: ClassVar[bool] = False
    is_for_answers: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.clusters <= 1 or not 0 <= self.coarse < self.clusters:
            raise BadField(f"squeezed clusters={self.clusters}, coarse={self.coarse}: give shares of keys, 0 <= coarse < clusters <= 1")
        if self.threshold < 0 or self.coarse_threshold < 0 or self.rounds < 1:
            raise BadField(f"squeezed threshold={self.threshold}, coarse_threshold={self.coarse_threshold}, rounds={self.rounds}: none is negative")

    def reach(self, context_len: int) -> int:
        return context_len

    def pieces(self, view: View) -> Sequence[Piece]:
        num = view.num_prompt // KEY_BLOCK * KEY_BLOCK
        if self.threshold == 0 or not num:
            return [everything(view)]
        known = view.memory.prompt
        if "means" not in known:
            known.update(self.clustered(view.keys(0, num)))
        fine, coarse, lists = self.level(known, "", self.threshold / num), None, []
        if self.coarse:
            coarse = self.level(known, "coarse_", self.coarse_threshold / num)
        for place in range(view.start, view.stop):
            q_KGE = view.q_NHE[place - view.start].unflatten(0, (view.num_kv_heads, -1))
            lists.append(passing(q_KGE, known["labels"], fine, coarse, then=range(num, place + 1)))
        if len(lists) == 1:
            return [of_answer_flat(view, *lists[0], are_pages=False)]
        return [of_answer(view, [some for keys, ends in lists for some in np.split(keys, ends[:-1])], are_pages=False)]

    def level(self, known: Mapping[str, Tensor], name: str, least: float) -> Level:
        sizes = known[f"{name}sizes"]
        panel = known[f"{name}means"], sizes.shape[1]
        return Level(panel=panel, sizes=sizes, log_sizes=known[f"{name}log_sizes"], above=None if name else known.get("groups"), least=least)

    def clustered(self, keys_CKE: Tensor) -> dict[str, Tensor]:
        """What is remembered of a prompt's keys."""
        keys = keys_CKE.float().transpose(0, 1).contiguous()
        num = keys.shape[1]
        labels = torch.stack([k_means(some, max(1, round(self.clusters * num)), self.rounds) for some in keys])
        means, sizes = means_of(keys, labels, max(1, round(self.clusters * num)))
        found = {"labels": labels.int()} | remembered("", means, sizes, keys_CKE.dtype)
        if self.coarse:
            groups = torch.stack([k_means(some, max(1, round(self.coarse * num)), self.rounds) for some in means])
            found |= {"groups": groups.int()}
            found |= remembered("coarse_", *means_of(means, groups, max(1, round(self.coarse * num)), sizes), keys_CKE.dtype)
        return found


def remembered(name: str, means: Tensor, sizes: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    return {f"{name}means": packed(means.to(dtype)), f"{name}sizes": sizes, f"{name}log_sizes": sizes.log()}


def k_means(points: Tensor, num: int, rounds: int) -> Tensor:
    """int64 [n]: which of `num` directions each point [n, E] is most like; a function of the points alone."""
    points = torch.nn.functional.normalize(points, dim=1)
    means = points[torch.arange(num) * len(points) // num]
    for _ in range(rounds):
        labels = torch.cat([(some @ means.T).argmax(1) for some in points.split(EACH)])
        found = torch.zeros_like(means).index_add_(0, labels, points)
        means = torch.where(found.norm(dim=1, keepdim=True) > 0, torch.nn.functional.normalize(found, dim=1), means)
    return torch.cat([(some @ means.T).argmax(1) for some in points.split(EACH)])


def means_of(points: Tensor, labels: Tensor, num: int, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Means [K, num, E] of points [K, n, E], each counted `weights` [K, n] times, and how much is in each [K, num]."""
    weights = points.new_ones(points.shape[:2]) if weights is None else weights
    counts = points.new_zeros(len(points), num).scatter_add_(1, labels, weights)
    sums = points.new_zeros(len(points), num, points.shape[2]).scatter_add_(1, labels[..., None].expand_as(points), points * weights[..., None])
    return sums / counts.clamp(min=1)[..., None], counts
