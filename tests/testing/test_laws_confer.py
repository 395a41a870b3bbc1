"""The laws of processes that confer, on the toy process, and toys that are wrong, each of which must fail one."""

from collections.abc import Callable

import pytest

from ponder.core.asks import Confer, Extend, Extensions, Prefix, Prompt
from ponder.core.beside import LAYOUTS
from ponder.testing import laws_confer as laws
from ponder.testing.listening import ListeningLM
from ponder.testing.toy import ToyProcess, toy_lm
from ponder.testing.toy_jobs import Group

LM = ListeningLM(toy_lm("abcd", seed=3))
PROMPT = Prompt(messages=(("raw", "q"),), max_tokens=12)


def group(layout: str = "contiguous", num: int = 3) -> Confer:
    return Confer(asks=tuple(Extend(prefix=Prefix(PROMPT), seed=40 + i) for i in range(num)), layout=layout, separator="b")


PAIRS = [(law, layout) for law in laws.LAWS for layout in LAYOUTS if (law, layout) != (laws.law_hears_in_time, "interleaved")]  # not at once there


@pytest.mark.parametrize(("law", "layout"), PAIRS, ids=lambda x: getattr(x, "__name__", x))
def test_law(law: Callable[..., None], layout: str):
    law(lambda: ToyProcess(LM), group(layout))


def early(group: Group, me: int) -> tuple[int, ...]:
    """Hears what is written in the very same step."""
    return tuple(t for i, job in enumerate(group.members) if i != me for t in job.prefix.tokens[: len(group.members[me].prefix.tokens)])


def late(group: Group, me: int) -> tuple[int, ...]:
    """Hears a token one step later than it should."""
    return tuple(t for i, job in enumerate(group.members) if i != me for t in job.prefix.tokens[: max(0, len(group.members[me].prefix.tokens) - 2)])


def no_time(group: Group) -> list[int]:
    """Whoever was added first draws first, to its end."""
    return [next(i for i in range(len(group.members)) if i not in group.told)]


def deaf(group: Group, me: int) -> tuple[int, ...]:
    return ()


@pytest.mark.parametrize(
    ("name", "wrong", "law"),
    [
        ("heard", early, laws.law_hears_in_time), ("heard", late, laws.law_hears_in_time), ("heard", deaf, laws.law_hears_in_time),
        ("due", no_time, laws.law_enough),
    ],
    ids=("early", "late", "deaf", "no time"),
)  # fmt: skip
def test_a_wrong_group_is_found(name: str, wrong: Callable[..., object], law: Callable[..., None], monkeypatch: pytest.MonkeyPatch):
    law(lambda: ToyProcess(LM), group())
    monkeypatch.setattr(Group, name, wrong)
    with pytest.raises(AssertionError):
        law(lambda: ToyProcess(LM), group())


class Generous(ToyProcess):
    """Gives every answer the whole cap."""

    def add(self, ask, max_tokens=None):
        return super().add(ask, max_tokens * len(ask.asks) if isinstance(ask, Confer) and max_tokens else max_tokens)


class Crowded(ToyProcess):
    """Hears the answers of other groups too."""

    def _confer(self, group: Group) -> Extensions | None:
        told = super()._confer(group)
        loud = [job for other in self.jobs.values() if isinstance(other, Group) and other is not group for job in other.members]
        for job in group.members:
            if loud and loud[0].prefix.tokens:
                job.prefix = Prefix(job.prefix.prompt, (*job.prefix.tokens[:-1], loud[0].prefix.tokens[-1]), job.prefix.text)
        return told


@pytest.mark.parametrize(("wrong", "law"), [(Generous, laws.law_cap), (Crowded, laws.law_alone_or_in_a_crowd)], ids=("generous", "crowded"))
def test_a_wrong_process_is_found(wrong: type[ToyProcess], law: Callable[..., None]):
    with pytest.raises(AssertionError):
        law(lambda: wrong(LM), group())
