"""Steps a tiny process over a heap full of holes and prints what of it is in memory, in bytes: python long_run.py WHEN.

WHEN: "as it is", or "never" for a process that never tidies. The holes are what many steps leave: large blocks that die among small ones that live.
"""

import json
import sys
from pathlib import Path

from engine.tiny_models import tiny_decoder, tiny_process
from ponder.core.asks import Extend, Prefix, Prompt
from ponder.engine import process as loop
from ponder.testing.run import answer_turn

NUM, LARGE, SMALL = 4000, 100_000, 2_000  # bytes; below what the C library asks the system for by itself


def resident() -> int:
    return next(int(line.split()[1]) * 1024 for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS:"))


def main() -> None:
    if sys.argv[1] == "never":
        loop.TIDY_STEPS = 1 << 60
    process = tiny_process(tiny_decoder())
    asks = [Extend(prefix=Prefix(Prompt(messages=(("raw", "abc"),), max_tokens=100)), seed=seed) for seed in range(2)]
    answer_turn(asks, process)
    before = resident()
    blocks = [(b"x" * LARGE, b"y" * SMALL) for _ in range(NUM)]
    blocks = [small for _, small in blocks]
    holes = resident() - before
    for seed in range(3):
        answer_turn([Extend(prefix=ask.prefix, seed=ask.seed + 2 * seed + 2) for ask in asks], process)
    sys.stdout.write(json.dumps({"holes": holes, "left": resident() - before, "kept": len(blocks) * SMALL, "steps": process.num_steps}))


main()
