"""A study of one task as a picture: quality against cost, coverage and its law, error decomposition, accuracy against length."""

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ponder.core.errors import PonderError

COLOURS = ("#4269d0", "#d97706", "#3b7a57", "#b0413e", "#7b5aa6", "#0e8aa8", "#8c6d46", "#c2569b", "#5b6573", "#97a12b", "#2b2b2b", "#e3a6bd")
GREY = "#888888"
DRAWING = ("temperature=", "top_p=", "top_k=", "min_p=")
Rows = Sequence[Mapping[str, Any]]
Axes = Any


def draw_study(rows: Rows, path: Path, *, title: str) -> None:
    """Writes an SVG that is the same for the same rows. Raises PonderError without matplotlib or when it cannot write."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PonderError("plots need matplotlib: pip install 'ponder[tasks]'") from error
    with matplotlib.rc_context({"svg.hashsalt": "ponder", "font.size": 9, "axes.titlesize": 10}):
        figure = Figure(figsize=(12.5, 8.6), layout="constrained")
        panels = figure.subplots(2, 2)
        draw_quality([r for r in rows if r["kind"] == "cell"], panels[0][0])
        for kind, panel, draw in (
            ("coverage", panels[0][1], draw_coverage),
            ("decomposition", panels[1][0], draw_decomposition),
            ("length", panels[1][1], draw_length),
        ):
            found = [row for row in rows if row["kind"] == kind]
            if found:
                draw(found[0], panel)
            else:
                panel.set_axis_off()
        for panel in panels.flat:
            panel.spines[["top", "right"]].set_visible(False)
            panel.grid(axis="y", color="#e4e4e4", lw=0.7)
            panel.set_axisbelow(True)
        figure.suptitle(title, x=0.01, ha="left", fontsize=11)
        drawn = io.BytesIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    try:
        path.write_bytes(b"\n".join(line.rstrip() for line in drawn.getvalue().splitlines()) + b"\n")
    except OSError as error:
        raise PonderError(f"plot {path}: {error}; free disk space or name another --out") from error


def families(cells: Rows) -> dict[str, list[Mapping[str, Any]]]:
    """Cells that differ in `num` alone, in order of cost: a line of the picture. Its name leaves out how most of all cells are drawn."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    said = Counter(f for cell in cells for f in cell["cell"].partition(":")[2].split(",") if f.startswith(DRAWING))
    usual = {f for f, num in said.items() if 2 * num > len(cells)}  # how most are drawn goes without saying
    for cell in cells:
        name, _, fields = cell["cell"].partition(":")
        kept = ", ".join(f.removeprefix("verifier=") for f in fields.split(",") if f and f not in usual and not f.startswith("num="))
        found.setdefault(f"{name} ({kept})" if kept else name, []).append(cell)
    return {name: sorted(members, key=lambda c: c["tokens"]) for name, members in found.items()}


