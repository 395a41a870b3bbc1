"""Writes what is generated: docs/CATALOGUE.md from cards and benchmark rows, src/ponder/__init__.pyi from the public names.

`python scripts/gen_catalogue.py --check` writes nothing and fails when one of them is stale.

A benchmark row is a line of benchmarks/results/*.jsonl; one that names a technique (`"technique": "beam"`) and a `"figure"` (one
sentence with its number and interval) is shown with the technique, the newest row of a file last.
"""

import ast
import json
import sys
from pathlib import Path

import house
import ponder

ROOT = Path(__file__).resolve().parent.parent
ROLES = {
    "infer": "Strategies",
    "infer/resample": "Resamplers",
    "infer/stop": "Stop rules",
    "verify": "Verifiers",
    "accelerate/weights": "Weight formats",
    "accelerate/attend": "Attention plans",
    "accelerate/prompt": "Pruned prompts",
    "accelerate/layers": "Models with trained tails and key predictors",
    "accelerate/schedule": "Schedulers",
    "accelerate/cache": "Cache policies and their parts",
    "collaborate": "Collaborations",
    "accelerate/draft": "Drafters",
    "accelerate/accept": "Acceptors",
    "accelerate/length": "Length controls",
}
CATALOGUE_HEAD = """# Catalogue

Written by `make docs` from the cards of the technique files and the rows of benchmarks/results/. Do not edit.
"""
FRONT_HEAD = '"""Types of the front door. Written by `make docs` from `PUBLIC`. Do not edit."""\n\n'


def read_card(source: house.Source) -> dict[str, str]:
    """{"Idea": first line, heading: its text on one line, ...} of a technique file."""
    doc = ast.get_docstring(source.tree) or ""
    idea, *rest = house.HEADING.split(doc)
    return {"Idea": " ".join(idea.split())} | {h: " ".join(text.split()) for h, text in zip(rest[::2], rest[1::2], strict=True)}


def catalogue_names(trees: list[ast.Module], tables: tuple[str, ...]) -> dict[str, list[str]]:
    """module -> names that it has in those dict literals of the catalogue."""
    names: dict[str, list[str]] = {}
    for key, modules in (row for table in tables for row in house.rows_of(trees, table).items()):
        for module in modules:
            names.setdefault(module, []).append(key)
    return names


def benchmark_figures(root: Path) -> dict[str, list[str]]:
    """technique -> its figures, newest row of each file last."""
    figures: dict[str, list[str]] = {}
    for path in sorted((root / "benchmarks/results").glob("*.jsonl")):
        for row in map(json.loads, filter(None, path.read_text(encoding="utf-8").splitlines())):
            if "technique" in row and "figure" in row:
                figures.setdefault(row["technique"], []).append(f"{row['figure']} ({path.stem})")
    return figures


def technique_section(source: house.Source, names: list[str], figures: dict[str, list[str]]) -> list[str]:
    """One technique: its file's name, idea, card, the names that it has part in, benchmark rows."""
    card, own = read_card(source), source.module.rpartition("/")[2]
    lines = [f"### {own}", "", card.pop("Idea"), ""]
    lines += [f"- **{heading}**: {text}" for heading, text in card.items()]
    lines += [f"- **Named**: {', '.join(f'`{name}`' for name in names)}"] if names != [own] else []
    lines += [f"- **Measured**: {figure}" for name in names for figure in figures.get(name, [])]
    return [*lines, f"- `{source.path}`, {source.num_lines} lines", ""]


def catalogue_text(tree: house.House) -> str:
    """The whole of docs/CATALOGUE.md."""
    catalogue, figures, lines = house.catalogue_of(tree), benchmark_figures(tree.root), [CATALOGUE_HEAD]
    for folder, tables in house.CATALOGUE.items():
        names = catalogue_names(catalogue, tables)
        techniques = [s for s in tree.sources if s.is_technique and s.module.rpartition("/")[0] == folder]
        lines += [f"## {ROLES[folder]}", ""]
        for source in techniques:
            module = f"ponder.{source.module}".replace("/", ".")
            lines += technique_section(source, sorted(names.get(module, [source.module.rpartition("/")[2]])), figures)
    return "\n".join(lines).rstrip() + "\n"


def front_text() -> str:
    """The whole of src/ponder/__init__.pyi."""
    imports = sorted(f"from {module} import {name} as {name}" for name, module in ponder.PUBLIC.items())
    return FRONT_HEAD + "\n".join(imports) + "\n\n__version__: str\nPUBLIC: dict[str, str]\n__all__: list[str]\n"


def main() -> int:
    wanted = {"docs/CATALOGUE.md": catalogue_text(house.House(ROOT)), "src/ponder/__init__.pyi": front_text()}
    stale = {path: text for path, text in wanted.items() if not (ROOT / path).is_file() or (ROOT / path).read_text(encoding="utf-8") != text}
    if "--check" in sys.argv[1:]:
        print("\n".join(f"{path} is stale; run `make docs`" for path in stale) or f"{', '.join(wanted)}: current")
        return 1 if stale else 0
    for path, text in stale.items():
        (ROOT / path).write_text(text, encoding="utf-8")
    print(f"written: {', '.join(stale) or 'nothing, all current'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
