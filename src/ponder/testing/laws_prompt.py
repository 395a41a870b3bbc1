"""Laws of prompt filters and layer plans (core.pruning): what `choose` may answer, whatever was seen.

A law is called with a filter or a plan and raises AssertionError where it does not hold.
"""

from collections.abc import Callable

import torch

from ponder.core.pruning import LayerPlan, PromptFilter, Seen

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


def law_fewer_go_on_behind_every_cut(plan: LayerPlan) -> None:
    """Cuts rise and leave a layer behind the last; counts fall and are at least 1; as many as were asked for go on, the newest among them."""
    for num_layers in (6, 30):
        cuts = list(plan.cuts(num_layers))
        require(cuts == sorted(set(cuts)) and cuts[0] >= 0 and cuts[-1] < num_layers - 1, f"cuts behind layers {cuts} of {num_layers}")
        for num_prompt in (1, 2, 9, 200):
            nums = [num_prompt, *(plan.num_kept(cut, num_prompt) for cut in range(len(cuts)))]
            require(nums == sorted(nums, reverse=True) and nums[-1] >= 1, f"{nums} tokens of {num_prompt} behind the cuts")
    for num, wanted in ((7, 1), (7, 6), (40, 9), (200, 100)):
        g = torch.Generator().manual_seed(num)
        queries, keys = torch.randn(1, HEADS, WIDTH, generator=g), torch.randn(KEYS, num, WIDTH, generator=g)
        chosen = plan.choose(Seen(layer=1, num_layers=6, queries=queries, keys=keys, positions=torch.arange(num)), wanted)
        require(chosen.shape == (wanted,) and bool((chosen.diff() > 0).all()), f"{chosen.tolist()} of {num}, where {wanted} were asked for")
        require(int(chosen[0]) >= 0 and int(chosen[-1]) == num - 1, f"{chosen.tolist()} of {num}: the last token must go on")


def require(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)


LAWS: tuple[Law, ...] = (law_budget_is_exact, law_what_is_looked_at_stays, law_same_sight_same_choice)
PLAN_LAWS: tuple[Callable[[LayerPlan], None], ...] = (law_fewer_go_on_behind_every_cut,)
