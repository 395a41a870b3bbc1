"""The house rules hold on this tree, and each one finds fault with a small bad tree that breaks it."""

import subprocess
import sys
from pathlib import Path

import pytest

import house
import ponder

ROOT = Path(__file__).resolve().parent.parent
HOUSE = house.House(ROOT)

CARD = '''"""Beam: keep the most likely prefixes.

Paper      Lowerre 1976
Equation   a = b
Shapes     [N] -> [N]
Guarantee  biased: towards short answers
Cost       N
Choose     never
"""
'''
TABLE = """| room | may import |
|---|---|
| core | nothing |
| infer | core |
| catalogue | everything but __init__ |
| __init__ | everything |
"""
GOOD = {
    "ARCHITECTURE.md": TABLE,
    "src/ponder/__init__.py": "import importlib\n",
    "src/ponder/core/words.py": "A = 1\n\n\ndef small(a: int, *, b: int) -> int:\n    return a + b\n",
    "src/ponder/infer/ops.py": "from ponder.core.words import A\n",
    "src/ponder/infer/beam.py": CARD + "import torch\nfrom ponder.infer.ops import A\n\n\nclass Beam:\n    guarantee = Guarantee.BIASED\n",
    "src/ponder/catalogue/strategies.py": 'from ponder.infer.beam import Beam\n\nSTRATEGIES: dict[str, object] = {"beam": Beam()}\n',
    "tests/test_beam.py": "def test_beam():\n    inner = lambda: 1\n    assert inner()\n",
}  # fmt: skip
LONG = "def long():\n" + "    x = 1\n" * 81
BEAM, CORE, CATALOGUE = "src/ponder/infer/beam.py", "src/ponder/core/words.py", "src/ponder/catalogue"

