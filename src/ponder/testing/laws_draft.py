"""Laws of drafters, acceptors and length controls. A law raises AssertionError saying what it found.

An acceptor is measured by exhaustive enumeration: a process of few tokens, whose next token depends on the last, is decoded in rounds
with every kind of tree, over every random path. Mutants of each law are in tests/testing/test_laws_draft.py.

Shapes: V tokens; tables are [V, V], row x what follows token x.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ponder.core.draft import (
    EMPTY,
    ROOT,
    Acceptor,
    Blur,
    Context,
    Drafter,
    Guess,
    Host,
    LengthControl,
    Spent,
    StepCosts,
    Target,
    Tree,
    Verified,
    chain,
    is_path,
    shortened,
)  # fmt: skip
from ponder.core.rng import EnumeratingRng, Rng, TorchRng, enumerate_paths
from ponder.testing.exact import TOLERANCE, Measure, added, require

P = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8], [1.0, 0.0, 0.0]], dtype=torch.float64)  # the target; what follows 2 is certain
OTHER = torch.tensor([[0.2, 0.3, 0.5], [0.8, 0.2, 0.0], [0.0, 0.5, 0.5]], dtype=torch.float64)  # a draft model: less, more, or none of what P has
DRAFTS = {"chain": (OTHER, P, P * (1 + 1e-15)), "twins": (OTHER, P), "fork": (OTHER,), "late": (OTHER,)}  # what each shape is drawn from
SHAPES = {"chain": (ROOT, 0), "twins": (ROOT, ROOT), "fork": (ROOT, 0, 0), "late": (ROOT, ROOT, 1)}  # parents of drawn trees
EVEN = StepCosts(seconds=((1, 0.01), (9, 0.01)))  # rows are free

Make = Callable[[int, Rng], Tree]  # the last token -> a draft


class Drawn(Sequence[int]):
    """The target's own draws, made when they are looked at, once each."""

    def __init__(self, rows: Sequence[Tensor], rng: Rng) -> None:
        self.rows, self.rng = rows, rng
        self.made: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> int:  # type: ignore[override]
        if row not in self.made:
            self.made[row] = int(self.rng.categorical(self.rows[row].log()[None])[0])
        return self.made[row]


def rows_of(tree: Tree, last: int, table: Tensor) -> list[Tensor]:
    """What follows the last token, and every token of the tree."""
    return [table[token] for token in (last, *tree.tokens)]


def drawn_tree(parents: Sequence[int], last: int, table: Tensor, rng: Rng) -> Tree:
    """A tree of that shape, every token drawn from the table's row of its parent."""
    tokens: list[int] = []
    rows = []
    for parent in parents:
        row = table[last if parent == ROOT else tokens[parent]].log()
        rows.append(row)
        tokens.append(int(rng.categorical(row[None])[0]))
    return Tree(tuple(tokens), tuple(parents), torch.stack(rows) if rows else None)


def target_of(tree: Tree, last: int, table: Tensor, rng: Rng, *, is_greedy: bool = False) -> Target:
    rows = rows_of(tree, last, table)
    if is_greedy:
        rows = [torch.nn.functional.one_hot(row.argmax(), len(row)).double() for row in rows]
    return Target(Drawn(rows, rng), lambda row: rows[row].log(), is_greedy)


def decoded(acceptor: Acceptor, make: Make, rng: Rng, *, num: int) -> tuple[int, ...]:
    """The first `num` tokens after token 0, decoded in rounds."""
    tokens = [0]
    while len(tokens) <= num:
        tree = make(tokens[-1], rng)
        accepted = acceptor.accept(tree, target_of(tree, tokens[-1], P, rng), rng)
        require(is_path(tree, accepted.path), f"{accepted.path} is no path of {tree}")
        tokens += [*(tree.tokens[i] for i in accepted.path), accepted.token]
    return tuple(tokens[1 : num + 1])


def plain(num: int) -> Measure:
    """What plain decoding gives after token 0."""
    found: Measure = {}
    for tokens in itertools.product(range(len(P)), repeat=num):
        mass = math.prod(float(P[a, b]) for a, b in itertools.pairwise((0, *tokens)))
        if mass > 0:
            added(found, tokens, mass)
    return found