def draw_quality(cells: Rows, axes: Axes) -> None:
    shown = {name: members for name, members in families(cells).items() if not name.startswith("sample")}
    for place, ((name, members), colour) in enumerate(zip(shown.items(), COLOURS * len(shown))):
        aside = 1.02 ** (place - len(shown) / 2)  # so that cells of equal cost do not cover each other
        x, y = [c["tokens"] * aside for c in members], [100 * c["accuracy"][0] for c in members]
        axes.plot(x, y, "-o" if len(x) > 1 else "D", ms=4.5, lw=1.5, color=colour, label=name)
        _, low, high = members[-1]["accuracy"]
        errors = [[y[-1] - 100 * low], [100 * high - y[-1]]]
        axes.errorbar(x[-1:], y[-1:], yerr=errors, fmt="none", ecolor=colour, elinewidth=1, capsize=2.5, alpha=0.55)
    greedy = [c for c in cells if c["cell"] == "greedy"]
    if greedy:
        axes.axhline(100 * greedy[0]["accuracy"][0], color=GREY, lw=1, ls="--", zorder=1)
    axes.set_xscale("log")
    spread = [c["tokens"] for c in cells]
    low, high = min(spread) / 1.2, max(spread) * 1.2
    axes.set_xlim(low, high)
    ticks = [t for t in (b * 10**e for e in range(1, 7) for b in (1, 2, 3, 5)) if low <= t <= high]
    axes.set_xticks(ticks, [f"{t:,}" for t in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("tokens a question: prompt + generated + verifier")
    axes.set_ylabel("questions answered right, %")
    axes.set_title("Quality against cost (95 % at the dearest; greedy dashed)", loc="left")
    axes.legend(fontsize=7.5, frameon=False, loc="upper left", bbox_to_anchor=(0.0, -0.14), ncols=2)


def draw_coverage(row: Mapping[str, Any], axes: Axes) -> None:
    ks, at = row["ks"], row["at"]
    axes.plot(ks, [100 * v for v, _, _ in at], "-o", ms=3.5, color=COLOURS[0], label="some of k samples is right (unbiased)")
    axes.fill_between(ks, [100 * low for _, low, _ in at], [100 * high for _, _, high in at], color=COLOURS[0], alpha=0.15, lw=0)
    if row["law"]:
        (a, _, _), (b, _, _) = row["law"]["a"], row["law"]["b"]
        ahead = {int(k): e for k, e in row["law"]["ahead"].items()}
        from_to = [ks[0] * (max([*ks, *ahead]) / ks[0]) ** (i / 60) for i in range(61)]
        law = [100 * 2.718281828459045 ** (a * k**b) for k in from_to]
        axes.plot(from_to, law, ":", color=COLOURS[1], lw=1.6, label=f"exp({a:.2f} k^{b:.2f})")
        for k, (value, low, high) in ahead.items():
            errors = [[100 * (value - low)], [100 * (high - value)]]
            axes.errorbar([k], [100 * value], yerr=errors, fmt="o", ms=4, mfc="white", color=COLOURS[1], capsize=2.5)
    axes.set_xscale("log", base=2)
    marks = [k for k in (1, 2, 4, 8, 16, 32, 64, 128, 256) if k <= max([*ks, *(int(k) for k in row["law"].get("ahead", {}))])]
    axes.set_xticks(marks, [str(k) for k in marks])
    axes.minorticks_off()
    axes.set_ylim(0, 104)
    axes.set_xlabel("samples k")
    axes.set_ylabel("questions covered, %")
    axes.set_title("Coverage, the law fitted to it, and what that says about more", loc="left")
    axes.legend(fontsize=8, frameon=False, loc="lower right")


def draw_decomposition(row: Mapping[str, Any], axes: Axes) -> None:
    ks = sorted(map(int, row["estimation"]))  # JSON sorts its keys as text
    model, parts = row["model_error"][0], [row["estimation"][str(k)][0] for k in ks]
    places = range(len(ks))
    axes.bar(places, [model] * len(ks), color=COLOURS[0], width=0.6, label="model error (1 - p)²")
    axes.bar(places, parts, bottom=[model] * len(ks), color=COLOURS[1], width=0.6, label="estimation error p (1 - p) / k")
    by_path = [model + row["path_estimation"][str(k)] for k in ks]
    axes.plot(places, by_path, "--D", color="#333333", ms=4, lw=1.2, label="path probabilities added up instead (plug-in)")
    for place, part in zip(places, parts):
        axes.text(place, 0.97 * model, f"{model + part:.3f}", ha="center", va="top", fontsize=8, color="white")
    axes.set_xticks(list(places), [str(k) for k in ks])
    axes.set_ylim(0, 1.35 * max(model + max(parts), *by_path))  # room for the legend
    axes.set_xlabel("samples k that vote")
    axes.set_ylabel("mean squared error of the right answer's share")
    axes.set_title("Error decomposition: what more samples can mend", loc="left")
    axes.legend(fontsize=8, frameon=False, loc="upper right")


def draw_length(row: Mapping[str, Any], axes: Axes) -> None:
    mean = sum(v for v in row["quintiles"] if v is not None) / max(1, sum(v is not None for v in row["quintiles"]))
    places = range(1, 6)
    axes.plot(places, [None if v is None else 100 * v for v in row["quintiles"]], "-o", color=GREY, ms=5, label="all samples by length")
    shifted = [None if v is None else 100 * (mean + v) for v in row["controlled"]]
    axes.plot(places, shifted, "-o", color=COLOURS[2], ms=5, label="each question's samples by length")
    axes.set_xticks(list(places), ["shortest fifth", "2", "3", "4", "longest fifth"])
    top = max([100 * v for v in row["quintiles"] if v is not None] + [v for v in shifted if v is not None])
    axes.set_ylim(0, min(100, 1.25 * top + 2))
    axes.set_ylabel("samples right, %")
    within = row["within"]
    said = "" if within[0] is None else f": {100 * within[0]:+.0f} points a doubling [{100 * within[1]:+.0f}, {100 * within[2]:+.0f}]"
    axes.set_title(f"Accuracy against length, difficulty held{said}", loc="left")
    axes.legend(fontsize=8, frameon=False, loc="upper right")
