"""Accept a guess where it is the token that plain decoding draws there, and commit that draw in any case.

Paper      the coupling view of speculative sampling: Daliri, Musco, Suresh 2024, "Coupling without Communication and Drafter-Invariant
           Speculative Decoding", arXiv:2408.07978
Equation   t_r = F_r^-1(u(seed, position of row r)), the target's own draw at every row; from a row go to the first child whose token is
           t_r, until there is none; then commit t_r
Shapes     tree of M tokens, M + 1 drawn tokens -> path of at most its depth, one token
Guarantee  exact: token by token what plain decoding draws with the same seed, whatever the drafter guesses
Cost       one draw per row of the tree
Choose     always, unless the drafter draws from a distribution that it cannot couple to the target's noise.
"""

from dataclasses import dataclass
from typing import ClassVar

from ponder.core.draft import ROOT, Accepted, Reads, Target, Tree
from ponder.core.guarantee import Guarantee
from ponder.core.rng import Rng


@dataclass(frozen=True, kw_only=True)
class Coupled:
    guarantee = Guarantee.EXACT
    is_identical = True
    reads: ClassVar[Reads] = "drawn"

    def accept(self, tree: Tree, target: Target, rng: Rng) -> Accepted:
        at, path = ROOT, []
        while True:
            drawn = target.drawn[at + 1]
            found = next((i for i in tree.children[at] if tree.tokens[i] == drawn), None)
            if found is None:
                return Accepted(tuple(path), drawn)
            path.append(found)
            at = found
