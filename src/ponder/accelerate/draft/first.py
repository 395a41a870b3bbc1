"""Several drafters in turn: the first that has a guess makes the draft.

Paper      Dumitru et al. 2025 (CopySpec, arXiv:2502.08923, section 3.3) for copying before a draft model
Equation   draft of a context = propose_i(context) of the smallest i whose tree is not empty
Shapes     contexts [N] -> trees [N]; a drafter is asked once, about those that all before it left empty
Guarantee  exact (a drafter changes no answer)
Cost       that of the drafters that are asked; a costly one should come late.
Choose     copying over a draft model or over heads: long drafts where text repeats, short ones elsewhere.
Differs    of any number of drafters, each of which is told of every round, whoever drafted it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ponder.core.draft import EMPTY, Context, Drafter, Drafting, Host, Needs, Scope, Tree, Verified
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee

WIDTHS: tuple[Scope, ...] = ("request", "corpus", "session")  # what is made of a given text alone cannot leak


@dataclass(frozen=True, kw_only=True)
class First:
    drafters: tuple[Drafter, ...]  # in the order in which they are asked

    guarantee = Guarantee.EXACT

    def __post_init__(self) -> None:
        if len(self.drafters) < 2:
            raise BadField(f"first of {len(self.drafters)} drafters: must be at least 2, else take the drafter itself")

    @property
    def scope(self) -> Scope:
        """The widest of all."""
        return max((d.scope for d in self.drafters), key=WIDTHS.index)

    @property
    def needs(self) -> Needs:
        return Needs(num_top=max(d.needs.num_top for d in self.drafters), hidden=any(d.needs.hidden for d in self.drafters))

    def open(self, host: Host) -> "InTurn":
        return InTurn([drafter.open(host) for drafter in self.drafters])


class InTurn:
    """Drafting of First."""

    def __init__(self, parts: Sequence[Drafting]) -> None:
        self.parts = parts

    def propose(self, contexts: Sequence[Context]) -> list[Tree]:
        trees = [EMPTY] * len(contexts)
        for part in self.parts:
            left = [i for i, tree in enumerate(trees) if not tree]
            if left:
                for i, tree in zip(left, part.propose([contexts[i] for i in left]), strict=True):
                    trees[i] = tree
        return trees

    def observe(self, verified: Sequence[Verified]) -> None:
        for part in self.parts:
            part.observe(verified)

    def forget(self, request: int) -> None:
        for part in self.parts:
            part.forget(request)
