"""Writes docs/FEATURES.md from docs/features.toml: each feature with the tests that show it.

`python scripts/gen_features.py --check` writes nothing and fails when the page is stale, or when a named test does not exist.
"""

import ast
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NUM_FEATURES = 50
BEST_PEER = 14  # full marks of the best of 16 peers, counted from their code
HEAD = """# Features

Written by `python scripts/gen_features.py` from docs/features.toml. Do not edit. The 50 features by which inference-scaling libraries are compared
here; the best of the 16 peers whose code was read has {peer} of them in full. A mark is worth what its tests show: each is named, and a check fails
when one is gone.

**{full} in full, {part} in part, {none} not there.**

| # | feature | mark | shown by |
|---|---|---|---|
"""
Feature = Mapping[str, object]


def read_features(path: Path) -> dict[int, Feature]:
    return {int(number): row for number, row in tomllib.loads(path.read_text(encoding="utf-8")).items()}


def mark_of(feature: Feature) -> str:
    """ "full", "part" or ""."""
    return "" if not feature.get("tests") else "part" if feature.get("part") else "full"


def mistakes(features: Mapping[int, Feature], root: Path) -> list[str]:
    """What is wrong with the list, one line each: gaps, unknown fields, and tests that do not exist."""
    found = [f"feature {number} is missing" for number in range(1, NUM_FEATURES + 1) if number not in features]
    found += [f"feature {number}: there are {NUM_FEATURES} only" for number in features if not 1 <= number <= NUM_FEATURES]
    known: dict[str, set[str]] = {}
    for number, feature in features.items():
        if unknown := set(feature) - {"name", "tests", "part"}:
            found.append(f"feature {number} has unknown fields {', '.join(sorted(unknown))}")
        if feature.get("part") and not feature.get("tests"):
            found.append(f"feature {number} is there in part, but no test shows it")
        for node in feature.get("tests", []):  # type: ignore[attr-defined]
            path, _, name = str(node).partition("::")
            if name not in known.setdefault(path, tests_in(root / path)):
                found.append(f"feature {number}: there is no test {node}")
    return found


def tests_in(path: Path) -> set[str]:
    """Names of the test functions of a file."""
    if not path.is_file():
        return set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def features_text(features: Mapping[int, Feature]) -> str:
    marks = [mark_of(feature) for feature in features.values()]
    text = HEAD.format(peer=BEST_PEER, full=marks.count("full"), part=marks.count("part"), none=marks.count(""))
    for number, feature in sorted(features.items()):
        shown = "<br>".join(f"`{node}`" for node in feature.get("tests", []))  # type: ignore[attr-defined]
        mark = mark_of(feature)
        text += f"| {number} | {feature['name']} | {mark}{': ' + str(feature['part']) if mark == 'part' else ''} | {shown} |\n"
    return text


def main() -> int:
    features, page = read_features(ROOT / "docs/features.toml"), ROOT / "docs/FEATURES.md"
    wrong = mistakes(features, ROOT)
    text = features_text(features) if not wrong else ""
    if "--check" in sys.argv[1:] and not wrong and (not page.is_file() or page.read_text(encoding="utf-8") != text):
        wrong = ["docs/FEATURES.md is stale; run `make docs`"]
    elif "--check" not in sys.argv[1:] and not wrong:
        page.write_text(text, encoding="utf-8")
    print("\n".join(wrong) or f"docs/FEATURES.md: {text.partition('**')[2].partition('**')[0]}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
