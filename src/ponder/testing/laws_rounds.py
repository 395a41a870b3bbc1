"""Laws of drafters over whole requests, round by round, beside laws_draft's. Requests are scripts: texts that the target will say.

A drafter may guess what it likes; what it may not is to break the bounds of a draft, to show one request what another said
beyond its declared scope, or to keep a request that is over. Mutants are in tests/accelerate/test_drafters_by_rounds.py.
"""

import functools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from ponder.core.draft import EMPTY, ROOT, Acceptor, Context, Drafter, Drafting, Host, Runner, Target, Tree, Twin, Verified
from ponder.core.errors import BadField
from ponder.core.rng import Rng, hash_seed
from ponder.testing.exact import TOLERANCE, Measure, added, difference, expected_distribution, require

VOCAB, DIM = 12, 6


def no_runner(twin: Twin) -> Runner:
    raise BadField(f"{twin}: a scripted target has no models")


HOST = Host(
    vocab_size=VOCAB, eos_ids=frozenset(), num_layers=1, dim=DIM, runner=no_runner, logits=lambda hidden_ND: hidden_ND @ torch.eye(DIM, VOCAB)
)  # fmt: skip
Law = Callable[[Drafter], None]


@dataclass(frozen=True)
class Script:
    """A request: its number, all tokens it will have, and how many of them are the prompt's."""

    request: int
    tokens: tuple[int, ...]
    num_prompt: int


def script(request: int, seed: int, num: int = 60, num_prompt: int = 20) -> Script:
    """Text that repeats itself with variations."""
    draw = random.Random(seed)
    tokens: list[int] = []
    while len(tokens) < num:
        if len(tokens) > 6 and draw.random() < 0.6:
            at = draw.randrange(len(tokens) - 4)
            tokens += tokens[at : at + draw.randrange(2, 8)]
        tokens.append(draw.randrange(VOCAB))
    return Script(request, tuple(tokens[:num]), num_prompt)


@functools.lru_cache
def likeliest_after(token: int) -> list[int]:
    """What the scripted target holds likely after a token: a fixed order for each."""
    return sorted(range(VOCAB), key=lambda other: hash_seed("script", token, other))


def state_after(token: int) -> list[float]:
    return [hash_seed("state", token, i) / 2**62 - 1 for i in range(DIM)]


def verified(
    drafter: Drafter, request: int, last: int, tokens: Sequence[int], *, tree: Tree = EMPTY, path: tuple[int, ...] = (),
    orders: Sequence[Sequence[int]] = (),
) -> Verified:  # fmt: skip
    """With what the drafter needs to see of rows of `last` and of the tree's tokens. orders: tokens by likelihood, by row."""
    rows, needs = (last, *tree.tokens), drafter.needs
    orders = orders or [likeliest_after(t) for t in rows]
    return Verified(
        request=request, tree=tree, path=path, tokens=tuple(tokens),
        top=torch.tensor([order[: needs.num_top] for order in orders]) if needs.num_top else None,
        hidden=torch.tensor([state_after(t) for t in rows]) if needs.hidden else None,
    )  # fmt: skip


def agreed(tree: Tree, coming: Sequence[int]) -> tuple[int, ...]:
    """The longest path of the tree that says what comes."""
    path: list[int] = []
    at = ROOT
    for token in coming:
        found = next((i for i in tree.children[at] if tree.tokens[i] == token), None)
        if found is None:
            break
        path.append(found)
        at = found
    return tuple(path)


def played(drafter: Drafter, drafting: Drafting, scripts: Sequence[Script], *, room: int = 6, max_depth: int = 4) -> dict[int, list[Tree]]:
    """Every draft of every request, all of them decoded side by side, and forgotten as they end."""
    done = {s.request: s.num_prompt + 1 for s in scripts}
    drafts: dict[int, list[Tree]] = {s.request: [] for s in scripts}
    begun = [verified(drafter, s.request, s.tokens[s.num_prompt - 1], s.tokens[s.num_prompt : s.num_prompt + 1]) for s in scripts]
    drafting.observe(begun)
    while live := [s for s in scripts if done[s.request] < len(s.tokens)]:
        contexts = [
            Context(request=s.request, tokens=list(s.tokens[: done[s.request]]), num_prompt=s.num_prompt, room=room, max_depth=max_depth)
            for s in live
        ]
        trees = drafting.propose(contexts)
        require(len(trees) == len(contexts), f"{len(trees)} trees for {len(contexts)} contexts")
        seen = []
        for s, context, tree in zip(live, contexts, trees, strict=True):
            require_fits(tree, context)
            drafts[s.request].append(tree)
            at = done[s.request]
            path = agreed(tree, s.tokens[at:-1])
            seen.append(verified(drafter, s.request, s.tokens[at - 1], s.tokens[at : at + len(path) + 1], tree=tree, path=path))
            done[s.request] = at + len(path) + 1
        drafting.observe(seen)
        for s in live:
            if done[s.request] >= len(s.tokens):
                drafting.forget(s.request)
    return drafts


