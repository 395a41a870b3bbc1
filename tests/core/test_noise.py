"""Noise that drifts: still uniform, still where it was at share 0, another seed's at share 1, and near in between."""

import math
import random

import pytest

from ponder.core.asks import Extend, Prefix, Prompt, Sampling
from ponder.core.errors import BadField
from ponder.core.noise import drifted, gaussian, uniform
from ponder.core.rng import TorchRng, hash_seed
from ponder.engine.sampler import Draw, draw
from ponder.run.codec import ask_json, dumps
from ponder.testing.laws_chain import uniformity
from ponder.testing.laws_strategy import LM, PROMPT
from ponder.testing.run import answer_turn
from ponder.testing.toy import ToyProcess


def noise(seed: int) -> float:
    return hash_seed("noise", seed) / 2**63


def test_the_ends_are_exact():
    assert drifted(noise, 1, ()) == drifted(noise, 1, ((2, 0.0),)) == noise(1)
    assert drifted(noise, 1, ((2, 1.0),)) == noise(2) and drifted(noise, 1, ((2, 0.3), (3, 1.0))) == noise(3)


@pytest.mark.parametrize("drift", (((1 << 40, 0.3),), ((1 << 40, 0.8), (1 << 41, 0.5)), ((1 << 40, 0.05),) * 3))
def test_drifted_noise_is_uniform(drift):
    counts = [0] * 20
    for i in range(4000):
        moved = tuple((other + i, share) for other, share in drift)
        counts[int(20 * drifted(noise, i, moved))] += 1
    assert uniformity(counts) > 1e-4


def test_the_mean_would_not_be_uniform():
    counts = [0] * 20
    for i in range(4000):
        counts[int(20 * (0.7 * noise(i) + 0.3 * noise(i + (1 << 40))))] += 1
    assert uniformity(counts) < 1e-9


def test_correlation_is_as_stated():
    pairs = [(gaussian(noise(i)), gaussian(drifted(noise, i, ((i + (1 << 40), 0.6),)))) for i in range(4000)]
    assert sum(a * b for a, b in pairs) / 4000 == pytest.approx(0.8, abs=0.06)


def test_there_and_back():
    draws = random.Random(0)
    for u in (0.0, 2.0**-53, 1 - 2.0**-53, *(draws.random() for _ in range(50))):
        z = gaussian(u)
        assert math.isfinite(z) and uniform(z) == pytest.approx(u, abs=1e-15) and 0 <= uniform(z) < 1


def asked(seed, drift=(), temperature=1.0):
    return Extend(prefix=Prefix(Prompt(messages=PROMPT.messages, max_tokens=12)), seed=seed, sampling=Sampling(temperature=temperature), drift=drift)


def test_a_process_draws_near_what_it_drew():
    seeds = range(60)
    tokens = lambda drift_of: [a.prefix.tokens for a in answer_turn([asked(s, drift_of(s)) for s in seeds], ToyProcess(LM))]
    plain = tokens(lambda s: ())
    assert tokens(lambda s: ((s + 1000, 0.0),)) == plain
    assert tokens(lambda s: ((s + 1000, 1.0),)) == [a.prefix.tokens for a in answer_turn([asked(s + 1000) for s in seeds], ToyProcess(LM))]
    changed = [sum(a != b for a, b in zip(plain, tokens(lambda s, share=share: ((s + 1000, share),)))) for share in (0.02, 0.3, 1.0)]
    assert changed[0] < 10 < changed[1] < changed[2]


@pytest.mark.parametrize("sampling", (Sampling(), Sampling(temperature=0.7, top_k=50)), ids=("whole", "truncated"))
def test_the_engines_draws_drift_alike(sampling):
    """With and without the compiled kernel: a drifted draw is the draw at the moved number."""
    logits = TorchRng(0).uniform([[]] * 600).log().reshape(3, 200).float()
    at = lambda drift: [d.token for d in draw(logits, [Draw(seed, 5, sampling, drift=drift) for seed in (1, 2, 3)])]
    assert at(((9, 0.0),)) == at(()) == at(((9, 1e-9),))
    assert at(((9, 1.0),)) == [d.token for d in draw(logits, [Draw(9, 5, sampling)] * 3)] != at(())


def test_drift_is_part_of_the_key_and_checked():
    plain = asked(1)
    assert "drift" not in ask_json(plain) and len({dumps(ask_json(a)) for a in (plain, asked(1, ((2, 0.5),)), asked(1, ((2, 0.25),)))}) == 3
    with pytest.raises(BadField, match=r"in \[0, 1\]"):
        asked(1, ((2, 1.5),))
    with pytest.raises(BadField, match="leave the rng out"):
        ToyProcess(LM, TorchRng(0)).add(asked(1, ((2, 0.5),)))
