"""Where the time of a real step goes: clocks around the parts of a decoder, as far as they can be told apart.

A layer is timed at the seams it has: before its attention, the attention, after it. A plain layer's matrices are timed one by one;
a fused one computes several in one call, whose time the prediction splits. The sampler runs a second time, on the very logits of the
step and outside of it, to be timed. What is left of a step is Python: the step loop, and the clocks themselves.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from torch import Tensor

from ponder.core.formats import LayerBody, LayerWeights, Linear
from ponder.engine.process import LocalProcess
from ponder.engine.sampler import Draw, draw
from ponder.models.decoder import Attend, Decoder, PlainBody


@dataclass
class Clock:
    """Seconds by name. Times that lie within another's are taken off it, so that all of them sum to the whole."""

    seconds: dict[str, float] = field(default_factory=dict)
    inner: list[float] = field(default_factory=lambda: [0.0])
    now: Callable[[], float] = time.perf_counter  # seconds

    @contextmanager
    def on(self, name: str) -> Iterator[None]:
        self.inner.append(0.0)
        start = self.now()
        try:
            yield
        finally:
            taken = self.now() - start
            self.seconds[name] = self.seconds.get(name, 0.0) + taken - self.inner.pop()
            self.inner[-1] += taken


@dataclass(frozen=True)
class TimedLinear:
    inner: Linear
    clock: Clock
    name: str

    @property
    def nbytes(self) -> int:
        return self.inner.nbytes

    def apply(self, x: Tensor) -> Tensor:
        with self.clock.on(self.name):
            return self.inner.apply(x)


@dataclass(frozen=True)
class TimedBody:
    """A LayerBody with clocks "before" and "after", or those of its matrices and of the rest; experts and their norm have one."""

    inner: LayerBody
    clock: Clock
    names: tuple[str, str]

    @property
    def of_prompts(self) -> LayerBody:
        return self if self.inner.of_prompts is self.inner else replace(self, inner=self.inner.of_prompts)

    def before(self, x_TD: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with self.clock.on(self.names[0]):
            return self.inner.before(x_TD, cos, sin)

    def after(self, x_TD: Tensor, out_TX: Tensor) -> Tensor:
        with self.clock.on(self.names[1]):
            return self.inner.after(x_TD, out_TX)


def timed_body(body: LayerBody, clock: Clock) -> LayerBody:
    if not isinstance(body, PlainBody):
        return TimedBody(body, clock, ("before", "after"))
    layer = body.layer
    named: dict[str, Linear] = {name: getattr(layer, name) for name in ("qkv", "o", "gate_up", "down") if getattr(layer, name) is not None}
    timed: LayerWeights = replace(layer, **{name: TimedLinear(linear, clock, name) for name, linear in named.items()})  # type: ignore[arg-type]
    return TimedBody(replace(body, layer=timed), clock, ("norms/rope", "norms/rope" if layer.experts is None else "experts"))


class TimedDecoder:
    """A decoder with clocks; keeps the last logits."""

    def __init__(self, decoder: Decoder, clock: Clock) -> None:
        self.inner = replace(decoder, bodies=tuple(timed_body(body, clock) for body in decoder.bodies))
        self.config, self.model_id, self.dtype, self.device = decoder.config, decoder.model_id, decoder.dtype, decoder.device
        self.tail, self.reader, self.flops = decoder.tail, decoder.reader, decoder.flops
        self.clock = clock
        self.last: Tensor | None = None

    def forward(self, tokens: Tensor, positions: Tensor, attend: Attend, prompts: Sequence[tuple[int, int]] = ()) -> Tensor:
        def timed(layer: int, q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor) -> Tensor:
            with self.clock.on("attention"):
                return attend(layer, q_THE, k_TKE, v_TKE)

        with self.clock.on("norms/rope"):
            return self.inner.forward(tokens, positions, timed, prompts)

    def logits(self, hidden_RD: Tensor) -> Tensor:
        with self.clock.on("head"):
            self.last = self.inner.logits(hidden_RD)
        return self.last


def timed_steps(process: LocalProcess, decoder: TimedDecoder, num: int, draws: Sequence[Draw]) -> list[dict[str, float]]:
    """Seconds by part of each of the next `num` steps of a process that runs `decoder`; "python" is what no clock saw. They sum to the step.

    draws: what the steps draw, one for each row; the sampler's part is measured again beside the step.
    """
    found = []
    for _ in range(num):
        decoder.clock.seconds.clear()
        decoder.last = None
        start = time.perf_counter()
        process.step()
        whole = time.perf_counter() - start
        parts = dict(decoder.clock.seconds)
        rest, again = whole - sum(parts.values()), 0.0
        if decoder.last is not None:
            start = time.perf_counter()
            draw(decoder.last, draws[: len(decoder.last)])
            again = time.perf_counter() - start
        found.append(parts | {"sampling": min(again, rest), "python": max(rest - again, 0.0)})
    return found
