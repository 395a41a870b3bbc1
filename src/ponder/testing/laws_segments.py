"""Laws of models whose steps are segments (models/segments). Mutants are in tests/train/test_segments.py.

A model is seen through three functions, so that a wrong one can be made of a right one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ponder.testing.exact import require

Said = tuple[Sequence[Sequence[int]], Sequence[Sequence[float]]]  # by row: tokens, and the log-probability of each


@dataclass(frozen=True)
class Segmented:
    """write(num, sure): what free decoding says in `num` steps, and how many tokens each step had. plain(num): what embedding, body and head
    say token by token. read(tokens, lengths): log-probability of each row's tokens in given segments, all at once."""

    write: Callable[[int, float], tuple[Said, Sequence[Sequence[int]]]]
    plain: Callable[[int], Said]
    read: Callable[[Sequence[Sequence[int]], Sequence[Sequence[int]]], Sequence[Sequence[float]]]


def law_one_token_a_step_is_plain_decoding(model: Segmented) -> None:
    """Bit for bit: tokens and their log-probabilities."""
    (tokens, log_p), lengths = model.write(12, 2.0)
    require(all(num == 1 for row in lengths for num in row), f"steps of {lengths} tokens where nothing is sure enough")
    wanted = model.plain(12)
    require(list(map(list, tokens)) == list(map(list, wanted[0])), f"says {tokens}, plain decoding {wanted[0]}")
    require(list(map(list, log_p)) == list(map(list, wanted[1])), "its log-probabilities are not plain decoding's")


def law_written_is_what_is_read(model: Segmented, sure: float) -> None:
    """What was said step by step has, read at once in the same segments, the same log-probabilities, to rounding; some step is longer than one."""
    (tokens, log_p), lengths = model.write(8, sure)
    require(any(num > 1 for row in lengths for num in row), f"all steps have one token at {sure}")
    for row, (found, wanted) in enumerate(zip(log_p, model.read(tokens, lengths), strict=True)):
        off = max(abs(a - b) for a, b in zip(found, wanted, strict=True))
        require(off < 1e-3, f"row {row}: log-probabilities read at once are off by {off}")
