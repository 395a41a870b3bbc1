"""Keys are dropped once, when the prompt has been read.

Paper      SnapKV (Li et al. 2024, arXiv:2404.14469): the answer's own keys all stay.
Equation   never again.
Shapes     counts of tokens -> None.
Guarantee  approximate: keys are dropped.
Cost       none.
Choose     answers that are short beside their prompt.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class AfterPrompt:
    def next(self, num_tokens: int, *, num_prompt: int, num_held: int, budget: int) -> None:
        return None
