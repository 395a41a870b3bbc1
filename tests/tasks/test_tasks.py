"""Every task: splits are fixed and disjoint, gold answers pass, wrong ones fail, strange ones do not raise."""

import ast
import inspect
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ponder.core.errors import BadField, UnknownName
from ponder.tasks import reasoning_gym
from ponder.tasks.data import read_docs
from ponder.tasks.gsm8k import EXAMPLES, Gsm8k
from ponder.tasks.humaneval import HumanEval
from ponder.tasks.math500 import Math500
from ponder.tasks.mbpp import Mbpp
from ponder.tasks.reasoning_gym import EVALUATING, PRESELECTED, ReasoningGym, datasets, open_reasoning_gym
from ponder.tasks.sciq import SciQ
from ponder.tasks.task import split_of
from ponder.verify.sandbox import Limits

QUICK = Limits(seconds=10.0)
TASKS = {"gsm8k": Gsm8k(), "math500": Math500(), "humaneval": HumanEval(limits=QUICK), "mbpp": Mbpp(limits=QUICK), "sciq": SciQ(), **PRESELECTED}
# (items, dev items, first three dev ids, first three test ids): these never change
PINNED = {
    "gsm8k": (1319, 665, ["93", "1107", "336"], ["82", "161", "328"]),
    "math500": (500, 238, ["23", "161", "246"], ["82", "184", "343"]),
    "humaneval": (164, 81, ["HumanEval/38", "HumanEval/26", "HumanEval/65"], ["HumanEval/153", "HumanEval/4", "HumanEval/20"]),
    "mbpp": (500, 235, ["244", "313", "20"], ["418", "141", "146"]),
    "sciq": (1000, 487, ["426", "668", "935"], ["460", "153", "177"]),
    "rg:chain_sum": (400, 200, ["0", "4", "6"], ["1", "2", "3"]),
    "rg:short_sums": (400, 200, ["0", "1", "2"], ["3", "6", "7"]),
    "rg:basic_arithmetic": (400, 200, ["0", "1", "3"], ["2", "10", "13"]),
    "rg:spell_backward": (400, 200, ["0", "2", "4"], ["1", "3", "6"]),
}
STRANGE = ("", "\x00", "\ud800", "9" * 10_000, "\\boxed{" * 30, "def f(:", "None", "```", "import os; os._exit(0)")


def gold(task):
    """Item -> a right answer, as a model would write it."""
    if task.name == "gsm8k":
        texts = {str(d["id"]): d["answer"] for d in read_docs("gsm8k/gold_bpb_5shot")}
    elif task.name == "math500":
        texts = {str(d["index"]): d["solution"] for d in read_docs("minerva_math_500/gold_bpb_0shot")}
    elif task.name == "humaneval":
        texts = {d["task_id"]: d["prompt"] + d["canonical_solution"] for d in read_docs("codex_humaneval/gold_bpb_0shot")}
    elif task.name == "mbpp":
        texts = {str(d["task_id"]): f"```python\n{d['code']}\n```" for d in read_docs("codex_mbpp/gold_bpb_0shot")}
    else:
        return lambda item: item.reference
    return lambda item: texts[item.id]


class Forget(ast.NodeTransformer):
    """Every function returns something else."""

    def visit_Return(self, node):
        return ast.copy_location(ast.Return(ast.Constant("something else")), node)


def mutants(code):
    """The program broken in two ways: other results, another name."""
    return [ast.unparse(Forget().visit(ast.parse(code))), re.sub(r"^def (\w+)", r"def other_\1", code, flags=re.MULTILINE)]


@pytest.mark.parametrize("name", TASKS)
def test_splits_are_fixed_and_disjoint(name):
    task = TASKS[name]
    dev, test = task.items("dev"), task.items("test")
    ids = [i.id for i in (*dev, *test)]
    assert len(set(ids)) == len(ids)
    assert not {i.prompt.question for i in dev} & {i.prompt.question for i in test}
    assert (len(ids), len(dev), [i.id for i in dev[:3]], [i.id for i in test[:3]]) == PINNED[name]
    with pytest.raises(BadField, match="'dev'"):
        task.items("train")


@given(st.text(max_size=30))
def test_a_split_is_a_function_of_the_key_alone(key):
    assert split_of(key) == split_of(key) in ("dev", "test")


def test_splits_are_about_even():
    assert 420 < sum(split_of(str(i)) == "dev" for i in range(1000)) < 580


