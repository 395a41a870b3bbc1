"""run/compare.py over many machines: the same folder, byte for byte, whoever answered what and whatever was lost on the way.

The store stays with this program: replicas send samples as they come, they are on disk at once, and a problem is sent out with those
that its question has. One store per replica would need merging after every loss, and could lose what lay on a lost machine.
"""

import json
from collections.abc import Callable, Sequence

from ponder.cluster.pool import Pool
from ponder.cluster.replica import Kept, Problem
from ponder.cluster.waiting import Key
from ponder.run.account import Ledger
from ponder.run.compare import Comparison, Row, RunFolder, check_labels, job_of, write_row
from ponder.run.question import Question, Scores, text_key
from ponder.run.recipe import Recipe
from ponder.run.store import SampleStore, Stored


def compare(
    pool: Pool,
    recipes: Sequence[Recipe],
    questions: Sequence[Question],
    *,
    folder: RunFolder,
    seed: int = 0,
    should_stop: Callable[[], bool] = lambda: False,
    on_row: Callable[[Row], None] = lambda row: None,
) -> Comparison:
    """As run.compare.compare, on the replicas of `pool` (opened)."""
    check_labels(recipes, questions)
    pool.check([job_of(recipe, question, seed) for recipe in recipes for question in questions])
    order = [(recipe.label, question.id) for recipe in recipes for question in questions]
    by_label, by_id = {r.label: r for r in recipes}, {q.id: q for q in questions}
    right: dict[str, dict[str, bool]] = {q.id: {} for q in questions}
    ledgers: dict[str, Ledger] = {}  # by replica: one works under several recipes at a time
    rows: list[Row] = []
    ready: dict[Key, Row] = {}
    store, scores = SampleStore(folder.path / "samples.sqlite"), folder.scores

    def problem_of(key: Key) -> Problem:
        rows = tuple(store.rows_of(key[1]))
        known = right[key[1]] | ({} if scores is None else known_texts(scores, key[1], rows))
        return Problem(recipe=by_label[key[0]], question=by_id[key[1]], seed=seed, rows=rows, right=known)

    try:
        for message in pool.run(order, problem_of, should_stop=should_stop):
            if isinstance(message, Kept):
                keep(store, message)
            else:
                ledgers[message.place] = message.ledger
                right[message.row.question] |= message.right
                if scores is not None:
                    for text, is_right in message.right.items():
                        scores.keep(text, is_right)
                ready[message.row.recipe, message.row.question] = message.row
                while len(rows) < len(order) and order[len(rows)] in ready:
                    row = ready.pop(order[len(rows)])
                    write_row(folder, row)
                    rows.append(row)
                    on_row(row)
    finally:
        store.close()
    return Comparison(recipes=tuple(by_label), rows=tuple(rows), ledgers=ledgers, is_complete=len(rows) == len(order))


def keep(store: SampleStore, message: Kept) -> None:
    for question, row in message.rows:
        store.put_row(row, question)
    store.commit()


def known_texts(scores: Scores, question: str, rows: Sequence[Stored]) -> dict[str, bool]:
    """What earlier runs found of the texts in those rows."""
    answers = [json.loads(answer) for _, _, _, answer, _ in rows]
    keys = {text_key(question, answer["prefix"]["text"]) for answer in answers if "prefix" in answer}
    return {key: scores.known[key] for key in keys & scores.known.keys()}
