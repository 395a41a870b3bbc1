"""Accept a guess where it is the most likely token, in greedy requests; leave the others alone.

Paper      Stern, Shazeer, Uszkoreit 2018, "Blockwise Parallel Decoding for Deep Autoregressive Models", arXiv:1811.03115, section 3
Equation   from a row go to the child that is argmax_v p_r(v), until there is none; then commit that argmax
Shapes     tree of M tokens, M + 1 most likely tokens -> path of at most its depth, one token
Guarantee  exact: greedy requests get greedy decoding's tokens; sampled ones get one token drawn from row 0 per round
Cost       an argmax per row of the tree
Choose     to see what guessing is worth without any luck in it; coupled does the same for greedy requests, and serves all others.
"""

from dataclasses import dataclass
from typing import ClassVar

from ponder.core.draft import ROOT, Accepted, Reads, Target, Tree
from ponder.core.guarantee import Guarantee
from ponder.core.rng import Rng


@dataclass(frozen=True, kw_only=True)
class GreedyMatch:
    guarantee = Guarantee.EXACT
    is_identical = True
    reads: ClassVar[Reads] = "drawn"

    def accept(self, tree: Tree, target: Target, rng: Rng) -> Accepted:
        at, path = ROOT, []
        children = {tree.tokens[i]: i for i in reversed(tree.children[ROOT])} if target.is_greedy else {}
        while (found := children.get(target.drawn[at + 1])) is not None:
            path.append(found)
            at = found
            children = {tree.tokens[i]: i for i in reversed(tree.children[at])}
        return Accepted(tuple(path), target.drawn[at + 1])
