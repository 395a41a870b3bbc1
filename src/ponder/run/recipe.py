"""A recipe is a frozen composition: what to run and how much it may spend. A result is what came of it."""

from dataclasses import dataclass, field, fields, is_dataclass

from ponder.core.asks import Candidate, Verdict
from ponder.core.budget import Budget, Cost
from ponder.core.probe import Probe
from ponder.core.roles import Strategy


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """`label` is how tables name it: the text it was written as."""

    label: str
    strategy: Strategy
    budget: Budget


def describe(value: object) -> object:
    """Settings as plain JSON: a dataclass becomes its class name and the fields that its repr shows, a function its name."""
    if is_dataclass(value) and not isinstance(value, type):
        settings = {f.name: describe(getattr(value, f.name)) for f in fields(value) if f.repr}
        return {"is": type(value).__name__, **settings}
    if isinstance(value, tuple | list):
        return [describe(v) for v in value]
    if callable(value):
        return str(getattr(value, "__name__", type(value).__name__))
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def probes_of(value: object) -> dict[str, Probe]:
    """By name, the `probes` of every part of a strategy that has some (core.roles.Verifier): what its Extends must read."""
    if is_dataclass(value) and not isinstance(value, type):
        found = {probe.name: probe for probe in getattr(value, "probes", ())}
        return found | {name: probe for f in fields(value) for name, probe in probes_of(getattr(value, f.name)).items()}
    return {name: probe for v in value for name, probe in probes_of(v).items()} if isinstance(value, tuple | list) else {}


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one question got for its budget.

    stop_reason: "done", the budget's limit that was reached ("tokens", "seconds", ...), "interrupted", "cancelled" or "failed" (then
    diagnostics["error"] says why). Unless "done", candidates are the best so far. confidence in [0, 1] or None is the strategy's own, uncalibrated.
    """

    answer: str | None
    candidates: tuple[Candidate, ...]  # the selected one first
    confidence: float | None
    cost: Cost
    stop_reason: str
    diagnostics: dict[str, object] = field(default_factory=dict)
    trace: tuple[str, ...] = ()  # JSON lines: every ask, answer and cost
    computed: Cost = field(default_factory=Cost, compare=False)  # by the process: less than `cost` where work was shared or stored

    def __str__(self) -> str:
        return self.text

    @property
    def text(self) -> str:
        return self.candidates[0].text if self.candidates else ""

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """Of the selected candidate."""
        return self.candidates[0].verdicts if self.candidates else ()
