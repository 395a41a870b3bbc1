"""Tiny models opened for profiling."""

from engine.tiny_models import tiny_decoder, tiny_process
from ponder.engine.process import LocalProcess
from ponder.plan.measure import outline_of
from ponder.plan.profile import Profiler

PLANTED = 1 << 22


def opened(context_len: int = 512) -> LocalProcess:
    return tiny_process(tiny_decoder(context_len=context_len))


def profiler(context_len: int = 512) -> Profiler:
    process = opened(context_len)
    return Profiler(process, outline_of(process, "bf16", "bf16-head"), PLANTED)
