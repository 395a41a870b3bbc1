"""Every pair of drafter, acceptor, weight format and strategy, by a law run on a random model of three layers.

The law of a pair: requests that are answered with a draft give, token by token, what plain decoding of the same weights gives; with an
acceptor that does not promise that, greedy ones do where it is exact, and all are answered where it is not. What neither of the pair
says is ngram, coupled, native. Cells go to benchmarks/results/pair_matrix.json, of which scripts/gen_pairs.py writes docs/pairs.md.

`python benchmarks/pair_matrix.py [--only ROWS/COLUMNS] [--missing]`, as in drafter/acceptor: other tables are kept; with --missing
cells that are known, too.
"""

import argparse
import datetime
import functools
import itertools
import json
import time
from collections.abc import Mapping, Sequence

import torch
from lib.rows import RESULTS, commit
from lib.tiny import RandomCheckpoint

from ponder.accelerate.draft.heads import Heads
from ponder.accelerate.draft.hydra_heads import HydraHeads
from ponder.catalogue import ACCEPTORS, DRAFTERS, LENGTHS, SCHEDULERS, STRATEGIES, TRAINED_DRAFTERS, WEIGHTS, formats_of
from ponder.core.asks import GREEDY, Candidate, Extend, Prefix, Prompt, Sampling, chat
from ponder.core.budget import Budget
from ponder.core.draft import Acceptor, Drafter, Speculation, Twin
from ponder.core.errors import PonderError
from ponder.core.formats import Tokenizer
from ponder.core.guarantee import Guarantee
from ponder.engine.open import process_for
from ponder.engine.process import LocalProcess, Settings
from ponder.models.decoder import Decoder, load
from ponder.run.driver import Driver, Job
from ponder.run.recipe import Recipe, Result
from ponder.testing.byte_tokenizer import VOCAB, ByteTokenizer
from ponder.testing.run import answer_turn

ROUNDING = 1e-3  # nats an answer
FILE = RESULTS / "pair_matrix.json"
USUAL = {"drafter": "ngram", "acceptor": "coupled", "weights": "native", "strategy": None}
NAMES = {
    "drafter": list(dict.fromkeys((*DRAFTERS, *TRAINED_DRAFTERS))),
    "acceptor": list(ACCEPTORS),
    "weights": list(WEIGHTS),
    "strategy": list(STRATEGIES),
}
QUESTION = Prompt(messages=(("user", "abcabc"),), max_tokens=6)


def drafter_of(name: str) -> Drafter:
    """By its name; where it needs trained heads, with random ones."""
    if name in DRAFTERS:
        return DRAFTERS[name]
    draw, dim = torch.Generator().manual_seed(1), RandomCheckpoint().config.dim
    if name == "hydra":
        inner, outer = torch.randn(1, 2 * dim + dim, 2 * dim, generator=draw) / dim, torch.randn(1, dim, dim, generator=draw) / dim
        chain = HydraHeads(
            model_id="random", num=3, num_scored=VOCAB, inner=inner.bfloat16(), outer=outer.bfloat16(), ids=torch.arange(VOCAB), facts={}
        )
        return TRAINED_DRAFTERS[name](heads=chain)
    heads = Heads(
        model_id="random", residual=torch.randn(2, dim, 2 * dim, generator=draw).bfloat16() / dim,
        rows=torch.randn(VOCAB, dim, generator=draw).bfloat16(), ids=torch.arange(VOCAB), facts={},
    )  # fmt: skip
    return TRAINED_DRAFTERS[name](heads=heads)


@functools.cache
def decoder_of(weights: str) -> Decoder:
    matrices, head, dtype = formats_of(weights, "cpu")
    return load(RandomCheckpoint(), matrices, head, dtype)


def opened(weights: str, speculation: Speculation | None) -> LocalProcess:
    def twins(twin: Twin) -> tuple[Decoder, Tokenizer]:
        return decoder_of(twin.weights or "native"), ByteTokenizer()

    settings = Settings(speculation=speculation, twins=twins, kv_bytes=1 << 25)
    return process_for(settings)(decoder_of(weights), ByteTokenizer(), SCHEDULERS["sarathi"], settings)


