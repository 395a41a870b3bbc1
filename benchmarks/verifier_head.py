"""A head trained on the model's own rollouts: what it knows on unseen questions, and what strategies make of it at equal tokens.

python benchmarks/verifier_head.py [TASK [TRAIN [N [MODEL [STRATEGIES]]]]]   (STRATEGIES: specs with ; between, {head} for the head)

Trains on TRAIN dev questions (8 answers each), measures on N test questions, and runs strategies on the same N with at most the
same tokens each. Rows go to benchmarks/results/verifier_head.jsonl at the end, whatever comes out. Samples are kept in
out/verifier_head: a run that was stopped goes on where it was.
"""

import functools
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from lib.rows import append

from ponder import catalogue
from ponder.cli.show import comparison_table, limit_lines, out
from ponder.cli.train import baseline, measure, quality_table
from ponder.cli.verbs import questions_of
from ponder.core.budget import parse_budget
from ponder.core.probe import checkpoint_of
from ponder.core.roles import Process
from ponder.models.fetch import pull
from ponder.run.compare import RunFolder, compare, settings_of
from ponder.run.question import Question
from ponder.run.recipe import Recipe
from ponder.run.report import summarize
from ponder.run.store import SampleStore
from ponder.train.fit import Recipe as Fit
from ponder.train.fit import fit_head
from ponder.train.rollouts import Rollout, Rollouts, collect, states_at
from ponder.verify.heads import save_head
from ponder.verify.quality import Quality

BUDGET = "500 tokens"
WORK = Path("out/verifier_head")
HEAD = WORK / "head.safetensors"
STRATEGIES = (
    "self_consistency:num=8",
    "self_consistency:num=8,verifier=mean_probability,weigh=verdict",
    "self_consistency:num=8,verifier={head},weigh=verdict",
    "best_of_n:num=8",
    "best_of_n:num=8,verifier={head}",
    "particle_filter:num=8",
    "particle_filter:num=8,verifier={head}",
)


def row_of(name: str, q: Quality, about: str) -> dict[str, object]:
    """One verifier's figures on held-out questions."""
    figure = f"{about}: AUROC {q.auroc:.3f} [{q.auroc_interval[0]:.2f}, {q.auroc_interval[1]:.2f}]"
    if q.auroc_within is not None:
        figure += f", within questions {q.auroc_within:.3f} [{q.auroc_within_interval[0]:.2f}, {q.auroc_within_interval[1]:.2f}]"
    if q.calibration_error is not None:
        figure += f", ECE {q.calibration_error:.3f}, Brier {q.brier:.3f}"
    figure += f", accepts {100 * (q.false_positive_rate or 0):.0f} % of wrong answers at {q.threshold:.2f}; {q.tokens:.0f} tokens an answer"
    return {"technique": name, "figure": figure} | asdict(q)


@dataclass(frozen=True)
class Kept:
    """Rollouts on disk. seconds: CPU time that they took; None where some of them were made by an earlier, stopped run."""

    rollouts: list[Rollout]
    seconds: float | None
    model_id: str


def rolled_out(open_process: Callable[[], Process], questions: Sequence[Question], strategy: Rollouts, name: str) -> Kept:
    """Rollouts of a finished earlier run, or new ones."""
    path = WORK / f"{name}.pt"
    if not path.exists():
        process, store = open_process(), SampleStore(WORK / f"{name}.sqlite")
        is_resumed, start = len(store) > 0, time.process_time()
        made = list(collect(process, questions, strategy, store=store))
        store.close()
        seconds = None if is_resumed else round(time.process_time() - start, 1)
        fields = [(r.question, r.is_right, r.mean_log_p, r.states_ND) for r in made]
        torch.save({"rollouts": fields, "seconds": seconds, "model_id": checkpoint_of(process.model_id)}, path)
    kept = torch.load(path)
    return Kept([Rollout(*fields) for fields in kept["rollouts"]], kept["seconds"], kept["model_id"])


