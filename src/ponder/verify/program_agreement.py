"""Agreement of two ways of thinking: the share of the model's programs that print the answer which it reasoned its way to.

Paper      Liang et al. 2024, "Improving LLM Reasoning through Scaling Inference Computation with Collaborative Verification"
           (arXiv:2410.05318): chain of thought checked by program of thought.
Equation   value = #{programs that print an answer same as the candidate's} / #{programs that print an answer}.
Shapes     candidates [N] -> verdicts [N], kind "probability": a share of votes.
Guarantee  exact (the stated value for those programs); as a sign of rightness it is a vote of another kind: measure it.
Cost       `num` programs of up to max_tokens per question, once for all candidates, and a sandboxed run of each.
Choose     sums, counting, dates: what a short program settles. Not where the model cannot program: then it abstains.
Differs    no trained verifier beside it; an answer is what the prompt's own reader finds in the output; equal programs run once.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from ponder.core.asks import ABSTAIN, Answer, Ask, Candidate, Extend, Extension, Prefix, Prompt, Sampling, Verdict
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee
from ponder.core.rng import hash_seed
from ponder.verify.answers import Code
from ponder.verify.sandbox import Limits, run_python

REQUEST = "Write a Python program that computes the answer and prints it, and nothing else. Reply with one code block."
MARK = "PRINTED:"
SHOW = f"""
import contextlib, io
_said = io.StringIO()
with contextlib.redirect_stdout(_said):
    exec(compile(_source, "program", "exec"), {{"__name__": "__main__"}})
raise RuntimeError({MARK!r} + _said.getvalue().strip()[-200:])
"""  # the sandbox throws output away, so that it comes out as an exception's text


@dataclass(frozen=True, kw_only=True)
class ProgramAgreement:
    num: int = 3  # programs
    max_tokens: int = 200  # of one program
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.6))
    limits: Limits = field(default_factory=lambda: Limits(seconds=3.0))
    seed: int = 0
    name: str = "program_agreement"

    guarantee = Guarantee.EXACT

    def __post_init__(self) -> None:
        if self.num < 1 or self.max_tokens < 1:
            raise BadField(f"program_agreement num={self.num}, max_tokens={self.max_tokens}: both must be at least 1")

    def asks(self, prompt: Prompt, candidates: Sequence[Candidate]) -> tuple[Ask, ...]:
        if all(c.answer is None for c in candidates):
            return ()
        asked = replace(prompt, messages=(("user", f"{prompt.question}\n{REQUEST}"),), prefill="", stop=(), max_tokens=self.max_tokens, form=None)
        seeds = (hash_seed(self.seed, prompt.question, i) for i in range(self.num))
        return tuple(Extend(prefix=Prefix(asked), seed=seed, sampling=self.sampling) for seed in seeds)

    def judge(self, prompt: Prompt, candidates: Sequence[Candidate], answers: Sequence[Answer]) -> tuple[Verdict, ...]:
        codes = [code for a in answers if isinstance(a, Extension) and (code := Code().read(a.prefix.text)) is not None]
        printed = {code: self._printed(code) for code in dict.fromkeys(codes)}
        said = [prompt.answers.read(text) for code in codes if (text := printed[code]) is not None]
        votes = [answer for answer in said if answer is not None]
        return tuple(self._verdict(c, prompt, votes) for c in candidates)

    def _printed(self, code: str) -> str | None:
        """What the program prints; None when it fails."""
        _, found, text = run_python(f"_source = {code!r}\n{SHOW}", self.limits).detail.partition(MARK)
        return text if found else None

    def _verdict(self, candidate: Candidate, prompt: Prompt, votes: Sequence[str]) -> Verdict:
        if candidate.answer is None or not votes:
            return ABSTAIN
        agreed = sum(prompt.answers.same(candidate.answer, vote) for vote in votes)
        return Verdict(agreed / len(votes), "probability", f"{agreed} of {len(votes)} programs")
