"""Runs laws on every cache policy and attention plan beside the rest of the engine: `python benchmarks/pairs.py [--strategies] [NAME ...]`.

With `--known` the other cells are those of the newest rows. With `--jobs 16` in so many processes, each taking the next cell or strategy;
with `--minutes M` no row for a technique that is not through by then. Rows in results/pairs.jsonl, one for each technique; `python
scripts/gen_cache.py` makes docs/cache.md's matrix of the newest. On a random model of three layers (tests/engine/tiny_models.py), bit for bit:
"same" where answers are those of the technique by itself, "refused" where the two are not opened together, else what was wrong.
Strategies, where asked for (a minute or two a technique): how many gave the same answer in a roomy process and in a narrow one.
"""

import argparse
import concurrent.futures
import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from lib.rows import RESULTS, append

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from accelerate.test_cache_strategies import PROMPT
from accelerate.test_pairs import asks_of, guessing, opened
from engine.test_process import answers, bare
from ponder.accelerate.attend.dual_chunk import DualChunk
from ponder.accelerate.attend.dual_chunk_sparse import DualChunkSparse
from ponder.accelerate.attend.hyper import Hyper
from ponder.accelerate.attend.longgen import LongGen
from ponder.accelerate.attend.quest import Quest
from ponder.accelerate.attend.recycled import Recycled
from ponder.accelerate.attend.s2 import S2
from ponder.accelerate.attend.squeezed import Squeezed
from ponder.accelerate.attend.vertical_slash import VerticalSlash
from ponder.catalogue import ATTENTION_PLANS, CACHE_PARTS, CACHES, STRATEGIES
from ponder.core.budget import parse_budget
from ponder.core.errors import BadField
from ponder.engine.open import check_together
from ponder.engine.process import LocalProcess, Settings
from ponder.run.driver import Driver, Job
from ponder.run.recipe import Recipe

SMALL = {  # settings that make a difference to prompts of a hundred tokens
    plan.name: plan
    for plan in (
        S2(window=32, stride=3, num_dense=0), DualChunk(chunk=64, local=16),
        DualChunkSparse(chunk=64, local=16, mass=0.5, window=16, segment=64, dense_below=64),
        VerticalSlash(mass=0.5, window=16, segment=64, dense_below=64),
        Hyper(dense=64, block=16, sample=16, bits=5), LongGen(window=32, sinks=16), Quest(keep=48, dense_layers=1),
        Squeezed(clusters=0.2, threshold=1.0), Recycled(keep=40, every=5),
    )
}  # fmt: skip


def techniques() -> dict[str, Settings]:
    """Name -> settings with that alone."""
    small = {name: replace(chosen, keep=0.4, **scorer_of(chosen)) for name, chosen in CACHES.items()}
    found = {f"cache {name}": Settings(cache=chosen) for name, chosen in small.items()}
    for name, evictor in CACHE_PARTS["evictor"].items():
        if evictor.has_rest:  # type: ignore[attr-defined]
            found[f"cache snapkv, evictor={name}"] = Settings(cache=replace(small["snapkv"], evictor=evictor))
    return found | {f"attend {name}": Settings(attend=SMALL[name]) for name in ATTENTION_PLANS}


def scorer_of(chosen) -> dict[str, object]:
    return {"scorer": replace(chosen.scorer, window=4)} if hasattr(chosen.scorer, "window") else {}


def same(settings: Settings, other: Settings, asks, *, again: bool = False) -> str:
    """Whether answers under `other`, all at once, are those under `settings`, one by one, each in a process of its own."""
    try:
        check_together(other)
    except BadField:
        return "refused"
    alone = [bare(answers(opened(settings), [ask])[0]) for ask in asks]
    process = opened(other)
    for _ in range(1 + again):
        found = [bare(a) for a in answers(process, asks)]
        if found != alone:
            return f"{sum(a != b for a, b in zip(found, alone, strict=True))} of {len(asks)} differ"
    return "same"


def guessed(settings: Settings, asks) -> str:
    """Trees from a drafter that is often right."""
    try:
        check_together(replace(guessing(Settings(), asks[:1], 3), attend=settings.attend, cache=settings.cache))
    except BadField:
        return "refused"
    return same(settings, guessing(settings, asks, 3), asks)


def outcome(process: LocalProcess, name: str) -> tuple:
    job = Job(id=name, prompt=PROMPT, recipe=Recipe(label=name, strategy=STRATEGIES[name], budget=parse_budget("120 tokens")), seed=1)
    ((_, result),) = Driver(process).run([job])
    return result.stop_reason == "failed", result.answer


def is_same_anywhere(settings: Settings, name: str) -> bool:
    """Whether a strategy comes to its end, and to one answer in a roomy process and in a narrow one."""
    roomy, narrow = (outcome(opened(one), name) for one in (settings, replace(settings, chunk=64 if settings.attend else 11, max_rows=3)))
    return roomy == narrow and not roomy[0]


COLUMNS: dict[str, Callable[[Settings], str]] = {
    "speculation": lambda s: guessed(s, asks_of(16)),
    "sharing": lambda s: same(s, s, asks_of(16), again=True),
    "chunks": lambda s: same(s, replace(s, chunk=64 if s.attend else 9), asks_of(16)),
    "batching": lambda s: same(s, replace(s, max_rows=3, kv_bytes=150_000), asks_of(16)),
}


def cell(technique: str, name: str) -> str | bool:
    """What a law of COLUMNS, or a strategy, found."""
    settings = techniques()[technique]
    return COLUMNS[name](settings) if name in COLUMNS else is_same_anywhere(settings, name)


def alone() -> None:
    torch.set_num_threads(1)


def row_of(technique: str, found: dict[str, str | bool], names: Sequence[str]) -> dict[str, object]:
    wrong = [name for name in names if not found[name]]
    said = "not run" if not names else f"all {len(names)}" if not wrong else f"{len(names) - len(wrong)}, without {', '.join(wrong)}"
    return {"technique": technique, **{name: found[name] for name in COLUMNS}, "strategies": said}


def known_cells(technique: str) -> dict[str, str | bool]:
    rows = [json.loads(line) for line in (RESULTS / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]
    last = [row for row in rows if row["technique"] == technique][-1]
    return {name: last[name] for name in COLUMNS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="techniques, as the page names them: 'cache h2o', 'attend quest'; all if none is given")
    parser.add_argument("--strategies", action="store_true")
    parser.add_argument("--known", action="store_true")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=600.0)
    args = parser.parse_args()
    wanted, names, end = args.names or list(techniques()), list(STRATEGIES) if args.strategies else [], time.time() + 60 * args.minutes
    found = {technique: known_cells(technique) if args.known else {} for technique in wanted}
    with concurrent.futures.ProcessPoolExecutor(args.jobs, mp_context=multiprocessing.get_context("spawn"), initializer=alone) as pool:
        todo = {
            pool.submit(cell, technique, name): (technique, name)
            for technique in wanted
            for name in (*COLUMNS, *names)
            if name not in found[technique]
        }
        try:
            for done in concurrent.futures.as_completed(todo, timeout=end - time.time()):
                technique, name = todo[done]
                found[technique][name] = done.result()
                if len(found[technique]) == len(COLUMNS) + len(names):
                    append("pairs", row_of(technique, found[technique], names))
        except TimeoutError:
            print("not through:", ", ".join(name for name in wanted if len(found[name]) < len(COLUMNS) + len(names)), file=sys.stderr)
            pool.shutdown(wait=False, cancel_futures=True)


if __name__ == "__main__":
    main()
