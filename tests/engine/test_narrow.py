"""Feed-forwards in part: parts of matrices, layers of parts, and the target that drafts for itself with what a prompt used most."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from engine.test_device_process import process_on
from engine.test_rounds import KERNELS, told
from engine.test_runners import free_asks, opened
from engine.tiny_models import tiny
from ponder.accelerate.accept.coupled import Coupled
from ponder.accelerate.draft.griffin import Griffin
from ponder.accelerate.length.fixed import Fixed
from ponder.accelerate.weights.dense import Bf16, Bf16Head, Float32
from ponder.accelerate.weights.dense_device import DenseDevice
from ponder.accelerate.weights.int4 import Int4
from ponder.accelerate.weights.native import Native, NativeHead
from ponder.core.asks import GREEDY, Extend, Extension, Prefix, Sampling, chat
from ponder.core.draft import Speculation
from ponder.core.errors import BadField
from ponder.core.formats import Divisible, LayerWeights
from ponder.engine import runners
from ponder.engine.narrow import Narrowing
from ponder.models import narrow
from ponder.models.decoder import Decoder, PlainBody, load
from ponder.models.narrow import narrowed, unit_of
from ponder.native.build import library
from ponder.testing.in_memory import InMemory
from ponder.testing.laws_narrow import Narrow, law_a_part_is_a_part, law_requests_keep_their_own, law_what_is_left_out_is_zero

FFN = 128
NATIVE = Native(narrow=Int4(), wide=Bf16())
needs_kernel = pytest.mark.skipif(library() is None, reason="no compiled kernel here")
BY_FORMAT = [
    pytest.param(Float32(), torch.float32, 1e-5, id="fp32"),
    pytest.param(Bf16(), torch.bfloat16, 2e-2, id="bf16"),
    pytest.param(DenseDevice(device=torch.device("cpu")), torch.bfloat16, 2e-2, id="dense"),
    pytest.param(NATIVE, torch.bfloat16, 2e-2, marks=needs_kernel, id="native"),
]


@pytest.mark.parametrize(("weights", "dtype", "closeness"), BY_FORMAT)
def test_parts_of_matrices(weights, dtype, closeness):
    draws = torch.Generator().manual_seed(0)
    pair = tuple(InMemory(torch.randn(128, 96, generator=draws), name) for name in ("gate", "up"))
    matrix = weights.pack(pair)
    assert isinstance(matrix, Divisible)
    law_a_part_is_a_part(matrix, 256, 96, torch.randn(5, 96, generator=draws).to(dtype), closeness=closeness)


@dataclass(frozen=True)
class FirstRows:
    """A part that is always of the first outputs, as many as were asked for."""

    inner: Divisible

    @property
    def unit(self) -> int:
        return self.inner.unit

    @property
    def nbytes(self) -> int:
        return self.inner.nbytes

    def apply(self, x: Tensor) -> Tensor:
        return self.inner.apply(x)

    def part(self, rows: Tensor | None = None, columns: Tensor | None = None):
        return self.inner.part(rows if rows is None else torch.arange(len(rows)), columns)


def test_the_law_of_parts_finds_another_part():
    matrix = FirstRows(Float32().pack((InMemory(torch.randn(64, 32), "up"),)))
    with pytest.raises(AssertionError, match="some outputs"):
        law_a_part_is_a_part(matrix, 64, 32, torch.randn(3, 32), closeness=1e-6)


def decoder_of(weights, dtype: torch.dtype) -> Decoder:
    checkpoint, _ = tiny("llama")
    return load(checkpoint, weights, Bf16Head() if dtype == torch.bfloat16 else None, dtype)


def layer_of(decoder: Decoder, layer: LayerWeights) -> Narrow:
    config = decoder.config
    unit = unit_of(layer, FFN)
    assert decoder.body_of is not None

    def silenced(x_TD: Tensor, out_TX: Tensor, kept: Tensor) -> Tensor:
        class Silencing:
            nbytes = 0

            def apply(self, x: Tensor) -> Tensor:
                rest = torch.ones(FFN, dtype=torch.bool)
                rest[kept] = False
                return layer.down.apply(x.masked_fill(rest, 0))

        return PlainBody(replace(layer, down=Silencing()), config, decoder.dtype).after(x_TD, out_TX)

    body_of = decoder.body_of
    return Narrow(
        narrowed=lambda units: body_of(narrowed(layer, units, unit, FFN)), silenced=silenced, whole=body_of(layer), num_units=FFN // unit, unit=unit
    )


def rows(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(1)
    return torch.randn(4, 96, generator=draws), torch.randn(4, 96, generator=draws).to(dtype)


@pytest.mark.parametrize(("weights", "dtype", "closeness"), BY_FORMAT)
def test_what_is_left_out_is_zero(weights, dtype, closeness):
    decoder = decoder_of(weights, dtype)
    law_what_is_left_out_is_zero(layer_of(decoder, decoder.layers[0]), *rows(dtype), closeness=closeness)


def test_the_law_finds_a_layer_whose_columns_are_chosen_and_whose_rows_are_not():
    decoder = decoder_of(Float32(), torch.float32)
    wrong = replace(decoder.layers[0], gate_up=FirstRows(decoder.layers[0].gate_up))
    with pytest.raises(AssertionError, match="off by"):
        law_what_is_left_out_is_zero(layer_of(decoder, wrong), *rows(torch.float32), closeness=1e-5)


def test_choice_is_of_what_the_prompt_used():
    """Places that are large beside their row's others, whatever the row's size; by units, their sum."""
    inner = torch.zeros(3, 8)
    inner[0, 1], inner[1, 6], inner[2, 3] = 100.0, 0.1, 0.1
    inner[2, 2] = 0.09
    assert Griffin(share=3 / 8).units(inner, 1).tolist() == [1, 3, 6]
    assert Griffin(share=0.5).units(inner, 4).tolist() == [0]
    assert Griffin(share=1.0).units(inner, 2).tolist() == [0, 1, 2, 3]


def counts_of(process, asks) -> list[tuple[int, int]]:
    return [(a.cost.drafted_tokens, a.cost.accepted_tokens) for a in told_whole(process, asks)]


def told_whole(process, asks):
    tickets = [process.add(ask) for ask in asks]
    found = {}
    while process.jobs:
        found |= dict(process.step())
    return [found[ticket] for ticket in tickets]


@pytest.mark.parametrize("is_native", KERNELS)
@pytest.mark.parametrize(
    "weights", [Bf16(), pytest.param(NATIVE, marks=needs_kernel)], ids=["bf16", "native"]
)  # fmt: skip
def test_with_all_of_it_every_guess_is_right(weights, is_native):
    decoder = load(tiny("llama")[0], weights, Bf16Head() if weights.name == "bf16" else NativeHead(fallback=Bf16Head()))
    wanted = told(opened(None, decoder, is_native=is_native), free_asks())
    process = opened(Griffin(share=1.0, least=0.0, num=3), decoder, is_native=is_native)
    assert told(process, free_asks()) == wanted
    wasted = process.totals.drafted_tokens - process.totals.accepted_tokens
    assert process.totals.accepted_tokens > 100
    assert wasted <= 3 * sum(isinstance(a, Extension) and a.finish in ("stop", "until") for a in wanted)
    assert not process.rounds.drafting.runner.narrowing.chosen, "layers of requests that are over are kept"


def test_less_of_it_is_right_less_often():
    shares = []
    for share in (1.0, 0.75, 0.25):
        process = opened(Griffin(share=share, least=0.0, num=3))
        told(process, free_asks()[:8])
        shares.append(process.totals.accepted_tokens / process.totals.drafted_tokens)
    assert shares[0] > 0.9 > shares[1] > shares[2]


def apart(num: int = 3) -> list[Extend]:
    texts = ("0123456789" * 4, "the quick brown fox jumps", "@@##!!" * 6, "zzzz yyyy xxxx wwww")
    some = [Sampling(temperature=1.0), GREEDY]
    return [Extend(prefix=Prefix(chat(texts[i], max_tokens=20)), seed=i, sampling=some[i % 2]) for i in range(num)]


def law_of_requests() -> None:
    asks = apart()
    law_requests_keep_their_own(lambda which: counts_of(opened(Griffin(share=0.5, least=0.0, num=3)), [asks[i] for i in which]), len(asks))


def test_requests_keep_their_own():
    law_of_requests()


class Leaking(Narrowing):
    """Whoever comes second gets what the first one chose."""

    def knows(self, context):
        if self.chosen and context.request not in self.chosen:
            self.chosen[context.request] = next(iter(self.chosen.values()))
        return super().knows(context)


class Misplaced(Narrowing):
    """Each meets its neighbour's layers."""

    def decoder_for(self, spans):
        names = list(spans)
        return super().decoder_for({names[i - 1]: span for i, span in enumerate(spans.values())})


