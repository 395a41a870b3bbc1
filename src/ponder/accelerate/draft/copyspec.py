"""The last few tokens stood somewhere before: what followed them there is copied.

Paper      Dumitru et al. 2025, "CopySpec: Accelerating LLMs with Speculative Copy-and-Paste" (arXiv:2502.08923)
Equation   j = the first place at which the last `suffix` tokens of the context end before its own end; draft = the `num_copied` tokens from j on
Shapes     context [T] -> a chain of at most num_copied tokens; none where the suffix is new
Guarantee  exact (a drafter changes no answer)
Cost       one dictionary entry for every token of the context, one look-up for a draft; no model, no training.
Choose     answers that repeat what stands in the prompt: edits, follow-ups, quotations. `ngram` also finds shorter repetitions; combined
           with a draft model by `first` it leaves that model what is not copied.
Differs    a copy that reaches the context's end goes on with itself, so that a repetition shorter than the copy is followed, too. Stretches
           are keys themselves, not their hashes. What to do without a match is not decided here: combine drafters.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from ponder.core.draft import EMPTY, Context, Host, Needs, Scope, Tree, Verified, chain
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee


@dataclass(frozen=True, kw_only=True)
class CopySpec:
    suffix: int = 3  # tokens that must be the same
    num_copied: int = 10  # most tokens of a draft

    guarantee = Guarantee.EXACT
    scope: ClassVar[Scope] = "request"
    needs = Needs()

    def __post_init__(self) -> None:
        if self.suffix < 1 or self.num_copied < 1:
            raise BadField(f"copyspec suffix={self.suffix}, num_copied={self.num_copied}: both must be at least 1")

    def open(self, host: Host) -> "Copying":
        return Copying(self)


@dataclass
class Places:
    """Where each stretch of a context was first followed by something: stretch -> place of what follows."""

    first: dict[tuple[int, ...], int] = field(default_factory=dict)
    num_seen: int = 0

    def read(self, tokens: Sequence[int], suffix: int) -> int | None:
        """Takes in what is new of `tokens`; the first place after the stretch that they end with, None where it is new."""
        for at in range(max(self.num_seen, suffix), len(tokens)):
            self.first.setdefault(tuple(tokens[at - suffix : at]), at)
        self.num_seen = len(tokens)
        return self.first.get(tuple(tokens[-suffix:])) if len(tokens) >= suffix else None


class Copying:
    """Drafting of CopySpec: a table for each request."""

    def __init__(self, settings: CopySpec) -> None:
        self.settings = settings
        self.places: dict[int, Places] = {}

    def propose(self, contexts: Sequence[Context]) -> list[Tree]:
        return [self._copy(context) for context in contexts]

    def observe(self, verified: Sequence[Verified]) -> None:
        pass

    def forget(self, request: int) -> None:
        self.places.pop(request, None)

    def _copy(self, context: Context) -> Tree:
        start = self.places.setdefault(context.request, Places()).read(context.tokens, self.settings.suffix)
        if start is None:
            return EMPTY
        return chain(copied(context.tokens, start, min(self.settings.num_copied, context.room, context.max_depth)))


def copied(tokens: Sequence[int], start: int, num: int) -> list[int]:
    """`num` tokens from `start` on; behind the end come those that were copied first."""
    found = list(tokens[start : start + num])
    for i in range(num - len(found)):
        found.append(found[i])
    return found
