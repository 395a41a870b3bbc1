"""Contexts of code hold what is asked for, once, and what counts as right is that line alone; SpecKV is read by itself."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

from lib import long_tasks
from long_quality import shared_policy


class Words:
    def encode(self, text: str) -> list[str]:
        return text.split()


def test_what_is_asked_about_code_stands_in_it_once():
    made = list(long_tasks.code_contexts(Words(), 1500, 3))
    assert len({context.text for context in made}) == 3
    for context in made:
        assert len(context.turns) == 6
        asked = [question for turn in context.turns for question in turn]
        assert len({question.text for question in asked}) == 12
        for question in asked:
            name = question.text.split()[4]
            (module,) = (part for part in context.text.split("# file: ") if part.startswith(name + "\n"))
            assert module.count("\n" + question.answer + "\n") + module.count("    " + question.answer + "\n") >= 1
            assert long_tasks.is_right(question, f"```python\n{question.answer}\n```")
            assert not long_tasks.is_right(question, question.answer.partition("(")[0])


@pytest.mark.parametrize(
    ("spec", "is_shared"), [("cache=snapkv:0.1", True), ("cache=speckv:0.1", True), ("cache=h2o:0.1,chunk=512", False), ("plain", False)]
)
def test_who_drops_keys_while_a_prompt_is_read_reads_it_alone(spec: str, is_shared: bool):
    assert (shared_policy(spec) is not None) == is_shared
