"""Asks under way, as the driver keeps them, what it adds to an ask, and how it caps one and counts of its answer."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ponder.core.asks import Answer, Ask, Candidate, Confer, Extend, Extension, Extensions
from ponder.core.probe import Probe
from ponder.run.account import most_tokens


@dataclass
class Work:
    """One ask that the process must answer, for slot `slot` of the turn (and part `part` of a Judge there)."""

    slot: int
    ask: Ask
    part: int | None = None
    done: Extension | None = None  # what earlier portions of the same Extend gave
    price: int = 0  # prompt tokens booked to it
    capped: bool = False  # the cap is the budget's, not the ask's
    each: int = 0  # of each ask of a Confer, then
    computed: int = 0  # tokens the process has computed for it so far
    seconds: float = 0.0


def probed(ask: Ask, probes: dict[str, Probe]) -> Ask:
    """`ask`, an Extend also with those probes, so all Extends of a Confer."""
    if isinstance(ask, Confer):
        return replace(ask, asks=tuple(_probed(part, probes) for part in ask.asks))
    return _probed(ask, probes) if isinstance(ask, Extend) else ask


def _probed(ask: Extend, probes: dict[str, Probe]) -> Extend:
    return replace(ask, probes=tuple((probes | {p.name: p for p in ask.probes}).values())) if probes else ask


def cap(wave: Sequence[Work], left: float) -> None:
    """Caps the Extends of a wave evenly, where their own limits together exceed `left` tokens; those of a Confer count each."""
    if left == math.inf:
        return
    left -= sum(most_tokens(w.ask) for w in wave if not isinstance(w.ask, Extend | Confer))
    extends = sorted((w for w in wave if isinstance(w.ask, Extend | Confer)), key=lambda w: most_tokens(w.ask))
    for position, work in enumerate(extends):
        limit = most_tokens(work.ask)
        share = int(left // (len(extends) - position))
        if limit > share:
            work.capped, work.each = True, share // len(work.ask.asks) if isinstance(work.ask, Confer) else share
            work.ask = _capped(work.ask, work.each)
        left -= min(limit, share)


def _capped(ask: Ask, each: int) -> Ask:
    if isinstance(ask, Confer):
        return replace(ask, asks=tuple(replace(part, max_tokens=each) if most_tokens(part) > each else part for part in ask.asks))
    assert isinstance(ask, Extend)
    return replace(ask, max_tokens=each)


def cut_off(work: Work, answer: Extensions) -> Extensions:
    """The answer to a Confer, which is not taken up again: prefixes that the budget's cap cut off are final."""
    if not work.capped or not isinstance(work.ask, Confer):
        return answer
    are_cut = [told.finish == "limit" and num == work.each for told, (_, num) in zip(answer.extensions, drawn(work.ask, answer), strict=True)]
    parts = (replace(x, prefix=replace(x.prefix, finish="budget"), finish="budget") if cut else x for x, cut in zip(answer.extensions, are_cut))
    return replace(answer, extensions=tuple(parts))


def is_cut_off(answer: Answer) -> bool:
    """Whether more was wanted than the process was let give."""
    parts = answer.extensions if isinstance(answer, Extensions) else (answer,)
    return any(isinstance(part, Extension) and part.finish == "budget" for part in parts)


def drawn(ask: Ask, answer: Extensions) -> list[tuple[tuple[int, ...], int]]:
    """Of each part of a Confer: the tokens after it, and how many of them are new."""
    assert isinstance(ask, Confer)
    return [(x.prefix.tokens, len(x.prefix.tokens) - len(part.prefix.tokens)) for part, x in zip(ask.asks, answer.extensions, strict=True)]


def wasted(extensions: list[tuple[tuple[int, ...], int]], candidates: Sequence[Candidate]) -> int:
    """Generated tokens that are part of no candidate."""
    kept = {c.tokens[:length] for c in candidates for length in {len(tokens) for tokens, _ in extensions}}
    return sum(generated for tokens, generated in extensions if tokens not in kept)
