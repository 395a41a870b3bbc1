"""Puts tables of rows into the hand-written part of docs/speculation.md: `python benchmarks/speculation_tables.py [--check]`.

A line `<!-- rows: NAME -->` begins a table and `<!-- end -->` ends it; what stands between them is written here, from the newest rows.
"""

import argparse
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import code_completion
import segments

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PAGE = ROOT / "benchmarks/results", ROOT / "docs/speculation.md"
BLOCK = re.compile(r"<!-- rows: (\w+) -->\n.*?<!-- end -->", re.DOTALL)
Row = dict[str, object]


def rows_of(name: str) -> list[Row]:
    path = RESULTS / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def origin(row: Row) -> str:
    return f"{row['date']}, commit {row['commit']}, {row['machine']}: `{row['command']}`"


def runs(rows: list[Row]) -> dict[str, list[Row]]:
    """The newest rows of each model, by what was asked: the settings of its newest command."""
    newest = {str(row["model"]): row["command"] for row in rows}
    return {model: [row for row in rows if row["model"] == model and row["command"] == command] for model, command in newest.items()}


def segment_lines() -> Iterator[str]:
    rows = rows_of("segments")
    if rows:
        last = rows[-1]
        kept = [row for row in rows if row["digest"] == last["digest"] and row["dim"] == last["dim"] and row["layers"] == last["layers"]]
        yield f"{origin(last)}; {last['seen_tokens']:,} tokens of text, {last['num_tokens']:,} read in training, {last['n']} unseen stretches."
        yield ""
        yield from segments.table(kept)


def griffin_lines() -> Iterator[str]:
    drafts = [row for row in rows_of("draft_passes") if "griffin" in str(row["command"])]
    for model, rows in runs(drafts).items():
        yield from ("", f"{model}, {rows[0]['n']} prompts of {rows[0]['new']} tokens, one thread, CPU time; {origin(rows[0])}.", "")
        yield "| drafter | accepted of drafted | accepted a round | ms a token | x plain | answers as plain decoding's |"
        yield "|---|---|---|---|---|---|"
        for row in rows:
            share = f"{row['accepted'] / row['drafted']:.1%}" if row["drafted"] else "-"  # type: ignore[operator]
            cells = (row["draft"] or "none", share, row["accepted_a_round"], row["ms_a_token"], row["speed_up"], f"{row['equal']} of {row['n']}")
            yield "| " + " | ".join(map(str, cells)) + " |"


def completion_lines() -> Iterator[str]:
    for model, rows in runs(rows_of("code_completion")).items():
        first = rows[0]
        yield from ("", f"{model} ({first['layers']} layers), {first['num_cuts']} cuts of {first['num_problems']} problems; {origin(first)}.", "")
        newest = {str(row["setting"]): row for row in rows}
        yield from code_completion.table(list(newest.values()))


TABLES: dict[str, Callable[[], Iterator[str]]] = {"segments": segment_lines, "griffin": griffin_lines, "completion": completion_lines}


def filled(text: str) -> str:
    """The page with its tables. Raises KeyError for a table of no such name."""

    def block(match: re.Match[str]) -> str:
        lines = list(TABLES[match[1]]())
        return "\n".join([f"<!-- rows: {match[1]} -->", *(lines or ["Not measured yet."]), "<!-- end -->"])

    return BLOCK.sub(block, text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail where the page is not what its rows say")
    args = parser.parse_args()
    text = PAGE.read_text(encoding="utf-8")
    if args.check and filled(text) != text:
        raise SystemExit(f"{PAGE.name} is stale; run `python benchmarks/speculation_tables.py`")
    if not args.check:
        PAGE.write_text(filled(text), encoding="utf-8")


if __name__ == "__main__":
    main()
