"""MBPP: write a Python function from one sentence and three tests.

Paper      Austin et al. 2021, "Program Synthesis with Large Language Models" (arXiv:2108.07732); data under CC BY 4.0.
Equation   right = 1[code + tests runs to its end without an exception].
Shapes     500 items (the paper's test set), about half "dev" and half "test" here.
Guarantee  exact scorer up to the time limit (verify/unit_tests.py says what the sandbox isolates).
Cost       answers take 30-200 tokens; scoring about 50 ms each.
Choose     code models from about 0.5B up; shorter answers than HumanEval.
Differs    zero-shot chat prompt that shows the tests, as is usual for instruct models, not the paper's three examples. With
           num_visible the prompt shows the first ones only and the rest are held out: a verifier that runs what is shown can err.
"""

import functools
from dataclasses import dataclass, field

from ponder.core.asks import Prompt
from ponder.core.errors import BadField
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
    num_visible: int | None = None  # tests that the prompt shows; None: all
    name: str = "mbpp"

    def __post_init__(self) -> None:
        if self.num_visible is not None and self.num_visible < 1:
            raise BadField(f"mbpp num_visible={self.num_visible}: must be at least 1, or None for all")

    def items(self, split: str) -> tuple[Item, ...]:
        shown = ((i, self.prompt(text, joined(setup, tests[: self.num_visible])), joined(setup, tests)) for i, text, setup, tests in _rows())
        return in_split((Item(id=i, prompt=prompt, reference=tests) for i, prompt, tests in shown), split, "mbpp")

    def scorer(self, item: Item) -> UnitTests:
        return UnitTests(tests=item.reference, limits=self.limits)

    def score(self, item: Item, text: str) -> bool:
        return judged_right(self.scorer(item), item, text)

    def prompt(self, text: str, tests: str) -> Prompt:
        # the reply begins inside its code block, so the closing fence ends it
        messages = (("user", ASK.format(text, tests)),)
        return Prompt(messages=messages, prefill="```python\n", stop=("\n```",), max_tokens=self.max_tokens, answers=Code())


@functools.lru_cache(maxsize=1)
def _rows() -> tuple[tuple[str, str, str, tuple[str, ...]], ...]:
    docs = read_docs("codex_mbpp/gold_bpb_0shot")
    return tuple((str(d["task_id"]), str(d["text"]), str(d["test_setup_code"]), _lines(d["test_list"])) for d in docs)


def _lines(tests: object) -> tuple[str, ...]:
    assert isinstance(tests, list)
    return tuple(map(str, tests))


def joined(setup: str, tests: tuple[str, ...]) -> str:
    return "\n".join(filter(None, (setup, *tests))).replace("\r\n", "\n")