def compared(process: Process, questions: Sequence[Question], specs: Sequence[str], about: str) -> list[dict[str, object]]:
    """Strategies with and without the head, on the same questions with at most the same tokens."""
    recipes = [
        Recipe(label=s.format(head="probe_head"), strategy=catalogue.strategy(s.format(head=HEAD)), budget=parse_budget(BUDGET)) for s in specs
    ]
    folder = RunFolder(WORK / "compare", settings_of(process, recipes, questions, task=about, seed=0)).open(resume=True)
    summaries = summarize(compare(process, recipes, questions, folder=folder, seed=0))
    folder.close()
    out.print(comparison_table(summaries, title=f"{about}, at most {BUDGET} a question"))
    for line in limit_lines(summaries):
        out.print(line)
    rows = []
    for s in summaries:
        figure = (
            f"{about}, n={s.num}, {s.recipe}, at most {BUDGET}: {100 * s.accuracy:.1f} % right [{100 * s.accuracy_low:.0f}, "
            f"{100 * s.accuracy_high:.0f}], {s.tokens:.0f} tokens a question, {100 * s.gain:+.1f} points [{100 * s.gain_low:+.0f}, "
            f"{100 * s.gain_high:+.0f}] against {summaries[0].recipe}"
        )
        row = {k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(s).items()} | {"verdict": s.verdict}
        rows.append({"technique": s.recipe.partition(":")[0], "figure": figure, "budget": BUDGET, "seed": 0} | row)
    return rows


def measured(dev: Kept, test: Kept, where: str, facts: dict[str, object]) -> None:
    """Fits heads to `dev`, keeps the linear one, and adds a row for each verifier on `test`."""
    found: dict[str, Quality] = {}
    seconds: dict[str, float] = {}
    kinds = (("linear", "steps", 0), ("32 units", "steps", 32), ("linear outcome", "answers", 0), ("p_ik", "prompts", 0))
    for label, learn, hidden in kinds:
        start, place = time.process_time(), "prompt" if learn == "prompts" else "last"
        head = fit_head(states_at(dev.rollouts, learn), model_id=dev.model_id, place=place, recipe=Fit(hidden=hidden))
        taken = time.process_time() - start
        if label == "linear":
            save_head(head, HEAD)
        for which in ("prompts",) if learn == "prompts" else ("steps", "answers"):
            found[f"{label}, {which}"], seconds[f"{label}, {which}"] = measure(states_at(test.rollouts, which), head.read), taken
    (found["mean_log_p"],) = baseline(test.rollouts).values()
    out.print(quality_table(found, title=where))
    for key, q in found.items():
        technique = "mean_log_p" if key == "mean_log_p" else "p_ik" if key.startswith("p_ik") else "probe_head"
        about = facts | {"head": key, "rollout_cpu_seconds": dev.seconds, "fit_cpu_seconds": round(seconds.get(key, 0.0), 2)}
        append("verifier_head", row_of(technique, q, f"{where}, {key}, heads trained on {facts['num_train']} dev questions") | about)


def main() -> None:
    given = dict(enumerate(sys.argv[1:]))
    name, num_train, n, model = given.get(0, "rg:short_sums"), int(given.get(1, 400)), int(given.get(2, 300)), given.get(3, "smollm2-135m")
    task = replace(catalogue.task(name), num=max(num_train, n))
    open_process = functools.cache(lambda: catalogue.open_model(pull(model), "native"))
    questions = questions_of(task, "test", n)
    WORK.mkdir(parents=True, exist_ok=True)
    dev = rolled_out(open_process, questions_of(task, "dev", num_train), Rollouts(), f"dev-{num_train}")
    test = rolled_out(open_process, questions, Rollouts(num=4), f"test-{n}")
    if not HEAD.exists():
        measured(dev, test, f"{name}, {model}, {n} test questions", {"task": name, "model": model, "num_train": num_train, "seed": 0})
    specs = given.get(4, ";".join(STRATEGIES)).split(";")
    for row in compared(open_process(), questions, specs, f"{name}, {model}"):
        append("verifier_head", row)


if __name__ == "__main__":
    main()
