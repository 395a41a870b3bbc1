"""The verb `study`: every cell of a grid on every task, one folder of samples per task, one page and one picture of each."""

import datetime
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from ponder import catalogue
from ponder.cli import show
from ponder.cli.many import Opening, answering
from ponder.cli.verbs import INTERRUPTED, open_named, questions_of, write_text
from ponder.core.budget import parse_budget
from ponder.core.errors import BadField, UnknownName
from ponder.run.compare import Row
from ponder.study.figures import figure_rows
from ponder.study.grid import Grid, fill_grid, grid_folder, recipes_of
from ponder.study.page import page_text, picture_name, verdict_lines
from ponder.study.plots import draw_study


def study(
    *, tasks: str, strategies: str, verifiers: str, budgets: str, n: int, model: str, split: str, out: Path, resume: bool,
    weights: str | None, device: str, seed: int, threads: int | None, budget: str, draw: str,
    ray: str | None = None, replicas: int | None = None,
) -> int:  # fmt: skip
    """Runs the grid into `out`, prints what beats what, writes study.jsonl, study.md and a picture per task."""
    grid = read_grid(strategies, verifiers, budgets, draw)
    limits = parse_budget(budget)
    cells = recipes_of(grid, catalogue.SPECS, limits)
    if n < 1:
        raise BadField(f"n={n}: must be at least 1 question")
    opening = Opening(model=model, weights=weights, threads=threads, device=device, ray=ray, replicas=replicas)
    chosen = {name: catalogue.task(name) for name in words(tasks, ";" if ";" in tasks else ",")}
    asked = {name: questions_of(task, split, n) for name, task in chosen.items()}
    when = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    rows: list[dict[str, object]] = []
    here = lambda: open_named(model, opening.format, threads, device=device)
    with answering(opening, here, next(iter(asked.values()))[0].prompt) as (process, run):
        for name, questions in asked.items():
            show.say(f"{name}: {len(cells)} cells on {len(questions)} questions")
            with show.work_bar() as bar:
                lines = {cell: bar.add_task(cell[:28], total=len(questions), note="") for cell in cells}
                done = lambda row, lines=lines: bar.advance(lines[row.recipe])
                where = out / folder_of(name)
                folder = grid_folder(process, cells, questions, out=where, task=name, seed=seed, resume=resume)
                found, scored = fill_grid(process, cells, questions, folder=folder, seed=seed, on_row=done, run=run)
            if not found.is_complete:
                return INTERRUPTED
            report_failures([row for row in found.rows if row.result.stop_reason == "failed"])
            known = {"task": name, "model": model, "weights": opening.format, "split": split, "seed": seed, "run": when, "cells": len(cells)}
            rows += [known | row for row in figure_rows(found, scored, grid)]
    write_study(rows, out)
    return 0


def read_grid(strategies: str, verifiers: str, budgets: str, draw: str) -> Grid:
    for name in words(verifiers):
        if name not in catalogue.VERIFIERS:
            raise UnknownName("verifier", name, catalogue.VERIFIERS)
    try:
        numbers = tuple(int(b) for b in words(budgets))
    except ValueError:
        raise BadField(f"budgets {budgets!r}: whole numbers of samples, as in 1,4,16") from None
    return Grid(strategies=tuple(catalogue.SPECS.read_many(strategies)), verifiers=words(verifiers), budgets=numbers, draw=draw)


def words(text: str, separator: str = ",") -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(separator) if word.strip())


def folder_of(task: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", task)


def report_failures(failed: Sequence[Row]) -> None:
    for row in failed[:3]:
        show.err.print(f"{row.recipe} failed on question {row.question}: {row.result.diagnostics['error']}", style="red")


def write_study(rows: Sequence[Mapping[str, object]], out: Path) -> None:
    """study.jsonl, study.md and the pictures, into `out`."""
    context = {"commit": "-", "machine": "-", "command": "ponder study"}
    write_text(out / "study.jsonl", "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows))
    write_text(out / "study.md", page_text([context | row for row in rows]))
    for task, model in dict.fromkeys((str(row["task"]), str(row["model"])) for row in rows):
        own = [row for row in rows if (row["task"], row["model"]) == (task, model)]
        cells = [row for row in own if row["kind"] == "cell"]
        draw_study(own, out / picture_name(task, model), title=f"{task}, {model}, n = {cells[0]['n']}")
        show.out.print(f"[bold]{task}[/bold]")
        for line in verdict_lines(cells):
            show.out.print(line.replace("**", ""), markup=False)
    show.say(f"{out}: study.md, study.jsonl and the pictures")
