"""Big little decoder: a small model writes, and the large one takes back only what it finds too unlikely.

Paper      Kim et al. 2023, "Speculative Decoding with Big Little Decoder" (arXiv:2302.07863)
Equation   rollback: child x of row r stays where -log p_r(x) <= rollback; at the first that does not, the target's own draw stands.
           fallback, when the little model hands over, is the length control's: threshold with `least` as its confidence.
Shapes     tree of M tokens, log p [V] of the rows on the way, M + 1 drawn tokens -> a path, one token
Guarantee  biased: what the large model does not object to is the small one's; `rollback` is a bound, in nats, on each token's surprise
Cost       O(1) per token that is looked at
Choose     a draft model that may have its say, for speed where quality is judged as a whole. rollback=0 keeps what is certain alone.
Differs    the paper's distance is the large model's cross-entropy with the little one's answer, that is this for a greedy draft. Greedy
           requests are asked under a point mass, and so come out as greedy decoding's: give temperature 1 to hear both models.
"""

from dataclasses import dataclass

from ponder.core.draft import ROOT, Accepted, Reads, Target, Tree
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee
from ponder.core.rng import Rng


@dataclass(frozen=True, kw_only=True)
class BigLittle:
    rollback: float = 3.0  # nats of surprise that are taken back; the paper's summaries and translations use 2 to 6

    guarantee = Guarantee.BIASED
    is_identical = False
    reads: Reads = "log_p"

    def __post_init__(self) -> None:
        if not self.rollback >= 0:
            raise BadField(f"bild rollback={self.rollback}: must be at least 0, which takes back whatever is not certain")

    def accept(self, tree: Tree, target: Target, rng: Rng) -> Accepted:
        at, path = ROOT, []
        while tree.children[at]:
            log_p = target.log_p(at + 1)
            found = next((i for i in tree.children[at] if -float(log_p[tree.tokens[i]]) <= self.rollback), None)
            if found is None:
                break
            path.append(found)
            at = found
        return Accepted(tuple(path), target.drawn[at + 1])
