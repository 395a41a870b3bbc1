"""The studies of docs/study.md: every cell on real questions, rows to results/study.jsonl, then the page and its pictures.

python benchmarks/study.py NAME [N]   runs one of STUDIES (resumes what is in out/study/) and writes its rows
python benchmarks/study.py targets    judges those of TARGETS whose runs are in out/study/ and writes their rows
python benchmarks/study.py --page     writes docs/study.md and its pictures from the rows alone
"""

import datetime
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simulated
from lib.rows import RESULTS, append

from ponder import catalogue
from ponder.cli.verbs import questions_of
from ponder.core.budget import Budget
from ponder.models.fetch import pull
from ponder.run.report import interval
from ponder.study.figures import figure_rows
from ponder.study.grid import Grid, recipes_of, run_grid
from ponder.study.page import newest, page_text, picture_name
from ponder.study.plots import draw_study

DOCS = RESULTS.parent.parent / "docs"
BUDGETS = (1, 2, 4, 8, 16)
VOTES = ("self_consistency", "self_consistency:weigh=path_probability", "self_consistency:weigh=verdict,verifier=self_certainty")
FREE = ("mean_probability", "mean_log_p", "self_certainty")  # verifiers that cost no token
HEATS = (0.4,)


@dataclass(frozen=True, kw_only=True)
class Study:
    task: str
    model: str
    num: int
    grid: Grid


def ablations(budget: int) -> tuple[str, ...]:
    """The same strategies under other temperatures."""
    drawn = [f"temperature={heat}" for heat in HEATS]
    names = ("sample", "self_consistency", "best_of_n:verifier=mean_probability")
    return tuple(f"{name}{',' if ':' in name else ':'}num={budget},{how}" for how in drawn for name in names)


