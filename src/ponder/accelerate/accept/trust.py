"""Keep every guess that its own drafter is sure of, whatever the target would have said.

Paper      Liu and Zhang 2025, "HAMburger: Accelerating LLM Inference via Token Smashing" (arXiv:2505.20438), which trusts what its micro decoder
           is sure of; Bae et al. 2023, "Fast and Robust Early-Exiting Framework with Synchronized Parallel Decoding" (FREE,
           arXiv:2310.05424), which computes the rest of the layers of tokens that left early beside the next one that does not
Equation   path: from the root the first child i with chance_i >= least, and so on; the token after it is the target's own draw
Shapes     tree of M tokens with chances, M + 1 drawn tokens -> a path, one token
Guarantee  approximate: what the drafter is sure of is the drafter's; with `least` above 1 nothing is kept, and answers are plain decoding's
Cost       nothing but booking: tokens that are kept count with the log-probability that the target gives them
Choose     a drafter that was seen to be right where it is sure (early exit of a deep model, a trained one), where speed counts and
           the answer is judged as a whole. Never where a probability is read off an answer.
Differs    HAMburger's trusted tokens share one key and are not computed by the large model; here each is, in the pass that draws the next
"""

from dataclasses import dataclass
from typing import ClassVar

from ponder.core.draft import ROOT, Accepted, Reads, Target, Tree
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee
from ponder.core.rng import Rng


@dataclass(frozen=True, kw_only=True)
class Trust:
    least: float = 0.9  # chance, by the drafter's own estimate, that is enough; above 1: none is

    guarantee = Guarantee.APPROXIMATE
    is_identical = False
    reads: ClassVar[Reads] = "log_p"  # so that tokens are booked with what the target gives them

    def __post_init__(self) -> None:
        if not self.least >= 0:
            raise BadField(f"trust least={self.least}: must be at least 0, which keeps every first child")

    def accept(self, tree: Tree, target: Target, rng: Rng) -> Accepted:
        """Keeps nothing of a tree whose drafter has no estimate."""
        at, path = ROOT, list[int]()
        while tree.chances is not None:
            found = next((i for i in tree.children[at] if tree.chances[i] >= self.least), None)
            if found is None:
                break
            path.append(found)
            at = found
        return Accepted(tuple(path), target.drawn[at + 1])
