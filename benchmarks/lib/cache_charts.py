"""Pictures of docs/cache.md: quality against bytes, against seconds, and what the future attends to."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from lib.long_rows import Cell

COLOURS = {
    "snapkv": "#4269d0", "pyramidkv": "#6cc5b0", "adakv": "#1b7f5c", "h2o": "#d97706", "d2o": "#a3541a", "elastic": "#efb118", "tova": "#9b59b6",
    "streaming": "#888888", "knorm": "#ff725c", "locret": "#c2185b", "speckv": "#00a0c8", "oracle": "#000000",
}  # fmt: skip
OTHERS = ("#17becf", "#8c564b", "#7f7f00", "#3a3a98", "#b5651d", "#2f4f4f")


def _style() -> None:
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "cache", "svg.fonttype": "path"})


def colour(name: str) -> str:
    return COLOURS.get(name.split()[0]) or OTHERS[sum(map(ord, name)) % len(OTHERS)]


def _save(figure: plt.Figure, path: Path) -> None:
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _legend(figure: plt.Figure, grid: Sequence[Axes]) -> None:
    found = {label: handle for axes in grid for handle, label in zip(*axes.get_legend_handles_labels())}
    figure.legend(list(found.values()), list(found), loc="outside right center", frameon=False)


def against_bytes(tasks: dict[str, list[Cell]], path: Path) -> None:
    """A row of panels for each task: first and second questions against bytes of keys and values, one curve for each policy."""
    _style()
    figure, grid = plt.subplots(len(tasks), 2, figsize=(10, 3.3 * len(tasks)), layout="constrained", squeeze=False, sharey="row")
    for row, (title, cells) in zip(grid, tasks.items()):
        for axes, which in zip(row, ("first", "second")):
            _curves(axes, cells, which, lambda cell: cell.kv_bytes / 1e6)
            axes.set(xscale="log", xlabel="keys and values, MB", ylim=(-4, 104))
            axes.set_title(f"{title}: {which} question", fontsize=9)
            sizes = sorted({cell.share: cell.kv_bytes / 1e6 for cell in cells if cell.share not in (None, 1.0) and cell.kv_bytes}.values())
            axes.set_xticks(sizes, [f"{size:.2g}" for size in sizes])
            axes.minorticks_off()
            plain = next(cell for cell in cells if cell.name == "all keys")
            axes.axhline(100 * plain.right[which], color="black", linestyle=":", label="all keys")
        row[0].set_ylabel("% right")
    _legend(figure, grid.flatten())
    _save(figure, path)


def _curves(axes: Axes, cells: Sequence[Cell], which: str, x_of) -> None:
    names = dict.fromkeys(cell.name for cell in cells if cell.share is not None and cell.name != "all keys" and cell.kv_bytes)
    for name in names:
        mine = sorted((x_of(cell), 100 * cell.right[which]) for cell in cells if cell.name == name)
        axes.plot(*zip(*mine), "o-", color=colour(name), label=name, markersize=3.5, linewidth=1.3)
    axes.grid(alpha=0.25)


def against_seconds(cells: Sequence[Cell], times: dict[tuple[str, float | None], dict], title: str, path: Path) -> None:
    """First questions against CPU seconds to the first token, and against milliseconds of each later one."""
    _style()
    figure, grid = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained", sharey=True)
    for axes, field, label, scale in zip(
        grid, ("first_cpu_s", "token_cpu_s"), ("CPU seconds to the first token", "CPU milliseconds of each later token"), (1, 1000)
    ):
        for cell in cells:
            if (cell.name, cell.share) not in times:
                continue
            x = scale * times[cell.name, cell.share][field]
            axes.plot(
                x, 100 * cell.right["first"], "o", color=colour(cell.name), markersize=4 + 6 * (cell.share or 1) ** 0.5, label=cell.name, alpha=0.8
            )
        axes.set(xlabel=label, ylim=(-4, 104))
        axes.grid(alpha=0.25)
    grid[0].set_ylabel("% of first questions right")
    figure.suptitle(f"{title}; larger dots keep more keys", fontsize=9)
    _legend(figure, grid)
    for handle in figure.legends[0].legend_handles:
        handle.set_markersize(6)
    _save(figure, path)


def future(rows: Sequence[dict], path: Path) -> None:
    """Mass and output error against the share of keys that is kept, and mass by layer and head at a fifth."""
    _style()
    figure, grid = plt.subplots(2, 2, figsize=(10, 6.6), layout="constrained", sharex=True)
    for column, when in zip(grid.T, ("asked", "after first")):
        title = {"asked": "the question is in the prompt", "after first": "the question comes later"}[when]
        for axes, field, label in zip(column, ("mass", "error"), ("% of its attention on kept keys", "relative output error, %")):
            for name in dict.fromkeys(row["policy"] for row in rows):
                mine = sorted((100 * row["share"], 100 * row[field]) for row in rows if row["policy"] == name and row["when"] == when)
                short = name.partition("-")[0]
                axes.plot(*zip(*mine), "o-", color=colour(short), label=short, markersize=3.5, linewidth=1.3)
            axes.set(ylabel=label, xscale="log")
            axes.set_xticks([5, 10, 20, 50], ["5", "10", "20", "50"])
            axes.minorticks_off()
            axes.grid(alpha=0.25)
        column[0].set_title(title)
        column[1].set_xlabel("keys kept, %")
    _legend(figure, grid.flatten())
    _save(figure, path)


def heads(rows: Sequence[dict], path: Path) -> None:
    """Mass by layer (down) and key head (across) of each policy, at one share, question later."""
    _style()
    figure, grid = plt.subplots(1, len(rows), figsize=(10, 3.6), layout="constrained", sharey=True, squeeze=False)
    for axes, row in zip(grid[0], rows):
        shown = axes.imshow(row["mass_by_head"], vmin=0, vmax=1, aspect="auto", cmap="viridis")
        axes.set_title(row["policy"].partition("-")[0], fontsize=8)
        axes.set_xticks(range(len(row["mass_by_head"][0])))
        axes.set_yticks(range(0, len(row["mass_by_head"]), max(1, len(row["mass_by_head"]) // 6)))
    grid[0][0].set_ylabel("layer")
    figure.supxlabel("key head", fontsize=9)
    figure.colorbar(shown, ax=grid[0], label="attention kept", shrink=0.8)
    _save(figure, path)
