"""Laws of the Probe role, and of how a process reads one. `make` and `tolerance` as in laws_process; a prompt likewise.

A mutant of each is in tests/testing/test_laws_probe.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ponder.core.asks import Answer, Extend, Prefix, Prompt, Read, Readings, Sampling
from ponder.core.errors import BadField
from ponder.core.probe import Probe, Row
from ponder.core.roles import Process
from ponder.testing.exact import require
from ponder.testing.laws_process import extended
from ponder.testing.run import answer_turn

Make = Callable[[], Process]
Law = Callable[[Make, Prompt, Probe], None]


@dataclass(frozen=True, kw_only=True)
class Whole:
    """Probe: the state itself, or its first `num` numbers."""

    num: int | None = None
    name: str = "whole"
    model_id: str | None = None

    def read(self, hidden_ND: Tensor) -> Tensor:
        return hidden_ND[:, : self.num].double()


def probed(prompt: Prompt, probe: Probe, seed: int = 0, max_tokens: int | None = None) -> Extend:
    return Extend(prefix=Prefix(prompt), seed=seed, max_tokens=max_tokens, sampling=Sampling(temperature=0.9), probes=(probe,))


def rows(prefix: Prefix, probe: Probe) -> tuple[Row, ...]:
    return dict(prefix.readings).get(probe.name, ())


def read(process: Process, asks: Sequence[Read]) -> list[Readings]:
    answers: Sequence[Answer] = answer_turn(asks, process)
    require(all(isinstance(a, Readings) for a in answers), f"answers to Read: {answers}")
    return [a for a in answers if isinstance(a, Readings)]


def law_reading_changes_nothing(make: Make, prompt: Prompt, probe: Probe) -> None:
    """The answer and its cost are those of the same ask without probes; there is one row per new token."""
    ask = probed(prompt, probe)
    ((seen,), (plain,)) = extended(make(), [ask]), extended(make(), [replace(ask, probes=())])
    require(replace(seen.prefix, readings=()) == plain.prefix, f"{seen.prefix} with a probe, {plain.prefix} without")
    require(len(rows(seen.prefix, probe)) == len(seen.prefix.tokens), f"{len(rows(seen.prefix, probe))} rows of {len(seen.prefix.tokens)} tokens")
    require(not plain.prefix.readings, "readings that nobody asked for")
    require(seen.cost == plain.cost or bool(seen.cost.reused_tokens), f"cost {seen.cost} with a probe, {plain.cost} without")


def law_alone_or_in_a_crowd(make: Make, prompt: Prompt, probe: Probe) -> None:
    """Readings are equal bit for bit alone, beside others with and without probes, and in any order."""
    asks = [probed(prompt, probe, seed) for seed in range(4)]
    others = [replace(probed(prompt, Whole(name="other"), seed), probes=(Whole(name="other"),) * (seed % 2)) for seed in range(9, 12)]
    together, backwards = extended(make(), [*asks, *others])[: len(asks)], extended(make(), [*others, *asks[::-1]])[len(others) :][::-1]
    for ask, beside, other in zip(asks, together, backwards, strict=True):
        (alone,) = extended(make(), [ask])
        require(alone.prefix == beside.prefix == other.prefix, f"{rows(alone.prefix, probe)} alone, {rows(beside.prefix, probe)} in a crowd")


def law_in_pieces(make: Make, prompt: Prompt, probe: Probe) -> None:
    """Token by token, rows are those of the whole, in order; an ask without the probe leaves none that would be out of place."""
    process = make()
    (whole,) = extended(process, [probed(prompt, probe)])
    prefix = Prefix(prompt)
    while not prefix.is_final:
        (piece,) = extended(process, [replace(probed(prompt, probe, max_tokens=1), prefix=prefix)])
        prefix = piece.prefix
    require(prefix == whole.prefix, f"{rows(prefix, probe)} in pieces, {rows(whole.prefix, probe)} at once")
    (first,) = extended(process, [probed(prompt, probe, max_tokens=2)])
    if not first.prefix.is_final:
        (after,) = extended(process, [Extend(prefix=first.prefix, seed=0, max_tokens=1)])
        require(not after.prefix.readings, "a prefix keeps rows although its last token has none")


def law_read_is_what_extend_read(make: Make, prompt: Prompt, probe: Probe) -> None:
    """Read gives the same rows bit for bit, in a process that generated them and in a fresh one; any places, any order."""
    process = make()
    (whole,) = extended(process, [probed(prompt, probe)])
    wanted, num = rows(whole.prefix, probe), len(whole.prefix.tokens)
    for places in (tuple(range(num)), (0,), (num - 1,), (num - 1, 0, num - 1), (num // 2,)):
        for reader in (process, make(), process):
            (told,) = read(reader, [Read(prefix=whole.prefix, probe=probe, places=places)])
            require(told.rows == tuple(wanted[i] for i in places), f"places {places}: {told.rows}, Extend read {[wanted[i] for i in places]}")


def law_reading_costs(make: Make, prompt: Prompt, probe: Probe) -> None:
    """prompt + reused = all up to the last place, of which what lies from the first place on is computed; nothing is generated."""
    process = make()
    (whole,) = extended(process, [probed(prompt, probe)])
    num, read_len = len(whole.prefix.tokens), process.prompt_len(prompt)
    for first, last in ((0, num), (num, num), (num // 2, num)):
        (told,) = read(process, [Read(prefix=whole.prefix, probe=probe, places=(first, last))])
        cost = told.cost
        require(cost.prompt_tokens + cost.reused_tokens == read_len + last, f"{cost} for {read_len} + {last} tokens")
        require(cost.prompt_tokens >= last - first and cost.generated_tokens == 0, f"{cost} for places {first} to {last}")
        require(cost.calls == 1 and cost.tokens == cost.prompt_tokens, f"{cost}")


def law_refuses_a_foreign_probe(make: Make, prompt: Prompt, probe: Probe) -> None:
    """A probe that knows another model's states, and a place that is not there, are refused before any work."""
    process = make()
    foreign = Whole(model_id="another model")
    for ask in (probed(prompt, foreign), Read(prefix=Prefix(prompt), probe=foreign, places=(0,))):
        try:
            process.add(ask)
        except BadField as error:
            require("another model" in str(error), f"{error} names no model")
            continue
        raise AssertionError(f"took {type(ask).__name__} with a probe of another model")
    require(not process.progress(), "a refused ask is under way")
    try:
        Read(prefix=Prefix(prompt), probe=probe, places=(1,))
    except BadField:
        return
    raise AssertionError("took a place behind the end")


def law_rows_stand_alone(probe: Probe, hidden_ND: Tensor) -> None:
    """A row of the result depends on its row alone, bit for bit: in any company, float64 [N, K], K fixed."""
    whole = probe.read(hidden_ND)
    require(whole.dtype == torch.float64 and whole.dim() == 2 and len(whole) == len(hidden_ND), f"{whole.dtype} {tuple(whole.shape)}")
    for size in (1, 2, 3, 5, 16, 33):
        parts = torch.cat([probe.read(part) for part in torch.split(hidden_ND, size)])
        worst = float((parts - whole).abs().max())
        require(torch.equal(parts, whole), f"{size} rows at a time differ by {worst:.1e}")
    require(torch.equal(probe.read(hidden_ND.flip(0)).flip(0), whole), "the order of rows matters")


LAWS: tuple[Law, ...] = (
    law_reading_changes_nothing,
    law_alone_or_in_a_crowd,
    law_in_pieces,
    law_read_is_what_extend_read,
    law_reading_costs,
    law_refuses_a_foreign_probe,
)
