"""Laws of prompt filters (core.pruning.PromptFilter): what `choose` may answer, whatever was seen.

A law is called with a filter and raises AssertionError where it does not hold.
"""

from collections.abc import Callable

import torch

from ponder.core.pruning import PromptFilter, Seen

NUM_LAYERS, HEADS, KEYS, WIDTH = 4, 6, 2, 16

Law = Callable[[PromptFilter], None]


def seen_by(chosen: PromptFilter, num: int, *, seed: int = 0, needle: int | None = None) -> list[Seen]:
    """Random attention over `num` tokens; a needle is what every row looks at, and nothing else."""
    found = []
    for layer in chosen.layers(NUM_LAYERS):
        g = torch.Generator().manual_seed(1000 * seed + layer)
        queries, keys = torch.randn(min(chosen.num_rows, num), HEADS, WIDTH, generator=g), torch.randn(KEYS, num, WIDTH, generator=g)
        if needle is not None:
            queries, keys = queries.abs() + 0.5, -keys.abs() - 0.5
            keys[:, needle] = 10.0
        found.append(Seen(layer=layer, num_layers=NUM_LAYERS, queries=queries, keys=keys, positions=torch.arange(num)))
    return found


def law_budget_is_exact(chosen: PromptFilter) -> None:
    """So many places as were asked for, ascending, each once, within the prompt."""
    for num in (7, 40, 200):
        for wanted in sorted({1, 2, num // 4, num // 2, num - 1}):
            places = chosen.choose(seen_by(chosen, num, seed=num), wanted)
            require(places.dtype == torch.int64 and places.shape == (wanted,), f"{places.shape} {places.dtype} of {wanted} places wanted")
            require(bool((places.diff() > 0).all()) and 0 <= int(places[0]) <= int(places[-1]) < num, f"places {places.tolist()} of {num}")


def law_what_is_looked_at_stays(chosen: PromptFilter) -> None:
    """The one token that all rows look at, with a few places to spare for what comes with it."""
    room = sum(value for name in ("kernel", "neighbours", "first", "last", "window") if isinstance(value := getattr(chosen, name, 0), int))
    num = 3 * room + 40
    for needle in (room + 3, num // 2, num - room - 2):
        places = chosen.choose(seen_by(chosen, num, needle=needle), room + 1).tolist()
        require(needle in places, f"all rows look at {needle}, kept are {places}")


def law_same_sight_same_choice(chosen: PromptFilter) -> None:
    """Two looks at the same agree, and the look changes nothing."""
    seen = seen_by(chosen, 50)
    before = [(s.queries.clone(), s.keys.clone()) for s in seen]
    require(torch.equal(chosen.choose(seen, 20), chosen.choose(seen, 20)), "two answers to the same question")
    require(all(torch.equal(s.queries, q) and torch.equal(s.keys, k) for s, (q, k) in zip(seen, before)), "the filter wrote over what it saw")


def require(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)


LAWS: tuple[Law, ...] = (law_budget_is_exact, law_what_is_looked_at_stays, law_same_sight_same_choice)
