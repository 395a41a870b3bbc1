"""What a grid shows, as rows of plain JSON: one per cell and question set, and one per kind of figure about the samples."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ponder.core.errors import BadField
from ponder.run.compare import Comparison, Row
from ponder.run.question import Question
from ponder.run.report import Summary, interval, summarize
from ponder.study.grid import BASELINE, Grid
from ponder.study.samples import Pool, covered, decomposed, estimated, length_effect
from ponder.verify.measure import auroc, expected_calibration_error

ACCEPT = 0.5  # a probability of at least this accepts
NEAR = 1.25  # costs within this factor of each other count as equal


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A cell against best-of-N at the cost that is nearest to its own."""

    cell: str
    yardstick: str
    cost_ratio: float  # tokens of the cell over those of the yardstick
    gain: float  # of accuracy, paired by question
    low: float
    high: float

    @property
    def word(self) -> str:
        if not 1 / NEAR <= self.cost_ratio <= NEAR:
            return "no best-of-N at its cost"
        return "better" if self.low > 0 else "worse" if self.high < 0 else "no difference shown"


def figure_rows(comparison: Comparison, questions: Sequence[Question], grid: Grid) -> list[dict[str, object]]:
    """All rows of one task, without what they have in common (task, model, n, seed)."""
    summaries = {s.recipe: s for s in summarize(comparison)}
    verdicts = {v.cell: v for v in against_best_of_n(comparison, summaries, grid)}
    rows = [cell_row(comparison.of(cell), summaries[cell], verdicts.get(cell)) for cell in summaries]
    pools = pools_of(comparison.of(grid.pool_cell), questions)
    rows += [coverage_row(pools), length_row(pools)]
    drawn = [cell for cell in summaries if cell.startswith("sample:") and f"num={max(grid.budgets)}" in fields_of(cell)]
    rows += [drawing_row(cell, pools_of(comparison.of(cell), questions)) for cell in drawn]
    return rows + ([decomposition_row(pools, grid.budgets)] if min(p.num for p in pools) > 1 else [])


def cell_row(rows: Sequence[Row], summary: Summary, verdict: Verdict | None) -> dict[str, object]:
    """Accuracy, cost, oracle gap, tie rate, the verifier's errors and the verdict of one cell."""
    s = summary
    row: dict[str, object] = {
        "kind": "cell", "cell": s.recipe, "n": s.num, "accuracy": rounded(s.accuracy, s.accuracy_low, s.accuracy_high),
        "gain": rounded(s.gain, s.gain_low, s.gain_high), "oracle": round(s.oracle, 5), "oracle_gap": round(s.oracle - s.accuracy, 5),
        "tokens": round(s.tokens, 1), "cut": round(s.cut, 5), "ties": tie_rate(rows),
    }  # fmt: skip
    if verdict is not None:
        row |= {
            "against": verdict.yardstick, "cost_ratio": round(verdict.cost_ratio, 3),
            "gain_at_cost": rounded(verdict.gain, verdict.low, verdict.high), "verdict": verdict.word,
        }  # fmt: skip
    return row | verifier_errors(rows)


def tie_rate(rows: Sequence[Row]) -> float | None:
    """Share of questions on which several candidates stood first alike; None where the strategy does not count them."""
    counts = [row.result.diagnostics["num_tied"] for row in rows if "num_tied" in row.result.diagnostics]
    return round(sum(isinstance(c, int) and c > 1 for c in counts) / len(counts), 5) if counts else None


def verifier_errors(rows: Sequence[Row]) -> dict[str, object]:
    """AUROC, calibration error and false positives of the values that the cell's verifier gave to its candidates."""
    pairs = [pair for row in rows for pair in row.values]
    values, labels = [v for v, _ in pairs], [ok for _, ok in pairs]
    if len(set(labels)) < 2:
        return {}
    found: dict[str, object] = {"auroc": round(auroc(values, labels), 4)}
    if any(v.kind != "probability" for row in rows for c in row.result.candidates for v in c.verdicts if v.value is not None):
        return found
    wrong = [v for v, ok in pairs if not ok]
    judged = [row for row in rows if row.result.verdicts and row.result.verdicts[0].value is not None]
    accepted = [row for row in judged if (row.result.verdicts[0].value or 0.0) >= ACCEPT]
    found |= {
        "calibration_error": round(expected_calibration_error(values, labels), 4),
        "false_positive_rate": round(sum(v >= ACCEPT for v in wrong) / len(wrong), 4),
        "accepted": len(accepted), "accepted_wrong": sum(not row.right for row in accepted), "judged_questions": len(judged),
    }  # fmt: skip
    return found