def drawing(parents: Sequence[int], table: Tensor) -> Make:
    return lambda last, rng: drawn_tree(parents, last, table, rng)


def trees() -> dict[str, Make]:
    """Drafters of every kind: drawn from a model, and made of nothing."""
    made = {f"{shape} of table {i}": drawing(SHAPES[shape], table) for shape, tables in DRAFTS.items() for i, table in enumerate(tables)}
    made["nothing"] = lambda last, rng: EMPTY
    made["a fixed chain"] = lambda last, rng: chain((1, 2))
    made["all of two levels"] = lambda last, rng: Tree((0, 1, 2, 0, 1, 2), (ROOT, ROOT, ROOT, 2, 2, 1))
    made["what never comes"] = lambda last, rng: chain((2, 2, 1))
    return made


def law_keeps_the_distribution(acceptor: Acceptor) -> None:
    """Of an exact acceptor: the first tokens are distributed as plain decoding's, for every kind of draft, to rounding."""
    for name, make in trees().items():
        num = 2 if " of " in name else 3
        found: Measure = {}
        for tokens, mass in enumerate_paths(partial(decoded, acceptor, make, num=num)):
            added(found, tokens, mass)
        wanted = plain(num)
        for point in wanted.keys() | found.keys():
            a, b = found.get(point, 0.0), wanted.get(point, 0.0)
            require(abs(a - b) <= TOLERANCE, f"{name}: tokens {point} have probability {a}, plain decoding gives {b}")


def law_greedy_is_greedy(acceptor: Acceptor) -> None:
    """Greedy requests get greedy decoding's tokens, whatever the draft, and a right guess is accepted whole."""
    follow = {token: int(P[token].argmax()) for token in range(len(P))}
    for last in follow:
        right = [follow[last], follow[follow[last]]]
        for tokens in itertools.product(range(len(P)), repeat=2):
            tree = chain(tokens)
            accepted = acceptor.accept(tree, target_of(tree, last, P, TorchRng(0), is_greedy=True), TorchRng(1))
            made = [*(tree.tokens[i] for i in accepted.path), accepted.token]
            num = next((i for i, (a, b) in enumerate(zip(tokens, right)) if a != b), 2)
            wanted = [*right, follow[right[1]]][: num + 1]
            require(made == wanted, f"draft {tokens} after {last}: committed {made}, greedy decoding gives {wanted}")


def law_likely_is_accepted(acceptor: Acceptor, least: float) -> None:
    """Over a round with a drawn chain of one token, at least that share is accepted; none of a token that cannot come."""
    found = 0.0
    for num, mass in enumerate_paths(lambda rng: _num_accepted(acceptor, drawn_tree((ROOT,), 0, OTHER, rng), rng)):
        found += mass * num
    require(found >= least - TOLERANCE, f"accepts {found} of the tokens drawn, expected {least}")
    for num, _ in enumerate_paths(lambda rng: _num_accepted(acceptor, chain((2,)), rng, last=2)):
        require(num == 0, "accepts a token of probability 0")


def _num_accepted(acceptor: Acceptor, tree: Tree, rng: EnumeratingRng, last: int = 0) -> int:
    return len(acceptor.accept(tree, target_of(tree, last, P, rng), rng).path)


EXACT_LAWS = (law_keeps_the_distribution, law_greedy_is_greedy)


# drafters


@dataclass(frozen=True, kw_only=True)
class Story:
    """A request as a drafter sees it: its tokens from the prompt on, of which some more are committed at each round."""

    tokens: tuple[int, ...]
    num_prompt: int
    steps: tuple[int, ...]  # tokens committed by each round


