"""What a machine can do: the card that predictions read. Measured once (plan.measure) and kept in the cache folder, or written by hand.

Seconds and bytes are those of the whole machine with the card's number of threads. A card of another machine (a data sheet) needs
only peaks and bandwidth: what it does not know is predicted at the roofline.
"""

import hashlib
import json
import math
import platform
import tempfile
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch

from ponder.core.cache import cache_dir
from ponder.core.errors import BadField, StoreError
from ponder.native import build

VERSION = 1  # of what cards hold


@dataclass(frozen=True)
class Curve:
    """Measured seconds at sizes x, ascending; between them linear, below the first as there, beyond the last in proportion."""

    x: tuple[float, ...]
    seconds: tuple[float, ...]

    def at(self, x: float) -> float:
        if x <= self.x[0]:
            return self.seconds[0]
        if x >= self.x[-1]:
            return self.seconds[-1] * x / self.x[-1]
        i = next(i for i, right in enumerate(self.x) if x <= right)
        part = (x - self.x[i - 1]) / (self.x[i] - self.x[i - 1])
        return self.seconds[i - 1] + part * (self.seconds[i] - self.seconds[i - 1])


@dataclass(frozen=True)
class MatrixRate:
    """Seconds of a packed matrix [out, into] by rows, without the call and the parallel region around it; its weights not in any cache."""

    format: str
    out: int
    into: int
    nbytes: float
    curve: Curve

    @property
    def best(self) -> float:
        """Largest FLOP/s."""
        return max(2 * rows * self.out * self.into / s for rows, s in zip(self.curve.x, self.curve.seconds) if s > 0)


@dataclass(frozen=True)
class AttentionRate:
    """Seconds of the attention kernel on one thread: of a call, of a unit of work, of a block of keys that comes in, and of a query row that
    meets a block. See predict.attention_terms."""

    group: int  # query heads of a key head
    width: int
    call: float
    unit: float
    block: float
    row: float


@dataclass(frozen=True)
class SamplerRate:
    """Seconds of a draw by rows, from a vocabulary of `vocab`; top_p 1: all of it."""

    vocab: int
    top_p: float
    curve: Curve


@dataclass(frozen=True)
class TextRate:
    """A tokenizer with `vocab` tokens: characters and the tokens they become, and tokens turned into text, all per second."""

    vocab: int
    characters: float
    encoded: float
    decoded: float


@dataclass(frozen=True)
class Factors:
    """What the engine adds to its kernels; the only constants that are fitted to whole steps (plan.fit).

    attention: seconds in the engine over seconds of the kernel alone. elementwise: seconds of norms, rotations and activations over
    those that their bytes take from the caches. layer: seconds that a layer costs whatever it computes.
    """

    attention: float = 1.0
    elementwise: float = 1.0
    layer: float = 0.0


