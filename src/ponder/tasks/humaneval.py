"""HumanEval: complete a Python function from its signature and docstring.

Paper      Chen et al. 2021, "Evaluating Large Language Models Trained on Code" (arXiv:2107.03374); data under the MIT licence.
Equation   right = 1[prompt + code + tests runs to its end without an exception].
Shapes     164 items, about half "dev" and half "test" here.
Guarantee  exact scorer up to the time limit (verify/unit_tests.py says what the sandbox isolates).
Cost       answers take 60-300 tokens; scoring about 50 ms each.
Choose     code models, from about 0.5B up.
Differs    a chat prompt that asks for the whole function; a bare body is accepted too.
"""

import functools
from dataclasses import dataclass, field

from ponder.core.asks import Prompt
from ponder.tasks.data import read_docs
from ponder.tasks.task import Item, in_split, judged_right
from ponder.verify.answers import Code
from ponder.verify.sandbox import Limits
from ponder.verify.unit_tests import UnitTests

ASK = "Complete this Python function. Reply with the whole function in one code block.\n```python\n{}```"


@dataclass(frozen=True, kw_only=True)
class HumanEval:
    limits: Limits = field(default_factory=Limits)  # of one run of the tests
    max_tokens: int = 400  # most tokens of one answer
    name: str = "humaneval"

    def items(self, split: str) -> tuple[Item, ...]:
        return in_split((Item(id=i, prompt=self.prompt(stub), reference=tests) for i, stub, tests in _rows()), split, self.name)

    def scorer(self, item: Item) -> UnitTests:
        return UnitTests(tests=item.reference, setup=_stubs()[item.id], limits=self.limits)

    def score(self, item: Item, text: str) -> bool:
        return judged_right(self.scorer(item), item, text)

    def prompt(self, stub: str) -> Prompt:
        # the reply begins inside its code block, so the closing fence ends it
        return Prompt(messages=(("user", ASK.format(stub)),), prefill="```python\n", stop=("\n```",), max_tokens=self.max_tokens, answers=Code())


@functools.lru_cache(maxsize=1)
def _rows() -> tuple[tuple[str, str, str], ...]:
    docs = read_docs("codex_humaneval/gold_bpb_0shot")
    return tuple((str(d["task_id"]), str(d["prompt"]), f"{d['test']}\ncheck({d['entry_point']})") for d in docs)


@functools.lru_cache(maxsize=1)
def _stubs() -> dict[str, str]:
    return {name: stub.rstrip("\n") for name, stub, _ in _rows()}
