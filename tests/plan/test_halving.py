"""Search by halving: finds the best of many specs for a fraction of the grid, spares what is undecided, keeps its limits."""

import random

import pytest
from typer.testing import CliRunner

from ponder.cli import search
from ponder.cli.main import app
from ponder.core.errors import BadField
from ponder.plan.halving import Halving, Race, Tried, grid
from ponder.run.compare import Question
from ponder.testing.simulator import SimulatedAnswer, Simulator, World

CHANCES = {f"spec {i}": 0.3 + 0.02 * i for i in range(15)} | {"best": 0.8}
NUM = 128


class Paired:
    """Specs that are right on a question with their chance; luck is partly the question's, as it is for real strategies."""

    def __init__(self, seed, chances=CHANCES, tokens=lambda spec: 10.0):
        self.seed, self.chances, self.tokens, self.num_runs = seed, chances, tokens, 0

    def __call__(self, specs, numbers):
        self.num_runs += len(specs) * len(numbers)
        luck = {i: random.Random(f"{self.seed} {i}").random() for i in numbers}
        own = lambda spec, i: random.Random(f"{self.seed} {i} {spec}").random()
        return {s: [Tried(float((luck[i] if own(s, i) < 0.5 else own(s, -i - 1)) < self.chances[s]), self.tokens(s)) for i in numbers] for s in specs}


class Hasty(Halving):
    """Wrong: goes by the rank alone, however few the questions."""

    def survivors(self, race, left, num_specs):
        return sorted(left, key=race.key, reverse=True)[: max(1, len(left) // 16)]


def winners(halving, num=16, chances=CHANCES):
    runs = [Paired(seed, chances) for seed in range(num)]
    lasts = [list(halving.run(tuple(chances), run, NUM))[-1] for run in runs]
    return [last[0].spec for last in lasts], sum(run.num_runs for run in runs) / num / (len(chances) * NUM)


def law_finds_the_best(halving, error=0.1):
    found, _ = winners(halving)
    assert found.count("best") >= (1 - error) * len(found), f"the best in {found.count('best')} of {len(found)} searches"


def test_the_best_is_found_for_a_fraction_of_the_grid():
    law_finds_the_best(Halving())
    _, share = winners(Halving(), num=5)
    assert share < 0.4


def test_ranks_of_few_questions_are_not_enough():
    with pytest.raises(AssertionError, match="the best in"):
        law_finds_the_best(Hasty(first=4))


def test_keeping_all_is_the_whole_grid():
    run = Paired(0)
    *_, last = Halving(keep=1.0).run(tuple(CHANCES), run, NUM)
    assert run.num_runs == len(CHANCES) * NUM and all(s.num == NUM and s.is_left for s in last)
    assert last[0].right == max(s.right for s in last) and last[0].beats_leader == 1.0


def test_equal_specs_are_not_told_apart_and_the_cheaper_leads():
    run = Paired(0, {"dear": 0.5, "cheap": 0.5}, tokens=lambda spec: {"dear": 20.0, "cheap": 10.0}[spec])
    run.chances["same"] = 0.5
    same = lambda specs, numbers: {
        s: run(["cheap"], numbers)["cheap"] if s != "dear" else [Tried(t.right, 20.0) for t in run(["cheap"], numbers)["cheap"]] for s in specs
    }
    *_, last = Halving(keep=0.1).run(("dear", "cheap"), same, 64)
    assert [s.spec for s in last] == ["cheap", "dear"] and all(s.is_left for s in last)


def test_what_is_too_dear_goes_after_the_first_round():
    run = Paired(0, tokens=lambda spec: 100.0 if spec == "best" else 10.0)
    rounds = list(Halving(tokens=50).run(tuple(CHANCES), run, NUM))
    assert not next(s for s in rounds[0] if s.spec == "best").is_left and rounds[-1][0].spec != "best"


def test_pairs_and_grids_by_hand():
    race = Race({"a": [Tried(1, 5), Tried(1, 5)], "b": [Tried(0, 5), Tried(1, 5)]})
    assert race.no_worse("a", "b", 0) == 1.0 and race.no_worse("b", "a", 0) == pytest.approx(0.25, abs=0.05)
    assert grid("best_of_n", {"num": (4, 8), "verifier": ("p_true",)}) == ("best_of_n:num=4,verifier=p_true", "best_of_n:num=8,verifier=p_true")
    assert grid("greedy", {}) == ("greedy",)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Halving(first=1),
        lambda: Halving(keep=0),
        lambda: list(Halving().run((), Paired(0), 99)),
        lambda: list(Halving().run("a", Paired(0), 9)),
    ],
)
def test_nonsense_is_refused(make):
    with pytest.raises(BadField):
        make()


WORLD = World(depth=(2, 2), step_tokens=3, step_accuracy=0.75, num_wordings=2)


def test_the_verb_on_simulated_problems(monkeypatch, tmp_path):
    opened = []

    def asked(task, split, n):
        assert split == "dev"
        return [Question(id=str(i), prompt=WORLD.prompt(i), is_right=lambda text: SimulatedAnswer().read(text) == "0") for i in range(n)]

    monkeypatch.setattr(search, "questions_of", asked)
    monkeypatch.setattr(search, "open_named", lambda model, weights, threads: opened.append(Simulator(WORLD)) or opened[-1])
    specs = "sample:temperature=3;self_consistency:num=8,temperature=1;self_consistency:num=2,temperature=3"
    args = ["search", "--task", "gsm8k", "-n", "64", "--first", "16", "--strategies", specs, "--out", str(tmp_path)]
    done = CliRunner().invoke(app, args)
    assert done.exit_code == 0, done.output
    assert "best: self_consistency:num=8,temperature=1" in done.output and "after 16 questions" in done.output
    again = CliRunner().invoke(app, args)
    assert again.output == done.output and not opened[1].known, "stored samples were drawn again"
    assert isinstance(CliRunner().invoke(app, [*args, "--most", "3 s"]).exception, BadField)
