"""A toy comparison that a cluster and one machine must answer alike. Importable by workers, which get these things by name."""

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from ponder.core.asks import Prompt, Verdict
from ponder.core.budget import Budget
from ponder.infer.best_of_n import BestOfN
from ponder.infer.greedy import Greedy
from ponder.infer.sample import Sample
from ponder.run.compare import RunFolder, compare, settings_of
from ponder.run.question import Question, Scores
from ponder.run.recipe import Recipe
from ponder.testing.toy import ToyProcess, toy_lm
from ponder.verify.sandbox import Limits, run_python

FILES = ("run.json", "results.jsonl", "trace.jsonl")


class Paced(ToyProcess):
    """Takes its time, so that a kill meets work, and writes down who computed what."""

    pause = 0.0
    diary: Path | None = None

    def step(self):
        time.sleep(self.pause)
        done = super().step()
        if self.diary is not None:
            with (self.diary / f"{os.getpid()}").open("a") as file:
                file.writelines(f"{answer.prefix.prompt.question}\n" for _, answer in done if hasattr(answer, "prefix"))
        return done


@dataclass(frozen=True)
class Opener:
    """Opens the toy; a `seed` of its own per process is a machine that computes otherwise."""

    pause: float = 0.0
    diary: Path | None = None
    is_odd: bool = False
    fault: str = ""

    def __call__(self):
        if self.fault == "refuse":
            from ponder.core.errors import BadModelFile

            raise BadModelFile("toy.gguf: no such file on this machine")
        if self.fault == "die":
            os._exit(1)
        process = Paced(toy_lm(seed=os.getpid() if self.is_odd else 0))
        process.pause, process.diary = self.pause, self.diary
        return process


@dataclass(frozen=True)
class RunsPrograms:
    """A verifier that runs a program of its own in the sandbox: right where the text has an even number of letters."""

    name: str = "runs_programs"

    def asks(self, prompt, candidates):
        return ()

    def judge(self, prompt, candidates, answers):
        runs = [run_python(f"assert {len(c.text)} % 2 == 0", Limits(seconds=20)) for c in candidates]
        return tuple(Verdict(float(run.passed), "probability", run.isolation) for run in runs)


@dataclass(frozen=True)
class CountsA:
    least: int = 2

    def __call__(self, text: str) -> bool:
        return text.count("a") > self.least


@dataclass(frozen=True)
class Kills:
    """Scores a text by ending the replica that holds it."""

    def __call__(self, text: str) -> bool:
        os._exit(1)


def recipes(*more):
    budget = Budget(tokens=90)
    plain = [Recipe(label="greedy", strategy=Greedy(), budget=budget), Recipe(label="sample:num=5", strategy=Sample(num=5), budget=budget)]
    return [*plain, Recipe(label="sample:num=8", strategy=Sample(num=8), budget=budget), *more]


def judged(num=2):
    return Recipe(label="best_of_n", strategy=BestOfN(num=num, verifier=RunsPrograms()), budget=Budget(tokens=90))


def questions(num=10):
    return [
        Question(id=str(i), prompt=Prompt(messages=(("raw", f"{i} " + "ab"[: 1 + i % 2]),), max_tokens=12), is_right=CountsA()) for i in range(num)
    ]


def folder_at(path, process, some_recipes, some_questions, *, resume=False):
    folder = RunFolder(path, settings_of(process, some_recipes, some_questions, task="toy", seed=7)).open(resume=resume)
    folder.scores = Scores(path / "scores.jsonl").open()
    return folder


def here(path, some_recipes, some_questions, *, resume=False):
    """The comparison on this machine."""
    process = ToyProcess(toy_lm())
    folder = folder_at(path, process, some_recipes, some_questions, resume=resume)
    try:
        return compare(process, some_recipes, some_questions, folder=folder, seed=7)
    finally:
        folder.close()


def contents(path):
    return [(path / name).read_bytes() for name in FILES]


def python(script, *args, **settings):
    return subprocess.Popen([sys.executable, "-c", script, *map(str, args)], **settings)
