"""Workers that see each other's tokens at once (Hogwild! inference): their attention by the pieces that the engine has. Keys stay in the
pages of whoever wrote them; a worker's query is turned for each piece, and the pieces are merged. Where another's tokens were there
first, that is a plain forward pass over the re-ordered sequence; where all write at once, attention by the distances of each worker's view.
"""

import pytest
import torch
from torch import Tensor

from engine.test_decoder import tokens_of, whole
from engine.tiny_models import tiny_decoder
from ponder.engine.attend import attention_reference, merge
from ponder.engine.pages import Pool
from ponder.engine.pages import Sequence as Pages
from ponder.models.decoder import Decoder
from ponder.models.rotary import frequencies, turned
from ponder.testing.laws_attend import Rows, Rule, dense_reference

NUM_PROMPT = 21  # not whole pages
TOLERANCE = 2e-4  # float32 logits of a model whose logits are of the order of 1


class Workers:
    """Prompt, then for each worker tokens of its own in pages of its own. off: positions that queries are turned too far (a mutant)."""

    def __init__(self, decoder: Decoder, prompt: Tensor, num: int, *, off: int = 0) -> None:
        self.decoder, self.config, self.off = decoder, decoder.config, off
        self.pool = Pool((self.config.num_layers, self.config.num_kv_heads, self.config.head_dim), torch.float32, 1 << 24)
        first = Pages(self.pool)
        self.forward(prompt, first, [])
        self.pages = [first, *(first.fork() for _ in range(num - 1))]

    def forward(self, tokens: Tensor, pages: Pages, others: list[tuple[Pages, int]]) -> Tensor:
        """Logits of a worker's next tokens, which see of each other worker that many tokens of its own, in this order, before their own."""
        start, stop = pages.num_tokens, pages.num_tokens + len(tokens)
        assert pages.reserve(stop)

        def attend(layer: int, q_NHE: Tensor, k_NKE: Tensor, v_NKE: Tensor) -> Tensor:
            positions = torch.arange(start, stop)[:, None].expand(-1, k_NKE.shape[1]).reshape(-1)
            self.pool.write(pages.slots(layer, start, stop).reshape(-1), k_NKE.flatten(0, 1), v_NKE.flatten(0, 1), positions)
            offset, cut = sum(num for _, num in others), min(NUM_PROMPT, start)
            pieces, view_start = [(pages, 0, cut, offset)], NUM_PROMPT
            for other, num in others:
                pieces.append((other, NUM_PROMPT, NUM_PROMPT + num, offset - view_start + NUM_PROMPT + self.off))
                view_start += num
            pieces.append((pages, cut, stop, 0))
            return merge([self.meet(layer, q_NHE, piece, (start, stop)) for piece in pieces if piece[1] < piece[2]])[0].flatten(1)

        hidden = self.decoder.forward(tokens, torch.arange(start, stop), attend)
        pages.num_tokens = stop
        return self.decoder.logits(hidden)

    def meet(self, layer: int, q_NHE: Tensor, piece: tuple[Pages, int, int, int], span: tuple[int, int]) -> tuple[Tensor, Tensor]:
        pages, first, last, turn = piece
        at = torch.arange(first, last)
        q = turned(q_NHE, frequencies(self.config, "global"), torch.full((len(q_NHE),), turn)).unflatten(1, (self.config.num_kv_heads, -1))
        slots = pages.slots(layer, first, last)  # [n, K]
        keys, values = (self.pool.rows(i, slots.T.reshape(-1)).view(slots.shape[1], len(at), -1) for i in (0, 1))
        is_own = last == span[1] and turn == 0
        seen = at <= torch.arange(*span)[:, None] if is_own else torch.ones(len(q), len(at), dtype=torch.bool)
        mask = torch.where(seen, 0.0, -torch.inf)[None, None]  # [1, 1, N, C]
        out, lse = attention_reference(q.permute(1, 2, 0, 3), keys[:, None], values[:, None], mask)
        return out.permute(2, 0, 1, 3).flatten(1, 2), lse.permute(2, 0, 1).flatten(1)


def texts(num: int) -> tuple[Tensor, list[Tensor]]:
    return tokens_of(NUM_PROMPT), [tokens_of(9 + 4 * i, seed=i + 2) for i in range(num)]


