"""The stand-in for pycosat has exactly the solutions that trying every assignment finds."""

import importlib.util
import itertools
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

PATH = Path(__file__).resolve().parent.parent / "stand-ins/pycosat/pycosat.py"
spec = importlib.util.spec_from_file_location("pycosat_stand_in", PATH)
pycosat = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pycosat)

LITERAL = st.integers(-5, 5).filter(bool)


@given(st.lists(st.lists(LITERAL, max_size=4), max_size=14))
def test_solutions_are_all_there(clauses):
    num = max((abs(x) for clause in clauses for x in clause), default=0)
    signs = itertools.product((1, -1), repeat=num)
    assignments = [[s * v for s, v in zip(row, range(1, num + 1), strict=True)] for row in signs]
    wanted = [a for a in assignments if all(set(clause) & set(a) for clause in clauses)]
    assert sorted(pycosat.itersolve(clauses)) == sorted(wanted)
