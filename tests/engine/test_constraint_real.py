"""SmolLM2-135M kept to forms: answers that parse and match under every strategy, masks that leave neighbours alone."""

import json
import math
import re
from pathlib import Path

import pytest

from ponder.accelerate.schedule.sarathi import Sarathi
from ponder.accelerate.weights.int4 import Int4
from ponder.accelerate.weights.int8 import Int8Head
from ponder.core.asks import GREEDY, Choice, Extend, Form, JsonSchema, Outcome, Prefix, Prompt, Regex, Sampling, Score
from ponder.core.rng import TorchRng
from ponder.core.roles import Asking, Strategy
from ponder.engine.constraint import forms_of
from ponder.engine.open import open_process
from ponder.engine.process import LocalProcess, Settings
from ponder.infer.beam import Beam
from ponder.infer.best_of_n import BestOfN
from ponder.infer.greedy import Greedy
from ponder.infer.particle_filter import MeanProbability, ParticleFilter
from ponder.infer.resample.systematic import systematic
from ponder.infer.sample import Sample
from ponder.testing.run import answer_turn

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "age": {"type": "integer", "maximum": 99}, "tag": {"enum": ["a", "é😀"]}},
    "required": ["name", "age", "tag"],
    "additionalProperties": False,
}
DATE = r"(19|20)[0-9]{2}-(0[1-9]|1[0-2])-[0-3][0-9]"
FORMS = {
    "schema": ("Describe a person as JSON with name, age and tag.", JsonSchema(json.dumps(SCHEMA))),
    "regex": ("When did the first man walk on the moon? Answer with a date.", Regex(DATE)),
    "choice": ("Is water wet?", Choice(("yes", "no", "I do not know"))),
}
SAMPLINGS = {1: Sampling(), 0: GREEDY}


def strategies(sampling: Sampling) -> dict[str, Strategy]:
    fluent = MeanProbability()
    found: dict[str, Strategy] = {
        "sample": Sample(num=2, sampling=sampling),
        "best_of_n": BestOfN(num=2, verifier=fluent, sampling=sampling),
        "particle_filter": ParticleFilter(
            num=2, resampler=systematic, step_tokens=6, sampling=sampling, is_corrected=sampling.temperature > 0, verifier=fluent
        ),
    }
    return found if sampling.temperature else found | {"greedy": Greedy(), "beam": Beam(width=2)}


CASES = [(name, temperature) for temperature, sampling in SAMPLINGS.items() for name in strategies(sampling)]


@pytest.fixture(scope="module")
def process(smollm2_path: Path) -> LocalProcess:
    return open_process(smollm2_path, weights=Int4(), head=Int8Head(), scheduler=Sarathi())


def is_in(form: Form, text: str) -> bool:
    """Judged without the library that made the mask."""
    if isinstance(form, Regex):
        return re.fullmatch(form.pattern, text) is not None
    if isinstance(form, Choice):
        return text in form.options
    value = json.loads(text)
    is_named = set(value) == {"name", "age", "tag"} and isinstance(value["name"], str) and len(value["name"]) <= 5
    return is_named and isinstance(value["age"], int) and value["age"] <= 99 and value["tag"] in ("a", "é😀")


def played_together(running: dict[object, Asking], process: LocalProcess) -> dict[object, Outcome]:
    """Outcomes of strategies whose turns are answered in one batch."""
    outcomes: dict[object, Outcome] = {}
    turns = {key: next(asking) for key, asking in running.items()}
    while turns:
        answers = iter(answer_turn([ask for turn in turns.values() for ask in turn.asks], process))
        told = {key: tuple(next(answers) for _ in turn.asks) for key, turn in turns.items()}
        turns = {}
        for key, answered in told.items():
            try:
                turns[key] = running[key].send(answered)
            except StopIteration as stop:
                outcomes[key] = stop.value
    return outcomes


@pytest.fixture(scope="module")
def outcomes(process: LocalProcess) -> dict[object, Outcome]:
    def asking(kind: str, name: str, temperature: int) -> Asking:
        question, form = FORMS[kind]
        return strategies(SAMPLINGS[temperature])[name].run(Prompt(messages=(("user", question),), max_tokens=60, form=form), TorchRng(3))

    return played_together({(kind, *case): asking(kind, *case) for kind in FORMS for case in CASES}, process)