@dataclass(frozen=True, kw_only=True)
class MachineCard:
    """One machine with one number of threads."""

    name: str
    threads: int = 1
    versions: str = ""
    bandwidth: tuple[tuple[float, float], ...]  # (bytes of a working set that is read again and again, bytes/s), ascending
    peaks: dict[str, float]  # FLOP/s of large matrix products by arithmetic: "float32", "bfloat16", "int8"
    op_seconds: float = 0.0  # of a PyTorch operator that has nothing to do
    call_seconds: float = 0.0  # of a compiled kernel's call from Python
    region_seconds: float = 0.0  # of an OpenMP parallel region with nothing in it: two barriers
    python: tuple[Curve, ...] = ()  # seconds of the step loop by sequences, of short and of long ones, without model and sampler
    matrices: tuple[MatrixRate, ...] = ()
    attentions: tuple[AttentionRate, ...] = ()
    samplers: tuple[SamplerRate, ...] = ()
    texts: tuple[TextRate, ...] = ()
    factors: dict[str, Factors] = field(default_factory=dict)  # by Outline.name
    weight_nbytes: dict[str, float] = field(default_factory=dict)  # bytes per weight of formats that no rate tells

    def __post_init__(self) -> None:
        numbers = [*self.peaks.values(), *(x for pair in self.bandwidth for x in pair)]
        if not self.peaks or not self.bandwidth or not all(math.isfinite(x) and x > 0 for x in numbers):
            raise BadField(
                f"machine card {self.name!r}: peaks and bandwidth must be positive numbers; peaks={self.peaks}, bandwidth={self.bandwidth}"
            )

    @property
    def peak(self) -> float:
        """The compute roof, FLOP/s: the fastest product of any arithmetic or packed matrix that was measured."""
        return max([*self.peaks.values(), *(rate.best for rate in self.matrices)])

    @property
    def stream(self) -> float:
        """The bandwidth roof, bytes/s from memory."""
        return self.bandwidth[-1][1]

    def bandwidth_at(self, working_set: float) -> float:
        """bytes/s of a working set that is read again and again; between measured sizes linear in the logarithm."""
        sizes = [size for size, _ in self.bandwidth]
        if working_set <= sizes[0]:
            return self.bandwidth[0][1]
        if working_set >= sizes[-1]:
            return self.stream
        i = next(i for i, size in enumerate(sizes) if working_set <= size)
        part = math.log(working_set / sizes[i - 1]) / math.log(sizes[i] / sizes[i - 1])
        return self.bandwidth[i - 1][1] + part * (self.bandwidth[i][1] - self.bandwidth[i - 1][1])

    def matrix_rate(self, format: str, shape: tuple[int, int]) -> MatrixRate | None:
        """The measured matrix of the format that is nearest in shape."""
        rates = [rate for rate in self.matrices if rate.format == format]
        return min(rates, key=lambda r: abs(math.log(r.out / shape[0])) + abs(math.log(r.into / shape[1])), default=None)

    def attention_rate(self, group: int, width: int) -> AttentionRate | None:
        return min(self.attentions, key=lambda r: (r.width != width, abs(r.group - group), abs(r.width - width)), default=None)

    def sampler_rate(self, vocab: int, top_p: float) -> SamplerRate | None:
        rates = [rate for rate in self.samplers if (rate.top_p < 1) == (top_p < 1)]
        return min(rates, key=lambda r: abs(math.log(r.vocab / vocab)), default=None)

    def factors_of(self, name: str) -> Factors:
        """Those of an Outline.name, else of a model in the same weight format, else none at all."""
        same = [found for other, found in self.factors.items() if other.split()[0] == name.split()[0]]
        return self.factors.get(name) or next(iter(same), Factors())

    def text_rate(self, vocab: int) -> TextRate | None:
        return min(self.texts, key=lambda r: abs(math.log(r.vocab / vocab)), default=None)

    def nbytes_per_weight(self, format: str) -> float:
        """Raises BadField for a format that the card does not know."""
        if format in self.weight_nbytes:
            return self.weight_nbytes[format]
        rates = [rate for rate in self.matrices if rate.format == format]
        if not rates:
            known = sorted({*self.weight_nbytes, *(rate.format for rate in self.matrices)})
            raise BadField(f"card {self.name!r} has no weight format {format!r}; it has {', '.join(known) or 'none'}: profile a model with it first")
        return sum(rate.nbytes for rate in rates) / sum(rate.out * rate.into for rate in rates)

    def learn(self, other: "MachineCard") -> "MachineCard":
        """This card with the rates of another one of the same machine, which is newer, in the place of its own."""
        matrices = {(r.format, r.out, r.into): r for r in (*self.matrices, *other.matrices)}
        attentions = {(r.group, r.width): r for r in (*self.attentions, *other.attentions)}
        samplers = {(r.vocab, r.top_p): r for r in (*self.samplers, *other.samplers)}
        texts = {r.vocab: r for r in (*self.texts, *other.texts)}
        return replace(
            other, matrices=tuple(matrices.values()), attentions=tuple(attentions.values()), samplers=tuple(samplers.values()),
            texts=tuple(texts.values()), factors=self.factors | other.factors,
        )  # fmt: skip


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor() or platform.machine())


def versions() -> str:
    """What decides the speed of kernels, besides the machine: PyTorch, and a hash of our compiled ones."""
    sources = [path.read_bytes() for path in sorted(Path(build.__file__).parent.glob("*.[ch]pp"))]
    kernels = hashlib.sha256(b"\0".join(sources)).hexdigest()[:12] if build.library() is not None else "none"
    return f"torch {torch.__version__}, kernels {kernels}"


def card_path() -> Path:
    """Where this machine's card is kept, for the number of threads that torch has now."""
    made_of = [str(VERSION), cpu_name(), *sorted(build.cpu_flags()), platform.node(), str(torch.get_num_threads()), versions()]
    return cache_dir() / "machines" / f"{hashlib.sha256(chr(0).join(made_of).encode()).hexdigest()[:24]}.json"


def save_card(card: MachineCard, path: Path) -> None:
    """Writes a card for `read_card`; safe for many processes at once. Raises StoreError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".json", delete=False, encoding="utf-8") as file:
            json.dump(asdict(card), file, indent=1)
        Path(file.name).replace(path)
    except OSError as error:
        raise StoreError(f"{path}: {error}; free disk space, or name another cache folder in PONDER_CACHE") from error


def read_card(path: Path) -> MachineCard:
    """A card as `save_card` writes it; fields with defaults may be missing. Raises BadField for a file that is none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        values["bandwidth"] = tuple((float(size), float(rate)) for size, rate in values["bandwidth"])
        values["python"] = tuple(_curve(c) for c in values.get("python", ()))
        values["matrices"] = tuple(MatrixRate(**(r | {"curve": _curve(r["curve"])})) for r in values.get("matrices", ()))
        values["attentions"] = tuple(AttentionRate(**r) for r in values.get("attentions", ()))
        values["samplers"] = tuple(SamplerRate(**(r | {"curve": _curve(r["curve"])})) for r in values.get("samplers", ()))
        values["texts"] = tuple(TextRate(**r) for r in values.get("texts", ()))
        values["factors"] = {name: Factors(**f) for name, f in values.get("factors", {}).items()}
        return MachineCard(**values)
    except OSError as error:
        raise BadField(f"machine card {path}: {error.strerror or error}; name a file that `ponder profile` wrote") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadField(f"machine card {path} is none ({type(error).__name__}: {error}); it must hold name, bandwidth and peaks as JSON") from error


def _curve(values: dict[str, list[float]]) -> Curve:
    return Curve(tuple(values["x"]), tuple(values["seconds"]))
