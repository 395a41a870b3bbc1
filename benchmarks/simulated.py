"""Rankings of all strategies of the catalogue in simulated worlds: rows to results/simulated.jsonl, a table in docs/study.md.

python benchmarks/simulated.py [PROBLEMS]
"""

import datetime
import json
import math
import sys
import time
from dataclasses import dataclass, fields, replace

from lib.rows import RESULTS, append

from ponder import catalogue
from ponder.core.errors import PonderError
from ponder.testing.simulated_verifier import SimulatedVerifier
from ponder.testing.simulator import Simulator, World, play

SAMPLES = 16  # of the strategies that draw a number of answers


@dataclass(frozen=True, kw_only=True)
class Regime:
    world: World
    verifier: SimulatedVerifier
    about: str


LONG = World(depth=(6, 10), step_accuracy=0.92, spread=0.7, step_spread=1.3, decay=0.03)
REGIMES = {
    "good step verdicts": Regime(world=LONG, verifier=SimulatedVerifier(auroc=0.9, prior=0.6), about="6 to 10 steps, verdicts of AUROC 0.9"),
    "noisy, sure verdicts": Regime(
        world=LONG, verifier=SimulatedVerifier(auroc=0.55, sharpness=20.0), about="the same problems, AUROC 0.55 and far too sure"
    ),
    "outcome verdicts alone": Regime(
        world=LONG, verifier=SimulatedVerifier(auroc=0.9, judges_steps=False), about="the same problems, finished answers judged at AUROC 0.9"
    ),
    "short and popular": Regime(
        world=World(depth=(1, 2), step_accuracy=0.5, spread=1.5, popularity=3.0), verifier=SimulatedVerifier(auroc=0.8, popular=0.8),
        about="1 to 2 steps, one mistake that most make, and a verifier that likes it",
    ),
    "weak tests": Regime(
        world=World(depth=(2, 3), step_accuracy=0.6, popularity=0.3), verifier=SimulatedVerifier(auroc=1.0, false_positives=0.2, judges_steps=False),
        about="2 to 3 steps, many different mistakes, pass-or-fail verdicts that pass one wrong answer in five",
    ),
}  # fmt: skip


def fitted(strategy: object, verifier: SimulatedVerifier) -> object:
    """The strategy with the regime's verifier and steps, where it has such fields; its own number of answers becomes SAMPLES."""
    wanted = {"verifier": verifier, "num": SAMPLES, "until": ("\n",)}
    has = {f.name for f in fields(strategy) if getattr(strategy, f.name) is not None}  # type: ignore[arg-type]
    kept = {k: v for k, v in wanted.items() if k in has and not (k == "num" and getattr(strategy, k) == 1)}
    return replace(strategy, **kept)  # type: ignore[type-var]


def run(num: int) -> None:
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S")
    for name, regime in REGIMES.items():
        process = Simulator(regime.world)
        for label, strategy in catalogue.STRATEGIES.items():
            start = time.process_time()
            try:
                played = [play(fitted(strategy, regime.verifier), process, i) for i in range(num)]  # type: ignore[arg-type]
            except PonderError as error:
                append("simulated", {"run": now, "regime": name, "strategy": label, "n": num, "refused": str(error)})
                continue
            right = sum(p.is_right for p in played) / num
            row = {
                "run": now, "regime": name, "strategy": label, "n": num, "accuracy": round(right, 4),
                "error": round(math.sqrt(right * (1 - right) / num), 4), "oracle": round(sum(p.has_right for p in played) / num, 4),
                "tokens": round(sum(p.tokens for p in played) / num, 1), "problems_per_second": round(num / (time.process_time() - start), 1),
            }  # fmt: skip
            append("simulated", row)


def told(row: dict | None, ranked: list[str]) -> str:
    if row is None:
        return ""
    return f"{100 * row['accuracy']:.1f} +- {100 * row['error']:.1f} ({ranked.index(row['strategy']) + 1}), {row['tokens']:.0f}"


def section() -> str:
    """Markdown of the newest run: a table of strategies x regimes, each column's best first three marked by its rank."""
    path = RESULTS / "simulated.jsonl"
    if not path.exists():
        return ""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if row["run"] == max(r["run"] for r in rows)]
    names, found = list(dict.fromkeys(r["strategy"] for r in rows)), {(r["strategy"], r["regime"]): r for r in rows if "accuracy" in r}
    known = [n for n in names if any((n, regime) in found for regime in REGIMES)]
    ranks = {regime: sorted((n for n in known if (n, regime) in found), key=lambda n: -found[n, regime]["accuracy"]) for regime in REGIMES}
    made = f"`python benchmarks/simulated.py`, run {rows[0]['run']}, commit {rows[0]['commit']}, {rows[0]['machine']}."
    lines = [
        "## In simulated worlds", "",
        f"Every strategy of the catalogue, {SAMPLES} answers where it draws a number, on {rows[0]['n']} problems of each regime: right % +- standard "
        f"error (rank), tokens a problem. {made}", "",
        *(f"- **{name}**: {regime.about}" for name, regime in REGIMES.items()), "",
        f"| strategy | {' | '.join(REGIMES)} |", f"|---|{'---|' * len(REGIMES)}",
    ]  # fmt: skip
    for name in sorted(known, key=lambda n: sum(ranks[r].index(n) for r in REGIMES if n in ranks[r])):
        cells = [told(found.get((name, regime)), ranks[regime]) for regime in REGIMES]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    run(int(sys.argv[1]) if sys.argv[1:] else 300)