@pytest.mark.parametrize("name", TASKS)
def test_gold_answers_pass_and_others_fail(name):
    task, items = TASKS[name], TASKS[name].items("dev")[:25]
    right, other = gold(task), {i.id: j for i, j in zip(items, (*items[1:], items[0]))}
    assert [i.id for i in items if not task.score(i, right(i))] == []
    taken = [i.id for i in items if i.reference != other[i.id].reference and task.score(i, right(other[i.id]))]
    assert taken == []


@pytest.mark.parametrize("name", TASKS)
def test_strange_texts_are_wrong_not_errors(name):
    item = TASKS[name].items("dev")[0]
    assert [TASKS[name].score(item, text) for text in STRANGE] == [False] * len(STRANGE)


@pytest.mark.parametrize("name", ["humaneval", "mbpp"])
def test_gold_programs_pass_and_their_mutants_fail(name):
    """25 more of each, so that 100 gold programs are run in all."""
    task, right = TASKS[name], gold(TASKS[name])
    for item in task.items("test")[:25]:
        code = right(item).removeprefix("```python\n").removesuffix("\n```")
        assert task.score(item, right(item)), item.id
        for mutant in mutants(code):
            assert not task.score(item, mutant), (item.id, mutant)


def test_humaneval_takes_a_bare_body():
    docs = {d["task_id"]: d for d in read_docs("codex_humaneval/gold_bpb_0shot")}
    task = TASKS["humaneval"]
    for item in task.items("test")[:5]:
        assert task.score(item, docs[item.id]["canonical_solution"])


def test_sciq_hides_where_the_right_option_is():
    """In the file it is always the last: a model that picks by place must be right on a quarter."""
    items = [*SciQ().items("dev"), *SciQ().items("test")]
    places = [item.prompt.answers.options.index(item.reference) for item in items]
    assert all(200 < places.count(place) < 300 for place in range(4))
    for item in items:
        assert [SciQ().score(item, option) for option in item.prompt.answers.options].count(True) == 1


def test_gsm8k_examples_are_right_and_not_in_the_data():
    questions = {i.prompt.question for split in ("dev", "test") for i in Gsm8k().items(split)}
    for question, answer in EXAMPLES:
        assert question not in questions
        for left, right in re.findall(r"([\d *+/-]+\d) = (\d+)", answer):
            assert eval(left) == int(right)
    assert len(Gsm8k(shots=4).items("dev")[0].prompt.messages) == 10


def test_unknown_generators_name_near_ones():
    with pytest.raises(UnknownName, match="rg:chain_sum"):
        open_reasoning_gym("rg:chian_sum")
    with pytest.raises(UnknownName, match="chain_sum"):
        ReasoningGym(dataset="chian_sum").items("dev")
    with pytest.raises(BadField, match="min_terms"):
        ReasoningGym(dataset="chain_sum", config=(("min_terms", 9), ("max_terms", 2))).items("dev")
    with pytest.raises(BadField, match="nonsense"):
        ReasoningGym(dataset="chain_sum", config=(("nonsense", 9),)).items("dev")
    with pytest.raises(BadField, match="num=0"):
        ReasoningGym(dataset="chain_sum", num=0)


@pytest.mark.parametrize("dataset", ["chain_sum", "letter_counting", "gcd", "word_sorting", "family_relationships", "simple_equations"])
def test_any_generator_scores_its_own_answers(dataset):
    task = ReasoningGym(dataset=dataset, num=10)
    for item in (*task.items("dev"), *task.items("test")):
        assert task.score(item, f"Answer: {item.reference}")
        assert not task.score(item, "Answer: certainly not")


def test_the_split_does_not_depend_on_how_many_are_asked_for():
    few, many = ReasoningGym(dataset="gcd", num=5), ReasoningGym(dataset="gcd", num=40)
    for split in ("dev", "test"):
        assert many.items(split)[:5] == few.items(split)


def test_every_generator_that_evaluates_answers_is_scored_apart():
    """The list is kept true: these files, and no others, pass the answer to eval, exec or parse_expr."""
    package = reasoning_gym._package()
    found = set()
    for name in datasets():
        scoring = inspect.getsource(package.factory.DATASETS[name][0]).partition("def score_answer")[2]
        if re.search(r"(?<![\w.])(eval|exec)\(answer|parse_expr\(answer", scoring):
            found.add(name)
    assert found == EVALUATING


def test_code_in_an_answer_does_not_run_here(tmp_path):
    task, mark = ReasoningGym(dataset="countdown", num=1), tmp_path / "mark"
    (item,) = task.items("dev")
    assert not task.score(item, f"__import__('pathlib').Path({str(mark)!r}).write_text('x')")
    assert not mark.exists()
    assert task.score(item, item.reference)
