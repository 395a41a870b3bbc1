"""`ponder train-verifier`: rollouts of the model, a head fitted to them, and what it gets right on questions it has not seen."""

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.table import Table

from ponder import catalogue
from ponder.cli import show
from ponder.cli.verbs import open_named, questions_of
from ponder.core.errors import BadField
from ponder.core.probe import checkpoint_of
from ponder.run.store import SampleStore
from ponder.train.fit import Recipe, States, fit_head, split_groups
from ponder.train.rollouts import Rollout, Rollouts, collect, states_at
from ponder.verify.heads import save_head
from ponder.verify.quality import Quality, quality

PLACES = {"steps": "last", "answers": "last", "prompts": "prompt"}  # what the head learns -> which state its verifier reads
MEASURED = 0.2  # share of the questions that only measure


@dataclass(frozen=True)
class Opened:
    """Which model, and how it runs."""

    model: str
    weights: str
    threads: int | None


def train_verifier(*, task: str, out: Path, kind: str, n: int, samples: int, model: Opened, fit: Recipe) -> int:
    """Trains, measures, saves and reports a head."""
    if kind not in PLACES:
        raise BadField(f"kind {kind!r}: must be one of {', '.join(PLACES)}")
    if n < 10:
        raise BadField(f"n={n}: must be at least 10 questions")
    questions, strategy = questions_of(catalogue.task(task), "dev", n), Rollouts(num=samples)
    process = open_named(model.model, model.weights, model.threads)
    out.parent.mkdir(parents=True, exist_ok=True)
    store, start = SampleStore(out.with_suffix(".sqlite")), time.perf_counter()
    with show.work_bar() as bar:
        line = bar.add_task("rollouts", total=n, note="")
        rollouts = list(collect(process, questions, strategy, store=store, seed=fit.seed, on_question=lambda: bar.update(line, advance=1)))
    store.close()
    rolled = time.perf_counter() - start
    (learned, measured) = split_groups([r.question for r in rollouts], (1 - MEASURED,), fit.seed)
    with show.waiting("fitting the head"):
        head = fit_head(states_at(rollouts, kind).of(learned), model_id=checkpoint_of(process.model_id), place=PLACES[kind], recipe=fit)
    seconds = time.perf_counter() - start
    kept = [r for r in rollouts if r.question in measured]
    found = {kind: measure(states_at(kept, kind), head.read)} | (
        {"answers": measure(states_at(kept, "answers"), head.read)} if kind == "steps" else {}
    )
    facts = {"task": task, "kind": kind, "samples": samples, "seconds": round(seconds, 1), "measured": {k: asdict(v) for k, v in found.items()}}
    save_head(replace(head, facts=head.facts | facts), out)
    show.out.print(
        quality_table({f"head, {k}": v for k, v in found.items()} | baseline(kept), title=f"{task} (dev), {model.model}: unseen questions")
    )
    show.say(f"{out}: {head.facts['num_states']} states of {head.facts['num_questions']} questions; rollouts {rolled:.0f} s, all {seconds:.0f} s")
    show.say(f"use it as verifier={out} in a strategy, as best_of_n:verifier={out}")
    return 0


def measure(states: States, read: object) -> Quality:
    """Of a head on labelled states; reading costs no tokens where the engine has the states."""
    start = time.perf_counter()
    values = [row[0] for row in read(states.hidden_ND).tolist()]  # type: ignore[operator]
    seconds = (time.perf_counter() - start) / len(values)
    return quality(values, states.labels, states.groups, is_probability=True, seconds=seconds)


def baseline(rollouts: list[Rollout]) -> dict[str, Quality]:
    """The free verifier that every other must beat: mean log-probability of finished answers."""
    values = [r.mean_log_p for r in rollouts]
    middle = sorted(values)[len(values) // 2]
    found = quality(values, [r.is_right for r in rollouts], [r.question for r in rollouts], is_probability=False, threshold=middle)
    return {"mean_log_p, answers": found}


def quality_table(found: dict[str, Quality], *, title: str) -> Table:
    """A row per verifier: AUROC, calibration error, Brier score, false- and true-positive rate, cost."""
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold", caption_justify="left", padding=(0, 1))
    table.add_column("verifier", overflow="fold", min_width=14)
    for name in ("n", "AUROC", "within", "ECE", "Brier", "false/true +", "tokens"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, q in found.items():
        cells = [_interval(q.auroc, q.auroc_interval), _interval(q.auroc_within, q.auroc_within_interval), _number(q.calibration_error)]
        cells += [_number(q.brier), f"{_number(q.false_positive_rate)} / {_number(q.true_positive_rate)}"]
        table.add_row(name, str(q.num), *cells, f"{q.tokens:.0f}")
    table.caption = (
        "[ ]: 95 % bootstrap over questions; within: AUROC among answers to one question, which selection needs\n"
        "false/true +: accepted among wrong / right ones, at 1/2 or the median; tokens: the verifier's own, per answer"
    )
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _interval(value: float | None, interval: tuple[float, float]) -> str:
    return "-" if value is None else f"{value:.2f} [{_short(interval[0])} {_short(interval[1])}]"


def _short(value: float) -> str:
    return f"{value:.2f}".removeprefix("0")
