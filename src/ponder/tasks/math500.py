"""MATH-500: competition problems whose answer is a formula.

Paper      Hendrycks et al. 2021 (arXiv:2103.03874); the 500 of Lightman et al. 2023 (arXiv:2305.20050); data under the MIT licence.
Equation   right = 1[final formula of the text is mathematically equal to the gold answer].
Shapes     500 items, about half "dev" and half "test" here.
Guarantee  exact up to math-verify (verify/math_equal.py).
Cost       answers take 150-500 tokens; scoring about 10 ms each.
Choose     models from about 1.5B up.
Differs    the gold answer is the last \\boxed{} of the worked solution, since the published answer field is damaged in places.
"""

import functools
from dataclasses import dataclass

from ponder.core.asks import Prompt
from ponder.tasks.data import read_docs
from ponder.tasks.task import Item, in_split, judged_right
from ponder.verify.answers import Latex, last_boxed, tidy_latex
from ponder.verify.math_equal import MathEqual

SYSTEM = "Solve the problem step by step. Put the final answer in \\boxed{}."


@dataclass(frozen=True, kw_only=True)
class Math500:
    max_tokens: int = 512  # most tokens of one answer
    name: str = "math500"

    def items(self, split: str) -> tuple[Item, ...]:
        return in_split((Item(id=i, prompt=self.prompt(problem), reference=gold) for i, problem, gold in _rows()), split, self.name)

    def scorer(self, item: Item) -> MathEqual:
        return MathEqual(reference=item.reference)

    def score(self, item: Item, text: str) -> bool:
        return judged_right(self.scorer(item), item, text)

    def prompt(self, problem: str) -> Prompt:
        return Prompt(messages=(("system", SYSTEM), ("user", problem)), max_tokens=self.max_tokens, answers=Latex())


@functools.lru_cache(maxsize=1)
def _rows() -> tuple[tuple[str, str, str], ...]:
    docs = read_docs("minerva_math_500/gold_bpb_0shot")
    return tuple((str(d["index"]), str(d["problem"]), tidy_latex(last_boxed(str(d["solution"])) or "")) for d in docs)
