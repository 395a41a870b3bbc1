"""Where time goes: what the engine took for a phase, part by part, beside what was predicted.

A phase is a decoding step of some sequences, or the reading of some prompts. It is run in earnest in a process whose keys are planted
(plan.plant), with clocks on its parts (plan.watch); what a fused layer computes in one call is shared out as predicted.
"""

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ponder.core.asks import Sampling
from ponder.core.errors import BadField, BadModelFile
from ponder.core.formats import ModelConfig
from ponder.engine.process import LocalProcess, Settings
from ponder.models.checkpoint import open_checkpoint
from ponder.models.config import hf_config
from ponder.plan import plant
from ponder.plan.fit import fit
from ponder.plan.machine import Factors, MachineCard, card_path, read_card, save_card
from ponder.plan.measure import TEXT, draws_of, least, measure_machine, measure_model, outline_of
from ponder.plan.predict import Prediction, Timed, predict_all, text_seconds, with_factors
from ponder.plan.roofline import GROUPS, Operator, Outline, Pass, prefill_passes
from ponder.plan.watch import Clock, TimedDecoder, timed_steps

SAMPLING = Sampling(temperature=0.8)
CHUNK = Settings().chunk
MARGIN = 64  # tokens of the context that are kept for answers
TOGETHER = {"before": ("qkv",), "after": ("o", "gate_up", "down"), "experts": ("gate_up", "down")}  # groups of the clocks of plan.watch
ENOUGH, LEAST_RUNS, MOST_RUNS = 0.5, {"decode": 3, "prefill": 2}, 30  # seconds of a cell's runs, and how many they may be
MATRICES = ("qkv", "o", "gate_up", "down")


@dataclass(frozen=True)
class Cell:
    """A phase: "decode", one token for each of `batch` sequences of `context` tokens, or "prefill", reading as many prompts."""

    phase: str
    batch: int
    context: int

    def __post_init__(self) -> None:
        if self.phase not in ("decode", "prefill") or self.batch < 1 or self.context < 1:
            raise BadField(f"{self}: the phase is 'decode' or 'prefill', batch and context are at least 1")

    def passes(self, chunk: int) -> list[Pass]:
        if self.phase == "decode":
            return [Pass((1,) * self.batch, (self.context,) * self.batch, self.batch)]
        return prefill_passes(self.batch, self.context, chunk)


CALIBRATION = (Cell("decode", 1, 192), Cell("decode", 24, 192), Cell("decode", 3, 3000), Cell("prefill", 1, 512))


@dataclass(frozen=True)
class Profile:
    """One cell, predicted and measured. parts: measured seconds of each group; shared: groups whose share of a measured sum is predicted."""

    cell: Cell
    prediction: Prediction
    parts: dict[str, float]
    shared: frozenset[str] = frozenset()

    @property
    def seconds(self) -> float:
        return sum(self.parts.values())

    @property
    def error(self) -> float:
        """predicted / measured - 1."""
        return self.prediction.seconds / self.seconds - 1


