"""Quality against cost as a picture: one mark per recipe, its interval, and how far its candidates could have gone."""

import itertools
from collections.abc import Sequence
from pathlib import Path

from ponder.core.errors import PonderError
from ponder.run.report import Summary

COLOURS = ("#4269d0", "#d97706", "#3b7a57", "#b0413e", "#7b5aa6", "#0e8aa8", "#8c6d46", "#5b6573")


def plot_quality(summaries: Sequence[Summary], path: Path, *, title: str) -> None:
    """Writes a PNG: x tokens per question (log), y accuracy with its 95 % interval, a hollow mark for the oracle."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PonderError("plots need matplotlib: pip install 'ponder[tasks]'") from error
    figure = Figure(figsize=(8.4, 5.0), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    places = side_by_side([s.tokens for s in summaries])
    for summary, x, colour in zip(summaries, places, COLOURS * len(summaries), strict=False):
        y = 100 * summary.accuracy
        errors = [[y - 100 * summary.accuracy_low], [100 * summary.accuracy_high - y]]
        axes.errorbar([x], [y], yerr=errors, fmt="o", ms=8, color=colour, elinewidth=1.4, capsize=3, zorder=3, label=summary.recipe)
        if summary.oracle > summary.accuracy:
            axes.plot([x], [100 * summary.oracle], "o", ms=7, mfc="white", mec=colour, mew=1.4, zorder=4)
            axes.plot([x, x], [y, 100 * summary.oracle], ":", color=colour, lw=1, zorder=1)
    axes.set_xscale("log")
    low, high = min(places) / 1.15, max(places) * 1.15
    axes.set_xlim(low, high)
    ticks = [t for t in (b * 10**e // 10 for e in range(1, 9) for b in (10, 15, 20, 25, 30, 40, 50, 60, 80)) if low <= t <= high]
    axes.set_xticks(ticks, [f"{t:,}" for t in ticks])
    axes.set_xticks([], minor=True)
    axes.set_ylim(0, min(100, 8 + 100 * max(max(s.oracle, s.accuracy_high) for s in summaries)))
    axes.set_xlabel("tokens computed per question: prompt + generated + verifier\n(marks of nearly equal cost are drawn side by side)", fontsize=9)
    axes.set_ylabel("questions answered right, %", fontsize=9)
    axes.set_title(title, loc="left", fontsize=10.5)
    axes.grid(axis="y", color="#dddddd", lw=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    title_of_marks = "● selected answer, 95 % interval\n○ best candidate (oracle)"
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9, title=title_of_marks, title_fontsize=8.5)
    try:
        figure.savefig(path)
    except OSError as error:
        raise PonderError(f"plot {path}: {error}; free disk space or name another --out") from error


def side_by_side(costs: Sequence[float]) -> list[float]:
    """Where to draw marks at those costs: the costs themselves, moved right as little as keeps 4 % between neighbours."""
    places = list(costs)
    order = sorted(range(len(costs)), key=lambda i: costs[i])
    for before, after in itertools.pairwise(order):
        places[after] = max(places[after], 1.04 * places[before])
    return places