@pytest.mark.parametrize("kind", [Leaking, Misplaced])
def test_the_law_finds_what_one_request_leaves_to_another(kind, monkeypatch):
    monkeypatch.setattr(runners, "Narrowing", kind)
    with pytest.raises(AssertionError, match="beside others"):
        law_of_requests()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_on_another_device_answers_are_plain_decodings_there(share: float):
    asks = [replace(ask, max_tokens=8) for ask in apart()]
    wanted = [a.prefix.tokens for a in told_whole(process_on("cpu"), asks)]
    speculation = Speculation(drafter=Griffin(share=share, least=0.0, num=3), acceptor=Coupled(), control=Fixed(num=3))
    process = process_on("cpu", speculation=speculation)
    assert [a.prefix.tokens for a in told_whole(process, asks)] == wanted
    assert process.totals.drafted_tokens > 10
    assert share < 1 or process.totals.accepted_tokens >= 0.9 * process.totals.drafted_tokens


def test_short_of_memory_it_does_not_guess():
    process = opened(Griffin(share=0.5, least=0.0, num=3))
    narrowing = process.rounds.drafting.runner.narrowing
    object.__setattr__(narrowing, "take", lambda pages, num: False)
    asks = apart(2)
    assert told(process, asks) == told(opened(None), asks)
    assert process.totals.drafted_tokens == 0


def test_what_cannot_be_narrowed_is_refused():
    decoder = decoder_of(Int4(), torch.bfloat16)
    with pytest.raises(BadField, match="cannot be had in part"):
        opened(Griffin(), decoder)
    with pytest.raises(BadField, match="two models that draw together"):
        opened(Griffin(), replace(decoder_of(Bf16(), torch.bfloat16), body_of=None))
    layer = decoder_of(Bf16(), torch.bfloat16).layers[0]
    for units in ([], [3, 2], [2, 2], [128]):
        with pytest.raises(BadField, match="ascending"):
            narrowed(layer, torch.tensor(units, dtype=torch.int64), 1, FFN)
    if library() is not None:
        with pytest.raises(BadField, match="no multiple of 32"):
            narrow.unit_of(decoder_of(NATIVE, torch.bfloat16).layers[0], 100)
    for bad in ({"share": 0.0}, {"share": 1.5}, {"seen": 0}, {"num": 0}, {"least": 2.0}):
        with pytest.raises(BadField, match="share must be"):
            Griffin(**bad)
