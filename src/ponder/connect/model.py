"""A model by its name, and questions to it: `ponder.load("smollm2-135m").ask("What is 7 + 5?", strategy="self_consistency")`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import ponder.catalogue as catalogue
from ponder.connect.elsewhere import check_settings, is_elsewhere, open_elsewhere
from ponder.core.accelerations import PLAIN, Accelerations, partner_of
from ponder.core.asks import AnswerReader, Prompt
from ponder.core.budget import Budget, parse_budget
from ponder.core.errors import BadField, PonderError, UnknownName
from ponder.core.rng import hash_seed
from ponder.core.roles import Process, Strategy
from ponder.engine.process import Settings
from ponder.models import fetch
from ponder.models.sources import MODELS
from ponder.run.driver import Driver, Job
from ponder.run.recipe import Recipe, Result


@dataclass(frozen=True)
class Model:
    """An opened model. Names and texts as on the command line, objects where one has them."""

    process: Process

    def ask(
        self, question: str | Prompt, *, strategy: str | Strategy = "greedy", budget: str | Budget = "2000 tokens",
        answer: str | AnswerReader = "text", max_tokens: int = 256, seed: int = 0,
    ) -> Result:  # fmt: skip
        """The answer to one question. Raises PonderError for what cannot be begun, and when the strategy fails."""
        return self.ask_many([question], strategy=strategy, budget=budget, answer=answer, max_tokens=max_tokens, seed=seed)[0]

    def ask_many(
        self, questions: Sequence[str | Prompt], *, strategy: str | Strategy = "greedy", budget: str | Budget = "2000 tokens",
        answer: str | AnswerReader = "text", max_tokens: int = 256, seed: int = 0,
    ) -> list[Result]:  # fmt: skip
        """Answers in the order of the questions, worked on together; each gets the whole budget, and what it would get alone."""
        if isinstance(questions, str):
            raise PonderError(f"questions={questions!r}: give a list of texts, or use ask for one")
        recipe = recipe_of(strategy, budget)
        prompts = [q if isinstance(q, Prompt) else prompt_of(q, answer, max_tokens) for q in questions]
        jobs = [Job(id=f"question {i + 1}", prompt=p, recipe=recipe, seed=hash_seed(seed, repr(p.messages))) for i, p in enumerate(prompts)]
        return [checked(job, result) for job, result in Driver(self.process).run(jobs)]


def load(
    model: str = catalogue.DEFAULT_MODEL, *, weights: str | None = None, threads: int | None = None, device: str = "cpu",
    context_len: int | None = None, draft: str | None = None, cache: str | None = None, attend: str | None = None, layers: str | None = None,
    prompt: str | None = None, tail: str | None = None, predictor: str | None = None, partner: str | None = None, way: str | None = None,
) -> Model:  # fmt: skip
    """The model of that name (fetched into the cache when it is not there), GGUF file, folder, endpoint (URL#MODEL or a .toml file) or
    transformers:FOLDER, opened. draft, cache, attend, layers, prompt, tail, predictor: how the same answer is to cost less
    (core.accelerations); partner: a model that writes the answer with this one, in the way that `way` names."""
    together = partner_of(partner, way)
    accelerations = Accelerations(
        draft=draft, cache=cache, attend=attend, layers=layers, prompt=prompt, tail=tail, predictor=predictor, partner=together
    )
    return Model(open_by_name(model, weights, threads, device=device, context_len=context_len, accelerations=accelerations))


def open_by_name(
    model: str, weights: str | None, threads: int | None, *, device: str, context_len: int | None, accelerations: Accelerations = PLAIN
) -> Process:
    """As catalogue.open_model, by name or path; top-level, so that it can be sent to another machine and called there."""
    check_settings(model, weights=weights, device=device, threads=threads, context=context_len, accelerations=accelerations)
    if is_elsewhere(model):
        return open_elsewhere(model)
    weights = catalogue.weights_on(device, weights)
    path = fetch.pull(model) if model in MODELS and not Path(model).exists() else fetch.resolve(model)
    return catalogue.open_together(path, weights, threads, device=device, settings=Settings(context_len=context_len), accelerations=accelerations)


def recipe_of(strategy: str | Strategy, budget: str | Budget) -> Recipe:
    limits = parse_budget(budget) if isinstance(budget, str) else budget
    if isinstance(strategy, str):
        return Recipe(label=strategy, strategy=catalogue.strategy(strategy), budget=limits)
    return Recipe(label=type(strategy).__name__, strategy=strategy, budget=limits)


def prompt_of(question: str, answer: str | AnswerReader, max_tokens: int) -> Prompt:
    if isinstance(answer, str) and answer not in catalogue.READERS:
        raise UnknownName("answer reader", answer, catalogue.READERS)
    reader = catalogue.READERS[answer] if isinstance(answer, str) else answer
    return Prompt(messages=(("user", question),), max_tokens=max_tokens, answers=reader)


def checked(job: Job, result: Result) -> Result:
    if result.stop_reason == "failed":
        raise PonderError(f"{job.id}: {result.diagnostics['error']}")
    return result


def sampled(spec: str, settings: dict[str, float]) -> str:
    """The spec of a strategy with these fields set. Raises BadField for one that the strategy does not have."""
    known = catalogue.SPECS.settable(catalogue.strategy(spec))
    if missing := sorted(set(settings) - set(known)):
        raise BadField(f"{', '.join(missing)}: strategy {spec} draws in its own way; leave it out, or use one that has it, as sample")
    separator = "," if ":" in spec else ":"
    return spec + "".join(f"{separator if i == 0 else ','}{name}={value}" for i, (name, value) in enumerate(settings.items()))
