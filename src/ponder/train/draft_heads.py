"""Medusa heads fitted to text that the model itself made: its own words and states, nothing else. Minutes, one thread.

What head k must guess at a state is the token k places behind the one that was drawn there. The model's output head stays as it is;
trained is a matrix per head that begins at zero, where each head says what the model itself says of the next token. Splits are by
prompt, and what is measured was neither trained on nor used to stop.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ponder.accelerate.draft.heads import Heads, scored
from ponder.core.asks import GREEDY, Extend, Extension, Prefix, Prompt, Sampling
from ponder.core.errors import BadField, PonderError
from ponder.core.rng import hash_seed
from ponder.core.roles import Process
from ponder.train.fit import split_groups
from ponder.train.rollouts import Whole

LEAST_PROMPTS = 10


@dataclass(frozen=True, kw_only=True)
class HeadsRecipe:
    """How heads are fitted. Raises BadField."""

    num: int = 3  # heads
    num_ids: int = 4096  # tokens that heads score, the most frequent ones
    batch: int = 512
    rate: float = 1e-3  # of AdamW
    decay: float = 0.01  # weight decay
    max_epochs: int = 12
    patience: int = 2  # epochs without a better held-out loss
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.num, self.num_ids, self.batch, self.max_epochs, self.patience) < 1 or not self.rate > 0 or not self.decay >= 0:
            raise BadField(f"{self}: num, num_ids, batch, max_epochs and patience at least 1, rate above 0, decay at least 0")


@dataclass(frozen=True)
class Said:
    """A text of the model: tokens, and the states that each of them was drawn from."""

    prompt: str
    tokens: tuple[int, ...]
    states_TD: Tensor  # bfloat16


def written(
    process: Process, prompts: Sequence[Prompt], *, samples: int = 2, sampling: Sampling | None = None, seed: int = 0,
    on_text: Callable[[], None] = lambda: None,
) -> Iterator[Said]:  # fmt: skip
    """`samples` answers to every prompt, the first of them greedy; states come with the draws, without another pass."""
    probe, sampling = Whole(), sampling or Sampling(temperature=0.8)
    tickets = {}
    for prompt in prompts:
        for i in range(samples):
            ask = Extend(prefix=Prefix(prompt), seed=hash_seed(seed, prompt.question, i), sampling=sampling if i else GREEDY, probes=(probe,))
            tickets[process.add(ask)] = prompt.question
    while tickets:
        for ticket, answer in process.step():
            question = tickets.pop(ticket)
            if not isinstance(answer, Extension):
                raise PonderError(f"{type(answer).__name__} came for an Extend: this process cannot be trained on")
            rows = dict(answer.prefix.readings)[probe.name]
            on_text()
            if rows:
                yield Said(question, answer.prefix.tokens, torch.tensor(rows, dtype=torch.bfloat16))


@dataclass(frozen=True)
class Lessons:
    """states[i], the token drawn there and, for each head, the one that it must guess: places in `ids`, -1 where unknown or not among them."""

    states_ND: Tensor
    drawn_N: Tensor
    wanted_NK: Tensor
    num_tokens: int = field(default=0)


def lessons(texts: Sequence[Said], ids_S: Tensor, num: int) -> Lessons:
    """Every state of the texts. Head k (from 1) at state i must guess tokens[i + k]; past the end there is nothing to guess."""
    place = {token: at for at, token in enumerate(ids_S.tolist())}
    known = [[*(place.get(t, -1) for t in text.tokens), *([-1] * num)] for text in texts]
    rows = torch.tensor([found[i : i + 1 + num] for found in known for i in range(len(found) - num)])
    return Lessons(torch.cat([t.states_TD for t in texts]), rows[:, 0], rows[:, 1:], len(rows))


def fit_draft_heads(
    texts: Sequence[Said], logits: Callable[[Tensor], Tensor], *, model_id: str, recipe: HeadsRecipe | None = None
) -> Heads:  # fmt: skip
    """Heads fitted on 75 % of the prompts, stopped on 10 %, measured on the others. logits: the model's output head, [N, D] -> [N, V].

    Raises BadField for fewer than LEAST_PROMPTS prompts.
    """
    recipe, start = recipe or HeadsRecipe(), time.perf_counter()
    parts = [[t for t in texts if t.prompt in group] for group in split_groups([t.prompt for t in texts], (0.75, 0.1), recipe.seed)]
    if len({t.prompt for t in texts}) < LEAST_PROMPTS or not all(parts):
        raise BadField(f"texts of {len({t.prompt for t in texts})} prompts: at least {LEAST_PROMPTS}, so that some can be held out")
    ids_S = frequent([t.tokens for t in parts[0]], recipe.num_ids)
    width = texts[0].states_TD.shape[1]
    rows_SD = logits(torch.eye(width, dtype=texts[0].states_TD.dtype))[:, ids_S].T.contiguous().bfloat16()
    train, stop, unseen = (lessons(part, ids_S, recipe.num) for part in parts)
    blank = Heads(model_id=model_id, residual=torch.zeros(recipe.num, width, 2 * width).bfloat16(), rows=rows_SD, ids=ids_S, facts={})
    with torch.inference_mode(False), torch.enable_grad():
        heads, num_epochs = descend(blank, train, stop, recipe)
    facts: dict[str, object] = {
        "num_tokens": train.num_tokens, "num_epochs": num_epochs, "seconds": round(time.perf_counter() - start, 1),
        "unseen_tokens": unseen.num_tokens, "top1": shares(heads, unseen), "top1_untrained": shares(blank, unseen),
        "scored": round(float((unseen.wanted_NK[:, 0] >= 0).float().mean()), 4),
    }  # fmt: skip
    return replace(heads, facts=facts)


def frequent(texts: Sequence[Sequence[int]], num: int) -> Tensor:
    """int64 [at most num]: the most frequent tokens, most frequent first; of equals the smaller id."""
    counts: dict[int, int] = {}
    for tokens in texts:
        for token in tokens:
            counts[token] = counts.get(token, 0) + 1
    return torch.tensor(sorted(counts, key=lambda token: (-counts[token], token))[:num], dtype=torch.int64)


def descend(heads: Heads, train: Lessons, stop: Lessons, recipe: HeadsRecipe) -> tuple[Heads, int]:
    """AdamW on the log loss of all heads until the held-out loss stops falling; the best heads in bfloat16, and the number of epochs."""
    draws = torch.Generator().manual_seed(recipe.seed)
    # copies: what was computed in inference mode takes no part in a gradient
    residual, rows = heads.residual.float().clone().requires_grad_(), heads.rows.clone()
    train, stop = (
        replace(part, states_ND=part.states_ND.clone(), drawn_N=part.drawn_N.clone(), wanted_NK=part.wanted_NK.clone()) for part in (train, stop)
    )
    optimizer = torch.optim.AdamW([residual], lr=recipe.rate, weight_decay=recipe.decay)
    best, best_loss, best_epoch, epoch = residual.detach().clone(), float("inf"), 0, 0
    while epoch < recipe.max_epochs and epoch - best_epoch < recipe.patience:
        epoch += 1
        for places in torch.randperm(len(train.states_ND), generator=draws).split(recipe.batch):
            optimizer.zero_grad()
            loss_of(residual, rows, train, places).backward()
            optimizer.step()
        with torch.no_grad():
            found = [float(loss_of(residual, rows, stop, p)) for p in torch.arange(len(stop.states_ND)).split(recipe.batch)]
        loss = sum(found) / len(found)
        if loss < best_loss:
            best, best_loss, best_epoch = residual.detach().clone(), loss, epoch
    return replace(heads, residual=best.bfloat16()), epoch


def loss_of(residual_KDE: Tensor, rows_SD: Tensor, part: Lessons, places: Tensor) -> Tensor:
    """Mean log loss of what is known at those places, by the products that heads score with."""
    wanted_NK = part.wanted_NK[places]
    logits_NKS = scored(residual_KDE, rows_SD, part.states_ND[places], part.drawn_N[places])
    total = F.cross_entropy(logits_NKS.flatten(0, 1), wanted_NK.flatten(), ignore_index=-1, reduction="sum")
    return total / (wanted_NK >= 0).sum().clamp_min(1)


def shares(heads: Heads, part: Lessons) -> list[float]:
    """By head, how often its likeliest token comes, among all places that have a token there, scored or not."""
    parts = zip(part.states_ND.split(512), part.drawn_N.split(512))
    found_NK = torch.cat([scored(heads.residual, heads.rows, states, drawn).argmax(-1) for states, drawn in parts])
    right_K = (found_NK == part.wanted_NK).sum(0)
    return [round(float(right) / max(1, part.num_tokens), 4) for right in right_K]
