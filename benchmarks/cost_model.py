"""The cost model against the engine: decoding and reading, predicted and measured, over batch and context.

For each model a fresh machine card is measured, three factors are fitted on the calibration cells of plan.profile, none of which is on
the grid, and every cell of the grid is predicted before it is measured. Appends a row for each cell, and one for each model and phase:
median and worst error, with the model's own factors and with those of the other model.

    python benchmarks/cost_model.py [--weights native] [--threads N] [--models NAME ...]

Takes about four minutes on two cores that do nothing else; `load` in the rows says whether they did. On a machine that others use too,
`--threads 1 --cpu-time` counts the seconds of this thread on a core and not those it waits for one.
"""

import argparse
import dataclasses
import os
import statistics
import time
from pathlib import Path

import torch
from lib.rows import append

from ponder import catalogue
from ponder.models.fetch import resolve
from ponder.plan.machine import MachineCard
from ponder.plan.measure import measure_machine, measure_model
from ponder.plan.picture import draw_roofline, profile_points
from ponder.plan.predict import with_factors
from ponder.plan.profile import CALIBRATION, Cell, Profile, Profiler, open_profiler, predict_cell

MODELS = ("smollm2-135m", "qwen2.5-coder-0.5b")
DECODE = tuple(Cell("decode", batch, context) for batch in (1, 4, 16, 64) for context in (128, 512, 2048, 8128))
PREFILL = tuple(Cell("prefill", *pair) for pair in ((1, 128), (4, 128), (16, 128), (1, 1024), (1, 3072)))
RESULTS = "cost_model"


def profiled(profiler: Profiler, card: MachineCard) -> list[Profile]:
    """Every cell of the grid, predicted and measured; those that do not fit are named."""
    found = []
    for cell in (*DECODE, *PREFILL):
        if cell.context > profiler.longest:
            print(f"{cell}: left out, this model has {profiler.longest} tokens to profile")
            continue
        found.append(profiler.profile(cell, card))
        cell_row(found[-1])
    return found


def cell_row(found: Profile) -> None:
    cell, groups = found.cell, found.prediction.by_group()
    row = {
        "phase": cell.phase,
        "batch": cell.batch,
        "context": cell.context,
        "measured_ms": ms(found.seconds),
        "predicted_ms": ms(found.prediction.seconds),
    }
    row |= {
        "error": round(found.error, 4),
        "idealized_ms": ms(found.prediction.ideal),
        "measured_over_idealized": round(found.seconds / found.prediction.ideal, 2),
    }
    row["parts_ms"] = {group: [ms(seconds), ms(groups.get(group, (0.0, 0.0))[1])] for group, seconds in found.parts.items()}
    append(RESULTS, row | CONTEXT | {"load": round(os.getloadavg()[0], 1)})


def summary_row(name: str, profiles: list[Profile], errors: list[float], factors_of: str) -> None:
    sizes = [abs(error) for error in errors]
    worst = max(range(len(sizes)), key=sizes.__getitem__)
    row = {"cells": len(sizes), "median_error": round(statistics.median(sizes), 4), "worst_error": round(errors[worst], 4)}
    row |= {"worst_cell": f"{profiles[worst].cell.batch} x {profiles[worst].cell.context}", "within_15_percent": sum(s <= 0.15 for s in sizes)}
    append(RESULTS, {"summary": name, "factors_of": factors_of, "target": "<= 0.15"} | row | CONTEXT | {"load": round(os.getloadavg()[0], 1)})


def ms(seconds: float) -> float:
    return float(f"{1e3 * seconds:.4g}")


CONTEXT: dict[str, object] = {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="native")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--pictures", type=Path, help="folder for a roofline picture of each model")
    parser.add_argument("--cpu-time", action="store_true", help="count CPU time of one thread in place of wall time")
    args = parser.parse_args()
    if args.cpu_time:
        if args.threads != 1:
            parser.error("--cpu-time sees one thread only: add --threads 1")
        time.perf_counter = time.thread_time
    torch.set_num_threads(args.threads)
    card = measure_machine()
    kept: dict[str, tuple[Profiler, list[Profile]]] = {}
    for name in args.models:
        process = catalogue.open_model(resolve(name), args.weights)
        profiler = open_profiler(process, args.weights, catalogue.HEADS[args.weights].name)
        del process
        card = profiler.calibrate(measure_model(profiler.plain, profiler.outline, card))
        CONTEXT.update(model=name, weights=args.weights, threads=args.threads, clock="cpu" if args.cpu_time else "wall")
        factors = dataclasses.asdict(card.factors_of(profiler.outline.name))
        fitted = [f"{c.phase} {c.batch} x {c.context}" for c in CALIBRATION]
        append(RESULTS, {"calibration": {k: float(f"{v:.4g}") for k, v in factors.items()}, "cells": fitted} | CONTEXT)
        kept[name] = profiler, profiled(profiler, card)
        if args.pictures:
            shown = [p for p in kept[name][1] if p.cell in (Cell("decode", 16, 2048), Cell("prefill", 1, 1024))]
            draw_roofline(profile_points(shown), card, args.pictures / f"roofline-{name}.png", title=f"{name}, {args.weights}: {card.name}")
    for name, (profiler, profiles) in kept.items():
        CONTEXT["model"] = name
        for other, (lender, _) in kept.items():
            lent = with_factors(card, profiler.outline.name, card.factors_of(lender.outline.name))
            for phase in ("decode", "prefill"):
                some = [p for p in profiles if p.cell.phase == phase]
                predicted = [predict_cell(profiler.outline, p.cell, lent, profiler.plain.chunk).seconds for p in some]
                errors = [p.prediction.seconds / p.seconds - 1 if other == name else x / p.seconds - 1 for x, p in zip(predicted, some)]
                summary_row(phase, some, errors, other)


if __name__ == "__main__":
    main()
