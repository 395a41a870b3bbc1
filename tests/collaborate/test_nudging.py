"""Nudging: traces written out by hand, both ends of the threshold, bounds, costs. Models are functions of the text."""

import math
from dataclasses import dataclass, field, replace

import pytest

from ponder.collaborate.nudging import Nudging
from ponder.collaborate.pair import PairProcess
from ponder.core.asks import GREEDY, Extend, Extension, Prefix, Prompt, Score, TokenLogP
from ponder.core.budget import Cost
from ponder.core.errors import BadField, NotOffered, PromptTooLong

PROMPT = Prompt(messages=(("user", "?"),), max_tokens=20)


@dataclass
class Writer:
    """A model that has one text in mind, in tokens of its own, and is as sure of each as is said; elsewhere it ends."""

    words: tuple
    chances: tuple = ()
    context_len: int = 100
    model_id: str = "writer"
    waiting: dict = field(default_factory=dict)
    num: int = 0

    def prompt_len(self, prompt):
        return 1 + len(prompt.prefill.split())

    def flops(self, num_tokens, context_len):
        return float(num_tokens)

    def add(self, ask, max_tokens=None):
        if self.prompt_len(ask.prefix.prompt) >= self.context_len:
            raise PromptTooLong("too long")
        self.num += 1
        so_far = ask.prefix.prompt.prefill + ask.prefix.text
        place = next((i for i in range(len(self.words)) if "".join(self.words[:i]) == so_far), len(self.words))
        is_over = place >= len(self.words)
        word, chance = ("", 0.9) if is_over else (self.words[place], self.chances[place] if self.chances else 0.9)
        grown = replace(
            ask.prefix, tokens=(*ask.prefix.tokens, 99 if is_over else place), text=ask.prefix.text + word, finish="stop" if is_over else None,
            log_p=ask.prefix.log_p + math.log(chance),
        )  # fmt: skip
        shown = (TokenLogP(grown.tokens[-1], math.log(chance), ((grown.tokens[-1], math.log(chance)),)),) if ask.logprobs else ()
        self.waiting[self.num] = Extension(grown, grown.finish or "limit", Cost(generated_tokens=1, calls=1), shown)
        return self.num

    def step(self):
        done, self.waiting = list(self.waiting.items()), {}
        return done

    def progress(self):
        return {}

    def cancel(self, ticket):
        return replace(self.waiting.pop(ticket), finish="budget")


def answered(pair, prompt=PROMPT, **other):
    ticket = pair.add(Extend(prefix=Prefix(prompt), seed=0, sampling=GREEDY, **other))
    for _ in range(200):
        for number, answer in pair.step():
            assert number == ticket
            return answer
    raise AssertionError("no answer")


SURE = Writer(("I ", "am ", "big ", "and ", "old"))
UNSURE = Writer(("I ", "am ", "big ", "and ", "old"), (0.9, 0.9, 0.1, 0.9, 0.9))


def test_an_unsure_base_is_told_one_word():
    """At "big " the base is unsure; the guide, whose tokens are others, says "small" there; neither has thought of what comes then."""
    guide = Writer(("I am ", "sm", "all", " indeed"))
    pair = PairProcess(replace(UNSURE, waiting={}), guide, Nudging())
    answer = answered(pair)
    assert answer.prefix.text == "I am small" and answer.finish == "stop"
    assert pair.num_said == {"base": 3, "guide": 2}  # the base's end is a token
    assert answer.cost.generated_tokens == 3 + 1 + 3 and answer.cost.calls == 1


def test_the_base_goes_on_after_a_nudge():
    base = Writer(("I ", "am", " small", " and", " old"), (0.9, 0.9, 0.1, 0.9, 0.9))
    pair = PairProcess(base, Writer(("I am", " small", " too")), Nudging())
    answer = answered(pair)
    assert answer.prefix.text == "I am small and old" and pair.num_said == {"base": 5, "guide": 1}


@pytest.mark.parametrize(("least", "text"), [(0.0, "I am big and old"), (1.1, "You are wise")])
def test_ends_of_the_threshold_are_one_model_alone(least, text):
    pair = PairProcess(replace(UNSURE, waiting={}), Writer(("You", " are", " wise")), Nudging(least=least))
    answer = answered(pair)
    assert answer.prefix.text == text and answer.finish == "stop"
    assert pair.num_said["guide" if least == 0 else "base"] == 0


def test_answers_keep_to_their_bounds():
    pair = PairProcess(Writer(tuple("abcdefgh")), SURE, Nudging())
    cut = answered(pair, max_tokens=3)
    assert cut.prefix.text == "abc" and cut.finish == "limit" and cut.prefix.finish is None
    whole = answered(pair, replace(PROMPT, max_tokens=4))
    assert whole.prefix.text == "abcd" and whole.prefix.finish == "length"


def test_a_stop_string_may_be_written_by_both():
    base, guide = Writer(("x", "EN", "z"), (0.9, 0.9, 0.1)), Writer(("xEN", "D", " more"))
    answer = answered(PairProcess(base, guide, Nudging()), replace(PROMPT, stop=("END",)))
    assert answer.prefix.text == "x" and answer.finish == "stop"


def test_a_full_context_ends_the_answer():
    base = Writer(("a ", "b ", "c ", "d "), (0.9, 0.1, 0.9, 0.1), context_len=3)
    answer = answered(PairProcess(base, Writer(("a ", "w ", "x "), context_len=9), Nudging()))
    assert answer.prefix.text.startswith("a ") and answer.prefix.finish in ("length", "stop")


def test_many_answers_at_once_are_those_alone():
    def opened():
        return PairProcess(Writer(("I ", "am", " small", " and", " old"), (0.9, 0.9, 0.1, 0.9, 0.9)), Writer(("I am", " tall", " too")), Nudging())

    pair, found = opened(), {}
    tickets = [pair.add(Extend(prefix=Prefix(replace(PROMPT, max_tokens=n)), seed=0)) for n in (2, 20, 1)]
    while len(found) < 3:
        found |= dict(pair.step())
    alone = [answered(opened(), replace(PROMPT, max_tokens=n)).prefix.text for n in (2, 20, 1)]
    assert [found[t].prefix.text for t in tickets] == alone == ["I am", "I am tall", "I "]


def test_a_cancelled_answer_gives_what_there_is():
    pair = PairProcess(replace(SURE, waiting={}), SURE, Nudging())
    ticket = pair.add(Extend(prefix=Prefix(PROMPT), seed=0))
    pair.step()
    pair.step()
    answer = pair.cancel(ticket)
    assert answer.finish == "budget" and answer.prefix.text == "I am " and answer.cost.generated_tokens == 3
    with pytest.raises(BadField, match="not under way"):
        pair.cancel(ticket)


def test_what_two_models_cannot_answer_is_refused():
    pair = PairProcess(SURE, SURE, Nudging())
    with pytest.raises(NotOffered, match="not Score"):
        pair.add(Score(prefix=Prefix(PROMPT), options=("a",)))
    with pytest.raises(NotOffered, match="pause"):
        pair.add(Extend(prefix=Prefix(PROMPT), seed=0, until=("\n",)))
    with pytest.raises(BadField, match="least=-1"):
        Nudging(least=-1)
