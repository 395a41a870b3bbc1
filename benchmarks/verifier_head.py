"""A head trained on the model's own rollouts: what it knows on unseen questions, and what strategies make of it at equal tokens.

python benchmarks/verifier_head.py [TASK [TRAIN [N [MODEL]]]]

Trains on TRAIN dev questions (8 answers each), measures on N test questions, and runs strategies on the same N with at most the
same tokens each. Rows go to benchmarks/results/verifier_head.jsonl at the end, whatever comes out. Samples are kept in
out/verifier_head: a run that was stopped goes on where it was.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from lib.rows import append

from ponder import catalogue
from ponder.cli.show import comparison_table, out
from ponder.cli.train import baseline, measure, quality_table
from ponder.cli.verbs import questions_of
from ponder.core.budget import parse_budget
from ponder.core.probe import checkpoint_of
from ponder.core.roles import Process
from ponder.models.fetch import pull
from ponder.run.compare import Question, RunFolder, compare, settings_of
from ponder.run.recipe import Recipe
from ponder.run.report import summarize
from ponder.run.rollouts import Rollout, Rollouts, collect, states_at
from ponder.run.store import SampleStore
from ponder.verify.fit import Recipe as Fit
from ponder.verify.fit import fit_head
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
    if q.calibration_error is not None:
        figure += f", ECE {q.calibration_error:.3f}, Brier {q.brier:.3f}"
    figure += f", accepts {100 * (q.false_positive_rate or 0):.0f} % of wrong answers at {q.threshold:.2f}; {q.tokens:.0f} tokens an answer"
    return {"technique": name, "figure": figure} | asdict(q)


def rolled_out(process: Process, questions: Sequence[Question], strategy: Rollouts, name: str) -> tuple[list[Rollout], float | None]:
    """Rollouts, and the CPU seconds that they took; None where some of them were made by an earlier run."""
    path = WORK / f"{name}.pt"
    if not path.exists():
        store = SampleStore(WORK / f"{name}.sqlite")
        is_resumed, start = len(store) > 0, time.process_time()
        made = list(collect(process, questions, strategy, store=store, seed=0))
        store.close()
        seconds = None if is_resumed else round(time.process_time() - start, 1)
        torch.save({"rollouts": [(r.question, r.is_right, r.mean_log_p, r.states_ND) for r in made], "seconds": seconds}, path)
    kept = torch.load(path)
    return [Rollout(*fields) for fields in kept["rollouts"]], kept["seconds"]


def compared(process: Process, questions: Sequence[Question], about: str) -> list[dict[str, object]]:
    """Strategies with and without the head, on the same questions with at most the same tokens."""
    specs = [s.format(head=HEAD) for s in STRATEGIES]
    recipes = [Recipe(label=s.replace(str(HEAD), "probe_head"), strategy=catalogue.strategy(s), budget=parse_budget(BUDGET)) for s in specs]
    folder = RunFolder(WORK / "compare", settings_of(process, recipes, questions, task=about, seed=0)).open(resume=True)
    summaries = summarize(compare(process, recipes, questions, folder=folder, seed=0))
    folder.close()
    out.print(comparison_table(summaries, title=f"{about}, at most {BUDGET} a question"))
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


def main() -> None:
    given = dict(enumerate(sys.argv[1:]))
    name, num_train, n, model = given.get(0, "rg:short_sums"), int(given.get(1, 400)), int(given.get(2, 300)), given.get(3, "smollm2-135m")
    task = replace(catalogue.task(name), num=max(num_train, n))
    process = catalogue.open_model(pull(model), "native")
    dev, test = questions_of(task, "dev", num_train), questions_of(task, "test", n)
    WORK.mkdir(parents=True, exist_ok=True)
    rollouts, rolled = rolled_out(process, dev, Rollouts(), f"dev-{num_train}")
    unseen, _ = rolled_out(process, test, Rollouts(num=4), f"test-{n}")
    where, model_id = f"{name}, {model}, {n} test questions", checkpoint_of(process.model_id)
    found: dict[str, Quality] = {}
    heads: dict[str, tuple[str, float]] = {}
    for label, learn, fit in (
        ("linear", "steps", Fit(hidden=0)),
        ("32 units", "steps", Fit(hidden=32)),
        ("linear, outcome", "answers", Fit(hidden=0)),
    ):
        start = time.process_time()
        head = fit_head(states_at(rollouts, learn), model_id=model_id, place="last", recipe=fit)
        if label == "linear":
            save_head(head, HEAD)
        for which in ("steps", "answers"):
            found[f"{label}, {which}"] = measure(states_at(unseen, which), head.read)
            heads[f"{label}, {which}"] = ("probe_head", time.process_time() - start)
    start = time.process_time()
    knows = fit_head(states_at(rollouts, "prompts"), model_id=model_id, place="prompt", recipe=Fit(hidden=0))
    found["p_ik"], heads["p_ik"] = measure(states_at(unseen, "prompts"), knows.read), ("p_ik", time.process_time() - start)
    (found["mean_log_p"],) = baseline(unseen).values()
    rows = []
    for key, q in found.items():
        technique, seconds = heads.get(key, (key, 0.0))
        facts = {
            "task": name,
            "model": model,
            "head": key,
            "num_train": num_train,
            "seed": 0,
            "rollout_cpu_seconds": rolled,
        }
        rows.append(
            row_of(technique, q, f"{where}, {key}, heads trained on {num_train} dev questions") | facts | {"fit_cpu_seconds": round(seconds, 2)}
        )
    out.print(quality_table(found, title=where))
    for row in rows + compared(process, test, f"{name}, {model}"):
        append("verifier_head", row)


if __name__ == "__main__":
    main()
