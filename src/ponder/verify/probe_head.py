"""Process reward from the generator's own hidden states: a trained head reads what generation has computed anyway.

Paper      Lightman et al. 2023 (arXiv:2305.20050) and Wang et al. 2024 (Math-Shepherd, arXiv:2312.08935) for process rewards from
           outcomes; Burns et al. 2022 (arXiv:2212.03827) and Azaria & Mitchell 2023 (arXiv:2304.13734) for reading hidden states.
Equation   value = head(h_n), h_n the state that the last token was drawn from: P(the answer will be right | prefix), calibrated.
           over=mean, min: of the values at all tokens read.
Shapes     candidates [N], finished or not -> verdicts [N], kind "probability".
Guarantee  exact (the stated value); its error rates stand in the head's facts, measured on held-out questions.
Cost       none where candidates carry readings, as under the driver; else one Read ask: the answer's tokens once more.
Choose     to steer particles, beams and trees step by step, on tasks like those the head was trained on; measure it on others.
Differs    one label for all steps of a rollout, the outcome of that rollout itself; no model is trained or run but the head.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ponder.core.asks import ABSTAIN, Answer, Ask, Candidate, Prefix, Prompt, Read, Readings, Verdict
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee
from ponder.core.probe import Probe, Row
from ponder.verify.heads import Head


@dataclass(frozen=True, kw_only=True)
class ProbeHead:
    head: Head  # trained on last states
    over: Literal["last", "mean", "min"] = "last"  # which of the tokens' values counts
    name: str = "probe_head"

    guarantee = Guarantee.EXACT

    def __post_init__(self) -> None:
        if self.head.place != "last":
            raise BadField(f"probe_head with a head for the {self.head.place}'s state: it knows nothing of answers; use p_ik, or train another")

    @property
    def probes(self) -> tuple[Probe, ...]:
        return (self.head,)

    def asks(self, prompt: Prompt, candidates: Sequence[Candidate]) -> tuple[Ask, ...]:
        return tuple(
            Read(prefix=Prefix(prompt, c.tokens, c.text), probe=self.head, places=tuple(range(len(c.tokens)))) for c in self._unread(candidates)
        )

    def judge(self, prompt: Prompt, candidates: Sequence[Candidate], answers: Sequence[Answer]) -> tuple[Verdict, ...]:
        told = {c.tokens: a.rows for c, a in zip(self._unread(candidates), answers) if isinstance(a, Readings)}
        return tuple(self._verdict(self._rows(c) or told.get(c.tokens, ())) for c in candidates)

    def _rows(self, candidate: Candidate) -> tuple[Row, ...]:
        return dict(candidate.readings).get(self.head.name, ())

    def _unread(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Candidates with tokens but without readings, each different one once, in order."""
        return list({c.tokens: c for c in candidates if c.tokens and not self._rows(c)}.values())

    def _verdict(self, rows: Sequence[Row]) -> Verdict:
        values = [row[0] for row in rows]
        if not values:
            return ABSTAIN
        return Verdict({"last": values[-1], "mean": sum(values) / len(values), "min": min(values)}[self.over], "probability")
