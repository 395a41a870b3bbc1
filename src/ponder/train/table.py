"""A table of likely followers, filled from a model's own tokens and states: what it held likely after each token, over all places.

Shapes: N places of texts (gaps between them included), D width, V vocabulary.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ponder.accelerate.draft.followers import KEPT, Followers
from ponder.train.guessing import NONE, Corpus

CHUNK = 1 << 13  # places looked at in one product
TAKEN = 16  # followers of a place that count


def filled(
    learned: Corpus, unseen: Corpus, logits: Callable[[Tensor], Tensor], vocab_size: int, *, model_id: str, most: int = 2_000_000
) -> Followers:  # fmt: skip
    """From at most `most` places, with shares by rank counted on `unseen`."""
    tokens_N, states_ND = learned.tokens_N[:most], learned.states_ND[:most]
    at = ((tokens_N[:-1] != NONE) & (tokens_N[1:] != NONE)).nonzero()[:, 0]  # the state one further was made of this token
    pairs, weights = [], []
    for some in at.split(CHUNK):
        chance, follower = logits(states_ND[some + 1]).softmax(-1).topk(min(TAKEN, vocab_size))
        pairs.append((tokens_N[some, None] * vocab_size + follower).flatten())
        weights.append(chance.float().flatten())
    keys, places = torch.cat(pairs).unique(return_inverse=True)
    mass = torch.zeros(len(keys), device=keys.device).index_add_(0, places, torch.cat(weights)).cpu().numpy()
    token, follower = (x.cpu().numpy() for x in (keys // vocab_size, keys % vocab_size))
    rows = ranked(token, follower, mass, vocab_size)
    facts: dict[str, object] = {"num_tokens": len(at), "num_known": int((rows[:, 0] > 0).sum())}
    return Followers(model_id=model_id, rows=rows, shares=shares_of(rows, unseen.tokens_N.cpu().numpy()), facts=facts)


def ranked(token: np.ndarray, follower: np.ndarray, mass: np.ndarray, vocab_size: int) -> np.ndarray:
    """int32 [V, 1 + KEPT] of (token, follower, mass), each pair once: the followers of most mass, of equals the smaller."""
    order = np.lexsort((follower, -mass, token))
    token, follower = token[order], follower[order]
    first = np.searchsorted(token, token)
    rank = np.arange(len(token)) - first
    rows = np.zeros((vocab_size, 1 + KEPT), dtype=np.int32)
    is_kept = rank < KEPT
    rows[token, 0] = token + 1
    rows[token[is_kept], 1 + rank[is_kept]] = follower[is_kept] + 1
    return rows


def shares_of(rows: np.ndarray, tokens: np.ndarray) -> tuple[float, ...]:
    """How often the follower of each rank came, at places whose token has a row; never 0 nor 1."""
    before, after = tokens[:-1], tokens[1:]
    known = (before != NONE) & (after != NONE)
    before, after = before[known], after[known]
    found = rows[before, 1:] == after[:, None] + 1
    is_in = rows[before, 0] > 0
    return tuple(float(x) for x in np.round((found[is_in].sum(0) + 0.5) / (is_in.sum() + 1), 4))