STUDIES = {
    "sums": Study(task="rg:short_sums", model="smollm2-135m", num=40, grid=Grid(
        strategies=(*VOTES, "particle_filter:num=16,verifier=mean_probability", "beam", *ablations(16)),
        verifiers=FREE, budgets=BUDGETS,
    )),
    "mbpp": Study(task="mbpp-one", model="qwen2.5-coder-0.5b", num=40, grid=Grid(
        strategies=("self_consistency",), verifiers=("public_tests", *FREE), budgets=BUDGETS,
    )),
    "humaneval": Study(task="humaneval", model="qwen2.5-coder-0.5b", num=40, grid=Grid(
        strategies=("self_consistency",), verifiers=("public_tests", *FREE), budgets=BUDGETS,
    )),
    "gsm8k": Study(task="gsm8k", model="qwen2.5-coder-0.5b", num=120, grid=Grid(
        strategies=(
            *VOTES[:2], "self_consistency:weigh=verdict,verifier=arithmetic", "rpc:num=8", "rpc:num=16",
            *(f"adaptive:num=16,rule={rule}" for rule in ("beta_test", "unanimous_window", "settled")),
        ),
        verifiers=("mean_log_p", "arithmetic"), budgets=BUDGETS, draw="temperature=0.5",
    )),
    "gsm8k-steps": Study(task="gsm8k", model="qwen2.5-coder-0.5b", num=50, grid=Grid(
        strategies=(
            "self_consistency", "self_consistency:top_p=0.9",
            *(f"particle_filter:num=8,verifier={verifier}" for verifier in ("arithmetic", "mean_probability")),
            "step_beam:verifier=arithmetic", "best_first:verifier=arithmetic", "astar:verifier=arithmetic",
        ),
        verifiers=("mean_log_p", "arithmetic"), budgets=(8,), draw="temperature=0.5",
    )),
    "gsm8k-shots": Study(task="gsm8k:shots=4", model="qwen2.5-coder-0.5b", num=40, grid=Grid(
        strategies=("self_consistency",), verifiers=("mean_log_p", "arithmetic"), budgets=(1, 2, 4, 8), draw="temperature=0.5",
    )),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Target:
    """`cell` is to gain `points` over `against` on the questions of all those studies together, for at most `share` of its tokens."""

    about: str
    studies: tuple[str, ...]
    cell: str
    against: str
    points: float
    share: float | None = None


PUBLIC = "best_of_n:verifier=public_tests,num=16"
VOTE = "self_consistency:num=16,temperature=0.5"
FILTER = "particle_filter:num=8,verifier=arithmetic,temperature=0.5"
TARGETS = (
    Target(about="HumanEval and MBPP, public tests as verifier, 16 samples", studies=("humaneval", "mbpp"), cell=PUBLIC, against="greedy", points=15),
    Target(about="GSM8K, a vote of 16", studies=("gsm8k",), cell=VOTE, against="greedy", points=8),
    Target(
        about="GSM8K, path probabilities with half the samples", studies=("gsm8k",), cell="rpc:num=8,temperature=0.5", against=VOTE, points=0,
        share=0.5,
    ),
    Target(
        about="GSM8K, votes that stop when a Beta test says so", studies=("gsm8k",), cell="adaptive:num=16,rule=beta_test,temperature=0.5",
        against=VOTE, points=0, share=0.5,
    ),
    Target(
        about="GSM8K, A* with the arithmetic of steps as its verifier", studies=("gsm8k-steps",), cell="astar:verifier=arithmetic,temperature=0.5",
        against=FILTER, points=0, share=0.5,
    ),
    Target(
        about="GSM8K, best-first with the same", studies=("gsm8k-steps",), cell="best_first:verifier=arithmetic,temperature=0.5", against=FILTER,
        points=0, share=0.5,
    ),
)  # fmt: skip


def folder_of(name: str) -> Path:
    return Path("out/study") / name


def judge(target: Target) -> dict[str, object]:
    """Gain, interval and share of tokens, over the questions of the target's studies."""
    gains, spent = list[float](), {target.cell: 0, target.against: 0}
    for name in target.studies:
        rows = [json.loads(line) for line in (folder_of(name) / "results.jsonl").read_text(encoding="utf-8").splitlines()]
        right = {(row["recipe"], row["question"]): row["right"] for row in rows}
        gains += [float(right[target.cell, q]) - float(right[target.against, q]) for cell, q in right if cell == target.cell]
        for row in rows:
            if row["recipe"] in spent:
                spent[row["recipe"]] += row["tokens"]
    low, high = interval(np.array(gains), 0)
    gain, share = 100 * float(np.mean(gains)), spent[target.cell] / spent[target.against]
    is_met = gain >= target.points and (target.share is None or share <= target.share)
    return {
        "kind": "target", "about": target.about, "cell": target.cell, "against": target.against, "wanted": target.points,
        "wanted_share": target.share,
        "n": len(gains), "gain": [round(gain, 2), round(100 * low, 2), round(100 * high, 2)], "share": round(share, 3),
        "met": "met" if is_met else "missed", "sure": bool(100 * low >= target.points),
    }  # fmt: skip


def target_lines(rows: list[dict]) -> str:
    newest = {row["about"]: row for row in sorted(rows, key=lambda row: row["run"])}
    lines = ["## Targets", "", "| target | n | wanted | points gained | tokens | |", "|---|---|---|---|---|---|"]
    for row in newest.values():
        gain, low, high = row["gain"]
        wanted = f">= {row['wanted']:+.0f} points over `{row['against']}`" + (f", <= {row['wanted_share']:.0%} tokens" if row["wanted_share"] else "")
        said = row["met"] if row["met"] == "missed" or row["sure"] else "met by the mean; the interval begins below it"
        lines.append(
            f"| {row['about']}: `{row['cell']}` | {row['n']} | {wanted} | {gain:+.1f} [{low:+.0f}, {high:+.0f}] | {row['share']:.2f} x | {said} |"
        )
    return "\n".join(lines) + "\n" if rows else ""


def run(name: str, num: int) -> None:
    study = STUDIES[name]
    process = catalogue.open_model(pull(study.model))
    questions = questions_of(catalogue.task(study.task), "test", num)
    cells = recipes_of(study.grid, catalogue.SPECS, Budget(tokens=20_000))
    folder = folder_of(name)
    marker = folder / "run.json"
    if marker.exists() and json.loads(marker.read_text())["num_questions"] != num:
        marker.unlink()  # other questions over the same samples
    found, scored = run_grid(process, cells, questions, out=folder, task=study.task, seed=0, resume=marker.exists())
    (folder / "done").touch()
    now = clock()
    known = {"task": study.task, "model": study.model, "split": "test", "seed": 0, "run": now}
    for row in figure_rows(found, scored, study.grid):
        append("study", known | row)


def clock() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S")


def titled(row: dict) -> dict:
    """The row, a second study of a task under a name of its own."""
    name = row["command"].split()[2]
    first = next((known for known, study in STUDIES.items() if study.task == row["task"]), name)
    return row if name in (first, "targets") or name not in STUDIES else row | {"task": f"{row['task']} ({name})"}


def write_page() -> None:
    """docs/study.md and one picture per task, from the rows alone."""
    known = [json.loads(line) for line in (RESULTS / "study.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = [titled(row) for row in known if row["kind"] != "target"]
    targets = target_lines([row for row in known if row["kind"] == "target"])
    (DOCS / "study.md").write_text("\n".join((page_text(rows), targets, simulated.section())), encoding="utf-8")
    for (task, model), found in newest(rows).items():
        cells = [row for row in found if row["kind"] == "cell"]
        draw_study(found, DOCS / picture_name(task, model), title=f"{task}, {model}, n = {cells[0]['n']}")


def main() -> None:
    if sys.argv[1:2] == ["--page"]:
        write_page()
    elif sys.argv[1:2] == ["targets"]:
        now = clock()
        for target in TARGETS:
            if all((folder_of(name) / "done").exists() for name in target.studies):
                append("study", judge(target) | {"run": now})
    elif sys.argv[1:2] and sys.argv[1] in STUDIES:
        run(sys.argv[1], int(sys.argv[2]) if sys.argv[2:] else STUDIES[sys.argv[1]].num)
    else:
        raise SystemExit(f"{__doc__}\nNAME is one of {', '.join(STUDIES)}")


if __name__ == "__main__":
    main()
