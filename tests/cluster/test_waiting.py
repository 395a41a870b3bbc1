"""Who gets which problem when: a question's recipes in order, never two at once; a problem that kills replicas is found and given up."""

import random

import pytest

from ponder.cluster.waiting import MAX_LOSSES, Waiting
from ponder.core.errors import PonderError


def keys(recipes, questions):
    return [(r, q) for r in recipes for q in questions]


@pytest.mark.parametrize("seed", range(20))
def test_every_problem_is_finished_once_and_in_its_question_s_order(seed):
    draw = random.Random(seed)
    waiting, running, done = Waiting(keys("ABC", "0123456789")), [], []
    while waiting:
        taken = waiting.take(draw.randint(1, 5), draw.randint(1, 3))
        assert len({question for _, question in taken}) == len(taken) and len({recipe for recipe, _ in taken}) <= 1
        assert not {question for _, question in taken} & {question for batch in running for _, question in batch}
        running += [list(taken)] if taken else []
        if running and (not taken or draw.random() < 0.7):
            batch = draw.choice(running)
            if draw.random() < 0.1:
                running.remove(batch)
                waiting.lost(batch)
                continue
            key = batch.pop(0)
            waiting.finished(key)
            done.append(key)
            running = [b for b in running if b]
    assert sorted(done) == keys("ABC", "0123456789")
    for question in "0123456789":
        assert [r for r, q in done if q == question] == list("ABC")


def test_batches_shrink_towards_the_end():
    waiting = Waiting(keys("A", [str(i) for i in range(40)]))
    sizes = []
    while taken := waiting.take(16, 2):
        sizes.append(len(taken))
        for key in taken:
            waiting.finished(key)
    assert sizes[0] == 10 and sizes[-1] == 1 and sizes == sorted(sizes, reverse=True)


def test_a_problem_that_kills_replicas_is_found_among_others():
    waiting, guilty = Waiting(keys("A", "0123")), ("A", "2")
    with pytest.raises(PonderError, match=r"question '2' under A was alone on 3 replicas"):
        for _ in range(100):
            taken = waiting.take(4, 1)
            if guilty in taken:
                waiting.lost(taken)
            else:
                for key in taken:
                    waiting.finished(key)
    assert waiting.losses[guilty] == MAX_LOSSES and sum(waiting.losses.values()) == MAX_LOSSES
