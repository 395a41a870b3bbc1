"""Every error a caller can meet.

PonderError                 a caller's mistake or the outside world's: one clear line, exit code 2
|-- UnknownName             a name that no catalogue row has; lists the near ones
|-- BadField                a value or field that breaks a rule
|-- BudgetTooSmall          the budget cannot pay one step
|-- PromptTooLong           the prompt does not fit the model's context
|-- BadModelFile            truncated, corrupted or foreign file; the file and the offset are named
|   `-- Unsupported         well-formed, but an architecture or tensor type that we do not run
|-- NotOffered              a process cannot answer what a strategy or verifier needs
|-- EndpointError           a remote engine is dead, refuses, or replies with what is no answer
|-- DeadParticles           every particle has weight zero
|-- BadWeight               a log-weight is NaN or +inf
`-- StoreError              the sample store or an output file cannot be read or written
"""

import difflib
from collections.abc import Iterable


class PonderError(Exception):
    """A mistake that the caller can mend. The message names the value got, the rule and the mend."""


class UnknownName(PonderError):
    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        self.known = sorted(known)
        near = difflib.get_close_matches(name, self.known, n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(self.known)}"
        super().__init__(f"unknown {kind} {name!r}; {hint}")


class BadField(PonderError, ValueError):
    pass


class BudgetTooSmall(PonderError):
    pass


class PromptTooLong(PonderError):
    pass


class BadModelFile(PonderError):
    pass


class Unsupported(BadModelFile):
    pass


class NotOffered(PonderError):
    pass


class EndpointError(PonderError):
    pass


class DeadParticles(PonderError):
    pass


class BadWeight(PonderError):
    pass


class StoreError(PonderError):
    pass
