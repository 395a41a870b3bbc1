"""P(IK), "I know": the chance that the model answers this question right, read before it says a word.

Paper      Kadavath et al. 2022, "Language Models (Mostly) Know What They Know" (arXiv:2207.05221), section 5; as a check before
           decoding: FactCheckmate, Alnuhait et al. 2024 (arXiv:2410.02899), without its steering.
Equation   value = head(h_0), h_0 the state after the prompt; trained on the outcomes of the model's own samples.
Shapes     candidates [N] -> verdicts [N], kind "probability", all equal: it judges the question, not the answer.
Guarantee  exact (the stated value); its error rates stand in the head's facts, measured on held-out questions.
Cost       none where a candidate carries readings from its first token on; else one Read ask: the prompt's last token once more.
Choose     to say beforehand whether to answer, abstain, retrieve or spend more. It cannot rank answers to one question.
Differs    the head reads one model's states instead of being trained with the model; calibrated on held-out questions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ponder.core.asks import ABSTAIN, Answer, Ask, Candidate, Prefix, Prompt, Read, Readings, Verdict
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee
from ponder.core.probe import Probe
from ponder.verify.heads import Head


@dataclass(frozen=True, kw_only=True)
class PIK:
    head: Head  # trained on states after the prompt
    name: str = "p_ik"

    guarantee = Guarantee.EXACT

    def __post_init__(self) -> None:
        if self.head.place != "prompt":
            raise BadField(f"p_ik with a head for the {self.head.place} state: it judges answers, not questions; use probe_head, or train another")

    @property
    def probes(self) -> tuple[Probe, ...]:
        return (self.head,)

    def asks(self, prompt: Prompt, candidates: Sequence[Candidate]) -> tuple[Ask, ...]:
        if not candidates or self._carried(candidates) is not None:
            return ()
        return (Read(prefix=Prefix(prompt), probe=self.head, places=(0,)),)

    def judge(self, prompt: Prompt, candidates: Sequence[Candidate], answers: Sequence[Answer]) -> tuple[Verdict, ...]:
        value = self._carried(candidates)
        if value is None:
            value = next((a.rows[0][0] for a in answers if isinstance(a, Readings) and a.rows), None)
        return tuple(ABSTAIN if value is None else Verdict(value, "probability") for _ in candidates)

    def _carried(self, candidates: Sequence[Candidate]) -> float | None:
        """The value at the first token of a candidate that has a row for every token."""
        for c in candidates:
            rows = dict(c.readings).get(self.head.name, ())
            if rows and len(rows) == len(c.tokens):
                return rows[0][0]
        return None
