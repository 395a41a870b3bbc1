"""docs/speculation.md and its pictures, from the rows of benchmarks/results/speculation.jsonl: `python -m speculation.page` in benchmarks/."""

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from speculation.questions import CATEGORIES

ROOT = Path(__file__).resolve().parents[2]
OWN = "\n## Trained drafters\n"  # from here on the page is written by hand, and kept
ROWS, PAGE = ROOT / "benchmarks/results/speculation.jsonl", ROOT / "docs/speculation.md"
PLAIN = "plain"
Row = Mapping[str, object]
HEAD = """# Guessing ahead

Written by `python -m speculation.page` (in benchmarks/) from the rows of benchmarks/results/speculation.jsonl; edit nothing above
"Trained drafters".
`python benchmarks/spec_bench.py --python PEERS/bin/python` measures anew.

A setting is drafter / acceptor / length control. Questions come in the manner of Spec-Bench, from data that can be installed: summaries
and questions over documents, answers from retrieved passages, edits of programs, follow-ups that ask for an answer again with one change (as
MT-Redundant does), word problems. Settings take turns with plain decoding on the same prompts, whose reading is not counted; a speed-up is
the median over rounds of tokens a second beside plain decoding's in the same round. Drafters begin every turn cold; those that say
over=session begin it warm, with what they learned from three other questions of each category.
"""


def read_rows(path: Path = ROWS) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def shown_runs(rows: Sequence[Row]) -> dict[tuple[str, float, str], list[Row]]:
    """The rows of the latest run of each (model, temperature, clock)."""
    latest: dict[tuple[str, float, str], str] = {}
    for row in rows:
        latest[_run_of(row)] = str(row["run"])
    return {key: [r for r in rows if _run_of(r) == key and r["run"] == run] for key, run in latest.items()}


def _run_of(row: Row) -> tuple[str, float, str]:
    return str(row["model"]), float(row["temperature"]), str(row["clock"])  # type: ignore[arg-type]


def by_setting(rows: Sequence[Row], kind: str, num: int) -> dict[str, dict[str, Row]]:
    """setting -> category -> row."""
    found: dict[str, dict[str, Row]] = {}
    for row in rows:
        if row["kind"] == kind and row["num"] == num:
            found.setdefault(str(row["setting"]), {})[str(row["category"])] = row
    return found


def mean(values: Sequence[float]) -> float:
    """Geometric, as ratios have it."""
    return math.exp(sum(map(math.log, values)) / len(values))


def speed_lines(rows: Sequence[Row], num: int) -> Iterator[str]:
    """Speed-up and accepted tokens a round, by setting and category."""
    found = by_setting(rows, "ours", num)
    categories = [c for c in CATEGORIES if any(c in row for row in found.values())]
    yield f"| setting | {' | '.join(categories)} | mean | worst |"
    yield "|---" * (len(categories) + 3) + "|"
    for setting, row in found.items():
        if setting == PLAIN:
            cells = [f"{row[c]['tokens_per_s']:g}" if c in row else "" for c in categories]
            yield f"| plain, tokens/s | {' | '.join(cells)} | | |"
            continue
        cells = [f"{row[c]['speed_up']:.2f} ({row[c]['accepted_per_round']:.2f})" if c in row else "" for c in categories]
        ratios = [float(row[c]["speed_up"]) for c in categories if c in row]  # type: ignore[arg-type]
        yield f"| {setting} | {' | '.join(cells)} | **{mean(ratios):.2f}** | {min(ratios):.2f} |"


def work_lines(rows: Sequence[Row], num: int) -> Iterator[str]:
    """What the rounds came to, over all categories."""
    yield "| setting | rounds | accepted a round | drafted | wasted | ms of drafting a round | answers as plain decoding's |"
    yield "|---|---|---|---|---|---|---|"
    for setting, row in by_setting(rows, "ours", num).items():
        if setting != PLAIN:
            rounds = [float(r["rounds"]) for r in row.values()]  # type: ignore[arg-type]
            total = max(1.0, sum(rounds))
            sums = [
                sum(float(r[name]) * n for r, n in zip(row.values(), rounds)) / total  # type: ignore[arg-type]
                for name in ("accepted_per_round", "drafted_per_round", "wasted_per_round", "draft_ms_per_round")
            ]
            same = sum(bool(r["same_as_plain"]) for r in row.values())
            yield f"| {setting} | {total:.0f} | {' | '.join(f'{x:.2f}' for x in sums)} | {same} of {len(row)} categories |"


