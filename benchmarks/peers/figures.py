"""From what workers reply to figures of a turn, and from the turns of all rounds to one row per engine and work.

Tokens are counted as the engine made them. "While all generate" is the time from the moment at which every sequence has its first
token to the end, so that it holds no prompts; where an engine does not tell when tokens came, that figure is missing.
"""

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence

HEAD = 40  # characters of an answer that a row keeps


def turn_figures(work: Mapping, reply: Mapping) -> dict[str, float]:
    """Figures of one turn: {name: value}, names as in works.UNITS. Raises ValueError when tokens are missing."""
    counts, times = reply["counts"], reply["times"]
    if counts != list(work["new"]):
        raise ValueError(f"made {sum(counts)} tokens in {len(counts)} sequences instead of {sum(work['new'])} in {len(work['new'])}")
    if work["kind"] == "arrivals":
        return arrival_figures(work["at"], times, sum(counts))
    num_prompt = sum(len(p["ids"]) for p in work["prompts"])
    if max(counts) == 1:
        return {"prompt_tokens_per_s": num_prompt / reply["seconds"]}
    found = {"tokens_per_s": sum(counts) / reply["seconds"]}
    if all(times):
        first = max(row[0] for row in times)
        num_after = sum(t > first for row in times for t in row)
        end = max(row[-1] for row in times)
        if num_after and end > first:
            found["decode_tokens_per_s"] = num_after / (end - first)
    return found


def arrival_figures(at: Sequence[float], times: Sequence[Sequence[float]], num_tokens: int) -> dict[str, float]:
    """Throughput from the first arrival to the last token; gaps between a request's tokens; waits for a request's first token."""
    gaps = [1e3 * (b - a) for row in times for a, b in itertools.pairwise(row)]
    waits = [1e3 * (row[0] - begin) for begin, row in zip(at, times)]
    return {
        "tokens_per_s": num_tokens / (max(row[-1] for row in times) - at[0]),
        "gap_p50_ms": percentile(gaps, 50), "gap_p99_ms": percentile(gaps, 99),
        "wait_p50_ms": percentile(waits, 50), "wait_p99_ms": percentile(waits, 99),
    }  # fmt: skip


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` of all do not exceed."""
    return sorted(values)[max(0, math.ceil(percent / 100 * len(values)) - 1)]


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": rounded(statistics.median(values)), "min": rounded(min(values)), "max": rounded(max(values))}


def rounded(value: float) -> float:
    """Four significant digits."""
    return float(f"{value:.4g}")


def rows_of(turns: Sequence[Mapping], titles: Mapping[str, str]) -> list[dict[str, object]]:
    """One row per (model, engine, variant, work): n rounds, every figure's median, least and greatest. titles: work -> its main figure."""
    groups: dict[tuple, list[Mapping]] = {}
    for turn in turns:
        groups.setdefault((turn["model"], turn["engine"], turn["variant"], turn["work"]), []).append(turn)
    rows = []
    for (model, engine, variant, work), group in groups.items():
        good = [t for t in group if "figures" in t]
        row = {"model": model, "engine": engine, "variant": variant, "work": work, "n": len(good)}
        if not good:
            rows.append({**row, "missing": group[-1]["error"]})
            continue
        names = sorted({name for t in good for name in t["figures"]})
        figures = {name: spread([t["figures"][name] for t in good if name in t["figures"]]) for name in names}
        main = titles[work]
        row |= {"figure": main, "figures": figures, **figures.get(main, {})}
        row["rounds"] = {str(t["round"]): rounded(t["figures"][main]) for t in good if main in t["figures"]}
        row |= {key: good[-1][key] for key in ("setting", "versions", "file", "sha256", "num", "prompt_len", "num_new", "head", "threads")}
        row["load"] = rounded(max(t["load"] for t in good))
        if failed := [t["error"] for t in group if "error" in t]:
            row["failed"] = failed
        rows.append(row)
    return rows


def ratio(ours: Mapping, peer: Mapping, figure: str) -> float:
    """ours / peer of a figure's medians."""
    return ours["figures"][figure]["median"] / peer["figures"][figure]["median"]


def agreement(a: str, b: str) -> float:
    """Share of the shorter text's characters up to which both are the same; 1.0 when either is empty."""
    num = min(len(a), len(b))
    return next((i for i in range(num) if a[i] != b[i]), num) / num if num else 1.0
