"""Reasoning Gym: procedurally generated questions, each with the generator's own scorer. Names are `rg:DATASET`.

Paper      Stojanovski et al. 2025, "Reasoning Gym" (arXiv:2505.24760); Apache-2.0.
Equation   right = 1[score_answer(read(text), entry) = 1].
Shapes     `num` items for "dev" and `num` for "test". The split follows the hash of the question, so no question is in both.
Guarantee  exact scorer (the generator's; partial credit counts as wrong).
Cost       milliseconds to generate; generators that evaluate the answer as code are scored in a sandboxed process, about 2 s each.
Choose     unlimited fresh questions of chosen difficulty; `PRESELECTED` holds settings that suit small models.
Differs    the answer is read with an AnswerReader first, so that a sentence around it does not cost the point.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ponder.core.asks import Answer, AnswerReader, Ask, Candidate, Prompt, Verdict
from ponder.core.errors import BadField, PonderError, UnknownName
from ponder.core.guarantee import Guarantee
from ponder.tasks.task import Item, check_split, digest, judged_right, split_of
from ponder.verify.answers import Number, ShortText
from ponder.verify.sandbox import Limits, run_python

SEED = 20_261_121  # the generators draw item i from SEED + i
SIZE = 10_000  # items that a generator can make; some prepare all of them at the start
EVALUATING = frozenset((  # their score_answer evaluates the answer as Python, so it must not run in this process
    "binary_matrix", "countdown", "intermediate_integration", "n_queens", "polynomial_multiplication",
    "puzzle24", "simple_integration", "spiral_matrix", "string_insertion",
))  # fmt: skip
SYSTEM = "Give the final answer on one line that starts with 'Answer:'. Write nothing after it."
Config = tuple[tuple[str, object], ...]


@dataclass(frozen=True, kw_only=True)
class ReasoningGym:
    dataset: str  # a generator of the package
    config: Config = ()  # its settings, as (name, value) pairs
    num: int = 200  # items per split
    system: str = SYSTEM
    examples: tuple[tuple[str, str], ...] = ()  # worked (question, answer) pairs, our own
    max_tokens: int = 256  # most tokens of one answer
    answers: AnswerReader = field(default_factory=ShortText)

    def __post_init__(self) -> None:
        if not 1 <= self.num <= SIZE // 4:
            raise BadField(f"reasoning-gym num={self.num}: must be between 1 and {SIZE // 4} items per split")

    @property
    def name(self) -> str:
        return f"rg:{self.dataset}"

    def items(self, split: str) -> tuple[Item, ...]:
        check_split(split)
        rows = _rows(self.dataset, self.config, self.num)[split]
        return tuple(Item(id=str(index), prompt=self.prompt(question), reference=answer) for index, question, answer in rows)

    def prompt(self, question: str) -> Prompt:
        turns = [turn for q, a in self.examples for turn in (("user", q), ("assistant", a))]
        messages = (("system", self.system), *turns, ("user", question))
        return Prompt(messages=messages, max_tokens=self.max_tokens, answers=self.answers)

    def scorer(self, item: Item) -> "GymScore":
        return GymScore(dataset=self.dataset, config=self.config, index=int(item.id))

    def score(self, item: Item, text: str) -> bool:
        return judged_right(self.scorer(item), item, text)


@dataclass(frozen=True, kw_only=True)
class GymScore:
    """Verifier: 1 when the generator's score_answer gives the candidate's answer full marks, else 0."""

    dataset: str
    config: Config
    index: int  # which item of the generator
    name: str = "gym_score"

    guarantee = Guarantee.EXACT

    def asks(self, prompt: Prompt, candidates: Sequence[Candidate]) -> tuple[Ask, ...]:
        return ()

    def judge(self, prompt: Prompt, candidates: Sequence[Candidate], answers: Sequence[Answer]) -> tuple[Verdict, ...]:
        return tuple(Verdict(float(c.answer is not None and self._is_right(c.answer)), "probability") for c in candidates)

    def _is_right(self, answer: str) -> bool:
        if self.dataset in EVALUATING:
            return run_python(self._program(answer), Limits(seconds=60, memory=4 << 30)).passed
        data = _generator(self.dataset, self.config)
        try:
            return bool(data.score_answer(answer, data[self.index]) == 1.0)  # type: ignore[attr-defined, index]
        except Exception:  # third-party scorers raise anything on a strange answer; that answer is wrong
            return False

    def _program(self, answer: str) -> str:
        make = f"reasoning_gym.create_dataset({self.dataset!r}, size={SIZE}, seed={SEED}, **dict({self.config!r}))"
        return f"import reasoning_gym\ndata = {make}\nassert data.score_answer({answer!r}, data[{self.index}]) == 1.0\n"


def datasets() -> tuple[str, ...]:
    """Names of all generators. Raises PonderError when reasoning-gym is not installed."""
    return tuple(sorted(_package().factory.DATASETS))  # type: ignore[attr-defined]


def open_reasoning_gym(name: str) -> ReasoningGym:
    """The task called `name`: a preselected setting, or 'rg:DATASET' at its default settings. Raises UnknownName."""
    if name in PRESELECTED:
        return PRESELECTED[name]
    dataset = name.removeprefix("rg:")
    if dataset not in datasets():
        raise UnknownName("task", name, [f"rg:{d}" for d in datasets()])
    return ReasoningGym(dataset=dataset)


def _package() -> object:
    try:
        import reasoning_gym
    except ImportError as error:
        raise PonderError(f"tasks 'rg:...' need reasoning-gym ({error}); install it with: pip install 'ponder[tasks]'") from error
    return reasoning_gym


@functools.lru_cache(maxsize=32)
def _generator(dataset: str, config: Config) -> object:
    if dataset not in datasets():
        raise UnknownName("reasoning-gym dataset", dataset, datasets())
    create: Callable[..., object] = _package().create_dataset  # type: ignore[attr-defined]
    try:
        return create(dataset, size=SIZE, seed=SEED, **dict(config))
    except (TypeError, ValueError, AssertionError) as error:
        raise BadField(f"rg:{dataset} config={dict(config)}: {error}") from error


@functools.lru_cache(maxsize=32)
def _rows(dataset: str, config: Config, num: int) -> dict[str, tuple[tuple[int, str, str], ...]]:
    data, seen = _generator(dataset, config), set()
    rows: dict[str, list[tuple[int, str, str]]] = {"dev": [], "test": []}
    for index in range(SIZE):
        if all(len(part) == num for part in rows.values()):
            break
        entry = data[index]  # type: ignore[index]
        part, key = rows[split_of(entry["question"])], digest(entry["question"])
        if len(part) < num and key not in seen:
            seen.add(key)
            part.append((index, entry["question"], str(entry["answer"])))
    return {split: tuple(part) for split, part in rows.items()}


SUM = "State the final answer to the following arithmetic problem: {} ="  # the generator's words
PRESELECTED: dict[str, ReasoningGym] = {
    "rg:chain_sum": ReasoningGym(  # steps of one line each: for beams and particle filters as for votes
        dataset="chain_sum",
        config=(("min_digits", 1), ("max_digits", 1), ("min_terms", 5), ("max_terms", 6)),
        system="Work from left to right, one step per line. End with 'Answer:' and the number.",
        examples=(
            (SUM.format("6 + 7 - 4"), "6 + 7 = 13\n13 - 4 = 9\nAnswer: 9"),
            (SUM.format("9 - 2 + 5 + 8"), "9 - 2 = 7\n7 + 5 = 12\n12 + 8 = 20\nAnswer: 20"),
            (SUM.format("3 + 9 - 8 - 2"), "3 + 9 = 12\n12 - 8 = 4\n4 - 2 = 2\nAnswer: 2"),
        ),
        max_tokens=64,
        answers=Number(),
    ),
    "rg:short_sums": ReasoningGym(  # what SmolLM2-135M can just do: one vote in four is right, and votes add up
        dataset="chain_sum",
        config=(("min_digits", 1), ("max_digits", 1), ("min_terms", 2), ("max_terms", 3)),
        system="Work from left to right, one step per line. End with 'Answer:' and the number.",
        examples=(
            (SUM.format("6 + 7"), "6 + 7 = 13\nAnswer: 13"),
            (SUM.format("9 - 2 + 5"), "9 - 2 = 7\n7 + 5 = 12\nAnswer: 12"),
            (SUM.format("8 - 4"), "8 - 4 = 4\nAnswer: 4"),
            (SUM.format("3 + 9 - 8"), "3 + 9 = 12\n12 - 8 = 4\nAnswer: 4"),
        ),
        max_tokens=32,
        answers=Number(),
    ),
    "rg:basic_arithmetic": ReasoningGym(
        dataset="basic_arithmetic",
        config=(("min_terms", 2), ("max_terms", 2), ("min_digits", 1), ("max_digits", 2), ("allow_parentheses", False)),
        system="Answer with the number only.",
        examples=(("Calculate 6 + 7.", "13"), ("Calculate 9 * 3.", "27"), ("Calculate 45 - 8.", "37")),
        max_tokens=12,
        answers=Number(),
    ),
    "rg:spell_backward": ReasoningGym(
        dataset="spell_backward",
        config=(("min_word_len", 3), ("max_word_len", 5)),
        system="Answer with the reversed word only.",
        examples=(
            ("Spell this word backward (example: sun -> nus): lamp", "pmal"),
            ("Spell this word backward (example: sun -> nus): fish", "hsif"),
        ),
        max_tokens=16,
    ),
}
