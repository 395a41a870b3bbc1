"""The draw on the device against the host's: the same noise, the same token for equal logits, the same numbers."""

import math
import random

import pytest
import torch
from torch import Tensor

from ponder.core.asks import GREEDY, Sampling
from ponder.engine import draw_device, sampler
from ponder.engine.draw_device import draw_rows, draw_rows_by_torch, drawn_of, is_plain, signed, uniforms
from ponder.engine.sampler import Draw, draw, draw_by_torch, uniform
from ponder.native import paged

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Triton's interpreter
needs_triton = pytest.mark.skipif(
    not paged.is_here(torch.device("cpu")), reason="needs Triton and TRITON_INTERPRET=1: the kernels run in its interpreter"
)
TORCH_DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
DEVICES = [*TORCH_DEVICES, pytest.param("cpu-triton", marks=needs_triton)]
TEMPERATURES = (0.0, 0.3, 0.7, 1.0, 1.0, 2.5)


def logits(rows: int, vocab: int, seed: int = 0, scale: float = 2.0) -> Tensor:
    return scale * torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed))


def wishes(num: int, seed: int = 0) -> list[Draw]:
    rng = random.Random(seed)
    return [Draw(rng.randrange(1 << 63), rng.randrange(5000), Sampling(temperature=TEMPERATURES[i % len(TEMPERATURES)])) for i in range(num)]


def drawn(rows: Tensor, draws: list[Draw], device: str = "cpu"):
    seeds = torch.tensor([signed(d.seed) for d in draws])
    positions = torch.tensor([d.position for d in draws])
    temperatures = torch.tensor([d.sampling.temperature for d in draws])
    by = draw_rows_by_torch if device == "cpu" else draw_rows
    return drawn_of(by(rows.to(device.removesuffix("-triton")), *(x.to(device.removesuffix("-triton")) for x in (seeds, positions, temperatures))))


SEEDS = [0, 1, -1, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, 0x9E3779B97F4A7C15, *(random.Random(1).randrange(1 << 63) for _ in range(300))]
POSITIONS = [0, 1, 2, 1000, 2**31 - 1, 131_071, 7]


def differing_noise(found) -> int:
    """Of all pairs, those whose number is not bit for bit that of the host."""
    pairs = [(seed, position) for seed in SEEDS for position in POSITIONS]
    seeds, positions = (torch.tensor(x) for x in zip(*((signed(s), p) for s, p in pairs)))
    return sum(a != uniform(*pair) for a, pair in zip(found(seeds, positions).tolist(), pairs, strict=True))


@pytest.mark.parametrize("device", TORCH_DEVICES)
def test_noise_is_that_of_the_host_bit_for_bit(device: str):
    assert differing_noise(lambda s, p: uniforms(s.to(device), p.to(device))) == 0


def test_the_law_of_noise_has_teeth(monkeypatch: pytest.MonkeyPatch):
    """Wrong: the shift that int64 has, which copies the sign; a seed cut to 32 bits; a position that is only added."""
    assert differing_noise(lambda s, p: uniforms(s & 0xFFFFFFFF, p)) > 0
    assert differing_noise(lambda s, p: uniforms(s + p, torch.zeros_like(p))) > 0
    monkeypatch.setattr(draw_device, "_shifted", lambda x, num: x >> num)
    assert differing_noise(uniforms) > 0


@pytest.mark.parametrize("vocab", [5, 128, 300, 2000])
def test_equal_logits_give_the_hosts_draw_exactly(vocab: int, monkeypatch: pytest.MonkeyPatch):
    """Tokens, and log_p, log_q, certainty but for the last bits of a logarithm, of what the host computes by PyTorch."""
    monkeypatch.setattr(sampler, "sample_rows", lambda *_, **__: None)  # the compiled kernel rounds its exponentials otherwise
    for seed in range(8):
        rows, draws = logits(48, vocab, seed), wishes(48, seed)
        for a, b in zip(drawn(rows, draws), draw_by_torch(rows, draws), strict=True):
            assert a.token == b.token
            assert (a.log_p, a.log_q, a.certainty) == pytest.approx((b.log_p, b.log_q, b.certainty), rel=1e-13, abs=1e-13)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("vocab", [5, 300, 2000, 4100])
def test_equal_logits_give_the_token_that_the_host_draws(vocab: int, device: str):
    """Against whatever the host draws by, compiled kernel included: the same tokens, numbers to 1e-5."""
    num_drawn = 0
    for seed in range(2 if "triton" in device else 12):
        rows, draws = logits(60, vocab, seed), wishes(60, seed)
        found, wanted = drawn(rows, draws, device), draw(rows, draws)
        assert [x.token for x in found] == [x.token for x in wanted]
        for a, b in zip(found, wanted):
            assert (a.log_p, a.log_q, a.certainty) == pytest.approx((b.log_p, b.log_q, b.certainty), abs=1e-5)
        num_drawn += len({x.token for x in found})
    assert num_drawn > 2 * 4, "the draws hardly differ: nothing was tested"


def test_a_law_of_draws_has_teeth():
    """Wrong: the probe of the next position; the temperature as a factor."""
    rows, draws = logits(60, 300), wishes(60)
    wanted = [d.token for d in draw(rows, draws)]
    assert [x.token for x in drawn(rows, [Draw(d.seed, d.position + 1, d.sampling) for d in draws])] != wanted
    hot = [Draw(d.seed, d.position, Sampling(temperature=1 / d.sampling.temperature if d.sampling.temperature else 0)) for d in draws]
    assert [x.token for x in drawn(rows, hot)] != wanted


@pytest.mark.parametrize("device", DEVICES)
def test_impossible_tokens_are_never_drawn_and_ties_take_the_first(device: str):
    rows = torch.full((3, 384), -math.inf)
    rows[0, [130, 255]] = torch.tensor([-60.0, 0.0])
    rows[1, 17] = 3.0
    rows[2, [40, 41, 300]] = 1.0
    for seed in range(6 if "triton" in device else 40):
        found = drawn(rows, [Draw(seed, 0, Sampling()), Draw(seed, 1, Sampling(temperature=5.0)), Draw(seed, 2, GREEDY)], device)
        assert found[0].token in (130, 255)
        assert found[1].token == 17
        assert (found[2].token, found[2].log_q) == (40, 0.0)


def test_frequencies_are_the_probabilities():
    row = logits(1, 6, scale=1.0)
    draws = [Draw(seed, 3, Sampling(temperature=0.8)) for seed in range(20_000)]
    counts = torch.bincount(torch.tensor([x.token for x in drawn(row.expand(len(draws), -1), draws)]), minlength=6).double()
    wanted = len(draws) * (row[0].double() / 0.8).softmax(-1)
    assert ((counts - wanted) ** 2 / wanted).sum() < 20.5  # 0.1 % of chi-square with 5 degrees of freedom


def test_wishes_that_the_device_may_not_draw():
    assert is_plain(Draw(0, 0, Sampling(temperature=0.3)))
    assert is_plain(Draw(0, 0, GREEDY))
    others = (Sampling(top_k=3), Sampling(top_p=0.9), Sampling(min_p=0.1), Sampling(logit_bias=((3, 1.0),)))
    assert not any(is_plain(Draw(0, 0, sampling)) for sampling in others)
    assert not is_plain(Draw(0, 1, Sampling(presence_penalty=1.0), seen=(3,)))
    assert not is_plain(Draw(0, 0, Sampling(), num_top=2))
    assert not is_plain(Draw(0, 0, Sampling(), forced=3))
    assert not is_plain(Draw(0, 0, Sampling(), drift=((4, 0.5),)))
