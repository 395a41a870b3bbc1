"""The generated documents say what cards, catalogue and benchmark rows say."""

import json

import pytest

import gen_catalogue
import house
from test_house import GOOD, build


@pytest.fixture
def tree(tmp_path) -> house.House:
    rows = tmp_path / "benchmarks/results/toy.jsonl"
    rows.parent.mkdir(parents=True)
    rows.write_text("\n".join(map(json.dumps, [{"technique": "beam", "figure": "0.5 [0.4, 0.6]"}, {"technique": "other", "figure": "1"}, {"n": 3}])))
    return build(tmp_path, {})


def test_catalogue_holds_card_name_and_figures(tree):
    text = gen_catalogue.catalogue_text(tree)
    assert "### beam\n\nBeam: keep the most likely prefixes.\n" in text
    assert "- **Guarantee**: biased: towards short answers\n" in text
    assert "- **Measured**: 0.5 [0.4, 0.6] (toy)\n" in text
    assert "other" not in text


def test_card_changes_with_its_file(tree, tmp_path):
    before = gen_catalogue.catalogue_text(tree)
    changed = build(tmp_path, {"src/ponder/infer/beam.py": GOOD["src/ponder/infer/beam.py"].replace("never", "always")})
    assert gen_catalogue.catalogue_text(changed) == before.replace("**Choose**: never", "**Choose**: always")


def test_front_stub_has_every_public_name():
    text = gen_catalogue.front_text()
    assert all(f" import {name} as {name}\n" in text for name in gen_catalogue.ponder.__all__)