def peer_lines(rows: Sequence[Row], num: int) -> Iterator[str]:
    """Tokens a second of peers, their own plain decoding among them, beside ours at its best mean."""
    peers, ours = by_setting(rows, "peer", num), by_setting(rows, "ours", num)
    if not peers:
        yield "No peer was measured."
        return
    categories = [c for c in CATEGORIES if any(c in row for row in ours.values())]
    drafted = {s: row for s, row in ours.items() if s != PLAIN and len(row) == len(categories)}
    best = max(drafted, key=lambda s: mean([float(r["speed_up"]) for r in drafted[s].values()]), default=PLAIN)  # type: ignore[arg-type]
    yield f"| tokens/s | {' | '.join(categories)} |"
    yield "|---" * (len(categories) + 1) + "|"
    for name, row in ((f"ours, {best}", ours[best]), ("ours, plain", ours[PLAIN]), *peers.items()):
        cells = [f"{row[c]['tokens_per_s']:g}" if row.get(c, {}).get("tokens_per_s") else "-" for c in categories]
        yield f"| {name} | {' | '.join(cells)} |"
    missing = {f"{name}: {r['missing']}" for name, row in peers.items() for r in row.values() if "missing" in r}
    yield ""
    yield from (f"- Not measured: {text}" for text in sorted(missing))


def picture_name(key: tuple[str, float, str]) -> str:
    model, temperature, clock = key
    return f"speculation-{model}{f'-t{temperature:g}' if temperature else ''}{'-cpu' if clock == 'cpu' else ''}.svg"


def page(runs: Mapping[tuple[str, float, str], Sequence[Row]]) -> str:
    """The whole of docs/speculation.md."""
    lines = [HEAD]
    if not runs:
        lines.append("No rows yet.")
    for key, rows in runs.items():
        model, temperature, clock = key
        first = rows[0]
        lines += [
            f"## {model}, {f'temperature {temperature:g}' if temperature else 'greedy'}{', CPU time' if clock == 'cpu' else ''}", "",
            f"Run of {first['run']}, commit {first['commit']}, {first['machine']}; load average {first['load']}; answers of at most {first['new']} "
            f"tokens. `{first['command']}`", "",
        ]  # fmt: skip
        lines += [f"A step of so many rows costs, beside one row: {width_text(row)}." for row in rows if row["kind"] == "width"]
        for num in sorted({int(r["num"]) for r in rows if r["kind"] == "ours"}):  # type: ignore[call-overload]
            lines += ["", f"### {num} at once: speed-up over plain decoding (accepted tokens a round)", "", *speed_lines(rows, num)]
            lines += ["", *work_lines(rows, num), "", *peer_lines(rows, num)]
        lines += ["", f"![speed-up by category]({picture_name(key)})", ""]
    return "\n".join(lines).rstrip() + "\n"


def width_text(row: Row) -> str:
    found = sorted((int(rows), cost) for rows, cost in row["seconds"].items())  # type: ignore[attr-defined]
    return ", ".join(f"{rows} rows {cost:.2f} x" for rows, cost in found[1:])


def draw(rows: Sequence[Row], title: str, path: Path) -> None:
    """Speed-up by category, a bar for each setting; a row of bars for each number of sequences."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "speculation", "svg.fonttype": "path"})
    counts = sorted({int(r["num"]) for r in rows if r["kind"] == "ours"})  # type: ignore[call-overload]
    figure, grid = plt.subplots(len(counts), 1, figsize=(10, 3.2 * len(counts)), layout="constrained", squeeze=False)
    for axes, num in zip(grid[:, 0], counts, strict=True):
        found = {s: row for s, row in by_setting(rows, "ours", num).items() if s != PLAIN}
        categories = [c for c in CATEGORIES if any(c in row for row in found.values())]
        width = 0.8 / max(1, len(found))
        for at, (setting, row) in enumerate(found.items()):
            places = [i + (at - (len(found) - 1) / 2) * width for i, c in enumerate(categories) if c in row]
            axes.bar(places, [row[c]["speed_up"] for c in categories if c in row], width=0.92 * width, label=setting)
        axes.axhline(1.0, color="black", linewidth=0.8)
        axes.set_xticks(range(len(categories)), categories)
        axes.set(ylabel=f"speed-up, {num} at once")
        axes.grid(alpha=0.25, axis="y")
        axes.set_axisbelow(True)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False, title=title)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main() -> int:
    runs = shown_runs(read_rows())
    own = PAGE.read_text(encoding="utf-8").partition(OWN) if PAGE.exists() else ("", "", "")
    PAGE.write_text(page(runs) + own[1] + own[2], encoding="utf-8")
    for key, rows in runs.items():
        draw(rows, f"{key[0]}: tokens a second beside plain decoding", PAGE.parent / picture_name(key))
    print(f"written: {PAGE.relative_to(ROOT)} and {len(runs)} pictures")
    return 0


if __name__ == "__main__":
    sys.exit(main())
