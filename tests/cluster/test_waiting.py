"""Who gets which problem when: a question's recipes in order, never two at once; a problem that kills replicas is found and given up."""

import random

import pytest

from ponder.cluster.waiting import MAX_LOSSES, Waiting
from ponder.core.errors import PonderError


def keys(recipes, questions):
    return [(r, q) for r in recipes for q in questions]


def law_of_order(make, seed):
    """Every problem is finished once and in its question's order, two of a question are never under way, and a suspect is alone."""
    draw = random.Random(seed)
    waiting, done, losses = make(keys("ABC", "0123456789")), [], 0
    running = {replica: [] for replica in range(3)}
    for _ in range(2000):
        if not waiting:
            break
        replica = draw.choice(list(running))
        mine = running[replica]
        if not waiting.suspects.intersection(mine):
            mine += waiting.take(draw.randint(0, 4), is_idle=not mine)
        here = [question for keys in running.values() for _, question in keys]
        assert len(set(here)) == len(here), "two problems of a question at a time"
        assert len(mine) == 1 or not waiting.suspects.intersection(mine), "a suspect is not alone"
        if mine and losses < 2 and draw.random() < 0.1:
            losses += 1
            waiting.lost(mine)
            running[replica] = []
        elif mine:
            done.append(mine.pop(draw.randrange(len(mine))))
            waiting.finished(done[-1])
    assert sorted(done) == keys("ABC", "0123456789"), "not every problem is finished once"
    for question in "0123456789":
        assert [r for r, q in done if q == question] == list("ABC"), "a recipe overtook the one before it"


@pytest.mark.parametrize("seed", range(30))
def test_order(seed):
    law_of_order(Waiting, seed)


class Overtakes(Waiting):
    """Hands out whatever comes first, whichever question is under way."""

    def take(self, num, *, is_idle):
        taken, self.todo = tuple(self.todo[:num]), self.todo[num:]
        self.busy |= {question for _, question in taken}
        return taken


class Forgets(Waiting):
    """A lost problem is not given again."""

    def lost(self, keys):
        for _, question in keys:
            self.busy.discard(question)


class Repeats(Waiting):
    """What was finished before a loss is done again."""

    def finished(self, key):
        super().finished(key)
        self.over = [*getattr(self, "over", ()), key]

    def lost(self, keys):
        super().lost(keys)
        self.todo = [*getattr(self, "over", ()), *self.todo]


@pytest.mark.parametrize("wrong", [Overtakes, Forgets, Repeats], ids=lambda c: c.__name__)
def test_wrong_orders_are_found(wrong):
    with pytest.raises(AssertionError):
        for seed in range(30):
            law_of_order(wrong, seed)


def test_shares_shrink_towards_the_end():
    waiting = Waiting(keys("A", [str(i) for i in range(40)]))
    assert waiting.share(16, 2) == 16 and waiting.share(64, 2) == 20
    for key in waiting.take(37, is_idle=True):
        waiting.finished(key)
    assert waiting.share(16, 2) == 2


def test_a_problem_that_kills_replicas_is_found_among_others():
    waiting, guilty = Waiting(keys("A", "0123")), ("A", "2")
    with pytest.raises(PonderError, match=r"question '2' under A was alone on 3 replicas"):
        for _ in range(100):
            taken = waiting.take(4, is_idle=True)
            if guilty in taken:
                waiting.lost(taken)
            else:
                for key in taken:
                    waiting.finished(key)
    assert waiting.losses[guilty] == MAX_LOSSES and sum(waiting.losses.values()) == MAX_LOSSES
