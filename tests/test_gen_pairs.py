"""The pair matrix: no cell that was run shows a broken promise, and a page that does not fit the catalogue is noticed."""

import json

import gen_pairs
from house import House

FOUND = json.loads(gen_pairs.CELLS.read_text(encoding="utf-8"))
BY_ROWS = ("mixed", "fp32")  # formats whose cards say that a row's bits depend on how many rows meet


def test_no_cell_breaks_a_promise():
    """Answers differ only where the weight format says that they may."""
    for table, rows in FOUND["tables"].items():
        for row, cells in rows.items():
            for column, cell in cells.items():
                assert (cell != "fails" and cell in gen_pairs.MARKS) or cell.startswith("refused: "), (table, row, column, cell)
                if "differs" in cell or "rounding" in cell:
                    assert {row, column} & set(BY_ROWS), (table, row, column, cell)


def test_every_table_is_of_known_kinds():
    assert set(FOUND["tables"]) == {
        "drafter/acceptor", "drafter/weights", "acceptor/weights", "strategy/drafter", "strategy/acceptor", "strategy/weights",
    }  # fmt: skip


def test_names_are_the_catalogues():
    names = gen_pairs.names_of(House(gen_pairs.ROOT))
    assert {"ngram", "medusa"} <= set(names["drafter"]) and "coupled" in names["acceptor"] and "greedy" in names["strategy"]


def test_a_new_name_changes_the_page_and_is_shown_as_not_run():
    names = {"drafter": ["a", "b"], "acceptor": ["x", "y"], "weights": ["w"], "strategy": ["s"]}
    cells = {"drafter/acceptor": {"a": {"x": "equal", "y": "refused: y wants a log"}, "gone": {"x": "equal"}}}
    text = gen_pairs.page_text(cells, {"date": "d", "commit": "c"}, names)
    assert "| a | = | refused |" in text and "| b | not run | not run |" in text and "refused: y wants a log" in text and "gone" not in text
    assert (
        "1 pairs give plain decoding's answers (greedy ones where marked so), 0 run with other draws,\n0 differ, 1 are refused, 2 were not run."
        in text
    )
    assert text != gen_pairs.page_text(cells, {"date": "d", "commit": "c"}, names | {"drafter": ["a"]})
