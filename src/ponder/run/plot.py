"""Quality against cost as a picture: one mark per recipe, its interval, and how far its candidates could have gone."""

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
    for summary, colour in zip(summaries, COLOURS * len(summaries), strict=False):
        x, y = summary.tokens, 100 * summary.accuracy
        errors = [[y - 100 * summary.accuracy_low], [100 * summary.accuracy_high - y]]
        axes.errorbar([x], [y], yerr=errors, fmt="o", ms=8, color=colour, elinewidth=1.4, capsize=3, zorder=3, label=summary.recipe)
        if summary.oracle > summary.accuracy:
            axes.plot([x], [100 * summary.oracle], "o", ms=7, mfc="white", mec=colour, mew=1.4, zorder=4)
            axes.plot([x, x], [y, 100 * summary.oracle], ":", color=colour, lw=1, zorder=1)
    axes.set_xscale("log")
    low, high = min(s.tokens for s in summaries), max(s.tokens for s in summaries)
    axes.set_xlim(low / 1.35, high * 1.35)
    ticks = [t for t in (b * 10**e for e in range(1, 8) for b in (1, 2, 5)) if low / 1.35 <= t <= high * 1.35]
    axes.set_xticks(ticks, [f"{t:,}" for t in ticks])
    axes.set_xticks([], minor=True)
    axes.set_ylim(0, 100)
    axes.set_xlabel("tokens computed per question (prompt + generated + verifier)")
    axes.set_ylabel("questions answered right, %")
    axes.set_title(title, loc="left", fontsize=10.5)
    axes.grid(axis="y", color="#dddddd", lw=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    title_of_marks = "● selected answer, 95 % interval\n○ best candidate (oracle)"
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9, title=title_of_marks, title_fontsize=8.5)
    try:
        figure.savefig(path)
    except OSError as error:
        raise PonderError(f"plot {path}: {error}; free disk space or name another --out") from error