def require_fits(tree: Tree, context: Context) -> None:
    require(len(tree) <= context.room, f"{len(tree)} tokens where {context.room} have room")
    require(tree.depth <= context.max_depth, f"a path of {tree.depth} tokens where {context.max_depth} are allowed")
    require(all(token < VOCAB for token in tree.tokens), f"tokens {tree.tokens} of a vocabulary of {VOCAB}")
    for parent, children in tree.children.items():
        said = [tree.tokens[i] for i in children]
        require(len(set(said)) == len(said), f"token {parent} is followed by {said}: the same guess twice")


def same(found: Sequence[Tree], wanted: Sequence[Tree]) -> bool:
    """Whether the drafts are equal, estimates included."""
    return [(t.tokens, t.parents, t.chances) for t in found] == [(t.tokens, t.parents, t.chances) for t in wanted]


def law_drafts_fit(drafter: Drafter) -> None:
    """A draft is never larger or deeper than there is room for, never guesses the same twice, and is made of the model's tokens."""
    for room, max_depth in ((1, 1), (1, 5), (3, 2), (16, 1), (40, 12)):
        played(drafter, drafter.open(HOST), [script(i, i) for i in range(1, 4)], room=room, max_depth=max_depth)


def law_less_room_cuts_the_end(drafter: Drafter) -> None:
    """Of a draft with more room the first tokens are the draft with less: what a length control cuts off is worth least."""
    text = script(1, 5)
    for num in range(text.num_prompt + 1, len(text.tokens), 7):
        trees = []
        for room in (9, 1, 2, 4):
            drafting = drafter.open(HOST)
            drafting.observe([verified(drafter, 1, text.tokens[num - 2], text.tokens[num - 1 : num])])
            tokens = list(text.tokens[:num])
            trees += drafting.propose([Context(request=1, tokens=tokens, num_prompt=text.num_prompt, room=room, max_depth=4)])
        for tree in trees[1:]:
            require(same([trees[0].first(len(tree))], [tree]), f"{tree.tokens} with less room, {trees[0].tokens} with more")


def law_requests_stand_alone(drafter: Drafter) -> None:
    """But for scope session: drafts of a request are the same alone, beside others and after others, forgotten or not."""
    mine, others = script(1, 1), [script(2, 2), script(3, 1), script(4, 9)]
    alone = played(drafter, drafter.open(HOST), [mine])[1]
    beside = played(drafter, drafter.open(HOST), [*others, mine])[1]
    used = drafter.open(HOST)
    played(drafter, used, others)
    after = played(drafter, used, [mine])[1]
    is_open = drafter.scope == "session"
    for found, when in ((beside, "beside others"), (after, "after others")):
        require(is_open or same(found, alone), f"drafts {when} differ from those alone, and the scope is {drafter.scope!r}")


def law_learns_what_it_says(drafter: Drafter) -> None:
    """With scope session, drafts differ after others: a scope wider than what is used would hide a leak."""
    if drafter.scope == "session":
        mine, used = script(1, 1), drafter.open(HOST)
        played(drafter, used, [script(3, 1, num=80), script(4, 1)])
        after, alone = played(drafter, used, [mine])[1], played(drafter, drafter.open(HOST), [mine])[1]
        require(not same(after, alone), "scope 'session', but nothing is learned from others: say 'request'")


def law_forgets(drafter: Drafter) -> None:
    """What is over leaves nothing under its number, also when it was never heard of or is forgotten twice."""
    drafting = drafter.open(HOST)
    number = 987_654_321
    played(drafter, drafting, [script(number, 1), script(2, 2)])
    drafting.forget(number)
    drafting.forget(555)
    found = [path for path, key in keys_of(drafting) if key == number]
    require(not found, f"request {number} is over, but {found} still has it")


def keys_of(thing: object, path: str = "drafting") -> Iterator[tuple[str, object]]:
    """(where, key) of all dictionaries in the attributes of an object, of the objects in these, and in their lists."""
    for name, value in vars(thing).items():
        if isinstance(value, dict):
            yield from ((f"{path}.{name}", key) for key in value)
        for part in value if isinstance(value, list) else [value]:
            if hasattr(part, "__dict__") and not isinstance(part, type):
                yield from keys_of(part, f"{path}.{name}")


