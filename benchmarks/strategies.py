"""Every strategy on the same real questions under the same budget; one row per strategy.

python benchmarks/strategies.py [TASK [N [MODEL [BUDGET]]]]
"""

import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from lib.rows import append

from ponder import catalogue
from ponder.cli.show import comparison_table, out
from ponder.cli.verbs import questions_of
from ponder.core.budget import parse_budget
from ponder.models.fetch import pull
from ponder.run.compare import RunFolder, compare, settings_of
from ponder.run.recipe import Recipe
from ponder.run.report import summarize


def main() -> None:
    demo = catalogue.DEMO
    given = dict(enumerate(sys.argv[1:]))
    task, n, model, budget = given.get(0, demo.task), int(given.get(1, 100)), given.get(2, demo.model), given.get(3, demo.budget)
    process = catalogue.open_model(pull(model), demo.weights)
    questions = questions_of(catalogue.task(task), "test", n)
    limits = parse_budget(budget)
    labels = (*demo.strategies, *(name for name in catalogue.STRATEGIES if name not in {s.partition(":")[0] for s in demo.strategies}))
    recipes = [Recipe(label=s, strategy=catalogue.strategy(s), budget=limits) for s in labels]
    with tempfile.TemporaryDirectory() as work:
        folder = RunFolder(Path(work), settings_of(process, recipes, questions, task=task, seed=0)).open(resume=False)
        summaries = summarize(compare(process, recipes, questions, folder=folder, seed=0))
        folder.close()
    out.print(comparison_table(summaries, title=f"{task} (test, n={n}), {model} {demo.weights}, at most {budget} a question"))
    for s in summaries:
        figure = (
            f"{task}, {model}, n={s.num}, at most {budget}: {100 * s.accuracy:.1f} % right "
            f"[{100 * s.accuracy_low:.0f}, {100 * s.accuracy_high:.0f}], {s.tokens:.0f} tokens a question, "
            f"{100 * s.gain:+.1f} points [{100 * s.gain_low:+.0f}, {100 * s.gain_high:+.0f}] against {summaries[0].recipe}"
        )
        row = {k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(s).items()} | {"verdict": s.verdict}
        append(
            "strategies", {"technique": s.recipe.partition(":")[0], "figure": figure, "seed": 0, "task": task, "model": model, "budget": budget} | row
        )


if __name__ == "__main__":
    main()
