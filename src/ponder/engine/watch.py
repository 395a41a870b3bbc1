"""A forward pass over one text that shows what each layer computed: for training on it and for measuring it. Plain PyTorch, no pages."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ponder.core.evidence import scores_of, weights_of
from ponder.models.decoder import Decoder
from ponder.models.rotary import frequencies, rotary_kind, turned

ROWS = 128  # rows whose attention is computed together


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One layer of a text of T tokens."""

    layer: int
    q_THE: Tensor  # rotated, as attention meets them
    k_TKE: Tensor
    v_TKE: Tensor
    plain_q_THE: Tensor  # before they were rotated
    plain_k_TKE: Tensor
    window: int | None
    softcap: float | None

    def scores(self, start: int, stop: int) -> Tensor:
        """float32 [K, G, R, stop]: scores of rows start to stop with all keys up to there; -inf for what a row does not see."""
        keys = self.k_TKE[:stop].transpose(0, 1)
        places, at = torch.arange(stop).expand(len(keys), stop), torch.arange(start, stop)
        return scores_of(self.q_THE[start:stop], keys, places, at, window=self.window, softcap=self.softcap)

    def attention(self) -> Tensor:
        """[T, H * E]: what every token reads."""
        read = []
        for start in range(0, len(self.q_THE), ROWS):
            stop = min(start + ROWS, len(self.q_THE))
            out_KGRE = weights_of(self.scores(start, stop)) @ self.v_TKE[:stop].transpose(0, 1)[:, None].float()
            read.append(out_KGRE.permute(2, 0, 1, 3).flatten(1))
        return torch.cat(read).to(self.v_TKE.dtype)


def watch(decoder: Decoder, tokens: Tensor, see: Callable[[Seen], None]) -> Tensor:
    """Hidden rows [T, D] of tokens [T] that stand at the beginning; `see` is called once per layer, in order."""
    config, back = decoder.config, -torch.arange(len(tokens))

    def attend(layer: int, q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor) -> Tensor:
        frequency = frequencies(config, rotary_kind(config, layer))
        seen = Seen(
            layer=layer, q_THE=q_THE, k_TKE=k_TKE, v_TKE=v_TKE, plain_q_THE=turned(q_THE, frequency, back),
            plain_k_TKE=turned(k_TKE, frequency, back), window=config.window(layer), softcap=config.attn_softcap,
        )  # fmt: skip
        see(seen)
        return seen.attention()

    return decoder.forward(tokens, torch.arange(len(tokens)), attend, [(0, len(tokens))])
