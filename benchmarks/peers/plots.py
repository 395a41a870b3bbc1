"""One picture per model: speed by number of sequences and by prompt length, shared prefix, arrivals, gaps, memory and loading."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot as plt
from matplotlib import ticker
from matplotlib.axes import Axes

from peers.works import LLAMA, OPENVINO, OURS, PEERS, TRANSFORMERS

COLOURS = {OURS: "#0b6e4f", LLAMA: "#c8553d", OPENVINO: "#3d5a98", TRANSFORMERS: "#8d8d8d"}
MARKS = {OURS: "o", LLAMA: "s", OPENVINO: "^", TRANSFORMERS: "D"}
LEVELS = {"decode 1": 1, "decode 4": 4, "decode 16": 16, "decode 64": 64}
LENGTHS = {"prefill 128": 128, "prefill 1k": 1024, "prefill 4k": 4096}
Rows = Mapping[tuple[str, str], Mapping]


def spread_of(row: Mapping, figure: str) -> tuple[float, float, float] | None:
    """(median, down to the least, up to the greatest)."""
    if figure not in row.get("figures", {}):
        return None
    found = row["figures"][figure]
    return found["median"], found["median"] - found["min"], found["max"] - found["median"]


def lines(axes: Axes, rows: Rows, works: Mapping[str, int], figure: str) -> None:
    for engine in (OURS, *PEERS):
        points = [(x, s) for work, x in works.items() if (s := spread_of(rows.get((engine, work), {}), figure))]
        if points:
            errors = [[s[1] for _, s in points], [s[2] for _, s in points]]
            axes.errorbar(
                [x for x, _ in points], [s[0] for _, s in points], yerr=errors, label=engine, color=COLOURS[engine], marker=MARKS[engine],
                markersize=5, linewidth=1.6, capsize=2.5, zorder=3 if engine == OURS else 2,
            )  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(works.values()), [f"{x:,}" for x in works.values()])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)


def bars(axes: Axes, rows: Rows, work: str, figure: str, names: Sequence[str], *, is_log: bool = False) -> None:
    shown = [(name, s) for name in names if (s := spread_of(rows.get((name, work), {}), figure))]
    top = max((s[0] + s[2] for _, s in shown), default=1.0)
    for at, (name, (middle, down, up)) in enumerate(shown):
        engine = next(e for e in COLOURS if name.startswith(e))
        faded = 1.0 if name == engine else 0.55
        if is_log:
            axes.plot(middle, at, color=COLOURS[engine], alpha=faded, marker=MARKS[engine], markersize=8)
        else:
            axes.barh(at, middle, color=COLOURS[engine], alpha=faded, height=0.66)
        axes.errorbar(middle, at, xerr=[[down], [up]], color="black", linewidth=1, capsize=2.5)
        end = (middle + up) * 1.08 if is_log else middle + up + 0.02 * top
        axes.text(end, at, f"{middle:,.3g}" if middle < 1000 else f"{middle:,.0f}", va="center", fontsize=8)
    axes.set_yticks(range(len(shown)), [name.replace(f"{OURS} ", f"{OURS}, ").replace("_", " ") for name, _ in shown])
    axes.invert_yaxis()
    if is_log and shown:
        axes.set_xscale("log")
        axes.set_xlim(min(s[0] - s[1] for _, s in shown) / 1.5, top * 1.8)
        axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda x, _: f"{x:,.0f}"))
        axes.xaxis.set_minor_locator(ticker.NullLocator())
    else:
        axes.set_xlim(0, top * 1.2)


def draw(model: str, rows: Rows, path: Path) -> None:
    """Writes the picture of one model's run."""
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "peers", "svg.fonttype": "path"})
    engines, variants = (OURS, *PEERS), (OURS, f"{OURS} first_come", f"{OURS} prefill_first", *PEERS)
    figure, grid = plt.subplots(3, 2, figsize=(10.5, 10), layout="constrained")
    lines(grid[0, 0], rows, LEVELS, "decode_tokens_per_s")
    grid[0, 0].set(title="Decoding", xlabel="sequences at once", ylabel="tokens/s")
    lines(grid[0, 1], rows, LENGTHS, "prompt_tokens_per_s")
    grid[0, 1].set(title="Reading a prompt", xlabel="prompt tokens", ylabel="prompt tokens/s")
    bars(grid[1, 0], rows, "samples 32", "tokens_per_s", engines)
    grid[1, 0].set(title="32 samples on a shared prefix of 1,024", xlabel="tokens/s, prefix included")
    bars(grid[1, 1], rows, "arrivals", "tokens_per_s", variants)
    grid[1, 1].set(title="Requests that arrive at random", xlabel="tokens/s")
    bars(grid[2, 0], rows, "arrivals", "gap_p99_ms", variants, is_log=True)
    grid[2, 0].set(title="Gap between tokens, 99 %: less is better", xlabel="ms, logarithmic")
    bars(grid[2, 1], rows, "start", "peak_mb", engines)
    grid[2, 1].set(title="Memory, load and answer once: less is better", xlabel="MB")
    for axes in grid.flat:
        axes.grid(alpha=0.25, axis="both" if axes in grid[0] else "x")
        axes.set_axisbelow(True)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False, title=f"{model}: medians, bars from least to greatest round")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
