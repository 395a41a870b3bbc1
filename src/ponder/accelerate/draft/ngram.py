"""Copy what followed the last tokens where they stood before, in the prompt or in the answer so far.

Paper      Saxena 2023, "Prompt Lookup Decoding"; Yang et al. 2023, "Inference with Reference", arXiv:2304.04487
Equation   for n = longest..shortest: the latest place t < len(tokens) with tokens[t - n : t] = the last n tokens; the draft is what
           stands from t on, and then, where that reaches the end, itself
Shapes     contexts -> chains of at most min(num, room) tokens
Guarantee  exact: a drafter changes no answer, only what it costs
Cost       O(longest) dictionary look-ups a token, O(longest x tokens) memory a request; nothing of the model
Choose     answers that quote: summaries, edits, extraction, code, arithmetic written out. Free text is left to the length control.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from ponder.core.draft import EMPTY, Context, Host, Needs, Scope, Tree, Verified, chain
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee


@dataclass(frozen=True, kw_only=True)
class Ngram:
    longest: int = 3  # tokens that must have stood before, tried first
    shortest: int = 2
    num: int = 10  # most tokens of a draft

    guarantee = Guarantee.EXACT
    scope: ClassVar[Scope] = "request"
    needs = Needs()

    def __post_init__(self) -> None:
        if not 1 <= self.shortest <= self.longest or self.num < 1:
            raise BadField(f"ngram longest={self.longest}, shortest={self.shortest}, num={self.num}: 1 <= shortest <= longest, num at least 1")

    def open(self, host: Host) -> "Copying":
        return Copying(self)


@dataclass
class Copying:
    """What the n-grams of every request were followed by, last of all."""

    settings: Ngram
    found: dict[int, "Places"] = field(default_factory=dict)

    def propose(self, contexts: Sequence[Context]) -> list[Tree]:
        return [self._draft(context) for context in contexts]

    def observe(self, verified: Sequence[Verified]) -> None:
        return None

    def forget(self, request: int) -> None:
        self.found.pop(request, None)

    def _draft(self, context: Context) -> Tree:
        sizes = range(self.settings.longest, self.settings.shortest - 1, -1)
        places = self.found.setdefault(context.request, Places(sizes))
        at = places.latest(context.tokens)
        if at is None:
            return EMPTY
        num = min(self.settings.num, context.room, context.max_depth)
        tokens = context.tokens[at : at + num]
        return chain([*tokens, *(tokens[i % len(tokens)] for i in range(num - len(tokens)))])


class Places:
    """For n-grams of given sizes, the latest place that one of them led to. Tokens are only ever added."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes, self.num_read = sizes, 0
        self.after: dict[tuple[int, ...], int] = {}

    def latest(self, tokens: Sequence[int]) -> int | None:
        """The latest place before the end that the last tokens led to before, for the largest size that has one."""
        for at in range(self.num_read, len(tokens)):
            for size in self.sizes:
                if at >= size:
                    self.after[tuple(tokens[at - size : at])] = at
        self.num_read = len(tokens)
        ends = (tuple(tokens[len(tokens) - size :]) for size in self.sizes if len(tokens) >= size)
        return next((self.after[end] for end in ends if end in self.after), None)
