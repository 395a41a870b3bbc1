"""value_prompt: three words, their probabilities, and what they are worth."""

import math

import pytest

from ponder.core.asks import ABSTAIN, Candidate, Prompt, Score, Scores
from ponder.core.errors import BadField
from ponder.verify.value_prompt import WORDS, ValuePrompt

ASKED = Prompt(messages=(("user", "Make 24 of 4, 9, 10, 13."),))


def said(*texts):
    return tuple(Candidate(text, text or None, tokens=(1,)) for text in texts)


def values(verifier, texts, *answers):
    return [v.value for v in verifier.judge(ASKED, said(*texts), [Scores(tuple(log_p)) for log_p in answers])]


def test_asks_once_per_different_text_and_never_about_nothing():
    asks = ValuePrompt().asks(ASKED, said("13 - 9 = 4", "", "13 - 9 = 4", "4 + 9 = 13"))
    assert len(asks) == 2 and all(isinstance(ask, Score) and ask.options == WORDS for ask in asks)
    assert "Make 24" in asks[0].prefix.prompt.question and "13 - 9 = 4" in asks[0].prefix.prompt.question
    assert "4 + 9" not in asks[0].prefix.prompt.question


def test_value_is_the_mean_worth_of_the_words():
    verifier = ValuePrompt(worth=(1.0, 0.5, 0.0))
    log_p = [math.log(p) for p in (0.02, 0.06, 0.12)]
    assert values(verifier, ("a", "b", "a"), log_p, [-1e9, 0.0, -1e9]) == [pytest.approx(0.25), 0.5, pytest.approx(0.25)]
    assert values(ValuePrompt(), ("a",), [0.0, -math.inf, -math.inf]) == [1.0]


def test_abstains_when_unanswered_or_impossible():
    assert values(ValuePrompt(), ("a", "b"), [], [-math.inf] * 3) == [None, None]
    assert ValuePrompt().judge(ASKED, said(" "), []) == (ABSTAIN,)


@pytest.mark.parametrize("settings", ({"max_chars": 0}, {"worth": (2.0, 0.0, 0.0)}))
def test_bad_settings_are_refused(settings):
    with pytest.raises(BadField):
        ValuePrompt(**settings)