def against_best_of_n(comparison: Comparison, summaries: dict[str, Summary], grid: Grid) -> list[Verdict]:
    """Every other cell against the best-of-N cell, judged by the cell's own verifier or else the grid's first, of nearest cost."""
    yardsticks = {v: [c for c in summaries if c.startswith(f"best_of_n:verifier={v},num=")] for v in grid.verifiers}
    found = []
    for cell, summary in summaries.items():
        own = next((v for v in grid.verifiers if f"verifier={v}" in fields_of(cell)), None)
        nearest = min(
            (c for c in yardsticks[own or grid.verifiers[0]] if c != cell), default=None,
            key=lambda c: abs(math.log(summaries[c].tokens / summary.tokens)),
        )  # fmt: skip
        if nearest is None or cell.startswith("best_of_n:verifier=") or cell == BASELINE:
            continue
        gains = paired(comparison.of(cell), comparison.of(nearest))
        low, high = interval(gains, 0)
        ratio = summary.tokens / summaries[nearest].tokens
        found.append(Verdict(cell=cell, yardstick=nearest, cost_ratio=ratio, gain=float(gains.mean()), low=low, high=high))
    return found


def fields_of(cell: str) -> list[str]:
    return cell.partition(":")[2].split(",")


def paired(one: Sequence[Row], other: Sequence[Row]) -> np.ndarray:
    """Differences of being right on the questions that both have."""
    base = {row.question: row.right for row in other}
    return np.array([float(row.right) - float(base[row.question]) for row in one if row.question in base])


def pools_of(rows: Sequence[Row], questions: Sequence[Question]) -> list[Pool]:
    """The samples of every question, scored."""
    if not rows:
        raise BadField("the study has no pool of samples yet: its second cell did not finish")
    by_id = {q.id: q for q in questions}
    return [
        Pool(
            question=row.question, right=tuple(by_id[row.question].is_right(c.text) for c in row.result.candidates),
            lengths=tuple(len(c.tokens) for c in row.result.candidates), paths=paths_of(row),
        )
        for row in rows
    ]  # fmt: skip


def paths_of(row: Row) -> tuple[tuple[int, float], ...]:
    known: dict[tuple[int, ...], int] = {}
    return tuple((known.setdefault(c.tokens, len(known)), c.log_q) for c in row.result.candidates)


def drawing_row(cell: str, pools: Sequence[Pool]) -> dict[str, object]:
    """How good single samples of one way of drawing are, and how far all of them together could go."""
    mean = estimated(pools, lambda some: float(np.mean([np.mean(p.right) for p in some])))
    reach = estimated(pools, lambda some: float(np.mean([any(p.right) for p in some])))
    length = float(np.mean([np.mean(p.lengths) for p in pools]))
    return {"kind": "drawing", "cell": cell, "n": len(pools), "mean": mean.row(), "coverage": reach.row(), "length": round(length, 1)}


def coverage_row(pools: Sequence[Pool]) -> dict[str, object]:
    found = covered(pools)
    law = {} if found.law is None or found.a is None or found.b is None else {
        "a": found.a.row(), "b": found.b.row(), "rmse": round(found.law.rmse, 5), "ahead": {str(k): e.row() for k, e in found.ahead.items()},
    }  # fmt: skip
    return {"kind": "coverage", "n": len(pools), "ks": list(found.ks), "at": [e.row() for e in found.at], "law": law}


def decomposition_row(pools: Sequence[Pool], ks: Sequence[int]) -> dict[str, object]:
    found = decomposed(pools, ks)
    return {
        "kind": "decomposition",
        "n": len(pools),
        "model_error": found.model.row(),
        "estimation": {str(k): e.row() for k, e in found.estimation.items()},
        "path_estimation": {str(k): round(e, 6) for k, e in found.path_estimation.items()},
        "path_mass": round(found.path_mass, 6),
    }


def length_row(pools: Sequence[Pool]) -> dict[str, object]:
    found = length_effect(pools)
    return {
        "kind": "length", "n": len(pools), "num_mixed": found.num_mixed, "raw": finite(found.raw.row()), "within": finite(found.within.row()),
        "quintiles": finite(found.quintiles), "controlled": finite(found.controlled),
    }  # fmt: skip


def finite(values: Sequence[float]) -> list[float | None]:
    return [None if math.isnan(v) else round(v, 5) for v in values]


def rounded(value: float, low: float, high: float) -> list[float]:
    return [round(value, 5), round(low, 5), round(high, 5)]
