"""Several recipes on the same questions under the same budget, into a folder that survives kill -9.

run.json        what was asked for; a resumed run must ask for the same
samples.sqlite  every finished answer of the model (run/store.py)
results.jsonl   one row per recipe and question; the same bytes in every run with the same run.json
trace.jsonl     every ask, answer, cost and seed; the same bytes likewise
timing.jsonl    seconds per row: measured, so not the same
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol

from ponder.core.asks import Candidate
from ponder.core.errors import BadField, PonderError, StoreError
from ponder.core.rng import hash_seed
from ponder.core.roles import Process
from ponder.run.account import Ledger
from ponder.run.codec import cost_json, digest, dumps
from ponder.run.driver import Driver, Job
from ponder.run.question import Question, Scores
from ponder.run.recipe import Recipe, Result, describe
from ponder.run.store import SampleStore


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one recipe made of one question."""

    recipe: str
    question: str
    right: bool  # the selected answer
    oracle: bool  # any candidate
    candidates: int
    values: tuple[tuple[float, bool], ...]  # (first verdict's value, is right) of candidates that a verifier judged
    result: Result

    def json(self) -> dict[str, object]:
        return {
            "recipe": self.recipe, "question": self.question, "right": self.right, "oracle": self.oracle, "answer": self.result.answer,
            "confidence": self.result.confidence, "candidates": self.candidates, "stop_reason": self.result.stop_reason,
            "tokens": self.result.cost.tokens, "cost": cost_json(self.result.cost), "text": self.result.text,
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All rows, in the order of recipes and questions, and what running them took."""

    recipes: tuple[str, ...]
    rows: tuple[Row, ...]
    ledgers: dict[str, Ledger]  # by recipe; on many machines by replica
    is_complete: bool

    def of(self, recipe: str) -> list[Row]:
        return [row for row in self.rows if row.recipe == recipe]


@dataclass
class RunFolder:
    """The files of one comparison. `open` refuses a folder with another run in it and a forgotten --resume."""

    path: Path
    settings: dict[str, object]
    files: dict[str, IO[str]] = field(default_factory=dict)
    scores: Scores | None = None  # remembers which texts are right, where somebody opened one

    def open(self, *, resume: bool) -> "RunFolder":
        """Creates or checks run.json. Raises BadField naming the settings that differ, StoreError when it cannot write."""
        marker = self.path / "run.json"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if marker.exists() and not resume:
                raise BadField(f"{self.path} already holds a run; add --resume to go on with it, or name another --out")
            if marker.exists():
                self._check(json.loads(marker.read_text()))
            else:
                partial = marker.with_suffix(".part")
                partial.write_text(json.dumps(self.settings, indent=1, sort_keys=True) + "\n")
                partial.replace(marker)
            for name in ("results", "trace", "timing"):
                self.files[name] = (self.path / f"{name}.jsonl").open("w", encoding="utf-8")
        except (OSError, json.JSONDecodeError) as error:
            raise StoreError(f"{self.path}: {error}; free disk space, mend permissions or name another --out") from error
        return self

    def _check(self, old: dict[str, object]) -> None:
        new = json.loads(dumps(self.settings))
        differ = sorted(k for k in {*old, *new} if old.get(k) != new.get(k))
        if differ:
            raise BadField(f"{self.path} holds a run with other settings ({', '.join(differ)}); use those, or name another --out")

    def write(self, name: str, lines: Sequence[str]) -> None:
        """Appends and flushes, so that a killed run leaves whole rows. Raises StoreError when the disk is full."""
        try:
            self.files[name].writelines(line + "\n" for line in lines)
            self.files[name].flush()
        except OSError as error:
            raise StoreError(f"{self.path}/{name}.jsonl: {error}; free disk space, then run again with --resume: samples are kept") from error

    def close(self) -> None:
        for file in self.files.values():
            try:
                file.close()
            except OSError:  # a full disk was already reported by write
                continue


class Named(Protocol):
    """What answers: a process, or replicas of one."""

    @property
    def model_id(self) -> str: ...


def settings_of(process: Named, recipes: Sequence[Recipe], questions: Sequence[Question], *, task: str, seed: int) -> dict[str, object]:
    """What decides the results; written to run.json and compared by --resume."""
    return {
        "task": task, "seed": seed, "model": process.model_id, "num_questions": len(questions),
        "questions": digest([q.id for q in questions]), "recipes": [describe(r) for r in recipes],
    }  # fmt: skip


def compare(
    process: Process,
    recipes: Sequence[Recipe],
    questions: Sequence[Question],
    *,
    folder: RunFolder,
    seed: int = 0,
    max_jobs: int = 16,
    should_stop: Callable[[], bool] = lambda: False,
    on_row: Callable[[Row], None] = lambda row: None,
) -> Comparison:
    """Runs every recipe on every question; results go to `folder` (opened) as they come. Seeds depend on the question only,
    so that recipes that draw the same samples share them. should_stop ends it early, with what is finished."""
    check_labels(recipes, questions)
    questions = questions if folder.scores is None else [folder.scores.of(q) for q in questions]
    store = SampleStore(folder.path / "samples.sqlite")
    rows: list[Row] = []
    ledgers: dict[str, Ledger] = {}
    try:
        for recipe in recipes:
            driver = Driver(process, store=store, max_jobs=max_jobs, should_stop=should_stop)
            ledgers[recipe.label] = driver.ledger
            for row in _run_one(driver, recipe, questions, folder=folder, seed=seed):
                rows.append(row)
                on_row(row)
    finally:
        store.close()
    labels = tuple(recipe.label for recipe in recipes)
    return Comparison(recipes=labels, rows=tuple(rows), ledgers=ledgers, is_complete=len(rows) == len(recipes) * len(questions))


def _run_one(driver: Driver, recipe: Recipe, questions: Sequence[Question], *, folder: RunFolder, seed: int) -> Iterator[Row]:
    by_id = {q.id: q for q in questions}
    for job, result in driver.run([job_of(recipe, q, seed) for q in questions]):
        if result.stop_reason == "interrupted":
            continue
        row = score(recipe.label, by_id[job.id], result)
        write_row(folder, row)
        yield row


def job_of(recipe: Recipe, question: Question, seed: int) -> Job:
    return Job(id=question.id, prompt=question.prompt, recipe=recipe, seed=hash_seed(seed, question.id))


def write_row(folder: RunFolder, row: Row) -> None:
    folder.write("trace", row.result.trace)
    folder.write("results", [dumps(row.json())])
    timing = {"recipe": row.recipe, "question": row.question, "seconds": round(row.result.cost.seconds, 4)}
    folder.write("timing", [dumps(timing)])


def score(recipe: str, question: Question, result: Result) -> Row:
    """The row of one result. Each different candidate text is scored once."""
    right = {text: question.is_right(text) for text in {c.text for c in result.candidates}}
    return Row(
        recipe=recipe, question=question.id, right=right.get(result.text, False), oracle=any(right.values()),
        candidates=len(result.candidates), values=_judged(result.candidates, right), result=result,
    )  # fmt: skip


def _judged(candidates: Sequence[Candidate], right: dict[str, bool]) -> tuple[tuple[float, bool], ...]:
    firsts = ((c.verdicts[0].value, right[c.text]) for c in candidates if c.verdicts)
    return tuple((value, ok) for value, ok in firsts if value is not None)


def check_labels(recipes: Sequence[Recipe], questions: Sequence[Question]) -> None:
    """Raises PonderError when there is nothing to compare or a name is used twice."""
    labels, ids = [r.label for r in recipes], [q.id for q in questions]
    if not labels or not ids:
        raise PonderError(f"nothing to compare: {len(labels)} strategies on {len(ids)} questions; name at least one of each")
    twice = sorted({x for x in labels if labels.count(x) > 1} | ({x for x in ids if ids.count(x) > 1} if len(set(ids)) < len(ids) else set()))
    if twice:
        raise BadField(f"{', '.join(twice)} named twice; keep one of each")
