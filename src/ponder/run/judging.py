"""Asking a verifier that may be broken: whatever it does, every candidate gets a verdict, and what went wrong is counted.

raised         an exception that is no PonderError, in `asks` or `judge`: all abstain
too_long       a prompt of its own that does not fit the context (found by the driver): that ask is answered empty
hung           no verdict within the limit: all abstain, and it is not asked again by this driver; its thread is left behind
miscounted     not one verdict per candidate: all abstain
no_value       NaN, infinite, no number, or a probability outside [0, 1]: that candidate's verdict is an abstention
contradicted   unlike verdicts on equal candidates of one batch: the first one stands for all
"""

import math
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from ponder.core.asks import ABSTAIN, Answer, Ask, Candidate, Judge, Verdict
from ponder.core.errors import BadField, PonderError
from ponder.core.roles import Verifier

T = TypeVar("T")


class Hung(Exception):
    """No result in time."""


def within(seconds: float | None, call: Callable[[], T]) -> T:
    """What `call` returns or raises; Hung when it takes longer. A thread cannot be killed: it is left to itself."""
    if seconds is None:
        return call()
    done: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            done.append(call())
        except BaseException as error:  # handed to the caller below
            failed.append(error)

    thread = threading.Thread(target=run, name="verifier", daemon=True)
    thread.start()
    thread.join(seconds)
    if failed:
        raise failed[0]
    if not done:
        raise Hung
    return done[0]


class Judging:
    """Verifiers as a driver meets them. faults: what went wrong so far, by kind."""

    def __init__(self, max_seconds: float | None) -> None:
        if max_seconds is not None and not max_seconds > 0:
            raise BadField(f"max_seconds={max_seconds}: a verifier needs some time; None for no limit")
        self.max_seconds, self.faults, self.hung = max_seconds, Counter[str](), list[Verifier]()

    def asks(self, ask: Judge) -> tuple[tuple[Ask, ...], str]:
        """(what the verifier must know first, the fault or ""). After a fault there is nothing to judge: all abstain."""
        verifier: Verifier = ask.verifier  # type: ignore[assignment]  # core.asks cannot name the role
        return self._tried(verifier, lambda: tuple(verifier.asks(ask.prompt, ask.candidates)), ())

    def verdicts(self, ask: Judge, answers: Sequence[Answer]) -> tuple[tuple[Verdict, ...], dict[str, int]]:
        """(one sound verdict per candidate, faults of this call by kind)."""
        verifier: Verifier = ask.verifier  # type: ignore[assignment]
        silence = (ABSTAIN,) * len(ask.candidates)
        told, fault = self._tried(verifier, lambda: tuple(verifier.judge(ask.prompt, ask.candidates, answers)), silence)
        if len(told) != len(silence):
            self.faults["miscounted"] += 1
            return silence, {"miscounted": 1}
        if fault:
            return told, {fault: 1}
        sound = tuple(v if is_sound(v) else replace(ABSTAIN, detail=f"the verifier said {getattr(v, 'value', v)!r}") for v in told)
        agreed = first_opinions(ask.candidates, sound)
        found = {
            "no_value": sum(not is_sound(v) for v in told),
            "contradicted": sum((a.value, a.kind) != (b.value, b.kind) for a, b in zip(agreed, sound)),
        }
        self.faults.update({kind: num for kind, num in found.items() if num})
        return agreed, {kind: num for kind, num in found.items() if num}

    def _tried(self, verifier: Verifier, call: Callable[[], T], otherwise: T) -> tuple[T, str]:
        fault = ""
        if any(verifier is other for other in self.hung):
            fault = "hung"
        else:
            try:
                return within(self.max_seconds, call), ""
            except PonderError:  # a mistake that the caller can mend: the driver ends this job with its line
                raise
            except Hung:
                self.hung.append(verifier)
                fault = "hung"
            except Exception:  # a verifier is foreign code: whatever it raises is counted and means that it has no opinion
                fault = "raised"
        self.faults[fault] += 1
        return otherwise, fault


def is_sound(verdict: Verdict) -> bool:
    """An abstention, or a finite value that its kind allows."""
    if not isinstance(verdict, Verdict):
        return False
    value = verdict.value
    if value is None:
        return True
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return False
    return verdict.kind != "probability" or 0 <= value <= 1


def first_opinions(candidates: Sequence[Candidate], verdicts: Sequence[Verdict]) -> tuple[Verdict, ...]:
    """Equal candidates get the verdict of the first of them. Readings and scores do not make candidates unlike."""
    first: dict[Candidate, Verdict] = {}
    return tuple(first.setdefault(replace(c, verdicts=(), score=None, readings=()), v) for c, v in zip(candidates, verdicts))