def asks() -> list[Extend]:
    texts = ("the same the same the same", "abcabcabc", "hello")
    return [
        Extend(prefix=Prefix(chat(text, max_tokens=20)), seed=i, sampling=sampling)
        for i, (text, sampling) in enumerate(itertools.product(texts, (GREEDY, Sampling(), Sampling(temperature=0.3, top_k=5))))
    ]


def answered_asks(weights: str, speculation: Speculation | None) -> list[tuple[bool, object]]:
    """(whether greedy, the answer's prefix) of each ask."""
    answers = answer_turn(asks(), opened(weights, speculation))
    return [(ask.sampling == GREEDY, answer.prefix) for ask, answer in zip(asks(), answers, strict=True)]  # type: ignore[union-attr]


def answered_question(weights: str, speculation: Speculation | None, strategy: str) -> Result:
    recipe = Recipe(label=strategy, strategy=STRATEGIES[strategy], budget=Budget(tokens=500))
    ((_, result),) = Driver(opened(weights, speculation)).run([Job(id="x", prompt=QUESTION, recipe=recipe, seed=3)])
    return result


@functools.cache
def plain(weights: str, strategy: str | None) -> object:
    return answered_asks(weights, None) if strategy is None else answered_question(weights, None, strategy)


def cell(drafter: str, acceptor: str, weights: str, strategy: str | None) -> str:
    """What `compared` says, "answers" where there is nothing to compare with, or "refused: why"."""
    found: Acceptor = ACCEPTORS[acceptor]
    speculation = Speculation(drafter=drafter_of(drafter), acceptor=found, control=LENGTHS["fixed"])
    try:
        if strategy is None:
            wanted, got = plain(weights, None), answered_asks(weights, speculation)
            if found.is_identical:
                return compared([a for _, a in got], [a for _, a in wanted])  # type: ignore[attr-defined]
            if found.guarantee is not Guarantee.EXACT:
                return "answers"
            said = compared([a for is_greedy, a in got if is_greedy], [a for is_greedy, a in wanted if is_greedy])  # type: ignore[attr-defined]
            return f"greedy {said}"
        before, result = plain(weights, strategy), answered_question(weights, speculation, strategy)
    except PonderError as error:
        return f"refused: {error}"
    assert isinstance(before, Result)
    if result.stop_reason == "failed":
        return "fails"
    if not found.is_identical or before.stop_reason != "done":
        return "answers"
    return compared(result.candidates, before.candidates)


def compared(found: Sequence[Prefix | Candidate], wanted: Sequence[Prefix | Candidate]) -> str:
    """ "equal": bit for bit; "rounding": tokens are equal and log-probabilities nearly; "differs"."""
    if list(found) == list(wanted):
        return "equal"
    if [a.tokens for a in found] != [a.tokens for a in wanted]:
        return "differs"
    return "rounding" if all(abs(a.log_p - b.log_p) < ROUNDING for a, b in zip(found, wanted, strict=True)) else "differs"


def table(rows: str, columns: str, known: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for row in NAMES[rows]:
        begun = time.process_time()
        found[row] = {
            column: known.get(row, {}).get(column) or cell(**(USUAL | {rows: row, columns: column}))  # type: ignore[arg-type]
            for column in NAMES[columns]
        }
        print(f"{rows} {row} x {columns}: {sorted(set(found[row].values()))} ({time.process_time() - begun:.1f} s)", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", default=[], metavar="ROWS/COLUMNS")
    parser.add_argument("--missing", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    is_kept = FILE.is_file() and (args.only or args.missing)
    tables: dict[str, dict[str, dict[str, str]]] = json.loads(FILE.read_text(encoding="utf-8"))["tables"] if is_kept else {}
    kinds = ("drafter/acceptor", "drafter/weights", "acceptor/weights", "strategy/drafter", "strategy/acceptor", "strategy/weights")
    for name in args.only or kinds:
        rows, columns = name.split("/")
        tables[name] = table(rows, columns, tables.get(name, {}) if args.missing else {})
        facts = {"date": datetime.date.today().isoformat(), "commit": commit()}
        FILE.write_text(json.dumps({"facts": facts, "tables": tables}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