@pytest.mark.parametrize("kind", FORMS)
@pytest.mark.parametrize(("name", "temperature"), CASES)
def test_answers_are_in_the_form(outcomes, kind, name, temperature):
    candidates = outcomes[kind, name, temperature].candidates
    assert candidates
    assert {c.finish for c in candidates} == {"stop"}, "60 tokens hold every answer of these forms"
    assert all(is_in(FORMS[kind][1], c.text) for c in candidates), [c.text for c in candidates]


def test_without_the_form_the_model_says_something_else(process):
    asks = [Extend(prefix=Prefix(Prompt(messages=(("user", q),), max_tokens=12)), seed=0, sampling=GREEDY) for q, _ in FORMS.values()]
    for (_, form), answer in zip(FORMS.values(), answer_turn(asks, process)):
        assert isinstance(form, JsonSchema) or not is_in(form, answer.prefix.text)
        assert not answer.prefix.text.startswith("{")


def test_neighbours_with_and_without_a_form(process):
    kinds = (Sampling(temperature=0.8), Sampling(presence_penalty=1.0, logit_bias=((40, 3.0),)))
    prompts = [Prompt(messages=(("user", q),), max_tokens=6, form=form) for q, form in (*FORMS.values(), ("Write about the sea.", None))]
    asks = [Extend(prefix=Prefix(prompt), seed=i, sampling=kind) for i, kind in enumerate(kinds) for prompt in prompts]
    alone = [answer_turn([ask], LocalProcess(process.decoder, process.tokenizer, Sarathi()))[0].prefix for ask in asks]
    crowd = LocalProcess(process.decoder, process.tokenizer, Sarathi(), Settings(chunk=40))
    assert [a.prefix for a in answer_turn(asks, crowd)] == alone


def test_the_mass_of_a_choice(process):
    """Over draws, the mean of p / q comes to the mass of all splits of the options, of which each option's own split is a part."""
    question, form = FORMS["choice"]
    prompt = Prompt(messages=(("user", question),), max_tokens=12, form=form)
    told = answer_turn([Extend(prefix=Prefix(prompt), seed=s, sampling=Sampling(temperature=1.5)) for s in range(24)], process)
    weights = {a.prefix.tokens: math.exp(a.prefix.log_p - a.prefix.log_q) for a in told}
    (scored,) = answer_turn([Score(prefix=Prefix(prompt), options=form.options)], process)
    for answer in told:
        ids = process.tokenizer.encode(answer.prefix.text)
        if list(answer.prefix.tokens[:-1]) == ids:
            own = scored.log_p[form.options.index(answer.prefix.text)]
            assert own > answer.prefix.log_p and own == pytest.approx(answer.prefix.log_p - end_log_p(process, answer.prefix), abs=0.05)
    assert all(a.prefix.log_q <= 0 and a.prefix.log_p < a.prefix.log_q for a in told)
    assert len(weights) > 2


def end_log_p(process: LocalProcess, prefix: Prefix) -> float:
    """log-probability of the end token that the answer has."""
    before = Prefix(Prompt(messages=prefix.prompt.messages, max_tokens=12), prefix.tokens[:-1], prefix.text)
    (told,) = answer_turn([Extend(prefix=before, seed=0, max_tokens=1, logprobs=process.tokenizer.vocab_size)], process)
    return dict(told.logprobs[0].top)[prefix.tokens[-1]]


def test_every_piece_of_the_vocabulary_leads_where_its_bytes_lead(process):
    """The mask against all pieces, one by one, halves of characters included."""
    tokenizer = process.tokenizer
    options = ('{"é": "😀"}', "{\n  ", "yes\tno", "naïve 東京")
    for start in (0, 1, 3):
        for option in options:
            done = option.encode()[:start]
            tokens = tuple(tokenizer.pieces.index(bytes([b])) for b in done)
            allowed = forms_of(tokenizer).matcher(Choice(options), tokens).allowed()
            wanted = {t for t, piece in enumerate(tokenizer.pieces) if piece and any(o.encode().startswith(done + piece) for o in options)}
            assert set(allowed.nonzero()[:, 0].tolist()) == wanted
