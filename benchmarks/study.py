"""The studies of docs/study.md: every cell on real questions, rows to results/study.jsonl, then the page and its pictures.

python benchmarks/study.py NAME [N]   runs one of STUDIES (resumes what is in out/study/) and writes its rows
python benchmarks/study.py --page     writes docs/study.md and its pictures from the rows alone
"""

import datetime
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import simulated
from lib.rows import RESULTS, append

from ponder import catalogue
from ponder.cli.verbs import questions_of
from ponder.core.budget import Budget
from ponder.models.fetch import pull
from ponder.study.figures import figure_rows
from ponder.study.grid import Grid, recipes_of, run_grid
from ponder.study.page import newest, page_text, picture_name
from ponder.study.plots import draw_study

DOCS = RESULTS.parent.parent / "docs"
BUDGETS = (1, 2, 4, 8, 16)
VOTES = ("self_consistency", "self_consistency:weigh=path_probability", "self_consistency:weigh=verdict,verifier=self_certainty")
FREE = ("mean_probability", "mean_log_p", "self_certainty")  # verifiers that cost no token
HEATS = (0.4, 1.2)


@dataclass(frozen=True, kw_only=True)
class Study:
    task: str
    model: str
    num: int
    grid: Grid


def ablations(budget: int) -> tuple[str, ...]:
    """The same strategies under other temperatures and truncations."""
    drawn = [*(f"temperature={heat}" for heat in HEATS), "temperature=0.8,top_p=0.9"]
    names = ("sample", "self_consistency", "best_of_n:verifier=mean_probability")
    return tuple(f"{name}{',' if ':' in name else ':'}num={budget},{how}" for how in drawn for name in names)


STUDIES = {
    "sums": Study(task="rg:short_sums", model="smollm2-135m", num=40, grid=Grid(
        strategies=(*VOTES, "particle_filter:num=16,verifier=mean_probability", "beam", *ablations(16)),
        verifiers=FREE, budgets=BUDGETS,
    )),
    "mbpp": Study(task="mbpp-one", model="qwen2.5-coder-0.5b", num=30, grid=Grid(
        strategies=("self_consistency",), verifiers=("public_tests", *FREE), budgets=BUDGETS,
    )),
    "humaneval": Study(task="humaneval", model="qwen2.5-coder-0.5b", num=18, grid=Grid(
        strategies=("self_consistency",), verifiers=("public_tests", *FREE), budgets=BUDGETS,
    )),
    "gsm8k": Study(task="gsm8k", model="qwen2.5-coder-0.5b", num=14, grid=Grid(strategies=VOTES, verifiers=FREE, budgets=BUDGETS)),
}  # fmt: skip


def run(name: str, num: int) -> None:
    study = STUDIES[name]
    process = catalogue.open_model(pull(study.model))
    questions = questions_of(catalogue.task(study.task), "test", num)
    cells = recipes_of(study.grid, catalogue.SPECS, Budget(tokens=20_000))
    folder = Path("out/study") / study.task.replace(":", "-")
    marker = folder / "run.json"
    if marker.exists() and json.loads(marker.read_text())["num_questions"] != num:
        marker.unlink()  # other questions over the same samples
    found, scored = run_grid(process, cells, questions, out=folder, task=study.task, seed=0, resume=marker.exists())
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S")
    known = {"task": study.task, "model": study.model, "split": "test", "seed": 0, "run": now}
    for row in figure_rows(found, scored, study.grid):
        append("study", known | row)


def write_page() -> None:
    """docs/study.md and one picture per task, from the rows alone."""
    rows = [json.loads(line) for line in (RESULTS / "study.jsonl").read_text(encoding="utf-8").splitlines()]
    (DOCS / "study.md").write_text(page_text(rows) + "\n" + simulated.section(), encoding="utf-8")
    for (task, model), found in newest(rows).items():
        cells = [row for row in found if row["kind"] == "cell"]
        draw_study(found, DOCS / picture_name(task, model), title=f"{task}, {model}, n = {cells[0]['n']}")


def main() -> None:
    if sys.argv[1:2] == ["--page"]:
        write_page()
    elif sys.argv[1:2] and sys.argv[1] in STUDIES:
        run(sys.argv[1], int(sys.argv[2]) if sys.argv[2:] else STUDIES[sys.argv[1]].num)
    else:
        raise SystemExit(f"{__doc__}\nNAME is one of {', '.join(STUDIES)}")


if __name__ == "__main__":
    main()
