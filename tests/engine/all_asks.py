"""Asks of every kind about one prompt, and what their answers say without what they cost."""

from engine.tiny_models import ByteTokenizer
from ponder.accelerate.schedule.sarathi import Sarathi
from ponder.core.asks import GREEDY, Answer, Ask, Expand, Extend, Prefix, Prompt, Read, Sampling, Score
from ponder.engine.process import LocalProcess, Settings
from ponder.models.decoder import Decoder
from ponder.testing import laws_probe
from ponder.testing.run import answer_turn

LONG = "".join(chr(97 + i * i * 7 % 23) for i in range(100))


def process_of(decoder: Decoder, kind: type[LocalProcess] = LocalProcess, **settings: object) -> LocalProcess:
    return kind(decoder, ByteTokenizer(), Sarathi(), Settings(**({"kv_bytes": 1 << 24} | settings)))  # type: ignore[arg-type]


def asks_of(prompt: Prompt) -> list[Ask]:
    prefix, grown = Prefix(prompt), Prefix(prompt, tokens=tuple(range(97, 109)), text="abcdefghijkl")
    return [
        Extend(prefix=prefix, seed=3, sampling=Sampling(temperature=0.9), max_tokens=7),
        Extend(prefix=prefix, seed=4, sampling=GREEDY, max_tokens=5, probes=(laws_probe.Whole(),)),
        Score(prefix=prefix, options=("yes", "no way", "y" * 40)),
        Expand(prefix=grown, num=4),
        Read(prefix=grown, probe=laws_probe.Whole(), places=(0, 3, 12)),
        Score(prefix=grown, options=("abc", "")),
    ]


def bare(answer: Answer) -> list[object]:
    """What an answer says, without what it cost."""
    return [getattr(answer, name) for name in ("prefix", "children", "log_p", "rows") if hasattr(answer, name)]


def bares(process: LocalProcess, asks: list[Ask]) -> list[list[object]]:
    return [bare(answer) for answer in answer_turn(asks, process)]