# rule -> (files that break it, the path it must name); every file is laid over GOOD, None removes one
TEETH: dict[str, list[tuple[dict[str, str | None], str]]] = {
    "imports_follow_the_table": [
        ({CORE: "from ponder.infer.beam import Beam\n"}, CORE),
        ({CORE: "import ponder\n"}, CORE),
        ({CORE: "from . import other\n"}, CORE),
        ({CORE: "def f():\n    import ponder.catalogue\n"}, CORE),
        ({"src/ponder/attic/a.py": ""}, "src/ponder/attic/a.py"),
        ({"src/ponder/catalogue/strategies.py": "from ponder import chat\n"}, "src/ponder/catalogue/strategies.py"),
    ],
    "table_lists_what_exists": [
        ({"ARCHITECTURE.md": TABLE + "| attic | core |\n"}, "ARCHITECTURE.md"),
        ({"ARCHITECTURE.md": TABLE.replace("| infer | core |", "| infer | core, attic |")}, "ARCHITECTURE.md"),
    ],
    "techniques_stand_alone": [
        ({"src/ponder/infer/other.py": "from ponder.infer.beam import Beam\n"}, "src/ponder/infer/other.py"),
        ({BEAM: CARD + "import ponder.engine.forward\n"}, BEAM),
        ({BEAM: CARD + "import pandas\n"}, BEAM),
    ],
    "imports_stand_at_the_top": [
        ({CORE: "def f():\n    import json\n"}, CORE),
        ({CORE: "def f():\n    from ponder.core import weights\n"}, CORE),
        ({CORE: "import importlib\n"}, CORE),
    ],
    "no_type_checking": [
        ({CORE: "from typing import TYPE_CHECKING\n"}, CORE),
        ({CORE: "import typing\n\nif typing.TYPE_CHECKING:\n    import json\n"}, CORE),
    ],
    "modules_are_named_by_content": [
        ({"src/ponder/core/utils.py": ""}, "src/ponder/core/utils.py"),
        ({"src/ponder/core/common/a.py": ""}, "src/ponder/core/common/a.py"),
    ],
    "cards_are_complete": [
        ({BEAM: "A = 1\n"}, BEAM),
        ({BEAM: CARD.replace("Cost  ", "Costs ")}, BEAM),
        ({BEAM: CARD.replace("prefixes.", "prefixes")}, BEAM),
        ({BEAM: CARD.replace("never\n", "never\nDiffers    -\n")}, BEAM),
        ({BEAM: CARD.replace("Paper ", "Shapes").replace("Shapes  ", "Paper   ", 2)}, BEAM),
    ],
    "guarantees_agree": [
        ({BEAM: CARD + "class Beam:\n    guarantee = Guarantee.EXACT\n"}, BEAM),
        ({BEAM: CARD + "def beam(): ...\n\n\nbeam.guarantee = Guarantee.UNBIASED\n"}, BEAM),
        ({BEAM: CARD.replace("biased:", "good:")}, BEAM),
    ],
    "techniques_are_small": [({BEAM: CARD + "A = 1\n" * 145}, BEAM)],
    "catalogue_is_complete": [
        ({"src/ponder/infer/other.py": CARD}, CATALOGUE),
        ({"src/ponder/catalogue/strategies.py": 'from ponder.infer.beam import Beam\n\nSTRATEGIES = {"a": Beam(), "b": Old()}\n'}, CATALOGUE),
        ({"src/ponder/catalogue/strategies.py": "STRATEGIES = {}\n"}, CATALOGUE),
        ({"src/ponder/catalogue/strategies.py": None}, CATALOGUE),
    ],
    "functions_are_short": [
        ({CORE: LONG}, CORE),
        ({CORE: "def f():\n" + "    x = 1\n" * 12}, house.PACKAGE),
    ],
    "files_are_short": [
        ({CORE: "A = 1\n" * 501}, CORE),
        ({"tests/test_beam.py": "A = 1\n" * 501}, "tests/test_beam.py"),
    ],
    "house_is_small": [({f"src/ponder/core/words{i}.py": "A = 1\n" * 450 for i in range(house.SMALL_LINES // 450 + 1)}, house.PACKAGE)],
    "parameters_are_few": [
        ({CORE: "def f(a, b, c, d, e): ...\n"}, CORE),
        ({CORE: "def f(*, a, b, c, d, e, f, g, h, i): ...\n"}, CORE),
        ({CORE: "class A:\n    def f(self, a, b, c, d, e): ...\n"}, CORE),
    ],
    "kwargs_are_rare": [({CORE: "def f(**rest): ...\n"}, CORE), ({CORE: "def f(**rest): ...\n"}, house.PACKAGE)],
    "errors_are_not_swallowed": [
        ({CORE: "try:\n    pass\nexcept Exception:\n    pass\n"}, CORE),
        ({CORE: "for i in ():\n    try:\n        pass\n    except:\n        continue\n"}, CORE),
        ({CORE: "with contextlib.suppress(Exception):\n    pass\n"}, CORE),
    ],
    "nothing_is_unfinished": [
        ({CORE: "A = 1  # TO" + "DO\n"}, CORE),
        ({CORE: "def f():\n    raise NotImplemented" + "Error\n"}, CORE),
    ],
    "library_does_not_print": [({CORE: "print(1)\n"}, CORE)],
    "randomness_is_an_argument": [
        ({CORE: "import torch\n\ntorch.manual_seed(0)\n"}, CORE),
        ({CORE: "import numpy as np\n\nnp.random.rand(3)\n"}, CORE),
        ({CORE: "import random\n\nrandom.shuffle([])\n"}, CORE),
        ({CORE: "import random\n\nr = random.Random()\n"}, CORE),
        ({CORE: "import torch\n\ntorch.rand(3)\n"}, CORE),
        ({CORE: "x.normal_(0, 1)\n"}, CORE),
    ],
    "machines_are_not_named": [
        ({"docs/notes.md": "see /wor" + "k/main\n"}, "docs/notes.md"),
        ({"Makefile": "all:\n\tls /op" + "t/x\n"}, "Makefile"),
    ],
    "tests_have_stable_names": [({"tests/test_beam.py": "parametrize('op', OPS, ids=re" + "pr)\n"}, "tests/test_beam.py")],
    "tests_do_not_return_early": [({"tests/test_beam.py": "def test_beam():\n    if A:\n        return\n    assert B\n"}, "tests/test_beam.py")],
}  # fmt: skip


def build(root: Path, changes: dict[str, str | None]) -> house.House:
    """GOOD with `changes` laid over it, written under `root`."""
    for path, text in {**GOOD, **changes}.items():
        if text is not None:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text)
    return house.House(root)


@pytest.mark.parametrize("rule", house.RULES)
def test_rule_holds(rule):
    found = house.findings(HOUSE, rule, house.EXCEPTIONS.get(rule, {}))
    assert not found, "\n".join(found)


@pytest.mark.parametrize("rule", house.RULES)
def test_good_tree_passes(rule, tmp_path):
    assert house.findings(build(tmp_path, {}), rule, {}) == []


@pytest.mark.parametrize(("rule", "changes", "path"), [(rule, *case) for rule, cases in TEETH.items() for case in cases])
def test_rule_has_teeth(rule, changes, path, tmp_path):
    assert path in {found for found, _ in house.RULES[rule](build(tmp_path, changes))}


def test_every_rule_has_teeth():
    assert TEETH.keys() == house.RULES.keys()


def test_exceptions_are_strict(tmp_path):
    bad = build(tmp_path, {CORE: "print(1)\n"})
    assert house.findings(bad, "library_does_not_print", {CORE: "reason"}) == []
    (stale,) = house.findings(bad, "library_does_not_print", {CORE: "reason", BEAM: "reason"})
    assert stale.startswith(BEAM) and "no longer needed" in stale


def test_exceptions_name_rules_and_reasons():
    assert house.EXCEPTIONS.keys() <= house.RULES.keys()
    assert all(reason for paths in house.EXCEPTIONS.values() for reason in paths.values())


def test_import_is_light():
    code = "import sys, ponder; print(sorted({'torch', 'numpy', 'typer', 'rich'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_public_names_are_sorted_and_exist():
    assert ponder.__all__ == sorted(set(ponder.__all__))
    assert list(ponder.PUBLIC) == ponder.__all__
    assert all(getattr(ponder, name) is not None for name in ponder.__all__)
    assert set(ponder.__all__) <= set(dir(ponder))


def test_public_names_carry_their_own_name():
    for name, module in ponder.PUBLIC.items():
        found = getattr(ponder, name)
        assert (found.__name__, found.__module__) == (name, module)


def test_unknown_public_name_lists_the_known():
    with pytest.raises(AttributeError, match="Budget"):
        _ = ponder.Bugdet
