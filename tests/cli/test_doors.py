"""What makes an answer cheaper can be asked for at every door: each command that opens a model, and Python's `ponder.load`."""

import inspect
from dataclasses import fields

import pytest

import ponder
from ponder.cli import main
from ponder.core.accelerations import Accelerations
from ponder.core.errors import PonderError, StoreError, UnknownName

NAMES = {field.name for field in fields(Accelerations)}


def missing_at(door) -> set[str]:
    """Accelerations that cannot be asked for there; a partner is asked for by its name and a way."""
    given = set(inspect.signature(door).parameters)
    return (NAMES | {"way"}) - given - ({"partner"} if "other" in given else set())


@pytest.mark.parametrize("door", [main.ask, main.compare, main.serve, ponder.load], ids=lambda door: door.__name__)
def test_every_door_knows_every_acceleration(door):
    assert not missing_at(door)


def test_a_door_that_lacks_one_is_caught():
    def load(model, *, draft=None, cache=None): ...

    assert missing_at(load) >= {"attend", "prompt", "way"}


@pytest.mark.parametrize("name", sorted(NAMES - {"partner", "tail", "predictor"}))
def test_a_name_that_nothing_has_is_refused_before_work(smollm2_path, name):
    with pytest.raises(UnknownName):
        ponder.load(str(smollm2_path), **{name: "nonesuch"})


@pytest.mark.parametrize("name", ["tail", "predictor"])
def test_a_file_that_is_not_there_is_refused(smollm2_path, name):
    with pytest.raises(StoreError, match="nonesuch"):
        ponder.load(str(smollm2_path), **{name: "nonesuch"})


def test_a_partner_without_a_way_is_refused(smollm2_path):
    with pytest.raises(PonderError, match="go together"):
        ponder.load(str(smollm2_path), partner="smollm2-135m")
