"""The roofline picture: what each operator group reached, between the bandwidth and the compute roofs of the machine.

Source: Williams, Waterman, Patterson 2009, figure 1. x: operations per byte that must come from memory; y: operations per second.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ponder.core.errors import PonderError
from ponder.plan.machine import MachineCard
from ponder.plan.predict import CACHED, Prediction
from ponder.plan.profile import Profile

COLOURS = {"decode": "#4269d0", "prefill": "#d97706"}
MARK = 7  # pixels around a mark that labels keep free


@dataclass(frozen=True)
class Point:
    """One group of one phase."""

    phase: str
    name: str
    intensity: float  # FLOP/byte
    rate: float  # FLOP/s


def points_of(phase: str, prediction: Prediction, parts: dict[str, float] | None = None) -> list[Point]:
    """A point for each group that computes; its rate over the measured seconds `parts`, or over the predicted ones."""
    found = []
    for group, (_, predicted) in prediction.by_group().items():
        ops = [part.operator for part in prediction.parts if part.operator.group == group]
        flops, nbytes = sum(op.flops for op in ops), sum(op.nbytes for op in ops)
        seconds = predicted if parts is None else parts.get(group, 0.0)
        if flops > 0 and nbytes > 0 and seconds > 0:
            found.append(Point(phase, group, flops / nbytes, flops / seconds))
    return found


Box = tuple[float, float, float, float]  # left, bottom, right, top in pixels


def place_labels(
    points: Sequence[tuple[float, float]], sizes: Sequence[tuple[float, float]], taken: Sequence[Box], frame: Box
) -> list[tuple[float, float]]:
    """Centres for labels of `sizes` beside `points`, all in pixels: near their points, over no mark, no `taken` box and no other label.

    Every label takes the first free place on circles that grow around its point; crowded points choose first.
    """
    boxes = [*taken, *((x - MARK, y - MARK, x + MARK, y + MARK) for x, y in points)]
    crowd = [sum(math.dist(a, b) < 60 for b in points) for a in points]
    places = [(0.0, 0.0)] * len(points)
    for i in sorted(range(len(points)), key=lambda i: -crowd[i]):
        (x, y), (width, height) = points[i], sizes[i]
        tries = [(r, k * math.pi / 8) for r in range(4, 400, 6) for k in (0, 8, 4, 12, 2, 6, 10, 14, 1, 7, 9, 15, 3, 5, 11, 13)]
        centres = [(x + math.cos(k) * (r + MARK + width / 2), y + math.sin(k) * (r + MARK + height / 2)) for r, k in tries]
        made = [(cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2) for cx, cy in centres]
        free = (n for n, box in enumerate(made) if is_inside(box, frame) and not any(overlap(box, other) for other in boxes))
        n = next(free, 0)
        places[i] = centres[n]
        boxes.append(made[n])
    return places


def overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def is_inside(a: Box, frame: Box) -> bool:
    return frame[0] <= a[0] and a[2] <= frame[2] and frame[1] <= a[1] and a[3] <= frame[3]


def draw_roofline(points: Sequence[Point], card: MachineCard, path: Path, *, title: str) -> None:
    """Writes a PNG. Raises PonderError where it cannot be drawn or written."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PonderError("pictures need matplotlib: pip install 'ponder[tasks]'") from error
    figure = Figure(figsize=(9.6, 5.6), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    left, right = min(0.2, *(p.intensity / 2 for p in points)), max(3e3, *(p.intensity * 3 for p in points))
    bottom, top = min(p.rate for p in points) / 3, 3 * card.peak
    axes.set(xscale="log", yscale="log", xlim=(left, right), ylim=(bottom, top))
    for name, rate, style in ((f"memory {card.stream / 1e9:.0f} GB/s", card.stream, "-"), ("", card.bandwidth_at(CACHED), ":")):
        ridge = card.peak / rate
        label = name or f"second cache {rate / 1e9:.0f} GB/s"
        axes.plot([left, ridge], [left * rate, card.peak], style, color="#444444", lw=1.3, zorder=1, label=label)
    axes.plot([card.peak / card.bandwidth_at(CACHED), right], [card.peak] * 2, "-", color="#444444", lw=1.3, zorder=1)
    axes.annotate(f"fastest product {card.peak / 1e9:.0f} GFLOP/s", (right, card.peak), (-4, 4), textcoords="offset points", ha="right", fontsize=8)
    for kind, rate in sorted(card.peaks.items(), key=lambda item: item[1]):
        if rate < 0.93 * card.peak:
            axes.axhline(rate, color="#bbbbbb", lw=0.8, ls="--", zorder=0)
            axes.annotate(f"{kind} {rate / 1e9:.0f}", (right, rate), (-4, 2), textcoords="offset points", ha="right", fontsize=7, color="#777777")
    axes.set_xlabel("operations per byte that must come from memory", fontsize=9)
    axes.set_ylabel("operations per second", fontsize=9)
    axes.set_title(title, loc="left", fontsize=10)
    axes.grid(color="#eeeeee", lw=0.6, zorder=0)
    axes.spines[["top", "right"]].set_visible(False)
    for phase in dict.fromkeys(p.phase for p in points):
        some, colour = [p for p in points if p.phase == phase], COLOURS.get(phase, "#3b7a57")
        axes.plot([p.intensity for p in some], [p.rate for p in some], "o", ms=6, color=colour, mec="white", mew=0.8, zorder=4, label=phase)
    axes.legend(loc="lower right", frameon=False, fontsize=8)
    write_names(figure, axes, points)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
    except OSError as error:
        raise PonderError(f"picture {path}: {error}; free disk space or name another --out") from error


def write_names(figure, axes, points: Sequence[Point]) -> None:  # type: ignore[no-untyped-def]
    """The name of every point beside it, over nothing else; a thin line leads to those that had to go further."""
    figure.draw_without_rendering()
    texts = [axes.text(p.intensity, p.rate, p.name, fontsize=8, color=COLOURS.get(p.phase, "#3b7a57"), ha="center", va="center") for p in points]
    sizes = [(box.width + 4, box.height + 2) for box in (text.get_window_extent() for text in texts)]
    at = [tuple(axes.transData.transform((p.intensity, p.rate))) for p in points]
    others = [tuple(text.get_window_extent().extents) for text in (*axes.texts, axes.get_legend()) if text not in texts]
    xs, ys = axes.transData.transform(axes.lines[0].get_xydata()).T
    line = [(xs[0] + (xs[-1] - xs[0]) * k / 200, ys[0] + (ys[-1] - ys[0]) * k / 200) for k in range(201)]
    roof = [(x - 2, y - 2, x + 2, y + 2) for x, y in line]
    frame = tuple(axes.get_window_extent().extents)
    for text, size, start, centre in zip(texts, sizes, at, place_labels(at, sizes, [*others, *roof], frame), strict=True):
        text.set_position(axes.transData.inverted().transform(centre))
        if math.dist(start, centre) > 2 * MARK + size[0] / 2:
            lead = axes.transData.inverted().transform([start, centre])
            axes.plot(lead[:, 0], lead[:, 1], "-", color=text.get_color(), lw=0.5, alpha=0.5, zorder=2)
        text.set_bbox({"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.3})


def profile_points(profiles: Sequence[Profile]) -> list[Point]:
    return [point for profile in profiles for point in points_of(profile.cell.phase, profile.prediction, profile.parts)]
