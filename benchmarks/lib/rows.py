"""Rows of evidence: every benchmark appends what it measured, with what is needed to measure it again."""

import datetime
import json
import subprocess
import sys
from pathlib import Path

import torch

from ponder.plan.machine import cpu_name

RESULTS = Path(__file__).parent.parent / "results"


def machine() -> str:
    """Processor, cores in use and torch version."""
    return f"{cpu_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def commit() -> str:
    try:
        done = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=RESULTS.parent)
    except FileNotFoundError:  # no git here
        return "unknown"
    return done.stdout.strip() or "unknown"


def shown(argument: str) -> str:
    """An argument as a row tells of it: a path from where the command was run, or, of a file elsewhere, its name."""
    path = Path(argument)
    if not path.is_absolute():
        return argument
    return path.relative_to(Path.cwd()).as_posix() if path.is_relative_to(Path.cwd()) else path.name


def append(name: str, row: dict[str, object]) -> None:
    """Adds a row to benchmarks/results/NAME.jsonl and prints it."""
    RESULTS.mkdir(exist_ok=True)
    context = {
        "date": datetime.date.today().isoformat(), "commit": commit(), "machine": machine(),
        "command": " ".join(["python", *map(shown, sys.argv)]),
    }  # fmt: skip
    with (RESULTS / f"{name}.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(row | context, sort_keys=True) + "\n")
    print(json.dumps(row, sort_keys=True))