@dataclass
class Setting:
    """A drafter at work, and the process that it believes to work for."""

    drafter: Drafter
    host: Host

    def told(self, stories: Sequence[Story], room: int = 4) -> list[list[Tree]]:
        """Each story's drafts, when all are told at once, round by round."""
        drafting = self.drafter.open(self.host)
        ends = [[story.num_prompt + num for num in itertools.accumulate(story.steps, initial=0)] for story in stories]
        found: list[list[Tree]] = [[] for _ in stories]
        for turn in range(max(len(end) for end in ends)):
            alive = [i for i, end in enumerate(ends) if turn < len(end)]
            contexts = [
                Context(request=i, tokens=list(stories[i].tokens[: ends[i][turn]]), num_prompt=stories[i].num_prompt, room=room, max_depth=room)
                for i in alive
            ]
            trees = drafting.propose(contexts)
            require(len(trees) == len(contexts), f"{len(trees)} trees for {len(contexts)} contexts")
            news = []
            for i, tree in zip(alive, trees):
                require(len(tree) <= room and tree.depth <= room, f"{tree} is larger than its room of {room}")
                require(all(0 <= token < self.host.vocab_size for token in tree.tokens), f"{tree} holds no tokens of this model")
                found[i].append(tree)
                if turn + 1 < len(ends[i]):
                    news.append(self._verified(i, tree, stories[i].tokens[ends[i][turn] : ends[i][turn + 1]]))
                else:
                    drafting.forget(i)
            drafting.observe(news)
        return found

    def _verified(self, request: int, tree: Tree, tokens: tuple[int, ...]) -> Verified:
        at, path = ROOT, []
        for token in tokens[:-1]:
            at = next((i for i in tree.children[at] if tree.tokens[i] == token), len(tree))
            if at == len(tree):
                break
            path.append(at)
        needs = self.drafter.needs
        rows = [tokens[0], *tree.tokens]
        top = torch.tensor([[(token + 1 + k) % self.host.vocab_size for k in range(needs.num_top)] for token in rows]) if needs.num_top else None
        hidden = torch.tensor([[float(token)] * self.host.dim for token in rows]) if needs.hidden else None
        return Verified(request=request, tree=tree, path=tuple(path), tokens=tokens, top=top, hidden=hidden)


