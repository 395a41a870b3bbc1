"""What the house itself costs: import and help time, driver overhead, prefix reuse, the particle filter's tokens, true counts.

python benchmarks/house_targets.py
"""

import statistics
import subprocess
import sys
import time
from dataclasses import replace

from lib.rows import append

from ponder import catalogue
from ponder.core.asks import chat
from ponder.core.budget import Budget
from ponder.infer.particle_filter import ParticleFilter
from ponder.infer.resample.systematic import systematic
from ponder.infer.sample import Sample
from ponder.models.fetch import pull
from ponder.run.driver import Driver, Job
from ponder.run.recipe import Recipe

QUESTIONS = (
    "Why is the sky blue? Explain in a few short paragraphs.",
    "Describe how bread is made, step by step.",
    "What is photosynthesis? Explain it to a child in several paragraphs.",
    "Tell a short story about a fox and a crow.",
    "How does a bicycle stay upright? Explain in a few paragraphs.",
    "List and explain five ways to save water at home.",
)


def seconds(command: list[str], times: int = 9) -> float:
    """Median wall time of a command."""
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def start_up() -> None:
    bare = seconds([sys.executable, "-c", "pass"])
    loaded = seconds([sys.executable, "-c", "import ponder"])
    shown = seconds([sys.executable, "-m", "ponder.cli", "--help"])
    append("house_targets", {"what": "import ponder, s", "value": round(loaded, 3), "bare python": round(bare, 3), "target": "< 0.3"})
    append("house_targets", {"what": "ponder --help, s", "value": round(shown, 3), "target": "< 0.5"})


def run(process, strategy, *, max_jobs=1):
    driver = Driver(process, max_jobs=max_jobs)
    jobs = [
        Job(id=str(i), prompt=chat(q, max_tokens=160), recipe=Recipe(label="bench", strategy=strategy, budget=Budget()), seed=i)
        for i, q in enumerate(QUESTIONS)
    ]
    return [result for _, result in driver.run(jobs)], driver.ledger


def main() -> None:
    start_up()
    process = catalogue.open_model(pull("smollm2-135m"))
    step = {"until": ("\n",), "step_tokens": 32}
    before = process.totals
    filtered, ledger = run(process, ParticleFilter(num=32, resampler=systematic, **step))
    row = {"what": "driver and strategy overhead over engine time, 32 particles", "value": round(ledger.overhead, 4), "target": "< 0.05"}
    append("house_targets", row | {"engine_seconds": round(ledger.engine_seconds, 2), "steps": ledger.steps, "n": len(filtered)})
    append("house_targets", {"what": "prefix reuse, 32 particles", "value": round(ledger.reuse, 5), "target": ">= 0.99"})
    counted = {f: getattr(ledger.engine, f) for f in ("prompt_tokens", "reused_tokens", "generated_tokens")}
    true = {f: getattr(process.totals, f) - getattr(before, f) for f in counted}
    append("house_targets", {"what": "ledger minus engine token counts", "value": {f: counted[f] - true[f] for f in counted}, "target": "0"})
    filtered, _ = run(process, ParticleFilter(num=16, resampler=systematic, **step))
    plain, _ = run(process, Sample(num=16, sampling=replace(ParticleFilter(num=1, resampler=systematic).sampling)))
    tokens = [sum(r.cost.generated_tokens for r in results) for results in (filtered, plain)]
    row = {"what": "tokens of a 16-particle filter over 16 plain answers", "value": round(tokens[0] / tokens[1], 4), "target": "<= 1.05"}
    append("house_targets", row | {"generated": tokens, "n": len(QUESTIONS)})


if __name__ == "__main__":
    main()
