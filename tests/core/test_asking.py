"""Prompts, asks, candidates and errors: bad values are refused with a line that helps."""

import dataclasses

import pytest

from ponder.core import asks, errors
from ponder.core.asks import (
    ABSTAIN,
    Candidate,
    Expand,
    Expansion,
    Extend,
    Extension,
    Judge,
    Judgement,
    Prefix,
    Prompt,
    Sampling,
    Score,
    Scores,
    WholeText,
    candidate,
    chat,
    spent_answer,
)  # fmt: skip
from ponder.core.errors import BadField, PonderError, UnknownName
from ponder.core.votes import Tally, best_first, num_tied, tally, voters

PROMPT = chat("How many?", max_tokens=5)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: chat("?", max_tokens=0), "max_tokens=0"),
        (lambda: Prompt(messages=(("user", "?"),), stop=("a", "")), "empty string"),
        (lambda: Sampling(temperature=-1.0), "temperature=-1.0"),
        (lambda: Sampling(temperature=float("nan")), "temperature=nan"),
        (lambda: Sampling(top_k=0), "top_k=0"),
        (lambda: Sampling(top_p=0.0), "top_p=0.0"),
        (lambda: Sampling(min_p=1.0), "min_p=1.0"),
    ],
)
def test_bad_values_are_named(make, named):
    with pytest.raises(BadField, match=named):
        make()


def test_asks_are_values():
    one, same = (Extend(prefix=Prefix(PROMPT), seed=3) for _ in range(2))
    assert one == same and hash(one) == hash(same)
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.seed = 4


def test_every_ask_has_its_free_answer():
    prefix = Prefix(PROMPT, tokens=(1,), text="a")
    extension = spent_answer(Extend(prefix=prefix, seed=0))
    assert isinstance(extension, Extension) and extension.prefix.finish == extension.finish == "budget" and extension.prefix.tokens == (1,)
    assert spent_answer(Expand(prefix=prefix, num=2)) == Expansion(())
    assert spent_answer(Score(prefix=prefix, options=("a",))) == Scores(())
    judged = spent_answer(Judge(verifier=None, prompt=PROMPT, candidates=(candidate(prefix),) * 2))
    assert judged == Judgement((ABSTAIN, ABSTAIN)) and ABSTAIN.value is None


def test_a_candidate_reads_its_answer():
    read = candidate(Prefix(PROMPT, (1, 2), " 4  apples ", log_p=-3.0), score=0.5)
    assert (read.answer, read.mean_log_p, read.score, PROMPT.question) == ("4 apples", -1.5, 0.5, "How many?")
    assert candidate(Prefix(PROMPT)).answer is None and candidate(Prefix(PROMPT)).mean_log_p == 0.0
    assert WholeText().same("Yes", "yes") and not WholeText().same("yes", "no")


def told(text, finish="stop", log_p=-1.0):
    return Candidate(text, WholeText().read(text), (1,), log_p, finish=finish)


def test_votes():
    given = [told("a"), told(""), told("B", log_p=-0.5), told("b"), told("a", finish="budget"), told("c", log_p=-9.0)]
    assert voters(given) == (0, 2, 3, 5)
    tallies = tally(given, [1.0] * 6, WholeText())
    assert tallies == (Tally("B", (2, 3), 2.0), Tally("a", (0,), 1.0), Tally("c", (5,), 1.0))
    assert num_tied(tallies) == 1 and num_tied(tallies[1:]) == 2 and num_tied(()) == 0
    assert [c.text for c in best_first(given)] == ["B", "a", "b", "c", "", "a"]


def test_unknown_names_list_the_near_ones():
    assert "did you mean beam?" in str(UnknownName("strategy", "baem", ["beam", "greedy"]))
    assert "known: beam, greedy" in str(UnknownName("strategy", "zzz", ["greedy", "beam"]))


def test_every_error_is_ours_and_is_in_the_tree():
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert all(issubclass(kind, PonderError) for kind in kinds)
    assert all(kind.__name__ in errors.__doc__ for kind in kinds)
    assert issubclass(BadField, ValueError) and asks.FINAL == ("stop", "length", "budget")
