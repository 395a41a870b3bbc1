"""Two models that write one answer, beside the first alone: CPU time a token, and how often they part from what it says alone.

`python benchmarks/collaborate.py [--model NAME] [--other NAME] [--n 3] [--new 40]`; one thread, greedy, a row a way in
benchmarks/results/collaborate.jsonl. A token of an answer that parts from the first model's own is counted by its first place.
"""

import argparse
import time

from draft_passes import CODE
from lib.rows import append

import ponder
from ponder.catalogue import open_together
from ponder.core.accelerations import PLAIN, Accelerations, Partner
from ponder.core.asks import GREEDY, Extend, Extension, Prefix, chat
from ponder.core.roles import Process
from ponder.engine.kv import common_len
from ponder.testing.run import answer_turn

WAYS = ("contrastive:alpha=0,weight=0", "contrastive", "product", "nudging")


def answered(process: Process, text: str, num: int) -> tuple[Extension, float]:
    """The answer, and CPU seconds a token of it; the prompt is read before."""
    prompt = chat(text, max_tokens=num)
    for limit in (1, num):
        start = time.process_time()
        (answer,) = answer_turn([Extend(prefix=Prefix(chat(text, max_tokens=limit)), seed=0, sampling=GREEDY)], process)
    assert isinstance(answer, Extension) and prompt.max_tokens == num
    return answer, (time.process_time() - start) / len(answer.prefix.tokens)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="qwen2.5-coder-1.5b")
    parser.add_argument("--other", default="qwen2.5-coder-0.5b")
    parser.add_argument("--n", type=int, default=3)
    parser.add_argument("--new", type=int, default=40)
    args = parser.parse_args()
    path, texts = ponder.pull(args.model), CODE[: args.n]
    ponder.pull(args.other)
    alone: list[Extension] = []
    for way in (None, *WAYS):
        accelerations = PLAIN if way is None else Accelerations(partner=Partner(args.other, way))
        process = open_together(path, threads=1, accelerations=accelerations)
        answers, seconds = zip(*(answered(process, text, args.new) for text in texts), strict=True)
        alone = alone or list(answers)
        append(
            "collaborate",
            {
                "model": args.model, "other": args.other, "way": way, "n": len(texts), "new": args.new, "threads": 1,
                "ms_a_token": round(1000 * sum(seconds) / len(seconds), 1), "flops": sum(a.cost.flops for a in answers),
                "equal": sum(a.prefix.text == b.prefix.text for a, b in zip(answers, alone, strict=True)),
                "parts_at": [common_len(a.prefix.text, b.prefix.text) for a, b in zip(answers, alone, strict=True)],
                "said": getattr(process, "num_said", None), "texts": [a.prefix.text[:120] for a in answers],
            },
        )  # fmt: skip


if __name__ == "__main__":
    main()