def law_is_repeatable(drafter: Drafter) -> None:
    """No randomness but that of the context's seed: the same again gives the same."""
    scripts = [script(i, i) for i in range(1, 4)]
    first, second = (played(drafter, drafter.open(HOST), scripts) for _ in range(2))
    require(all(same(first[i], second[i]) for i in first), "two plays of the same scripts differ")


LAWS: tuple[Law, ...] = (
    law_drafts_fit,
    law_less_room_cuts_the_end,
    law_requests_stand_alone,
    law_learns_what_it_says,
    law_forgets,
    law_is_repeatable,
)


# ---- drafter x acceptor: what comes out is what the model says, by enumeration


Model = Callable[[tuple[int, ...]], Sequence[float]]  # tokens so far -> probabilities [VOCAB] of the next; few above 0, to be listed


@dataclass(frozen=True, kw_only=True)
class Play:
    """How a text is decoded: by which model, how long, with how much room for a draft."""

    model: Model
    num: int = 4
    room: int = 3
    is_greedy: bool = False

    def p(self, text: tuple[int, ...]) -> list[float]:
        """What the next token is drawn from."""
        p = list(self.model(text))
        return [float(i == p.index(max(p))) for i in range(len(p))] if self.is_greedy else p

    def drawn(self, text: tuple[int, ...], rng: Rng) -> int:
        return int(rng.categorical(torch.tensor([self.p(text)], dtype=torch.float64).log())[0])


class Draws(Sequence[int]):
    """Of each row what plain decoding draws there, drawn when somebody looks: a row that nobody reads has no paths."""

    def __init__(self, draw: Callable[[int], int], num: int) -> None:
        self.draw, self.num = functools.cache(draw), num

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, row: int) -> int:  # type: ignore[override]  # no slices
        return self.draw(row)


def law_changes_no_answer(drafter: Drafter, acceptor: Acceptor, play: Play) -> None:
    """Texts come with the model's own probabilities, to 1e-12, whatever is drafted round by round; and some of it is accepted."""
    drafts = expected_distribution(lambda rng: decoded(drafter, acceptor, play, rng))
    found: Measure = {}
    num_accepted = 0.0
    for point, mass in drafts.measure.items():
        pair: tuple[tuple[int, ...], int] = point  # type: ignore[assignment]  # what `decoded` returns
        added(found, pair[0], mass)
        num_accepted += mass * pair[1]
    wanted = expected_distribution(lambda rng: plain(play, rng)).measure
    worst, names = difference(found, wanted), f"{type(drafter).__name__} with {type(acceptor).__name__}"
    require(worst <= TOLERANCE, f"{names}: probabilities differ by {worst:.1e}")
    require(num_accepted > 0, f"{names}: nothing that was drafted is ever accepted, so this shows nothing")


def plain(play: Play, rng: Rng) -> tuple[int, ...]:
    text: tuple[int, ...] = ()
    while len(text) < play.num:
        text += (play.drawn(text, rng),)
    return text


def decoded(drafter: Drafter, acceptor: Acceptor, play: Play, rng: Rng) -> tuple[tuple[int, ...], int]:
    """A text by rounds of drafting and accepting, and how many of its tokens were drafted."""
    drafting, prompt, num_accepted = drafter.open(HOST), (0, 1, 2, 0, 1), 0
    text: tuple[int, ...] = (play.drawn((), rng),)
    drafting.observe([verified(drafter, 1, prompt[-1], text, orders=[order_of(play.model(()))])])
    while len(text) < play.num:
        context = Context(request=1, tokens=[*prompt, *text], num_prompt=len(prompt), room=play.room, max_depth=play.room)
        (tree,) = drafting.propose([context])
        require_fits(tree, context)
        ends = [text, *(text + tuple(tree.tokens[j] for j in tree.path(i)) for i in range(len(tree)))]
        made = acceptor.accept(tree, target_of(play, ends, rng), rng)
        said = (*(tree.tokens[i] for i in made.path), made.token)[: play.num - len(text)]
        drafting.observe(
            [verified(drafter, 1, context.tokens[-1], said, tree=tree, path=made.path, orders=[order_of(play.model(end)) for end in ends])]
        )
        text, num_accepted = text + said, num_accepted + min(len(said), len(made.path))
    return text, num_accepted


def target_of(play: Play, ends: Sequence[tuple[int, ...]], rng: Rng) -> Target:
    """What the model says of rows that end so."""
    draws = Draws(lambda row: play.drawn(ends[row], rng), len(ends))
    return Target(draws, lambda row: torch.tensor(play.p(ends[row]), dtype=torch.float64).log(), play.is_greedy)


def order_of(p: Sequence[float]) -> list[int]:
    return sorted(range(len(p)), key=lambda token: -p[token])
