"""Asks under way, as the driver keeps them, and what it adds to an ask or counts of its answer."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ponder.core.asks import Ask, Candidate, Extend, Extension
from ponder.core.probe import Probe


@dataclass
class Work:
    """One ask that the process must answer, for slot `slot` of the turn (and part `part` of a Judge there)."""

    slot: int
    ask: Ask
    part: int | None = None
    done: Extension | None = None  # what earlier portions of the same Extend gave
    price: int = 0  # prompt tokens booked to it
    capped: bool = False  # the cap is the budget's, not the ask's
    computed: int = 0  # tokens the process has computed for it so far
    seconds: float = 0.0


def probed(ask: Ask, probes: dict[str, Probe]) -> Ask:
    """`ask`, an Extend also with those probes."""
    if not probes or not isinstance(ask, Extend):
        return ask
    return replace(ask, probes=tuple((probes | {p.name: p for p in ask.probes}).values()))


def wasted(extensions: list[tuple[tuple[int, ...], int]], candidates: Sequence[Candidate]) -> int:
    """Generated tokens that are part of no candidate."""
    kept = {c.tokens[:length] for c in candidates for length in {len(tokens) for tokens, _ in extensions}}
    return sum(generated for tokens, generated in extensions if tokens not in kept)
