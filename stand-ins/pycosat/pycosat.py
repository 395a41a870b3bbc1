"""Stand-in for pycosat, which exists only as C source: reasoning-gym imports it, and ponder installs without a compiler.

Has `itersolve`, the one function that reasoning-gym calls (for zebra puzzles): same solutions, perhaps in another order.
"""

from collections.abc import Iterable, Iterator, Sequence

Clauses = Sequence[Sequence[int]]


def itersolve(clauses: Iterable[Iterable[int]]) -> Iterator[list[int]]:
    """Yields every assignment of all variables 1..max that satisfies the clauses, as signed variables in order."""
    rows = [tuple(dict.fromkeys(clause)) for clause in clauses]
    occurrences: dict[int, list[tuple[int, ...]]] = {}
    for row in rows:
        for literal in row:
            occurrences.setdefault(literal, []).append(row)
    if all(rows):
        yield from _search(max((abs(x) for row in rows for x in row), default=0), occurrences, set(), [row[0] for row in rows if len(row) == 1])


def _search(num: int, occurrences: dict[int, list[tuple[int, ...]]], true: set[int], forced: list[int]) -> Iterator[list[int]]:
    trail = _propagate(occurrences, true, forced)
    if trail is None:
        return
    free = next((v for v in range(1, num + 1) if v not in true and -v not in true), None)
    if free is None:
        yield sorted(true, key=abs)
    else:
        yield from _search(num, occurrences, true, [free])
        yield from _search(num, occurrences, true, [-free])
    true.difference_update(trail)


def _propagate(occurrences: dict[int, list[tuple[int, ...]]], true: set[int], forced: list[int]) -> list[int] | None:
    """Adds all that `forced` implies to `true` and returns what was added; None on a contradiction, with nothing added."""
    trail: list[int] = []
    queue = list(forced)
    while queue:
        literal = queue.pop()
        if literal in true:
            continue
        open_rows = [] if -literal in true else [r for r in occurrences.get(-literal, ()) if not true.intersection(r)]
        left = [[x for x in row if x != -literal and -x not in true] for row in open_rows]
        if -literal in true or not all(left):
            true.difference_update(trail)
            return None
        true.add(literal)
        trail.append(literal)
        queue.extend(row[0] for row in left if len(row) == 1)
    return trail
