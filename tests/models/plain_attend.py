"""Attention in plain float32 over a growing tree of tokens: slow, obvious, the oracle side of every engine's `attend`."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ponder.core.formats import ModelConfig


class PlainAttend:
    """Keys and values of every token computed so far, each of which has a parent (or none) and sees itself and its ancestors."""

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self.seen: list[list[int]] = []  # per token: its ancestors and itself, root first
        self.kv: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(config.num_layers)]
        self.num_new = 0

    def add(self, parents: Sequence[int | None]) -> Tensor:
        """Announces the next step's tokens by the indices of their parents; their positions, int64 [T]."""
        for parent in parents:
            self.seen.append([*([] if parent is None else self.seen[parent]), len(self.seen)])
        self.num_new = len(parents)
        return torch.tensor([len(path) - 1 for path in self.seen[-self.num_new :]])

    def attend(self, layer: int, q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor) -> Tensor:
        """What every new token reads, [T, H * E]."""
        self.kv[layer].append((k_TKE, v_TKE))
        k_CHE, v_CHE = (torch.cat(parts).repeat_interleave(q_THE.shape[1] // k_TKE.shape[1], 1) for parts in zip(*self.kv[layer], strict=True))
        scores_HTC = torch.einsum("the,che->htc", q_THE, k_CHE) / math.sqrt(q_THE.shape[-1])
        if self.config.attn_softcap is not None:
            scores_HTC = self.config.attn_softcap * torch.tanh(scores_HTC / self.config.attn_softcap)
        scores_HTC = scores_HTC + self._mask(layer)
        return torch.einsum("htc,che->the", scores_HTC.softmax(-1), v_CHE).flatten(1)

    def _mask(self, layer: int) -> Tensor:
        """float32 [T, C]: 0 where a token sees, -inf elsewhere."""
        window = self.config.window(layer)
        mask = torch.full((self.num_new, len(self.seen)), -math.inf)
        for row, path in zip(mask, self.seen[-self.num_new :], strict=True):
            row[path if window is None else path[-window:]] = 0
        return mask
