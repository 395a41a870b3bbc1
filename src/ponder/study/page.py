"""Rows of studies as a Markdown page: what beats what at which cost, and what does not."""

from collections.abc import Mapping, Sequence
from typing import Any

HEAD = """# Study: what more compute buys

Written by `python benchmarks/study.py --page` from the rows of benchmarks/results/study.jsonl. Do not edit. `ponder study` makes such a page of
any task.

All cells of a task answer the same questions from the same stored samples. [ ] are 95 % bootstrap intervals over questions; gains are paired by
question. *gap*: share of questions with a right candidate that was not selected. *ties*: share of questions on which several candidates stood first
alike. A verdict compares a cell with best-of-N under the same verifier (the first one where it has none) at the nearest number of samples; costs
within a quarter of each other count as equal. Small models on few questions: "no difference shown" says just that.
"""
Row = Mapping[str, Any]


def page_text(rows: Sequence[Row]) -> str:
    """The whole page: of each task and model the newest run."""
    parts = [HEAD]
    for (task, model), found in newest(rows).items():
        parts += section(task, model, found)
    return "\n".join(parts).rstrip() + "\n"


def newest(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    """(task, model) -> rows of its last run, in the order in which the pairs first came."""
    runs: dict[tuple[str, str], dict[str, list[Row]]] = {}
    for row in rows:
        runs.setdefault((row["task"], row["model"]), {}).setdefault(row["run"], []).append(row)
    return {key: found[max(found)] for key, found in runs.items()}


def picture_name(task: str, model: str) -> str:
    plain = "".join(c if c.isalnum() or c in ".-" else "-" for c in f"{task}-{model}")
    return f"study-{plain}.svg"


def section(task: str, model: str, rows: Sequence[Row]) -> list[str]:
    cells = [row for row in rows if row["kind"] == "cell"]
    first = cells[0]
    made = f"n = {first['n']} questions ({first['split']}), seed {first['seed']}, run {first['run']}, commit {first['commit']}, {first['machine']}"
    lines = [f"## {task}, {model}", "", f"{made}: `{first['command']}`", "", f"![{task}]({picture_name(task, model)})", ""]
    lines += [*cell_table(cells), "", *verdict_lines(cells), ""]
    return [*lines, *sample_lines(rows), "", *drawing_table(rows)]


def cell_table(cells: Sequence[Row]) -> list[str]:
    head = "| cell | right % | against greedy | oracle % | gap | tokens | ties % | AUROC | wrong ones accepted | against best-of-N |"
    return [head, "|---|---|---|---|---|---|---|---|---|---|", *(cell_line(cell, cells[0]) for cell in cells)]


def cell_line(cell: Row, baseline: Row) -> str:
    gain = "" if cell is baseline else spread(cell["gain"], "+.1f")
    false = verdict = ""
    if "false_positive_rate" in cell:
        false = f"{percent(cell['false_positive_rate'])} % of all; {cell['accepted_wrong']} of {cell['accepted']} chosen"
    if "verdict" in cell:
        verdict = f"{cell['verdict']} ({spread(cell['gain_at_cost'], '+.1f')} at {cell['cost_ratio']:.2f}x)"
    parts = [
        f"`{cell['cell']}`", spread(cell["accuracy"], ".1f"), gain, percent(cell["oracle"]), percent(cell["oracle_gap"]), f"{cell['tokens']:.0f}",
        "" if cell["ties"] is None else percent(cell["ties"]), "" if "auroc" not in cell else f"{cell['auroc']:.2f}", false, verdict,
    ]  # fmt: skip
    return "| " + " | ".join(parts) + " |"


def verdict_lines(cells: Sequence[Row]) -> list[str]:
    """What is better than greedy, what is better than best-of-N at equal cost, and what is neither."""
    rest = cells[1:]
    above, below = [c for c in rest if c["gain"][1] > 0], [c for c in rest if c["gain"][2] < 0]
    judged = [c for c in rest if "verdict" in c]
    return [
        f"- **Better than greedy** (interval above 0; by chance alone about {len(rest) / 40:.1f} of {len(rest)} cells): {names_of(above)}.",
        f"- **Worse than greedy**: {names_of(below)}.",
        f"- **Better than best-of-N at equal cost**: {names_of([c for c in judged if c['verdict'] == 'better'])}.",
        f"- **Worse than best-of-N at equal cost**: {names_of([c for c in judged if c['verdict'] == 'worse'])}.",
        f"- No difference shown to greedy: {len(rest) - len(above) - len(below)} of {len(rest)} cells.",
    ]


def drawing_table(rows: Sequence[Row]) -> list[str]:
    """Ways of drawing side by side: one sample, what was selected among all, and the best among all; none where there is one way only."""
    drawings = [row for row in rows if row["kind"] == "drawing"]
    if len(drawings) < 2:
        return []
    lines = ["Ways of drawing, each with its own samples; a column is a way of selecting among them.", ""]
    chosen = {drawing_of(d["cell"]): selected_by(rows, drawing_of(d["cell"])) for d in drawings}
    names = [name for name in dict.fromkeys(n for found in chosen.values() for n in found) if all(name in found for found in chosen.values())]
    lines += [
        f"| drawn | tokens of a sample | one sample % | {' | '.join(f'`{n}` %' for n in names)} | oracle % |",
        f"|---|---|---|{'---|' * len(names)}---|",
    ]
    for row in drawings:
        found = chosen[drawing_of(row["cell"])]
        cells = [
            ", ".join(sorted(drawing_of(row["cell"]))),
            f"{row['length']:.0f}",
            spread(row["mean"], ".1f"),
            *(spread(found[n], ".1f") for n in names),
        ]
        lines.append(f"| {' | '.join(cells)} | {spread(row['coverage'], '.1f')} |")
    return [*lines, ""]


def drawing_of(cell: str) -> frozenset[str]:
    """The fields of a spec that say how samples are drawn."""
    fields = {f for f in cell.partition(":")[2].split(",") if f.partition("=")[0] in ("num", "temperature", "top_k", "top_p", "min_p")}
    return frozenset(fields | (set() if any(f.startswith("temperature=") for f in fields) else {"temperature=0.8"}))


def selected_by(rows: Sequence[Row], drawing: frozenset[str]) -> dict[str, Sequence[float]]:
    """Strategy without its drawing -> accuracy, of the cells that select among these samples."""
    found = {}
    for row in rows:
        name, _, fields = str(row.get("cell", "")).partition(":")
        if row["kind"] == "cell" and name in ("best_of_n", "self_consistency") and drawing_of(row["cell"]) == drawing:
            rest = [f for f in fields.split(",") if f.partition("=")[0] in ("verifier", "weigh")]
            found[f"{name}:{','.join(rest)}" if rest else name] = row["accuracy"]
    return found


def names_of(cells: Sequence[Row]) -> str:
    return ", ".join(f"`{cell['cell']}`" for cell in cells) or "nothing"


def sample_lines(rows: Sequence[Row]) -> list[str]:
    found = {row["kind"]: row for row in rows}
    lines = []
    if law := found.get("coverage", {}).get("law"):
        ahead = "; ".join(f"{k} samples: {spread(e, '.1f')} %" for k, e in in_order(law["ahead"]))
        fit = f"a = {spread(law['a'], '.3f', 1)}, b = {spread(law['b'], '.3f', 1)}, off by {law['rmse']:.4f}"
        lines.append(f"- **Coverage law** exp(a k^b): {fit}. It says {ahead}.")
    if "decomposition" in found:
        row = found["decomposition"]
        parts = ", ".join(f"{e[0]:.4f} at {k}" for k, e in in_order(row["estimation"]))
        lines.append(f"- **Error of the vote**: model error {spread(row['model_error'], '.3f', 1)} stays; estimation error {parts}.")
        paths = ", ".join(f"{e:.4f} at {k}" for k, e in in_order(row["path_estimation"]))
        mass = f"the right paths seen hold {row['path_mass']:.3f} of the probability"
        lines.append(f"- Adding up path probabilities instead: {mass}; its estimation error is {paths}.")
    if "length" in found and found["length"]["within"][0] is not None:
        row = found["length"]
        lines.append(
            f"- **Length**: a doubling of tokens goes with {spread(row['raw'], '+.1f')} points over all samples and {spread(row['within'], '+.1f')} "
            f"within questions ({row['num_mixed']} questions decide)."
        )
    return lines


def in_order(by_k: Mapping[str, Any]) -> list[tuple[int, Any]]:
    """Items by their number of samples; JSON sorts its keys as text."""
    return sorted((int(k), value) for k, value in by_k.items())


def spread(values: Sequence[float], form: str, scale: float = 100) -> str:
    value, low, high = values
    short = form if scale == 1 else form.replace(".1f", ".0f")
    return f"{scale * value:{form}} [{scale * low:{short}}, {scale * high:{short}}]"


def percent(share: float) -> str:
    return f"{100 * share:.0f}"
