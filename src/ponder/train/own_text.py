"""Text that a model writes by itself, hundreds of sequences in step, with the states that its tokens were drawn from.

On a card a small model writes millions of tokens in a minute so. No pages, no prefixes, no strategies: those are the engine's, whose
own text `draft_heads.written` collects. Equal to plain decoding up to rounding.

Shapes: B sequences, P places of prompts, T of prompts and text, D width, H query heads, K key heads, E head width, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ponder.core.errors import Unsupported
from ponder.models.decoder import Decoder

CHUNK = 1 << 14  # tokens of prompts that are read at once
LOOK = 16  # steps between looks at whether anybody still writes
NUM_WARM = 2  # plain runs before a recording
ALIGNED = 16  # places that a sheet's length is a multiple of


@dataclass(frozen=True)
class Texts:
    """tokens int64 [B, N], -1 behind the end (the token that ends a text is in it); states [B, N, D], what each was drawn from."""

    tokens_BN: Tensor
    states_BND: Tensor


@dataclass
class Sheet:
    """Keys and values of a batch, of every layer [B, K, T, E]; place p of a sequence holds its token p."""

    keys: list[Tensor]
    values: list[Tensor]

    @staticmethod
    def of(decoder: Decoder, num: int, length: int) -> "Sheet":
        config = decoder.config
        shape = (num, config.num_kv_heads, length, config.head_dim)
        made = [[torch.zeros(shape, dtype=decoder.dtype, device=decoder.device) for _ in range(config.num_layers)] for _ in range(2)]
        return Sheet(*made)

    def prompts(self, start: int, num: int, length: int) -> Callable[[int, Tensor, Tensor, Tensor], Tensor]:
        """Attention of sequences start .. start + num, whose first `length` places come now, those of short prompts filled up behind."""

        def attend(layer: int, q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor) -> Tensor:
            q, k, v = (x.reshape(num, length, -1, x.shape[-1]).transpose(1, 2) for x in (q_THE, k_TKE, v_TKE))
            self.keys[layer][start : start + num, :, :length], self.values[layer][start : start + num, :, :length] = k, v
            out = F.scaled_dot_product_attention(q, k.to(q.dtype), v.to(q.dtype), is_causal=True, enable_gqa=True)
            return out.transpose(1, 2).reshape(num * length, -1)

        return attend

    def step(self, places_B: Tensor) -> Callable[[int, Tensor, Tensor, Tensor], Tensor]:
        """Attention of one token of every sequence at its place. Heads that share keys are rows of one product."""
        num, length = len(places_B), self.keys[0].shape[2]
        rows = torch.arange(num, device=places_B.device)
        seen_B11T = (torch.arange(length, device=places_B.device)[None] <= places_B[:, None])[:, None, None]

        def attend(layer: int, q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor) -> Tensor:
            keys, values = self.keys[layer], self.values[layer]
            keys[rows, :, places_B], values[rows, :, places_B] = k_TKE.to(keys.dtype), v_TKE.to(keys.dtype)
            q_BKGE = q_THE.reshape(num, keys.shape[1], -1, q_THE.shape[-1]).to(keys.dtype)
            return F.scaled_dot_product_attention(q_BKGE, keys, values, attn_mask=seen_B11T).reshape(num, -1)

        return attend


class Step:
    """One more token of every sequence: the same operations on the same buffers, which a card records once and replays."""

    def __init__(self, decoder: Decoder, sheet: Sheet, num: int) -> None:
        self.decoder, self.sheet = decoder, sheet
        self.tokens_B, self.places_B = (torch.zeros(num, dtype=torch.int64, device=decoder.device) for _ in range(2))
        self.graph: torch.cuda.CUDAGraph | None = None
        self.result = torch.empty(0)

    def run(self, tokens_B: Tensor, places_B: Tensor, *, is_recorded: bool) -> Tensor:
        """The states [B, D], valid until the next run."""
        self.tokens_B.copy_(tokens_B)
        self.places_B.copy_(places_B)
        if not is_recorded or self.decoder.device.type != "cuda":
            return self._computed()
        if self.graph is None:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):  # kernels are compiled and chosen in plain runs, which write what the recording writes again
                for _ in range(NUM_WARM):
                    self._computed()
            torch.cuda.current_stream().wait_stream(stream)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.result = self._computed()
        self.graph.replay()
        return self.result

    def _computed(self) -> Tensor:
        return self.decoder.forward(self.tokens_B, self.places_B, self.sheet.step(self.places_B))


@torch.no_grad()
def write(
    decoder: Decoder, prompts: Sequence[Sequence[int]], *, num: int, temperatures: Sequence[float], eos_ids: frozenset[int],
    draws: torch.Generator, is_recorded: bool = True,
) -> Texts:  # fmt: skip
    """At most `num` tokens behind every prompt; temperature 0 is greedy. draws: of the decoder's device. Raises Unsupported.

    is_recorded: on a card steps are replayed from a recording.
    """
    config, device = decoder.config, decoder.device
    if any(config.windows) or config.attn_softcap:
        raise Unsupported(f"writing in step with a {config.arch} model: it has windows or capped scores; let the engine write (`written`)")
    longest = max(map(len, prompts))
    sheet = Sheet.of(decoder, len(prompts), -(-(longest + num) // ALIGNED) * ALIGNED)
    step = Step(decoder, sheet, len(prompts))
    ends, places_B = torch.tensor(sorted(eos_ids), device=device), torch.tensor([len(p) for p in prompts], device=device)
    heat_B1, is_drawn = torch.tensor(temperatures, device=device)[:, None], max(temperatures) > 0
    hidden_BD = read_prompts(decoder, sheet, prompts)
    tokens_BN = torch.full((len(prompts), num), -1, device=device)
    states_BND = torch.zeros(len(prompts), num, config.dim, dtype=hidden_BD.dtype, device=device)
    is_live_B = torch.ones(len(prompts), dtype=torch.bool, device=device)
    for at in range(num):
        states_BND[:, at] = hidden_BD
        logits_BV = decoder.logits(hidden_BD)
        drawn_B = drawn(logits_BV, heat_B1, draws) if is_drawn else logits_BV.argmax(-1)
        tokens_BN[:, at] = torch.where(is_live_B, drawn_B, -1)
        is_live_B &= ~torch.isin(drawn_B, ends)
        if at + 1 == num or (at % LOOK == LOOK - 1 and not bool(is_live_B.any())):
            break
        hidden_BD = step.run(drawn_B, places_B + at, is_recorded=is_recorded)
    return Texts(tokens_BN, states_BND)


def read_prompts(decoder: Decoder, sheet: Sheet, prompts: Sequence[Sequence[int]]) -> Tensor:
    """The states [B, D] behind the prompts, whose keys then stand in the sheet."""
    longest = max(map(len, prompts))
    step, found = max(1, CHUNK // longest), []
    for start in range(0, len(prompts), step):
        some = prompts[start : start + step]
        flat = torch.tensor([token for p in some for token in (*p, *([0] * (longest - len(p))))], device=decoder.device)
        places = torch.arange(longest, device=decoder.device).repeat(len(some))
        rows = [(0, len(flat))]
        hidden_TD = decoder.forward(flat, places, sheet.prompts(start, len(some), longest), rows)
        last = [i * longest + len(p) - 1 for i, p in enumerate(some)]
        found.append(hidden_TD[last])
    return torch.cat(found)


def drawn(logits_BV: Tensor, heat_B1: Tensor, draws: torch.Generator) -> Tensor:
    """A token of each row [B], by adding Gumbel noise; greedy where the temperature is 0."""
    noise_BV = torch.empty_like(logits_BV).exponential_(generator=draws).log_().neg_()
    return torch.where(heat_B1 > 0, logits_BV / heat_B1.clamp_min(1e-6) + noise_BV, logits_BV).argmax(-1)


def batches(prompts: Sequence[Sequence[int]], *, num: int, most: int, places: int) -> Iterator[list[int]]:
    """Places of prompts of like length, at most `most` at once and `places` tokens of keys; the shortest first."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    while order:
        size = 1
        while size < min(most, len(order)) and (size + 1) * (len(prompts[order[size]]) + num) <= places:
            size += 1
        yield order[:size]
        order = order[size:]
