"""Specs: what is written is what is built; what cannot be honoured is refused by name."""

from dataclasses import dataclass, field, replace
from typing import Literal

import pytest

from ponder import catalogue
from ponder.core.asks import Sampling
from ponder.core.errors import BadField, PonderError, UnknownName
from ponder.run.spec import Specs


@dataclass(frozen=True, kw_only=True)
class Thing:
    num: int = 4
    rate: float = 0.5
    vote: Literal["count", "weight"] = "count"
    judge: object = None
    ess_below: float | None = 0.5
    is_kept: bool = False
    done: str = "end"
    ends: tuple[str, ...] = ("a",)
    weights: tuple[float, ...] = (1.0,)
    sampling: Sampling = field(default_factory=Sampling)


SPECS = Specs("strategy", {"thing": Thing(), "other": Thing(num=9)}, {"judge": {"kind": "K", "harsh": "H"}})


def test_fields_are_set_by_type_and_by_name():
    got = SPECS.read("thing:num=8, rate=0.25,vote=weight,judge=harsh,temperature=0.7,top_k=20,ess_below=none,is_kept=true")
    assert got == Thing(num=8, rate=0.25, vote="weight", judge="H", ess_below=None, is_kept=True, sampling=Sampling(temperature=0.7, top_k=20))
    assert SPECS.read("other") == Thing(num=9)
    assert SPECS.read("thing:top_k=none").sampling.top_k is None
    assert SPECS.read("thing:done=no fault").done == "no fault"


def test_many():
    assert list(SPECS.read_many("thing,other")) == ["thing", "other"]
    assert SPECS.read_many("thing:num=1,rate=0;other")["thing:num=1,rate=0"] == Thing(num=1, rate=0.0)


@pytest.mark.parametrize(
    "text, kind, says",
    [
        ("thng", UnknownName, "did you mean thing"),
        ("thing:nun=3", UnknownName, "num"),
        ("thing:num=three", BadField, "whole number"),
        ("thing:num=3.5", BadField, "whole number"),
        ("thing:rate=x", BadField, "a number"),
        ("thing:vote=cont", UnknownName, "count"),
        ("thing:judge=hash", UnknownName, "harsh"),
        ("thing:temperature=-1", BadField, "between 0 and 100"),
        ("thing:is_kept=1", BadField, "true or false"),
        ("thing:ends=a", BadField, "several values"),
        ("thing:weights=2.0", BadField, "several values"),
        ("thing:num", BadField, "field=value"),
        ("thing:sampling=3", UnknownName, "sampling"),
        ("", UnknownName, "thing"),
    ],
)
def test_bad_specs_name_value_rule_and_mend(text, kind, says):
    with pytest.raises(kind, match=says) as caught:
        SPECS.read(text)
    assert isinstance(caught.value, PonderError) and "\n" not in str(caught.value)


def test_tasks_take_settings_too():
    assert catalogue.task("gsm8k:shots=1,max_tokens=99") == replace(catalogue.TASKS["gsm8k"], shots=1, max_tokens=99)
    with pytest.raises(UnknownName, match="shots"):
        catalogue.task("gsm8k:shot=0")
