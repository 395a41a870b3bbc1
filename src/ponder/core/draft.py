"""Guessing ahead: what a drafter proposes, what the target's pass says of it, and what is made of that.

A round of one request: a drafter proposes a tree of tokens; the target computes the last committed token and all of the tree in
its ordinary step; an acceptor keeps one path of it and adds one token. Which answers come out is decided by the acceptor alone
(`accelerate/accept`): a drafter (`accelerate/draft`) and a length control (`accelerate/length`) only change what an answer costs.

Rows: row 0 of a tree is the last committed token's, row i + 1 that of its token i. Row r says what follows that token.
Settings are frozen objects; `open` makes what changes, one for each process, and everything is called between two steps.

Shapes: M tokens of a tree, V vocabulary, D model width, K likeliest tokens.
"""

import bisect
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, Protocol

from torch import Tensor

from ponder.core.asks import Sampling
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee
from ponder.core.rng import Rng

ROOT = -1  # as a parent: the last committed token
Scope = Literal["request", "session", "corpus"]  # whose tokens a draft may be made of: its own request's, all requests', a given text's

Reads = Literal["drawn", "log_p"]  # what an acceptor reads of a Target; "log_p": both


@dataclass(frozen=True, eq=False)
class Tree:
    """M guessed tokens; parents[i] < i is the token that token i follows, ROOT for the last committed one. Raises BadField.

    log_q: float [M, V] log of the distribution that each token was drawn from, siblings one after the other; None: tokens were not
    drawn, each stands for itself. chances: the drafter's own estimate that each is accepted if its parent is; None: it has none.
    """

    tokens: tuple[int, ...] = ()
    parents: tuple[int, ...] = ()
    log_q: Tensor | None = None
    chances: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        num = len(self.tokens)
        if len(self.parents) != num:
            raise BadField(f"tree of {num} tokens has {len(self.parents)} parents: give one for each token")
        for i, parent in enumerate(self.parents):
            if not ROOT <= parent < i:
                raise BadField(f"tree parents[{i}]={parent}: must be {ROOT} (the last committed token) or a token before it")
        if num and min(self.tokens) < 0:
            raise BadField(f"tree tokens={self.tokens}: ids are never negative")
        if self.log_q is not None and (self.log_q.dim() != 2 or len(self.log_q) != num):
            raise BadField(f"tree log_q of shape {tuple(self.log_q.shape)}: must be [{num}, V], a row for each token")
        if self.chances is not None and (len(self.chances) != num or not all(0 <= c <= 1 for c in self.chances)):
            raise BadField(f"tree chances={self.chances}: must be {num} numbers in [0, 1]")

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def depths(self) -> tuple[int, ...]:
        """Of each token, 1 for those that follow the last committed one."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(1 if parent == ROOT else depths[parent] + 1)
        return tuple(depths)

    @property
    def depth(self) -> int:
        return max(self.depths, default=0)

    @property
    def is_chain(self) -> bool:
        return self.parents == tuple(range(ROOT, len(self.tokens) - 1))

    @cached_property
    def children(self) -> dict[int, tuple[int, ...]]:
        """Of ROOT and every token, in order."""
        found: dict[int, list[int]] = {i: [] for i in range(ROOT, len(self.tokens))}
        for i, parent in enumerate(self.parents):
            found[parent].append(i)
        return {parent: tuple(children) for parent, children in found.items()}

    def path(self, i: int) -> tuple[int, ...]:
        """Tokens from the first to token i itself, as places in the tree; () for ROOT."""
        found: list[int] = []
        while i != ROOT:
            found.append(i)
            i = self.parents[i]
        return tuple(reversed(found))

    def ancestors(self, i: int) -> tuple[int, ...]:
        """`path` without the token itself."""
        return self.path(i)[:-1]

    def first(self, num: int) -> "Tree":
        """The tree of its first `num` tokens."""
        if num >= len(self.tokens):
            return self
        log_q = None if self.log_q is None else self.log_q[:num]
        return Tree(self.tokens[:num], self.parents[:num], log_q, None if self.chances is None else self.chances[:num])

    def pruned(self, is_kept: Callable[[int], bool]) -> "Tree":
        """The tree of the tokens that are kept and whose ancestors are."""
        kept: dict[int, int] = {ROOT: ROOT}
        for i, parent in enumerate(self.parents):
            if parent in kept and is_kept(i):
                kept[i] = len(kept) - 1
        places = list(kept)[1:]
        if len(places) == len(self.tokens):
            return self
        return Tree(
            tuple(self.tokens[i] for i in places), tuple(kept[self.parents[i]] for i in places),
            None if self.log_q is None else self.log_q[places], None if self.chances is None else tuple(self.chances[i] for i in places),
        )  # fmt: skip


EMPTY = Tree()


def chain(tokens: Sequence[int], log_q: Tensor | None = None, chances: Sequence[float] | None = None) -> Tree:
    """The tree without branches."""
    return Tree(tuple(tokens), tuple(range(ROOT, len(tokens) - 1)), log_q, None if chances is None else tuple(chances))


def branches(paths: Sequence[Sequence[int]]) -> Tree:
    """The tree of several continuations, common beginnings once; the first path comes first, as a whole."""
    tokens: list[int] = []
    parents: list[int] = []
    known: dict[tuple[int, int], int] = {}
    for path in paths:
        at = ROOT
        for token in path:
            if (at, token) not in known:
                known[at, token] = len(tokens)
                tokens.append(token)
                parents.append(at)
            at = known[at, token]
    return Tree(tuple(tokens), tuple(parents))


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a drafter wants to be shown of every row of the target's pass."""

    num_top: int = 0  # likeliest next tokens
    hidden: bool = False  # final hidden states


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a drafter sees of a request that wants a draft. `tokens` is the engine's own list, true until `propose` returns."""

    request: int  # its number; never given twice in one process
    tokens: Sequence[int]  # ids of prompt and completion, committed
    num_prompt: int  # of them are the prompt's
    room: int  # most tokens to draft, at least 1
    max_depth: int  # most tokens of one path, at least 1
    seed: int = 0  # with the position and `drift` it decides the draw that a draft is to guess
    sampling: Sampling = field(default_factory=Sampling)
    drift: tuple[tuple[int, float], ...] = ()

    @property
    def position(self) -> int:
        """Place in the completion of the first token to draft."""
        return len(self.tokens) - self.num_prompt


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What came of one request's round; a step without a draft is one with an empty tree.

    tokens: what was committed, path's tokens first, then what follows them (fewer where the answer ended). top: int64 [1 + M, K]
    likeliest tokens after every row, best first; hidden: [1 + M, D]; each only where `needs` asks for it.
    """

    request: int
    tree: Tree
    path: tuple[int, ...]  # accepted tokens as places in the tree
    tokens: tuple[int, ...]
    top: Tensor | None = None
    hidden: Tensor | None = None

    @property
    def last_row(self) -> int:
        """The row that the newest token was drawn from."""
        return self.path[-1] + 1 if self.path else 0


Blur = tuple[tuple[int, float], ...]  # tokens and their weights, which sum to 1: one place of a text that is several at once


@dataclass(frozen=True)
class Guess:
    """A token that a model drew for a draft. log_q: float [V] log of what it was drawn from, point mass included."""

    token: int
    chance: float  # its probability there; of a greedy draw, which is certain, the one that the model itself gives it
    log_q: Tensor | None = None  # where it was asked for
    hidden: Tensor | None = field(default=None, compare=False)  # [D] its model's final hidden state that it was drawn from, where there is one


class Runner(Protocol):
    """A model that a drafter runs. It keeps keys of what it read for each request; nothing of it is seen by anybody else.

    is_in_place: its keys of what is not committed yet lie where the target's will: the target has to compute those rows after it.
    """

    @property
    def is_in_place(self) -> bool: ...

    def guess(self, contexts: Sequence[Context], drafts: Sequence[Sequence[int]], *, with_log_q: bool = False) -> list[Guess | None]:
        """The next token after contexts[i].tokens and drafts[i], one forward pass for all: what plain decoding of this model would
        draw there with the context's seed, sampling and drift, so that it equals the target's own draw as often as the two agree.
        A draft is followed by one that begins with it, or by a later context. None: no room for that one, now or ever."""
        ...

    def likely(self, contexts: Sequence[Context], drafts: Sequence[Sequence[Blur]], num: int) -> list[tuple[tuple[int, float], ...] | None]:
        """The `num` likeliest tokens, best first, after contexts[i].tokens and drafts[i], with their log-probabilities under this model
        itself, one forward pass for all. At each place of a draft the model reads the weighted sum of its tokens' embeddings. Drafts
        follow each other, and are None, as in `guess`."""
        ...

    def forget(self, request: int) -> None: ...


class InnerChoice(Protocol):
    """Which inner numbers act(gate x) * up x of every layer's feed-forward a request's guesses are made with, chosen by its prompt."""

    @property
    def num_seen(self) -> int:
        """Tokens of a prompt that are looked at, its last ones."""
        ...

    def units(self, inner_TF: Tensor, unit: int) -> Tensor:
        """int64, ascending: the units kept of one layer, at least one, each `unit` neighbouring numbers. inner_TF: float32, of the tokens seen."""
        ...


@dataclass(frozen=True, kw_only=True)
class Twin:
    """Which model a Runner runs."""

    model: str | None = None  # a name or file of a model with the same tokens; None: the target
    weights: str | None = None  # weight format; None: the target's where the model is, else the usual one
    skips: tuple[int, ...] = ()  # layers left out; with all else None it shares the target's own keys of committed tokens
    inner: InnerChoice | None = None  # what is kept of every layer's feed-forward; with model and weights None it shares keys as with skips
    bridge: Callable[[Tensor], Tensor] | None = None  # with skips: what is made of final hidden states [N, D] before the output head

    def __str__(self) -> str:
        """What was said of it, as it was written."""
        said = [f"{name}={value}" for name, value in (("model", self.model), ("weights", self.weights)) if value is not None]
        return f"draft with {', '.join(said)}" if said else "draft of this model with some of its layers"


def always(requests: Sequence[int], drafts: Sequence[Sequence[Guess]]) -> list[bool]:
    return [True] * len(requests)


ITSELF = Twin()


@dataclass(frozen=True, kw_only=True)
class Host:
    """What the process that drafts are made for lends to a drafter. `runner` raises PonderError for a model with other tokens.

    goes_on: the length control's (Controlling.goes_on); for drafters that pay for each token of a draft, to be asked between tokens.
    """

    vocab_size: int
    eos_ids: frozenset[int]
    num_layers: int
    dim: int
    runner: Callable[[Twin], Runner]
    logits: Callable[[Tensor], Tensor]  # [N, D] final hidden states -> float32 [N, V], by the target's output head
    goes_on: Callable[[Sequence[int], Sequence[Sequence[Guess]]], list[bool]] = always


class Drafting(Protocol):
    """A drafter at work for one process. Called for many requests at once; what it keeps of one never shows in another's draft,
    but for what the declared scope allows."""

    def propose(self, contexts: Sequence[Context]) -> list[Tree]:
        """A tree for each context, at most its `room` tokens and `max_depth` deep; empty where it has no guess."""
        ...

    def observe(self, verified: Sequence[Verified]) -> None:
        """Told after every step, of every request that got tokens, also of those that had no draft."""
        ...

    def forget(self, request: int) -> None:
        """The request is over. May be one that was never heard of."""
        ...


class Drafter(Protocol):
    """Guesses what comes next. Changes what an answer costs, never which it is: see Acceptor."""

    @property
    def guarantee(self) -> Guarantee: ...

    @property
    def scope(self) -> Scope: ...

    @property
    def needs(self) -> Needs: ...

    def open(self, host: Host) -> Drafting: ...


@dataclass(frozen=True)
class Target:
    """What the target's pass says of one tree. drawn: by row, the token that plain decoding draws there with the request's seed.

    log_p: the distribution that it is drawn from, float64 [V], of one row: sampling, form and penalties of that path applied.
    """

    drawn: Sequence[int]
    log_p: Callable[[int], Tensor]
    is_greedy: bool = False  # temperature 0


@dataclass(frozen=True)
class Accepted:
    """path: places in the tree, each the child of the one before. token: what follows the last of them."""

    path: tuple[int, ...]
    token: int


class Acceptor(Protocol):
    """(tree, what the target says) -> a path of the tree and one more token. Losslessness lives here alone.

    Pure but for `rng`, whose draws are independent of those behind `drawn` and of those that made the tree. Always returns a token:
    for an empty tree one distributed as row 0.
    """

    @property
    def guarantee(self) -> Guarantee: ...

    @property
    def reads(self) -> Reads: ...

    @property
    def is_identical(self) -> bool:
        """Whether answers are plain decoding's, token by token, for every seed; else a model's id names how they were made."""
        ...

    def accept(self, tree: Tree, target: Target, rng: Rng) -> Accepted: ...


@dataclass(frozen=True, kw_only=True)
class StepCosts:
    """What a step of the target costs by its rows: a table that was measured once, so that what else the machine does later misleads nobody.

    seconds: (rows, seconds) in rising order of both; straight lines between and beyond. waiting: what a step with guesses takes longer
    still, where the next one would else be begun before its tokens are known. Raises BadField.
    """

    seconds: tuple[tuple[int, float], ...]
    waiting: float = 0.0

    def __post_init__(self) -> None:
        if len(self.seconds) < 2 or any(a >= b or s > t for (a, s), (b, t) in itertools.pairwise(self.seconds)) or self.seconds[0][1] <= 0:
            raise BadField(f"step costs {self.seconds}: must be at least two (rows, seconds) above 0, rows rising, seconds not falling")

    def of(self, num_rows: int) -> float:
        found = self.known.get(num_rows)
        if found is None:
            at = min(max(1, bisect.bisect_left(self.seconds, (num_rows, 0.0))), len(self.seconds) - 1)
            (below, low), (above, high) = self.seconds[at - 1 : at + 1]
            found = self.known[num_rows] = max(0.0, low + (high - low) * (num_rows - below) / (above - below))
        return found

    @cached_property
    def known(self) -> dict[int, float]:
        return dict(self.seconds)


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What a step has cost in which every row was of a sequence that decodes. Seconds are of the thread that steps, where it computes."""

    num_rows: int  # of the target's pass, drafts included
    seconds: float  # of the pass, its draws and acceptance
    num_drafted: int
    draft_seconds: float


