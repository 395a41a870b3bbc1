"""Three lines of Python: a model by its name, one question, many questions; each gets what it would get alone."""

import subprocess
import sys

import pytest

import ponder
from ponder.connect.model import Model, prompt_of
from ponder.connect.online import Online
from ponder.core.budget import Budget
from ponder.core.errors import BadField, BudgetTooSmall, PonderError, UnknownName
from ponder.core.rng import hash_seed
from ponder.infer.sample import Sample
from ponder.run.driver import Driver, Job
from ponder.run.recipe import Recipe
from ponder.testing.toy import ToyProcess, toy_lm


@pytest.fixture
def model():
    return Model(ToyProcess(toy_lm()))


def test_a_question_gets_the_same_alone_and_among_others(model):
    questions = ["ab" * i for i in range(1, 9)]
    settings = {"strategy": "self_consistency:num=3", "budget": "300 tokens", "max_tokens": 10}
    together = model.ask_many(questions, **settings)
    alone = [model.ask(question, **settings) for question in questions]
    assert [str(r) for r in together] == [r.text for r in alone] and [r.cost.tokens for r in together] == [r.cost.tokens for r in alone]
    assert len({r.text for r in together}) > 1 and [r.text for r in model.ask_many(questions, **settings, seed=1)] != [r.text for r in together]


def test_names_texts_and_objects_are_read_alike(model):
    by_name = model.ask("ab", strategy="sample:num=2", budget="90 tokens", answer="number")
    by_object = model.ask(prompt_of("ab", "number", 256), strategy=Sample(num=2), budget=Budget(tokens=90))
    assert by_name.candidates == by_object.candidates and len(by_name.candidates) == 2


@pytest.mark.parametrize(
    "settings, error",
    [
        ({"strategy": "self_consistancy"}, UnknownName),
        ({"budget": "20 tokns"}, BadField),
        ({"budget": "2 tokens"}, BudgetTooSmall),
        ({"answer": "nubmer"}, UnknownName),
        ({"max_tokens": 0}, BadField),
    ],
)
def test_mistakes_are_named(model, settings, error):
    with pytest.raises(error):
        model.ask("abab", **settings)
    with pytest.raises(PonderError, match="use ask for one"):
        model.ask_many("abab")


def test_questions_from_many_threads_share_one_driver(model):
    online = Online(model.process)
    recipe = Recipe(label="s", strategy=Sample(num=2), budget=Budget())
    jobs = [Job(id="same", prompt=prompt_of("ab" * i, "text", 12), recipe=recipe, seed=hash_seed(0, i)) for i in range(1, 20)]
    bad = Job(id="bad", prompt=prompt_of("ab", "text", 12), recipe=Recipe(label="s", strategy=Sample(), budget=Budget(tokens=1)), seed=0)
    answers, refused = [online.ask(job) for job in jobs], online.ask(bad)
    found = [answer.result(timeout=60) for answer in answers]
    with pytest.raises(BudgetTooSmall):
        refused.result(timeout=60)
    online.close()
    alone = [result for job in jobs for _, result in Driver(model.process).run([job])]
    assert [r.candidates for r in found] == [r.candidates for r in alone]
    assert not online.thread.is_alive()


def test_the_door_is_light_and_opens_by_name(smollm2_path):
    assert ponder.load is not None
    script = "import sys, ponder; assert 'torch' not in sys.modules; ponder.load; assert 'torch' in sys.modules"
    assert subprocess.run([sys.executable, "-c", script], timeout=300).returncode == 0
    with pytest.raises(UnknownName, match="smollm2-135m"):
        ponder.load("smolm2-135m")
    with pytest.raises(UnknownName, match="weight format"):
        ponder.load(str(smollm2_path), weights="int5")
    assert str(ponder.load(str(smollm2_path)).ask("What is the capital of France?", budget="100 tokens", max_tokens=12))
