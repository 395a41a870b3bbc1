"""Rows of results/long_quality.jsonl, read: shares right under each spec, and differences to plain decoding with paired intervals."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

Row = dict
DRAWS = 2000
LEAST_CONTEXTS = 5  # of a bootstrap over contexts; with fewer it is over questions


@dataclass(frozen=True)
class Cell:
    """One spec on one task: shares right of first and second questions, their differences to plain with 95 % intervals."""

    task: str
    model: str
    name: str  # of the technique, as a reader knows it
    share: float | None  # of the keys that are kept, where the spec says one
    n: int
    contexts: int
    tokens: int
    kv_bytes: int
    right: dict[str, float]
    versus: dict[str, tuple[float, float, float]]
    gap: tuple[float, float, float]  # first less second, with its interval


def name_of(spec: str) -> tuple[str, float | None]:
    """(name, share) of KIND=NAME:SHARE,...; files of trained heads go by what their own name begins with."""
    if spec == "plain":
        return "all keys", 1.0
    kind, _, rest = spec.partition("=")
    name, _, fields = rest.partition(":")
    if name.endswith(".safetensors"):
        name = PurePath(name).stem.partition("-")[0]
    first, *others = fields.split(",") if fields else [""]
    try:
        share = float(first.removeprefix("keep="))
    except ValueError:
        share, others = None, fields.split(",") if fields else []
    return " ".join([name if kind == "cache" else f"{kind} {name}", *others]), share


def cells(rows: Sequence[Row], task: str, model: str) -> list[Cell]:
    """Of one task and model, specs in the order in which they came; each is compared where plain decoding has answered, too."""
    mine = [row for row in rows if row["task"] == task and row["model"] == model and row["what"] == "answer"]
    if not mine:
        return []
    by_spec: dict[str, dict[tuple[str, int], Row]] = {}
    for row in mine:
        by_spec.setdefault(row["spec"], {})[row["context"], row["turn"]] = row
    plain = by_spec["plain"]
    return [_cell(task, spec, found, plain) for spec, found in by_spec.items()]


def versus(rows: Sequence[Row], task: str, model: str, one: str, other: str) -> tuple[int, int, tuple[float, float, float]] | None:
    """How much more often first questions are right under one technique than under another, mean over the budgets that both had: (questions,
    budgets, difference with its paired interval); None where they never met."""
    found: dict[tuple[str, float | None], dict[tuple[str, int], int]] = {}
    for row in rows:
        if row["task"] == task and row["model"] == model and row["what"] == "answer":
            name, share = name_of(row["spec"])
            found.setdefault((name.split(" model=")[0], share), {})[row["context"], row["turn"]] = row["first"]
    shares = [share for name, share in found if name == one and (other, share) in found]
    pairs = [(key, found[one, share], found[other, share]) for share in shares for key in found[one, share] if key in found[other, share]]
    if not pairs:
        return None
    return len({key for key, _, _ in pairs}), len(shares), paired([(key[0], mine[key] - theirs[key]) for key, mine, theirs in pairs])


def _cell(task: str, spec: str, found: dict[tuple[str, int], Row], plain: dict[tuple[str, int], Row]) -> Cell:
    both = [key for key in found if key in plain]
    name, share = name_of(spec)
    rows = [found[key] for key in both]
    group = (lambda key: key[0]) if len({key[0] for key in both}) >= LEAST_CONTEXTS else "{0[0]} {0[1]}".format
    gap = paired([(group(key), found[key]["first"] - found[key]["second"]) for key in both])
    versus = {w: paired([(group(key), found[key][w] - plain[key][w]) for key in both]) for w in ("first", "second")}
    return Cell(
        task, rows[0]["model"], name, share, len(rows), len({key[0] for key in both}), sum(r["tokens"] for r in rows) // len(rows),
        sum(r["kv_bytes"] for r in rows) // len(rows), {w: sum(r[w] for r in rows) / len(rows) for w in ("first", "second")}, versus, gap,
    )  # fmt: skip


def paired(differences: Sequence[tuple[str, float]]) -> tuple[float, float, float]:
    """Mean and 95 % interval of differences, by a bootstrap over contexts."""
    groups: dict[str, list[float]] = {}
    for context, difference in differences:
        groups.setdefault(context, []).append(difference)
    parts, rng = list(groups.values()), random.Random(0)
    mean = lambda some: sum(map(sum, some)) / sum(map(len, some))
    drawn = sorted(mean(rng.choices(parts, k=len(parts))) for _ in range(DRAWS))
    return mean(parts), drawn[int(0.025 * DRAWS)], drawn[int(0.975 * DRAWS) - 1]