class Controlling(Protocol):
    """A length control at work for one process."""

    def rooms(self, requests: Sequence[int]) -> list[int]:
        """Most tokens to draft for each of the requests that decode in this step; 0: none."""
        ...

    def goes_on(self, requests: Sequence[int], drafts: Sequence[Sequence[Guess]]) -> list[bool]:
        """Whether each request's draft, at least one guess long and one longer than when last asked about, is worth a further guess.
        Of every draft that it decides on it sees the guesses so far alone, and all of these stay: so drawn tokens keep their weights."""
        ...

    def cut(self, requests: Sequence[int], trees: Sequence[Tree], num_rows: int) -> list[int]:
        """How many tokens of each tree, from its first, are worth the target's time in a step that has num_rows rows without them.
        Where tokens were drawn (log_q) nothing is told of them but their places, since to choose by what was drawn is to draw from else."""
        ...

    def learn(self, verified: Sequence[Verified], spent: Spent | None) -> None:
        """Told after every step that gave tokens. spent: None where the step read prompts too."""
        ...

    def forget(self, request: int) -> None: ...


class LengthControl(Protocol):
    """Decides how much is drafted, zero included. Changes no answer."""

    @property
    def guarantee(self) -> Guarantee: ...

    def open(self, costs: Callable[[], StepCosts]) -> Controlling:
        """costs: of the process that it is to work for; measured when first called, some tens of milliseconds, and kept."""
        ...


@dataclass(frozen=True, kw_only=True)
class Speculation:
    """How a process guesses ahead."""

    drafter: Drafter
    acceptor: Acceptor
    control: LengthControl


def shortened(controlling: Controlling, requests: Sequence[int], trees: Sequence[Tree], num_rows: int) -> list[Tree]:
    """The trees as the control cuts them; of drawn ones it is shown the places alone."""
    shown = [tree if tree.log_q is None else Tree((0,) * len(tree), tree.parents) for tree in trees]
    return [tree.first(num) for tree, num in zip(trees, controlling.cut(requests, shown, num_rows), strict=True)]


def is_path(tree: Tree, path: Sequence[int]) -> bool:
    """Whether each of `path` is a child of the one before, the first one of ROOT."""
    return all(0 <= i < len(tree) and tree.parents[i] == parent for parent, i in itertools.pairwise((ROOT, *path)))
