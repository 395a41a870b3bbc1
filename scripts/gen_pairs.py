"""Writes docs/pairs.md from benchmarks/results/pair_matrix.json: which drafters, acceptors, weight formats and strategies were seen together.

`python scripts/gen_pairs.py --check` writes nothing and fails when the page is stale: when cells changed, or a name came or went in the
catalogue. It runs no law; a pair that no law was run on is shown as such. `python benchmarks/pair_matrix.py` runs them all, in minutes.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from house import House, catalogue_of, rows_of

ROOT = Path(__file__).resolve().parent.parent
CELLS, PAGE = ROOT / "benchmarks/results/pair_matrix.json", ROOT / "docs/pairs.md"
TABLES = {"drafter": ("DRAFTERS", "TRAINED_DRAFTERS"), "acceptor": ("ACCEPTORS",), "weights": ("WEIGHTS",), "strategy": ("STRATEGIES",)}
MARKS = {
    "equal": "=", "rounding": "≈", "greedy equal": "= at 0", "greedy rounding": "≈ at 0", "answers": "runs", "differs": "≠",
    "greedy differs": "≠", "fails": "FAILS",
}  # fmt: skip
HEAD = """# The pair matrix

Written by `python scripts/gen_pairs.py` from benchmarks/results/pair_matrix.json, which `python benchmarks/pair_matrix.py` runs anew
(last {date}, commit {commit}). Do not edit.

Every cell is a run of a law on a random model of three layers: nine requests, greedy and sampled (of a strategy: one question), with
drafts of three tokens and without. What a table does not name is ngram, coupled and native. A check fails when the page does not fit
the catalogue.

| mark | what was seen |
|---|---|
| = | the answers of plain decoding with the same weights, bit for bit, log-probabilities included |
| ≈ | the same tokens; log-probabilities to rounding: the format's sums depend on how many rows meet |
| = at 0 | greedy answers as plain decoding's; sampled ones have its distribution by enumeration (testing/laws_draft), but are other draws |
| runs | all is answered; the acceptor is lossy by declaration or draws anew, or a budget ended the answer |
| ≠ | other answers: the weight format computes few rows in one arithmetic and many in another, as its card says |
| FAILS | an error |
| refused | before anything is computed, with the reason below the table |
| not run | no law was run on it since its name came |

{same} pairs give plain decoding's answers (greedy ones where marked so), {runs} run with other draws,
{other} differ, {refused} are refused, {missing} were not run.
"""
Cells = Mapping[str, Mapping[str, Mapping[str, str]]]


def names_of(house: House) -> dict[str, list[str]]:
    """The catalogue's names by kind, in its order."""
    trees = catalogue_of(house)
    return {kind: list(dict.fromkeys(name for table in tables for name in rows_of(trees, table))) for kind, tables in TABLES.items()}


def cell_of(cells: Cells, table: str, row: str, column: str) -> str:
    return cells.get(table, {}).get(row, {}).get(column, "not run")


def shown(cell: str) -> str:
    return "refused" if cell.startswith("refused") else MARKS.get(cell, cell)


def table_lines(cells: Cells, table: str, names: Mapping[str, Sequence[str]]) -> Iterator[str]:
    rows, columns = table.split("/")
    yield f"\n## {rows.capitalize()} and {columns}\n"
    yield f"| {rows} | {' | '.join(names[columns])} |"
    yield "|---" * (1 + len(names[columns])) + "|"
    reasons: dict[str, None] = {}
    for row in names[rows]:
        found = [cell_of(cells, table, row, column) for column in names[columns]]
        reasons.update({cell: None for cell in found if cell.startswith("refused")})
        yield f"| {row} | {' | '.join(map(shown, found))} |"
    for reason in reasons:
        yield f"\n{reason}"


def page_text(cells: Cells, facts: Mapping[str, str], names: Mapping[str, Sequence[str]]) -> str:
    tables = [*cells] or ["drafter/acceptor"]
    marks = [shown(cell_of(cells, t, row, column)) for t in tables for row in names[t.split("/")[0]] for column in names[t.split("/")[1]]]
    counts = {
        "same": sum(mark[0] in "=≈" for mark in marks), "runs": marks.count("runs"), "other": marks.count("≠") + marks.count("FAILS"),
        "refused": marks.count("refused"), "missing": marks.count("not run"),
    }  # fmt: skip
    return HEAD.format(**facts, **counts) + "\n".join(line for table in tables for line in table_lines(cells, table, names)) + "\n"


def main() -> int:
    found = json.loads(CELLS.read_text(encoding="utf-8"))
    text = page_text(found["tables"], found["facts"], names_of(House(ROOT)))
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(text, encoding="utf-8")
    elif not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text:
        print("docs/pairs.md is stale; run `make docs`")
        return 1
    print(f"docs/pairs.md: {text.partition('not run since')[0].splitlines()[0][2:]} is current")
    return 0


if __name__ == "__main__":
    sys.exit(main())
