"""Seconds of every operator of a pass on a machine: at its roofline, and as the machine's measured kernels would take.

idealized   max(flops / peak, bytes / bandwidth): nothing computes or reads faster (Williams et al. 2009). The idealized runtime of
            a pass is the sum over its operators, as if each ran at its bound and nothing else were there.
predicted   matrices: the measured curve of the format's kernel over rows, at the nearest measured shape, never below its bytes over
            the bandwidth; attention: the four measured terms of `attention_terms`; norms and rotations: bytes over the bandwidth of
            the caches; the step loop and the sampler: their measured curves; times and plus the few `Factors` of the card.
            What the card does not know is predicted at its roofline.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from ponder.core.errors import BadField
from ponder.core.formats import ModelConfig
from ponder.native.attention import BLOCK as KEYS
from ponder.native.attention import MAX_ROWS as ROWS
from ponder.plan.machine import AttentionRate, Factors, MachineCard
from ponder.plan.roofline import GROUPS, Operator, Outline, Pass, matrix_shapes, operators

PROMPT = " prompt"  # ends the names of formats whose rates are those of prompts
CHUNK = 512  # keys of one running sum: units of work end there
CACHED = 1 << 20  # bytes of a working set that lies in the second cache


@dataclass(frozen=True)
class Timed:
    """One operator, or one part of the engine, of a pass."""

    operator: Operator
    ideal: float  # seconds at its roofline; 0 for what an ideal engine has not
    predicted: float  # seconds


@dataclass(frozen=True)
class Prediction:
    """All that a pass, or several, are made of."""

    parts: tuple[Timed, ...]

    @property
    def seconds(self) -> float:
        return sum(part.predicted for part in self.parts)

    @property
    def ideal(self) -> float:
        return sum(part.ideal for part in self.parts)

    def by_group(self) -> dict[str, tuple[float, float]]:
        """(ideal, predicted) seconds of each group that is there, in the order of GROUPS."""
        sums: dict[str, tuple[float, float]] = {}
        for part in self.parts:
            ideal, predicted = sums.get(part.operator.group, (0.0, 0.0))
            sums[part.operator.group] = (ideal + part.ideal, predicted + part.predicted)
        return {group: sums[group] for group in GROUPS if group in sums}


def outline(config: ModelConfig, card: MachineCard, weights: str, head: str | None = None) -> Outline:
    """The outline of a model that is not here, in formats that the card knows. Raises BadField."""
    by_weight, by_head = card.nbytes_per_weight(weights), card.nbytes_per_weight(head or weights)
    return Outline(config, weights, head or weights, {role: by_head if role == "head" else by_weight for role in matrix_shapes(config)})


def predict(outline: Outline, passed: Pass, card: MachineCard, *, top_p: float = 1.0) -> Prediction:
    """Where the time of one pass goes, sampling and step loop included."""
    found = operators(outline, passed)
    working_set = sum(op.weight_bytes + op.kv_bytes for op in found)
    factors = card.factors_of(outline.name)
    parts = [Timed(op, ideal_seconds(op, card, working_set), predicted_seconds(op, outline, passed, card)) for op in found]
    if factors.layer:
        layer = Operator(name="layers", group="norms/rope", layer=None, flops=0)
        parts.append(Timed(layer, 0.0, factors.layer * outline.config.num_layers))
    return Prediction((*parts, *engine_parts(outline, passed, card, top_p)))


def predict_all(outline: Outline, passes: Sequence[Pass], card: MachineCard, *, top_p: float = 1.0) -> Prediction:
    """Of several passes, one after the other."""
    return Prediction(tuple(part for passed in passes for part in predict(outline, passed, card, top_p=top_p).parts))


def ideal_seconds(op: Operator, card: MachineCard, working_set: float) -> float:
    """At the roofline: weights and keys come from where all of them fit (working_set, bytes), activations from the second cache."""
    memory = (op.weight_bytes + op.kv_bytes) / card.bandwidth_at(working_set) + op.stream_bytes / card.bandwidth_at(CACHED)
    return max(op.flops / card.peak, memory)


def predicted_seconds(op: Operator, outline: Outline, passed: Pass, card: MachineCard) -> float:
    factors = card.factors_of(outline.name)
    if op.shape is not None:
        return matrix_seconds(op, outline.head if op.name == "head" else reading_format(outline, passed, card), card)
    if op.name == "attention":
        return factors.attention * attention_seconds(op, outline.config, passed, card)
    overhead = card.op_seconds if op.layer is None else 0.0
    return overhead + factors.elementwise * max(op.flops / card.peak, op.nbytes / card.bandwidth_at(CACHED))


def reading_format(outline: Outline, passed: Pass, card: MachineCard) -> str:
    """The weights, as the rates of a pass are named: prompts may have rates of their own."""
    name = outline.weights + PROMPT
    return name if passed.is_reading and any(rate.format == name for rate in card.matrices) else outline.weights


def matrix_seconds(op: Operator, format: str, card: MachineCard) -> float:
    """By the curve of the nearest measured shape, in proportion to the weights."""
    assert op.shape is not None
    floor = op.weight_bytes / card.stream
    rate = card.matrix_rate(format, op.shape)
    if rate is None:
        return max(op.flops / card.peak, floor) + card.op_seconds
    scale = op.shape[0] * op.shape[1] / (rate.out * rate.into)
    return op.copies * rate.curve.at(op.rows) * scale


def attention_seconds(op: Operator, config: ModelConfig, passed: Pass, card: MachineCard) -> float:
    rate = card.attention_rate(config.num_heads // config.num_kv_heads, config.head_dim)
    if rate is None:
        return max(op.flops / card.peak, op.kv_bytes / card.stream) + card.op_seconds
    assert op.layer is not None
    terms = attention_terms(passed, config, config.window(op.layer), card.threads)
    wider = config.head_dim / rate.width
    return sum(cost * term * by for cost, term, by in zip(costs_of(rate), terms, (1.0, wider, wider, wider)))


def costs_of(rate: AttentionRate) -> tuple[float, float, float, float]:
    return rate.call, rate.unit, rate.block, rate.row


def attention_terms(passed: Pass, config: ModelConfig, window: int | None, threads: int) -> tuple[float, float, float, float]:
    """How often a layer's attention pays for a call, a unit, a block of KEYS keys of a key head, and a query row in a block.

    A block is met by up to ROWS query rows of neighbouring tokens at once, in units of CHUNK keys that the threads share out; where units
    are few, some threads wait, which counts as if they worked.
    """
    group, kv_heads = config.num_heads // config.num_kv_heads, config.num_kv_heads
    tokens_each = max(1, ROWS // group)
    blocks, met, units = 0.0, 0.0, 0
    for new, before in zip(passed.new, passed.before):
        for first in range(0, new, tokens_each):
            num = min(tokens_each, new - first)
            keys = before + first + num if window is None else min(before + first + num, window + num)
            num_blocks = -(-keys // KEYS)
            blocks += kv_heads * num_blocks
            met += kv_heads * num_blocks * num * group
            units += kv_heads * -(-keys // CHUNK)
    waiting = -(-units // threads) / units
    return 1.0, units * waiting, blocks * waiting, met * waiting


def engine_parts(outline: Outline, passed: Pass, card: MachineCard, top_p: float) -> Iterable[Timed]:
    """Sampling and the step loop."""
    num = passed.num_logits
    rate = card.sampler_rate(outline.config.vocab_size, top_p)
    if num and rate is not None:
        op = Operator(name="draw", group="sampling", layer=None, flops=0, stream_bytes=4.0 * num * outline.config.vocab_size)
        yield Timed(op, op.stream_bytes / card.bandwidth_at(op.stream_bytes), rate.curve.at(num) * outline.config.vocab_size / rate.vocab)
    if card.python:
        op = Operator(name="step loop", group="python", layer=None, flops=0)
        yield Timed(op, 0.0, python_seconds(card, passed))


def text_seconds(card: MachineCard, vocab: int, *, encoded: int = 0, decoded: int = 0) -> float:
    """Of turning text into `encoded` tokens and `decoded` tokens into text."""
    rate = card.text_rate(vocab)
    return 0.0 if rate is None else encoded / rate.encoded + decoded / rate.decoded


def python_seconds(card: MachineCard, passed: Pass) -> float:
    """Of the step loop: between its curves for short and for long sequences, linear in the mean length."""
    short, long = card.python[0], card.python[-1]
    length = sum(passed.before) / len(passed.before)
    part = min(max(length / LONG, 0.0), 1.0) if len(card.python) > 1 else 0.0
    rows = len(passed.new)
    return (1 - part) * short.at(rows) + part * long.at(rows)


LONG = 4096  # tokens of the sequences of the second curve of MachineCard.python


def with_factors(card: MachineCard, name: str, factors: Factors) -> MachineCard:
    """`card` with the factors of an Outline.name. Raises BadField for negative ones."""
    if min(factors.attention, factors.elementwise, factors.layer) < 0:
        raise BadField(f"{factors}: no cost is negative")
    return replace(card, factors=card.factors | {name: factors})
