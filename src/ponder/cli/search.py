"""The verb `search`: which of many strategies is best on a task's development questions, by successive halving."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ponder import catalogue
from ponder.cli import show
from ponder.cli.verbs import open_named, questions_of
from ponder.core.budget import Budget, parse_budget
from ponder.core.errors import BadField, StoreError
from ponder.core.rng import hash_seed
from ponder.core.roles import Process
from ponder.plan.halving import Halving, Standing, Tried
from ponder.run.compare import Question, score
from ponder.run.driver import Driver, Job
from ponder.run.recipe import Recipe
from ponder.run.store import SampleStore


def search(
    *, task: str, strategies: str, n: int, first: int, most: str | None, budget: str, model: str, out: Path, weights: str | None, seed: int,
    threads: int | None,
) -> int:  # fmt: skip
    """Prints the standings after every round. Samples are kept in `out`: the same search again computes nothing."""
    limits = parse_budget(budget)
    specs = tuple(catalogue.SPECS.read_many(strategies))
    halving = Halving(first=first, seed=seed, tokens=None if most is None else tokens_of(most))
    questions = questions_of(catalogue.task(task), "dev", n)
    process = open_named(model, catalogue.weights_on("cpu", weights), threads)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{out}: {error.strerror}; name another --out") from error
    store = SampleStore(out / "samples.sqlite")
    try:
        last: tuple[Standing, ...] = ()
        for last in halving.run(
            specs, lambda left, numbers: measured(process, store, left, [questions[i] for i in numbers], limits=limits, seed=seed), n
        ):
            show.out.print(f"[bold]after {last[0].num} questions, {sum(s.is_left for s in last)} of {len(last)} left[/bold]")
            for line in map(standing_line, last):
                show.out.print(line, markup=False)
    finally:
        store.close()
    show.out.print(f"best: {last[0].spec}", markup=False)
    return 0


def tokens_of(text: str) -> float:
    limit = parse_budget(text)
    if limit.tokens is None:
        raise BadField(f"most {text!r}: a number of tokens, as in '800 tokens'")
    return float(limit.tokens)


def measured(
    process: Process, store: SampleStore, specs: Sequence[str], questions: Sequence[Question], *, limits: Budget, seed: int
) -> Mapping[str, list[Tried]]:
    """Every spec on every question; seeds depend on the question alone, so that equal samples are drawn once."""
    found: dict[str, list[Tried]] = {spec: [] for spec in specs}
    by_id = {q.id: q for q in questions}
    for spec in specs:
        recipe = Recipe(label=spec, strategy=catalogue.strategy(spec), budget=limits)
        jobs = [Job(id=q.id, prompt=q.prompt, recipe=recipe, seed=hash_seed(seed, q.id)) for q in questions]
        for job, result in Driver(process, store=store).run(jobs):
            found[spec].append(Tried(float(score(spec, by_id[job.id], result).right), result.cost.tokens))
    return found


def standing_line(s: Standing) -> str:
    return (
        f"  {' ' if s.is_left else 'x'} {100 * s.right:5.1f} % of {s.num:4}  {s.tokens:7.0f} tokens  "
        f"no worse than the leader in {100 * s.beats_leader:3.0f} % of resamples  {s.spec}"
    )