@torch.inference_mode()
def off_by(num_workers: int, *, off: int = 0) -> float:
    """How far the first worker's logits are from those of the re-ordered sequence, when the others have written one after the other."""
    decoder = tiny_decoder(is_exact=True)
    prompt, own = texts(num_workers)
    workers = Workers(decoder, prompt, num_workers, off=off)
    before: list[tuple[Pages, int]] = []
    for number in [*range(1, num_workers), 0]:
        found = workers.forward(own[number], workers.pages[number], before)
        before.append((workers.pages[number], len(own[number])))
    reordered = torch.cat([prompt, *own[1:], own[0]])
    return float((found - whole(decoder, reordered)[-len(own[0]) :]).abs().max())


@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_a_worker_with_others_pieces_is_a_plain_pass_over_the_reordered_sequence(num_workers: int):
    assert off_by(num_workers) < TOLERANCE


@pytest.mark.parametrize("off", [1, -1])
def test_a_query_turned_one_position_off_is_found(off: int):
    assert off_by(2, off=off) > 5 * TOLERANCE


@torch.inference_mode()
def test_workers_that_write_at_once_read_by_the_distances_of_their_own_views():
    """Token i of each sees the others' first i tokens, before its own. All tokens at once in the order of time, each pair by its distance."""
    decoder, num_steps = tiny_decoder(is_exact=True), 6
    prompt, own = texts(3)
    workers = Workers(decoder, prompt, 3)
    found = torch.empty(num_steps, 3, decoder.config.vocab_size)
    for i in range(num_steps):
        for w in range(3):
            others = [(workers.pages[o], i) for o in range(3) if o != w]
            found[i, w] = workers.forward(own[w][i : i + 1], workers.pages[w], others)[0]
    names = [(-1, j) for j in range(NUM_PROMPT)] + [(w, i) for i in range(num_steps) for w in range(3)]
    seen = torch.zeros(len(names), len(names), dtype=torch.bool)
    distance = torch.zeros(len(names), len(names), dtype=torch.int64)
    for a, (w, i) in enumerate(names):
        for b, (o, j) in enumerate(names):
            mine = i if w < 0 else NUM_PROMPT + 2 * i + i
            place = j if o < 0 else NUM_PROMPT + 2 * i + j if o == w else NUM_PROMPT + sorted({0, 1, 2} - {w}).index(o) * i + j if w >= 0 else 0
            seen[a, b] = (o < 0 and (w >= 0 or j <= i)) or (o == w and j <= i) or (o >= 0 and w >= 0 and o != w and j < i)
            distance[a, b] = mine - place
    frequency = frequencies(decoder.config, "global")

    def attend(layer: int, q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor) -> Tensor:
        rows = Rows(q_THE.double(), k_TKE.double(), v_TKE.double(), frequency)
        return dense_reference(rows, Rule(seen[None], distance)).float().flatten(1)

    tokens = torch.cat([prompt, torch.stack([x[:num_steps] for x in own], 1).flatten()])
    wanted = decoder.logits(decoder.forward(tokens, torch.zeros(len(tokens), dtype=torch.int64), attend))[NUM_PROMPT:]
    assert (found.flatten(0, 1) - wanted).abs().max() < TOLERANCE
    alone = Workers(decoder, prompt, 1)
    deaf = alone.forward(own[0][:num_steps], alone.pages[0], [])
    assert (found[1:, 0] - deaf[1:]).abs().max() > 100 * TOLERANCE  # what the others write changes what a worker thinks


@torch.inference_mode()
def test_writing_at_once_moves_and_copies_no_key():
    decoder = tiny_decoder(is_exact=True)
    prompt, own = texts(2)
    workers = Workers(decoder, prompt, 2)
    num_before = workers.pool.num_used
    shared = workers.pages[0].table[0, 0, : NUM_PROMPT // 16].copy()
    workers.forward(own[1], workers.pages[1], [])
    kept = workers.pool.keys.clone()
    workers.forward(own[0][:1], workers.pages[0], [(workers.pages[1], len(own[1]))])
    changed = (workers.pool.keys != kept).flatten(1).any(1).nonzero().flatten().tolist()
    assert len(changed) == workers.pool.heads  # the page of each head that the new token is in
    assert all((page[0, 0, : len(shared)] == shared).all() for page in (workers.pages[0].table, workers.pages[1].table))
    assert workers.pool.num_used <= num_before + 2 * workers.pool.heads
