"""What a prompt of random tokens costs until its first token is there."""

import time

import torch

from ponder.core.asks import Extend, Prefix, Prompt
from ponder.engine.process import LocalProcess


def first_token(process: LocalProcess, num: int, draws: torch.Generator) -> tuple[float, float]:
    """(CPU seconds, FLOPs) of a prompt of `num` tokens that nobody has asked about."""
    process.drop_cache()
    ids = torch.randint(1000, 40_000, (num,), generator=draws).tolist()
    process.rendered.clear()
    prompt = Prompt(messages=(("raw", process.tokenizer.decode(ids)),), max_tokens=8)
    process.rendered[(prompt.messages, prompt.prefill)] = ids
    process.add(Extend(prefix=Prefix(prompt), seed=0, max_tokens=1))
    before, start = process.totals.flops, time.process_time()
    while not process.step():
        pass
    return time.process_time() - start, process.totals.flops - before
