"""Ops over particles, closed under `>>`, and the kernels that let a language model be one of the things they move.

Every op keeps proper weighting: for any f, the expected f under the returned particles is f under the op's stated
measure, normaliser included; ops that do not say so in their guarantee, which `>>` carries along.
"""

from collections.abc import Generator, Sequence

from ponder.core.asks import Answer, Candidate, Extend, Prefix, Prompt, Sampling, Turn, candidate
from ponder.core.rng import Rng


def sampled(prompt: Prompt, num: int, sampling: Sampling, rng: Rng) -> Generator[Turn, Sequence[Answer], tuple[Candidate, ...]]:
    """`num` whole answers in one turn. Answer i comes from rng.seed(i), so strategies that draw alike share samples."""
    answers = yield Turn(tuple(Extend(prefix=Prefix(prompt), seed=rng.seed(i), sampling=sampling) for i in range(num)))
    return tuple(candidate(answer.prefix) for answer in answers)
