"""A model whose step is a segment of several tokens: one key per layer for all of them, and several tokens said from one state.

Paper      Liu and Zhang 2025, "HAMburger: Accelerating LLM Inference via Token Smashing" (arXiv:2505.20438): steps as long as the model is
           sure; An et al. 2024, "SentenceVAE" (arXiv:2408.00655): steps that are sentences, ended by a sign of their own
Equation   x_s = e(t_1) + [more than one token] W sum_j c_j(t_1..t_m), c a layer over the segment's tokens; h_1..h_S = body(x_1..x_S) causally;
           the next segment's first token ~ head(h_s), its j-th ~ head(micro(h_s, t_1..t_{j-1}))
Shapes     B texts, S steps, M most tokens of one, D width, V words that the head scores (with END, where there is one)
Guarantee  approximate: another model than one that reads token by token. With segments of one token it is its own plain decoder, bit for bit:
           neither composer nor micro decoder has a say
Differs    all is trained from nothing (train/segments) where the papers train both ends around a large model; no variational term
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ponder.core.errors import BadField

EPS = 1e-5
Keys = tuple[Tensor, Tensor]  # of one layer, [B, heads, S, E] each
Pick = Callable[[Tensor], Tensor]  # logits [B, V] -> tokens [B]


@dataclass(frozen=True, kw_only=True)
class SegmentShape:
    """Sizes of a model. Raises BadField."""

    vocab: int  # tokens
    most: int  # tokens of a segment
    has_end: bool = False  # whether a segment says that it is over; else the reader decides how long it is
    dim: int = 256
    heads: int = 4
    layers: int = 4
    micro: int = 1  # layers of the micro decoder

    def __post_init__(self) -> None:
        if min(self.vocab, self.most, self.heads, self.layers, self.micro) < 1 or self.dim % (2 * self.heads):
            raise BadField(f"{self}: all at least 1, dim a multiple of twice the heads")

    @property
    def end(self) -> int:
        """The sign that ends a segment of fewer than `most` tokens."""
        return self.vocab

    @property
    def pad(self) -> int:
        return self.vocab + 1


class Block(nn.Module):
    """Attention and a gated ffn, both with norms before them; q and k rotated."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads, self.width = heads, dim // heads
        self.norms = nn.Parameter(torch.ones(2, dim))
        self.qkv, self.o = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.gate_up, self.down = nn.Linear(dim, 4 * dim, bias=False), nn.Linear(2 * dim, dim, bias=False)

    def forward(self, x_BSD: Tensor, past: Keys | None = None, *, mask: Tensor | None = None, is_causal: bool = True) -> tuple[Tensor, Keys]:
        """After past keys a single step is read; mask: bool, which keys each row sees, in place of causality."""
        batch, num, dim = x_BSD.shape
        start = 0 if past is None else past[0].shape[2]
        read = F.rms_norm(x_BSD, (dim,), self.norms[0], EPS)
        q, k, v = (part.view(batch, num, self.heads, self.width).transpose(1, 2) for part in self.qkv(read).chunk(3, -1))
        q, k = (turned(part, torch.arange(start, start + num, device=x_BSD.device)) for part in (q, k))
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal and mask is None and past is None)
        x_BSD = x_BSD + self.o(out.transpose(1, 2).reshape(batch, num, dim))
        gate, up = self.gate_up(F.rms_norm(x_BSD, (dim,), self.norms[1], EPS)).chunk(2, -1)
        return x_BSD + self.down(F.silu(gate) * up), (k, v)


