"""A model's own answers to questions of a task, with the hidden states at the ends of their steps and whether they came out right."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ponder.core.asks import Extend, Extension, Outcome, Prefix, Prompt, Read, Readings, Sampling, Turn, candidate
from ponder.core.budget import Budget
from ponder.core.errors import BadField, PonderError
from ponder.core.guarantee import Guarantee
from ponder.core.rng import Rng, hash_seed
from ponder.core.roles import Asking, Process
from ponder.run.driver import Driver, Job
from ponder.run.question import Question
from ponder.run.recipe import Recipe
from ponder.run.store import SampleStore
from ponder.train.fit import States


@dataclass(frozen=True)
class Whole:
    """Probe: the state itself."""

    name: str = "state"
    model_id: str | None = None

    def read(self, hidden_ND: Tensor) -> Tensor:
        return hidden_ND.double()


@dataclass(frozen=True, kw_only=True)
class Rollouts:
    """Strategy: `num` answers, each grown step by step, then their states after the prompt and at the end of every step."""

    num: int = 8
    until: tuple[str, ...] = ("\n",)
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.8))
    probe: Whole = field(default_factory=Whole)

    guarantee = Guarantee.EXACT

    def __post_init__(self) -> None:
        if self.num < 1:
            raise BadField(f"rollouts num={self.num}: must be at least 1")

    def run(self, prompt: Prompt, rng: Rng) -> Asking:
        grown, places = [Prefix(prompt)] * self.num, [[0] for _ in range(self.num)]
        while live := [i for i, prefix in enumerate(grown) if not prefix.is_final]:
            asks = tuple(Extend(prefix=grown[i], seed=rng.seed(i), until=self.until, sampling=self.sampling, certainty=True) for i in live)
            answers = yield Turn(asks, tuple(map(candidate, grown)))
            for i, answer in zip(live, answers):
                if isinstance(answer, Extension):
                    grown[i] = answer.prefix
                    places[i].append(max(0, len(answer.prefix.tokens) - 1))
        drawn = tuple(map(candidate, grown))
        told = yield Turn(tuple(Read(prefix=p, probe=self.probe, places=tuple(at)) for p, at in zip(grown, places)), drawn)
        return Outcome(drawn, diagnostics={"rows": [[list(row) for row in a.rows] for a in told if isinstance(a, Readings)]})


@dataclass(frozen=True)
class Rollout:
    """One answer. states_ND: after the prompt, then at the end of every step: the state that the step's last token was drawn from."""

    question: str
    is_right: bool
    mean_log_p: float
    states_ND: Tensor  # float32


def collect(
    process: Process, questions: Sequence[Question], strategy: Rollouts, *, store: SampleStore | None = None, seed: int = 0,
    on_question: Callable[[], None] = lambda: None,
) -> Iterator[Rollout]:  # fmt: skip
    """Rollouts of every question, labelled by its scorer. Raises PonderError when a question's job fails."""
    recipe, by_id = Recipe(label="rollouts", strategy=strategy, budget=Budget()), {q.id: q for q in questions}
    jobs = [Job(id=q.id, prompt=q.prompt, recipe=recipe, seed=hash_seed(seed, q.id)) for q in questions]
    for job, result in Driver(process, store=store).run(jobs):
        if "rows" not in result.diagnostics:
            raise PonderError(f"rollouts of question {job.id} ended early ({result.stop_reason}): {result.diagnostics.get('error', 'no states')}")
        for answer, rows in zip(result.candidates, result.diagnostics["rows"]):  # type: ignore[call-overload]
            yield Rollout(job.id, by_id[job.id].is_right(answer.text), answer.mean_log_p, torch.tensor(rows, dtype=torch.float32))
        on_question()


def states_at(rollouts: Sequence[Rollout], which: str) -> States:
    """Labelled states: "steps" all ends of steps, "answers" the last alone, "prompts" those before any token."""
    cuts = {"steps": slice(1, None), "answers": slice(-1, None), "prompts": slice(0, 1)}
    if which not in cuts:
        raise BadField(f"states {which!r}: must be steps, answers or prompts")
    kept = [(r, r.states_ND[cuts[which]]) for r in rollouts]
    return States(
        torch.cat([x for _, x in kept]), tuple(r.is_right for r, x in kept for _ in x), tuple(r.question for r, x in kept for _ in x)
    )  # fmt: skip
