"""docs/peers.md and its pictures, from the rows in results/peers.jsonl: `python -m peers.page` in benchmarks/.

Of every model and work the newest full run is shown, or the newest short one where there is no full one. Nothing is measured here.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from peers.figures import ratio
from peers.works import LESS_IS_BETTER, OURS, PEERS, TARGETS, UNITS, WORKS, Target

ROOT = Path(__file__).resolve().parents[2]
ROWS, PAGE = ROOT / "benchmarks/results/peers.jsonl", ROOT / "docs/peers.md"
HEAD = """# Beside its peers

Written by `python -m peers.page` (in benchmarks/) from the rows of benchmarks/results/peers.jsonl. Do not edit. `make bench` measures anew.

Every engine runs in a process of its own on the same file, the same prompts by token ids and the same number of threads. They take turns, work by
work and round by round, with prompts that no cache has seen; whoever waits is halted. Answers have a fixed length; all but samples are greedy.
Each engine is used as suits it: llama.cpp with a slot per sequence (samples of one prompt by its `n`), OpenVINO GenAI with continuous batching,
transformers with a batch, its repeated prefix cache, and its continuous batching for arrivals. Ours also counts making the text.
"""
Rows = dict[tuple[str, str], Mapping]  # (engine and variant, work) -> row


def read_rows(path: Path = ROWS) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line] if path.is_file() else []


def shown_runs(rows: Sequence[Mapping]) -> dict[str, Rows]:
    """model -> rows: of every work those of the newest full run that measured it with ours, else of the newest run at all."""
    runs: dict[str, dict[str, dict[tuple[bool, str], Rows]]] = {}
    for row in rows:
        found = runs.setdefault(row["model"], {}).setdefault(row["work"], {})
        found.setdefault((not row["is_quick"], row["run"]), {})[name_of(row), row["work"]] = row
    shown: dict[str, Rows] = {}
    for model, works in runs.items():
        for work, found in works.items():
            best = max(found, key=lambda key: (key[0], "figures" in found[key].get((OURS, work), {}), key[1]))
            shown.setdefault(model, {}).update(found[best])
    return shown


def name_of(row: Mapping) -> str:
    """The engine, and the variant where it is not the default one."""
    defaults = {w.name: w.variants[0] for w in WORKS}
    is_default = row["engine"] != OURS or row["variant"] == defaults.get(row["work"], "")
    return row["engine"] if is_default else f"{OURS} {row['variant']}"


def best_peer(rows: Rows, work: str, figure: str) -> str | None:
    measured = {p: rows[p, work]["figures"][figure]["median"] for p in PEERS if figure in rows.get((p, work), {}).get("figures", {})}
    if not measured:
        return None
    return min(measured, key=measured.__getitem__) if figure in LESS_IS_BETTER else max(measured, key=measured.__getitem__)


def judged(rows: Rows, target: Target) -> dict[str, object]:
    """{"peer", "ratio", "range", "with_prompts", "verdict"} of one target; verdict "pass", "miss", or why there is none."""
    figure = target.figure or next(w.figure for w in WORKS if w.name == target.work)
    peer = best_peer(rows, target.work, figure) if target.peer == "best peer" else target.peer
    ours, other = rows.get((OURS, target.work), {}), rows.get((peer or "", target.work), {})
    for name, row in ((OURS, ours), (peer or target.peer, other)):
        if figure not in row.get("figures", {}):
            return {"peer": peer or target.peer, "verdict": f"not measured: {name}: {row.get('missing') or why_missing(rows, name)}"}
    value = ratio(ours, other, figure)
    pairs = [ours["rounds"][k] / other["rounds"][k] for k in ours["rounds"] if k in other["rounds"]] if figure == ours["figure"] else []
    found = {"peer": peer, "ratio": value, "verdict": "pass" if (value <= target.ratio if target.is_most else value >= target.ratio) else "miss"}
    if pairs:
        found["range"] = (min(pairs), max(pairs))
    if figure == "decode_tokens_per_s":
        found["with_prompts"] = ratio(ours, other, "tokens_per_s")
    return found


def why_missing(rows: Rows, name: str) -> str:
    """What kept an engine from all works, where one of its rows says it."""
    return next((str(row["missing"]) for (other, _), row in rows.items() if other == name and "missing" in row), "not in this run")


def target_lines(rows: Rows) -> Iterator[str]:
    yield "| work | figure | beside | target | ratio of medians | over rounds | prompts included | |"
    yield "|---|---|---|---|---|---|---|---|"
    for target in TARGETS:
        work = next(w for w in WORKS if w.name == target.work)
        found = judged(rows, target)
        value = f"{found['ratio']:.2f} x" if "ratio" in found else ""
        span = "{:.2f} to {:.2f}".format(*found["range"]) if "range" in found else ""
        whole = f"{found['with_prompts']:.2f} x" if "with_prompts" in found else ""
        peer = f"best peer ({found['peer']})" if target.peer == "best peer" else target.peer
        bound = f"{'<=' if target.is_most else '>='} {target.ratio:g} x"
        verdict = f"**{found['verdict']}**" if found["verdict"] in ("pass", "miss") else found["verdict"]
        yield f"| {work.title} | {UNITS[target.figure or work.figure]} | {peer} | {bound} | {value} | {span} | {whole} | {verdict} |"


def cell(row: Mapping, figure: str) -> str:
    """median (least to greatest, rounds)."""
    if figure not in row.get("figures", {}):
        return ""
    found, mark = row["figures"][figure], "" if row["n"] >= 3 else f", n={row['n']}"
    return f"{found['median']:g} ({found['min']:g} to {found['max']:g}{mark})"


def figure_lines(rows: Rows) -> Iterator[str]:
    engines = [e for e in (OURS, *PEERS) if any("figures" in row for (name, _), row in rows.items() if name == e)]
    yield f"| work | figure | {' | '.join(engines)} |"
    yield "|---" * (len(engines) + 2) + "|"
    for work in WORKS:
        for variant in ("", *work.variants[1:]):
            names = [f"{e} {variant}".strip() for e in engines]
            for figure in UNITS:
                cells = [cell(rows.get((name, work.name), {}), figure) for name in names]
                if any(cells) and (figure != "peak_mb" or work.kind == "start"):
                    title = f"{size_of(rows, work.name)}; {variant.replace('_', ' ')}" if variant else size_of(rows, work.name)
                    yield f"| {title} | {UNITS[figure]} | {' | '.join(cells)} |"


def size_of(rows: Rows, work: str) -> str:
    """The work as it was really measured."""
    row = next((row for (_, name), row in rows.items() if name == work and "num" in row), None)
    if row is None:
        return work
    if work == "arrivals":
        return f"arrivals: {row['num']} requests, prompts to {row['prompt_len']}, {row['num_new'] // 2} to {row['num_new']} new tokens"
    return f"{work}: prompt {row['prompt_len']}, {row['num_new']} new" + (" each" if row["num"] > 1 else "")


def notes(rows: Rows) -> Iterator[str]:
    """Who ran with what, what its answers look like, who is missing and why."""
    yield "| engine | setting | versions | file | greedy answers as llama.cpp's | begins |"
    yield "|---|---|---|---|---|---|"
    for name in (OURS, *PEERS):
        found = [row for (other, _), row in rows.items() if other == name and "setting" in row]
        if found:
            same = [row["same_as_llama_cpp"] for row in found if "same_as_llama_cpp" in row]
            versions = ", ".join(f"{k} {v}" for k, v in found[-1]["versions"].items())
            share = f"{100 * sum(same) / len(same):.0f} % of the text" if same else ""
            head = " ".join(next((r["head"] for r in found if r["work"] == "decode 1"), found[-1]["head"]).split()).replace("|", "/")
            yield f"| {name} | {found[-1]['setting']} | {versions} | {found[-1]['file']} {found[-1]['sha256'][:12]} | {share} | {head} |"
    yield ""
    missing: dict[tuple[str, str], list[str]] = {}
    for (name, work), row in rows.items():
        for reason in {row["missing"]} if "missing" in row else set(row.get("failed", ())):
            missing.setdefault((name, str(reason)), []).append(work)
    for (name, reason), works in missing.items():
        yield f"- Not measured: {name}, {', '.join(works)}: {reason}"


def page(models: Mapping[str, Rows]) -> str:
    """The whole of docs/peers.md."""
    lines = [HEAD]
    if not models:
        lines.append("No rows yet: run `make bench`.")
    for model, rows in models.items():
        row = next((r for r in rows.values() if "load" in r), next(iter(rows.values())))
        lines += [f"## {model}", ""]
        kind = "short run" if row["is_quick"] else "full run"
        loads = [r["load"] for r in rows.values() if "load" in r]
        times = sorted({r["run"].replace("T", " ") for r in rows.values()})
        lines += [
            f"{kind} of {' and '.join(times)} (every work from one run), commit {row['commit']}, {row['machine']}; "
            f"load average at most {max(loads, default=0):g}. `{row['command']}`",
            "",
            *target_lines(rows),
            "",
            f"![{model} beside its peers](peers-{model}.svg)",
            "",
            *figure_lines(rows),
            "",
            "Medians (least to greatest of the rounds; three rounds where no n is given).",
            "",
            *notes(rows),
            "",
        ]
    return "\n".join(lines).rstrip() + "\n"


def main() -> int:
    from peers.plots import draw  # matplotlib is wanted for pictures only

    models = shown_runs(read_rows())
    PAGE.write_text(page(models), encoding="utf-8")
    for model, rows in models.items():
        draw(model, rows, PAGE.parent / f"peers-{model}.svg")
    print(f"written: {PAGE.relative_to(ROOT)} and {len(models)} pictures")
    return 0


if __name__ == "__main__":
    sys.exit(main())