def shown(trees: Sequence[Tree]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    return [(tree.tokens, tree.parents) for tree in trees]


def law_drafts_fit(setting: Setting, stories: Sequence[Story]) -> None:
    """Every draft is a tree within its room, of the model's tokens, one per context; at any room."""
    for room in (1, 2, 5):
        setting.told(stories, room)


def law_requests_stand_apart(setting: Setting, stories: Sequence[Story]) -> None:
    """With scope "request" drafts are equal alone and beside others, and do not change what is given."""
    if setting.drafter.scope == "request":
        together = setting.told(stories)
        for story, trees in zip(stories, together, strict=True):
            (alone,) = setting.told([story])
            require(shown(alone) == shown(trees), f"alone {shown(alone)}, beside others {shown(trees)}")


def law_drafts_repeat(setting: Setting, stories: Sequence[Story]) -> None:
    """Two processes are given equal drafts: what a drafter keeps is in what it opened."""
    first, second = setting.told(stories), setting.told(stories)
    require([shown(t) for t in first] == [shown(t) for t in second], "a second process gets other drafts")


def law_forgets(setting: Setting, stories: Sequence[Story]) -> None:
    """With scope "request", a number that is given again after `forget` begins anew."""
    if setting.drafter.scope != "request":
        return
    drafting = setting.drafter.open(setting.host)
    for story in stories:
        (fresh,) = setting.told([Story(tokens=story.tokens, num_prompt=len(story.tokens), steps=())])
        context = Context(request=0, tokens=list(story.tokens), num_prompt=len(story.tokens), room=4, max_depth=4)
        found = drafting.propose([context])
        drafting.forget(0)
        drafting.forget(12345)
        require(shown(found) == shown(fresh), f"{shown(found)} after another request, {shown(fresh)} at first")


DRAFTER_LAWS = (law_drafts_fit, law_requests_stand_apart, law_drafts_repeat, law_forgets)


# length controls


def law_control_keeps_the_distribution(control: LengthControl, acceptor: Acceptor) -> None:
    """With drawn chains that are weighed by what they were drawn from, stopped and cut by the control, tokens are plain decoding's."""
    found: Measure = {}
    for tokens, mass in enumerate_paths(partial(_controlled, control, acceptor)):
        added(found, tokens, mass)
    wanted = plain(2)
    for point in wanted.keys() | found.keys():
        a, b = found.get(point, 0.0), wanted.get(point, 0.0)
        require(abs(a - b) <= TOLERANCE, f"tokens {point} have probability {a}, plain decoding gives {b}")


def _controlled(control: LengthControl, acceptor: Acceptor, rng: Rng) -> tuple[int, int]:
    """Two tokens after token 0: those of one round, then plain decoding's."""
    controlling = control.open(lambda: EVEN)  # whoever looks at costs drafts
    guesses: list[Guess] = []
    room = min(controlling.rooms([0])[0], 2)
    while len(guesses) < room and (not guesses or controlling.goes_on([0], [guesses])[0]):
        row = OTHER[guesses[-1].token if guesses else 0]
        token = int(rng.categorical(row.log()[None])[0])
        guesses.append(Guess(token, float(row[token]), row.log(), torch.zeros(2)))
    weights = torch.stack([g.log_q for g in guesses if g.log_q is not None]) if guesses else None
    (tree,) = shortened(controlling, [0], [chain([g.token for g in guesses], weights, [g.chance for g in guesses])], 1)
    accepted = acceptor.accept(tree, target_of(tree, 0, P, rng), rng)
    tokens = [*(tree.tokens[i] for i in accepted.path), accepted.token]
    if len(tokens) < 2:
        tokens.append(int(rng.categorical(P[tokens[0]].log()[None])[0]))
    return tokens[0], tokens[1]


def law_counts_are_counts(control: LengthControl) -> None:
    """Rooms and cuts are one count each, never negative, a cut never longer than its tree, whatever was learnt."""
    controlling = control.open(lambda: StepCosts(seconds=((1, 0.01), (9, 0.02))))
    trees = [EMPTY, chain((1, 2, 3)), Tree((1, 2, 3), (ROOT, ROOT, 0), chances=(0.9, 0.2, 0.1))]
    for turn in range(60):
        requests = [0, 1, 2][: 1 + turn % 3]
        rooms = controlling.rooms(requests)
        require(len(rooms) == len(requests) and all(isinstance(n, int) and n >= 0 for n in rooms), f"rooms {rooms} for {requests}")
        cuts = controlling.cut(requests, trees[: len(requests)], len(requests) + 1)
        drafts = [[Guess(1, 0.9, None, torch.zeros(2)), Guess(2, 0.2, None, torch.zeros(2))][: 1 + turn % 2]] * len(requests)
        going = controlling.goes_on(requests, drafts)
        require(len(going) == len(requests) and all(isinstance(goes, bool) for goes in going), f"goes_on says {going} of {requests}")
        require(len(cuts) == len(requests) and all(0 <= n <= len(t) for n, t in zip(cuts, trees)), f"cuts {cuts} of {trees}")
        kept = [tree.first(num) for tree, num in zip(trees, cuts)]
        news = [Verified(request=r, tree=t, path=tuple(range(min(1, len(t)))), tokens=(1,) * (1 + min(1, len(t)))) for r, t in zip(requests, kept)]
        num = sum(map(len, kept))
        controlling.learn(news, Spent(num_rows=len(requests) + num, seconds=0.01 + 0.001 * num, num_drafted=num, draft_seconds=0.001))
        if turn % 7 == 0:
            controlling.forget(turn % 3)


class EchoRunner:
    """A model that says the last token but one again, or else those after it in number."""

    is_in_place = False

    def guess(self, contexts: Sequence[Context], drafts: Sequence[Sequence[int]], *, with_log_q: bool = False) -> list[Guess | None]:
        found: list[Guess | None] = []
        for context, draft in zip(contexts, drafts, strict=True):
            said = [*context.tokens[-2:], *draft]
            log_q = torch.nn.functional.one_hot(torch.tensor(said[-2]), 7).double().log() if with_log_q else None
            found.append(Guess(said[-2], 0.9, log_q))
        return found

    def likely(self, contexts: Sequence[Context], drafts: Sequence[Sequence[Blur]], num: int) -> list[tuple[tuple[int, float], ...] | None]:
        found = self.guess(contexts, [[max(place, key=lambda part: part[1])[0] for place in draft] for draft in drafts])
        return [tuple(((guess.token + i) % 7, math.log(0.5) * (i + 1)) for i in range(min(num, 7))) for guess in found if guess is not None]

    def forget(self, request: int) -> None:
        return None


PLAIN_HOST = Host(
    vocab_size=7, eos_ids=frozenset({6}), num_layers=12, dim=4, runner=lambda twin: EchoRunner(),
    logits=lambda hidden_ND: torch.nn.functional.one_hot(hidden_ND[:, 0].long() % 7, 7).float(),
)  # fmt: skip
