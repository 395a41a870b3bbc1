"""MBPP: write a Python function from one sentence and three tests.

Paper      Austin et al. 2021, "Program Synthesis with Large Language Models" (arXiv:2108.07732); data under CC BY 4.0.
Equation   right = 1[code + tests runs to its end without an exception].
Shapes     500 items (the paper's test set), about half "dev" and half "test" here.
Guarantee  exact scorer up to the time limit (verify/unit_tests.py says what the sandbox isolates).
Cost       answers take 30-200 tokens; scoring about 50 ms each.
Choose     code models from about 0.5B up; shorter answers than HumanEval.
Differs    zero-shot chat prompt that shows the tests, as is usual for instruct models, not the paper's three examples.
"""

import functools
from dataclasses import dataclass, field

from ponder.core.asks import Prompt
from ponder.tasks.data import read_docs
from ponder.tasks.task import Item, in_split, judged_right
from ponder.verify.answers import Code
from ponder.verify.sandbox import Limits
from ponder.verify.unit_tests import UnitTests

ASK = "{}\nYour code must pass these tests:\n```python\n{}\n```\nReply with one Python code block, without the tests."


@dataclass(frozen=True, kw_only=True)
class Mbpp:
    limits: Limits = field(default_factory=Limits)  # of one run of the tests
    max_tokens: int = 300  # most tokens of one answer
    name: str = "mbpp"

    def items(self, split: str) -> tuple[Item, ...]:
        return in_split((Item(id=i, prompt=self.prompt(text, tests), reference=tests) for i, text, tests in _rows()), split, self.name)

    def scorer(self, item: Item) -> UnitTests:
        return UnitTests(tests=item.reference, limits=self.limits)

    def score(self, item: Item, text: str) -> bool:
        return judged_right(self.scorer(item), item, text)

    def prompt(self, text: str, tests: str) -> Prompt:
        # the reply begins inside its code block, so the closing fence ends it
        messages = (("user", ASK.format(text, tests)),)
        return Prompt(messages=messages, prefill="```python\n", stop=("\n```",), max_tokens=self.max_tokens, answers=Code())


@functools.lru_cache(maxsize=1)
def _rows() -> tuple[tuple[str, str, str], ...]:
    docs = read_docs("codex_mbpp/gold_bpb_0shot")
    return tuple((str(d["task_id"]), str(d["text"]), _tests(d)) for d in docs)


def _tests(doc: dict[str, object]) -> str:
    lines = doc["test_list"]
    assert isinstance(lines, list)
    return "\n".join(filter(None, (str(doc["test_setup_code"]), *lines))).replace("\r\n", "\n")