class Profiler:
    """A model opened for profiling: its outline, and a process with planted keys and clocks."""

    def __init__(self, process: LocalProcess, outline: Outline, planted_bytes: int = plant.PLANTED_BYTES) -> None:
        self.outline = outline
        self.plain = plant.plantable(process, planted_bytes)
        self.timed = TimedDecoder(process.decoder, Clock())
        self.longest = min(process.context_len - MARGIN, plant.max_planted(self.plain))

    @contextlib.contextmanager
    def clocks(self) -> Iterator[LocalProcess]:
        real, self.plain.decoder = self.plain.decoder, self.timed  # type: ignore[assignment]
        try:
            yield self.plain
        finally:
            self.plain.decoder = real
            plant.clear(self.plain)

    @torch.inference_mode()
    def measure(self, cell: Cell, num: int = 5) -> dict[str, float]:
        """Seconds by clock of the fastest of `num` decoding steps or of `num` readings. Raises BadField for a context that does not fit."""
        self.check(cell)
        draws = draws_of(cell.batch, SAMPLING)
        with self.clocks() as process:
            if cell.phase == "decode":
                plant.running(process, plant.planted_asks(process, cell.batch, cell.context, max_tokens=num + 4, sampling=SAMPLING))
                found = timed_steps(process, self.timed, num + 1, draws)[1:]
            else:
                found = [self._reading(process, cell, round_number) for round_number in range(num)]
        return min(found, key=lambda parts: sum(parts.values()))

    def _reading(self, process: LocalProcess, cell: Cell, round_number: int) -> dict[str, float]:
        for ask in plant.fresh_asks(process, cell.batch, cell.context, round_number):
            process.add(ask)
        total: dict[str, float] = {}
        while process.jobs:
            (parts,) = timed_steps(process, self.timed, 1, draws_of(process.max_rows, SAMPLING))
            total = {name: total.get(name, 0.0) + parts.get(name, 0.0) for name in {*total, *parts}}
        plant.clear(process)
        return total

    def check(self, cell: Cell) -> None:
        """Raises BadField where the model has no such context, or more prompts than can be read here."""
        if cell.context > self.longest:
            raise BadField(f"context={cell.context}: at most {self.longest} of this model's {self.plain.context_len} tokens can be profiled")
        if cell.batch > self.plain.max_rows:
            raise BadField(f"batch={cell.batch}: at most {self.plain.max_rows} sequences run at once")
        if cell.phase == "prefill" and cell.batch * cell.context > plant.GROWN // 2:
            raise BadField(f"prefill of {cell.batch} x {cell.context} tokens: at most {plant.GROWN // 2} are read in a profile")

    def predict(self, cell: Cell, card: MachineCard) -> Prediction:
        return predict_cell(self.outline, cell, card, self.plain.chunk)

    def profile(self, cell: Cell, card: MachineCard) -> Profile:
        """The cell measured, its parts named by group, beside its prediction. The shorter it takes, the oftener it is run."""
        prediction = self.predict(cell, card)
        num = round(min(max(ENOUGH / prediction.seconds, LEAST_RUNS[cell.phase]), MOST_RUNS))
        parts, shared = by_groups(self.measure(cell, num) | {"tokenizer": self.text_seconds(cell)}, prediction)
        return Profile(cell, prediction, parts, shared)

    def text_seconds(self, cell: Cell) -> float:
        """Of the text of a step's tokens, or of tokenizing the prompts that are read."""
        tokenizer, num = self.plain.tokenizer, cell.batch * (1 if cell.phase == "decode" else cell.context)
        ids = tokenizer.encode(TEXT)
        text, ids = TEXT * -(-num // len(ids)), (ids * -(-num // len(ids)))[:num]
        if cell.phase == "decode":
            return least(lambda: [tokenizer.decode([token]) for token in ids], num=3)
        return least(lambda: tokenizer.encode(text), num=2)

    def calibrate(self, card: MachineCard, cells: Sequence[Cell] = CALIBRATION) -> MachineCard:
        """`card` with factors fitted to measured parts of `cells`: attention to attention, the other two to the rest of the layers."""
        bare = with_factors(card, self.outline.name, NOTHING)
        rows, layers, attention = [], [], []
        for cell in (c for c in cells if c.context <= self.longest):
            parts = self.measure(cell)
            base = layer_seconds(self.predict(cell, bare))
            terms = [layer_seconds(self.predict(cell, with_factors(card, self.outline.name, replace(NOTHING, **{n: x})))) - base for n, x in UNITS]
            rows.append([term / x for term, (_, x) in zip(terms, UNITS)])
            layers.append(sum(parts.get(name, 0.0) for name in (*TOGETHER, "norms/rope", *MATRICES)) - base)
            alone = with_factors(card, self.outline.name, replace(NOTHING, attention=1.0))
            attention.append((self.predict(cell, alone).by_group()["attention"][1], parts["attention"]))
        elementwise, layer = fit(rows, layers)
        (by,) = fit([[predicted] for predicted, _ in attention], [measured for _, measured in attention])
        return with_factors(card, self.outline.name, Factors(attention=by, elementwise=elementwise, layer=layer))


def predict_cell(outline: Outline, cell: Cell, card: MachineCard, chunk: int) -> Prediction:
    """All passes of a cell, and its text. Raises BadField for a context that the model has not."""
    longest = outline.config.long_context_len or outline.config.context_len
    if cell.context > longest:
        raise BadField(f"context={cell.context}: the model's own holds {longest}; take a shorter one")
    vocab, num = outline.config.vocab_size, cell.batch * cell.context
    text = text_seconds(card, vocab, decoded=cell.batch) if cell.phase == "decode" else text_seconds(card, vocab, encoded=num)
    op = Operator(name="text", group="tokenizer", layer=None, flops=0)
    return Prediction((*predict_all(outline, cell.passes(chunk), card).parts, Timed(op, 0.0, text)))


NOTHING = Factors(0.0, 0.0, 0.0)
UNITS = (("elementwise", 1.0), ("layer", 1e-6))


def layer_seconds(prediction: Prediction) -> float:
    """Predicted seconds of all that a forward pass does but attention and head."""
    return sum(prediction.by_group().get(group, (0.0, 0.0))[1] for group in ("norms/rope", *MATRICES))


def by_groups(clocks: dict[str, float], prediction: Prediction) -> tuple[dict[str, float], frozenset[str]]:
    """Measured seconds by group, and the groups whose part of a clock was shared out in proportion to their predictions.

    Norms and rotations have a share in each clock, half of what is predicted for them.
    """
    predicted = {group: seconds for group, (_, seconds) in prediction.by_group().items()}
    parts = {name: seconds for name, seconds in clocks.items() if name not in TOGETHER}
    shared: set[str] = set()
    for clock, groups in TOGETHER.items():
        if clock not in clocks:
            continue
        weight = {group: predicted.get(group, 0.0) for group in groups} | {"norms/rope": predicted.get("norms/rope", 0.0) / 2}
        for group, seconds in weight.items():
            parts[group] = parts.get(group, 0.0) + clocks[clock] * seconds / sum(weight.values())
        shared |= weight.keys()
    return {group: parts[group] for group in GROUPS if group in parts}, frozenset(shared)


def open_card(profiler: Profiler, *, is_fresh: bool = False, tell: Callable[[str], None] = lambda text: None) -> MachineCard:
    """This machine's card with the model's rates and factors, from the cache or measured now and kept there.

    is_fresh: measured in any case. tell: hears what is being measured.
    """
    path, config, weights = card_path(), profiler.outline.config, profiler.outline.weights
    card = None if is_fresh else kept_card(path)
    if card is None:
        tell("measuring the machine")
        card = measure_machine()
    shape = ((config.num_heads + 2 * config.num_kv_heads) * config.head_dim, config.dim)
    if not any((rate.format, rate.out, rate.into) == (weights, *shape) for rate in card.matrices) or profiler.outline.name not in card.factors:
        tell("measuring the model's kernels")
        card = measure_model(profiler.plain, profiler.outline, card)
        card = profiler.calibrate(card)
        save_card(card, path)
    return card


def kept_card(path: Path) -> MachineCard | None:
    """The card of the cache; None where there is none, or one that is damaged."""
    try:
        return read_card(path)
    except BadField:
        return None


def read_config(path: Path) -> ModelConfig:
    """The shape of a model: of a config.json alone, or of a model file or folder. Raises BadModelFile, Unsupported."""
    if path.name != "config.json":
        return open_checkpoint(path).config
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadModelFile(f"{path}: cannot be read as JSON ({error}); name a model's config.json") from error
    if not isinstance(values, dict):
        raise BadModelFile(f"{path}: holds no JSON object; name a model's config.json")
    return hf_config(str(path), values, frozenset())


def open_profiler(process: LocalProcess, weights: str, head: str) -> Profiler:
    """weights, head: names of the formats that the process was opened with."""
    return Profiler(process, outline_of(process, weights, head))