def turned(x: Tensor, positions: Tensor) -> Tensor:
    """Rotary embedding over halves of [B, heads, S, E] at positions [S]."""
    half = x.shape[-1] // 2
    angles = positions[:, None] * 10000.0 ** -(torch.arange(half, device=x.device) / half)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class SegmentModel(nn.Module):
    def __init__(self, shape: SegmentShape) -> None:
        super().__init__()
        self.shape, dim = shape, shape.dim
        self.words = nn.Embedding(shape.pad + 1, dim)
        self.places = nn.Parameter(torch.zeros(shape.most, dim))
        self.composer, self.mix = Block(dim, shape.heads), nn.Linear(dim, dim, bias=False)
        self.body = nn.ModuleList(Block(dim, shape.heads) for _ in range(shape.layers))
        self.micro = nn.ModuleList(Block(dim, shape.heads) for _ in range(shape.micro))
        self.norm, self.micro_norm = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.ones(dim))
        self.head = nn.Linear(dim, shape.vocab + shape.has_end, bias=False)

    def filled(self, draws: torch.Generator) -> "SegmentModel":
        """Itself with fresh weights. draws: of the CPU."""
        scales = {"words.weight": 0.5, "places": 0.1}
        with torch.no_grad():
            for name, weight in self.named_parameters():
                if name.rpartition(".")[2] not in ("norm", "norms", "micro_norm"):
                    weight.copy_(torch.randn(weight.shape, generator=draws) * scales.get(name, weight.shape[-1] ** -0.5 * 0.6))
        return self

    # a step's input

    def composed(self, segments_BSM: Tensor) -> Tensor:
        """[B, S, D]: what each segment enters the body as; a segment of one token as that token."""
        tokens_NM = segments_BSM.flatten(0, 1)
        is_there_NM = tokens_NM < self.shape.end
        x_NMD = self.words(tokens_NM)
        first_ND = x_NMD[:, 0]
        if segments_BSM.shape[2] > 1:
            is_seen_NM = F.pad(is_there_NM[:, 1:], (1, 0), value=True)  # a segment of pads alone still sees one, so that no sum is empty
            read_NMD, _ = self.composer(x_NMD + self.places[: segments_BSM.shape[2]], mask=is_seen_NM[:, None, None, :])
            more_ND = self.mix((read_NMD * is_there_NM[..., None]).sum(1))
            first_ND = first_ND + torch.where(is_there_NM.sum(1, keepdim=True) > 1, more_ND, torch.zeros_like(more_ND))
        return first_ND.view(*segments_BSM.shape[:2], -1)

    # a step

    def states(self, x_BSD: Tensor, past: Sequence[Keys] | None = None) -> tuple[Tensor, list[Keys]]:
        """[B, S, D] after each step, and the keys of all steps; after past keys one step is read."""
        keys = []
        for i, block in enumerate(self.body):
            x_BSD, kept = block(x_BSD, None if past is None else past[i])
            keys.append(kept)
        return F.rms_norm(x_BSD, (self.shape.dim,), self.norm, EPS), keys

    def first(self, states_ND: Tensor) -> Tensor:
        """Logits [N, V] of the first token of the segment after each state: plain decoding's. No segment is empty."""
        logits_NV = self.head(states_ND)
        return F.pad(logits_NV[:, : self.shape.end], (0, 1), value=-torch.inf) if self.shape.has_end else logits_NV

    # what a step says

    def said(self, states_ND: Tensor, tokens_NM: Tensor) -> Tensor:
        """Logits [N, M, V] of each token of the segments after the states, given those before it."""
        first_N1V = self.first(states_ND)[:, None]
        if tokens_NM.shape[1] == 1:
            return first_N1V
        x_NMD = torch.cat([states_ND[:, None], self.words(tokens_NM[:, :-1])], 1) + self.places[: tokens_NM.shape[1]]
        for block in self.micro:
            x_NMD, _ = block(x_NMD)
        return torch.cat([first_N1V, self.head(F.rms_norm(x_NMD[:, 1:], (self.shape.dim,), self.micro_norm, EPS))], 1)

    def next_said(self, x_NSD: Tensor, start: int, past: list[Keys] | None) -> tuple[Tensor, list[Keys]]:
        """`said` as it comes: logits [N, V] of the token after x, which are a state at place 0 and words from there on. After past keys one
        word is read."""
        x_NSD, keys = x_NSD + self.places[start : start + x_NSD.shape[1]], []
        for i, block in enumerate(self.micro):
            x_NSD, kept = block(x_NSD, None if past is None else past[i])
            keys.append(kept)
        return self.head(F.rms_norm(x_NSD[:, -1], (self.shape.dim,), self.micro_norm, EPS)), keys


@dataclass(frozen=True)
class Written:
    """Free decoding of a batch. tokens[b] and log_p[b] (of each token) are what row b said; lengths[b]: tokens of each of its steps.

    num_micro: passes of the micro decoder, all rows at once.
    """

    tokens: list[list[int]]
    log_p: list[list[float]]
    lengths: list[list[int]]
    num_micro: int


@torch.inference_mode()
def write(model: SegmentModel, segments_BSM: Tensor, *, num_steps: int, sure: float, pick: Pick) -> Written:
    """num_steps segments after those given. A segment of a model with END lasts until it says so; of one without, as long as the likeliest
    next token has a probability of at least `sure`: above 1, one token."""
    states, past = model.states(model.composed(segments_BSM))
    found = Written([[] for _ in segments_BSM], [[] for _ in segments_BSM], [[] for _ in segments_BSM], 0)
    num_micro = 0
    for _ in range(num_steps):
        segment_BM, log_p_BM, some = segment_after(model, states[:, -1], sure, pick)
        num_micro += some
        for b, (tokens, log_p) in enumerate(zip(segment_BM.tolist(), log_p_BM.tolist(), strict=True)):
            num = sum(token < model.shape.end for token in tokens)
            found.tokens[b].extend(tokens[:num])
            found.log_p[b].extend(log_p[:num])
            found.lengths[b].append(num)
        states, past = model.states(model.composed(segment_BM[:, None, : some + 1]), past)
    return Written(found.tokens, found.log_p, found.lengths, num_micro)


def segment_after(model: SegmentModel, state_BD: Tensor, sure: float, pick: Pick) -> tuple[Tensor, Tensor, int]:
    """(tokens [B, M], their log-probabilities, passes of the micro decoder) of the next segment."""
    shape, logits_BV = model.shape, model.first(state_BD)
    tokens_BM = torch.full((len(state_BD), shape.most), shape.pad, device=state_BD.device)
    log_p_BM = torch.zeros(tokens_BM.shape, device=state_BD.device)
    goes_on_B = torch.ones(len(state_BD), dtype=torch.bool, device=state_BD.device)
    past: list[Keys] | None = None
    place = 0
    while True:
        token_B = pick(logits_BV)
        tokens_BM[:, place] = torch.where(goes_on_B, token_B, shape.pad)
        log_p_BM[:, place] = logits_BV.log_softmax(-1).gather(1, token_B[:, None])[:, 0]
        if shape.has_end:
            goes_on_B = goes_on_B & (token_B != shape.end)
        if place + 1 == shape.most or (not shape.has_end and sure > 1) or not bool(goes_on_B.any()):
            return tokens_BM, log_p_BM, place
        word_B1D = model.words(token_B)[:, None]
        read = torch.cat([state_BD[:, None], word_B1D], 1) if past is None else word_B1D
        logits_BV, past = model.next_said(read, 0 if past is None else place + 1, past)
        place += 1
        if not shape.has_end:
            goes_on_B = goes_on_B & (logits_BV.softmax(-1).amax(-1) >= sure)
            if not bool(goes_on_B.any()):
                return tokens_BM, log_p_BM, place
