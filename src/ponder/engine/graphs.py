"""Steps of fixed shape, recorded once as CUDA graphs and replayed: a forward pass of single tokens, and the draw after it.

A step of n sequences runs in the next larger bucket; the rows beyond n belong to nobody: their page is the pool's page of nobody, and
nobody reads what they compute. Inputs are copied into buffers that stay where they are. Without CUDA the same functions of the same
buffers are called plainly, so that all but the recording is tested on the CPU.

What `DecodeRunner.run` and `DrawRunner.run` return is the caller's own.
"""

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ponder.engine.attend import Span
from ponder.engine.attend_device import MIN_PAGES, DeviceAttention, Pieces, cut_pieces, whole_pieces
from ponder.engine.draw_device import draw_rows, drawn_of, signed
from ponder.engine.pages import PAGE
from ponder.engine.sampler import Draw, Drawn
from ponder.models.decoder import Decoder
from ponder.native.paged import Batch

BUCKETS = (1, 2, 4, 8, 16, 32, 48, 64)  # then every STEP
STEP = 32
MIN_PARTS = 4  # of a token's keys
MIN_STEP_PAGES = 64  # of the longest sequence of a step, where kernels pass over those that it does not have
NUM_WARM = 2  # plain runs before a recording: kernels are compiled and chosen there


def bucket(num: int) -> int:
    """Rows of the fixed shape that holds `num`."""
    return next((size for size in BUCKETS if size >= num), -(-num // STEP) * STEP)


def power(num: int, least: int) -> int:
    """The power of two that holds `num`, `least` or more."""
    return max(least, 1 << max(0, num - 1).bit_length())


class Recorder:
    """What recordings share: whether there are any, and the memory that they use in turn."""

    def __init__(self, device: torch.device, *, can_record: bool) -> None:
        self.is_recording = can_record and device.type == "cuda"
        self.memory: object = torch.cuda.graph_pool_handle() if self.is_recording else None


class Recording:
    """A function of tensors that stay where they are. Its result is valid until any recording of the recorder runs."""

    def __init__(self, recorder: Recorder, compute: Callable[[], Tensor]) -> None:
        self.recorder, self.compute = recorder, compute
        self.graph: torch.cuda.CUDAGraph | None = None
        self.result: Tensor | None = None

    def run(self) -> Tensor:
        if not self.recorder.is_recording:
            return self.compute()
        if self.graph is None:
            self._record()
        assert self.graph is not None
        assert self.result is not None
        self.graph.replay()
        return self.result

    def _record(self) -> None:
        """The plain runs before it write what the first replay writes again."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(NUM_WARM):
                self.compute()
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, pool=self.recorder.memory):
            self.result = self.compute()


@dataclass(eq=False)
class DecodeShape:
    """Buffers of one shape. ints int64 [3, B]: tokens, table rows, places."""

    ints: Tensor
    batch: Batch
    recording: Recording
    pieces: Pieces | None = None  # those in the buffers

    def load(self, tokens: Seq[int] | Tensor, rows: Seq[int], places: Seq[int], *, pieces: Pieces, nobody: int) -> None:
        """tokens: numbers, or a tensor that is there already."""
        num, more = len(rows), self.ints.shape[1] - len(rows)
        given = [0] * num if isinstance(tokens, Tensor) else tokens
        ints = np.array([[*given, *[0] * more], [*rows, *[nobody] * more], [*places, *[0] * more]], np.int64)
        self.ints.copy_(torch.from_numpy(ints), non_blocking=True)
        if isinstance(tokens, Tensor):
            self.ints[0, :num].copy_(tokens)
        if pieces is self.pieces:
            return
        self.pieces = pieces
        fill(self.batch.single, pieces.single)
        if self.batch.shared is not None:
            fill(self.batch.shared, pieces.shared)
        num_parts = [*pieces.num_parts, *[0] * (self.ints.shape[1] - len(pieces.num_parts))]
        self.batch.num_parts.copy_(torch.tensor(num_parts, dtype=torch.int32))


def fill(buffer: Tensor, pieces: Seq[tuple[int, ...]]) -> None:
    """The pieces, then rows of zeros."""
    rows = torch.zeros(buffer.shape, dtype=buffer.dtype)
    if pieces:
        rows[: len(pieces)] = torch.tensor(pieces, dtype=buffer.dtype)
    buffer.copy_(rows)


class DecodeRunner:
    """Forward passes over single tokens."""

    def __init__(self, decoder: Decoder, attention: DeviceAttention, *, can_record: bool = True) -> None:
        """can_record False: plain calls on CUDA too."""
        self.decoder, self.attention = decoder, attention
        self.recorder = Recorder(decoder.device, can_record=can_record and decoder.config.num_experts == 0)  # experts wait for the host
        self.shapes: dict[tuple[int, int, int, int], DecodeShape] = {}
        self.resized = 0
        self.last: DecodeShape | None = None  # that ran
        self.known: tuple[object, Pieces] | None = None
        self.wholes: dict[tuple[int, int, int], Pieces] = {}

    def run(self, spans: Seq[Span], tokens: Seq[int] | Tensor) -> Tensor:
        """Hidden rows [n, D] of the single tokens of n sequences, whose keys and values are written. Spans in the order of `in_order`."""
        attention, num = self.attention, bucket(len(spans))
        rows = attention.tables.rows([span.sequence for span in spans])
        if attention.tables.resized != self.resized:
            self.resized = attention.tables.resized
            self.shapes.clear()
        least = MIN_STEP_PAGES if attention.has_kernels else MIN_PAGES
        num_pages = min(power(-(-max(span.stop for span in spans) // PAGE), least), attention.tables.pages.shape[3])
        chunk = attention.chunk(num, num_pages * PAGE)
        pieces = self._pieces(spans, num, chunk, num_pages * PAGE)
        shape = self._shape(num, num_pages, chunk, pieces)
        self.last = shape
        shape.load(tokens, rows, [span.start for span in spans], pieces=pieces, nobody=attention.tables.num_rows)
        return shape.recording.run()[: len(spans)].clone()

    def _pieces(self, spans: Seq[Span], num: int, chunk: int, num_keys: int) -> Pieces:
        """Cut again when a sequence comes or goes, or enters another piece. Of `num` tokens among which are several of one sequence, which are
        others in every step, always the same, unless sequences share enough."""
        numbers = [span.sequence.number for span in spans]
        has_chains = len(set(numbers)) < len(numbers)
        if has_chains and (not self.attention.is_shared or numbers.count(numbers[0]) == len(numbers)):
            return self._whole(num, chunk, num_keys)
        name = (chunk, tuple((number, span.start // chunk) for number, span in zip(numbers, spans)))
        if self.known is None or self.known[0] != name:
            found = cut_pieces(spans, chunk, self.decoder.config, self.attention.is_shared)
            self.known = name, self._whole(num, chunk, num_keys) if has_chains and not found.shared else found
        return self.known[1]

    def _whole(self, num: int, chunk: int, num_keys: int) -> Pieces:
        name = num, chunk, num_keys
        if name not in self.wholes:
            self.wholes[name] = whole_pieces(num, chunk, num_keys)
        return self.wholes[name]

    def _shape(self, num: int, num_pages: int, chunk: int, pieces: Pieces) -> DecodeShape:
        num_shared = power(len(pieces.shared), 1) if pieces.shared else 0
        name = (num, num_pages, num_shared, power(max(pieces.num_parts), MIN_PARTS))
        if name not in self.shapes:
            device, num_chunks = self.decoder.device, -(-num_pages * PAGE // chunk)
            ints = torch.zeros(3, num, dtype=torch.int64, device=device)
            batch = Batch(
                rows=ints[1], places=ints[2], single=torch.zeros(num * num_chunks, 5, dtype=torch.int32, device=device),
                shared=torch.zeros(num_shared, 5, dtype=torch.int32, device=device) if num_shared else None,
                num_parts=torch.zeros(num, dtype=torch.int32, device=device), max_parts=name[-1],
            )  # fmt: skip
            self.shapes[name] = DecodeShape(ints, batch, Recording(self.recorder, lambda: self._forward(ints, batch, num_pages)))
        return self.shapes[name]

    def _forward(self, ints: Tensor, batch: Batch, num_pages: int) -> Tensor:
        def attend(layer: int, q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor) -> Tensor:
            self.attention.write(batch, layer, k_TKE, v_TKE)
            return self.attention.read(batch, layer, q_THE, num_pages)[0]

        return self.decoder.forward(ints[0], ints[2], attend)


@dataclass(eq=False)
class DrawShape:
    """Buffers of one number of rows. ints int64 [3, R]: seeds, positions, and the bits of temperatures in float64."""

    hidden: Tensor
    ints: Tensor
    recording: Recording


class DrawRunner:
    """The output head and the draw after it."""

    def __init__(self, decoder: Decoder, recorder: Recorder) -> None:
        self.decoder, self.recorder = decoder, recorder
        self.shapes: dict[int, DrawShape] = {}

    def run(self, hidden_RD: Tensor, wishes: Seq[Draw], meanwhile: Callable[[Tensor], None] = lambda _: None) -> list[Drawn]:
        """One token per row, of plain wishes (`is_plain`). Waits for the device, once, after `meanwhile` was told the tokens (float64 [n, 4],
        on the device, the token first; valid while it runs)."""
        num, more = len(hidden_RD), bucket(len(hidden_RD)) - len(hidden_RD)
        shape = self._shape(num + more)
        temperatures = torch.tensor([*(wish.sampling.temperature for wish in wishes), *[0.0] * more], dtype=torch.float64)
        counters = torch.tensor([[*(signed(w.seed) for w in wishes), *[0] * more], [*(w.position for w in wishes), *[0] * more]])
        shape.ints.copy_(torch.cat([counters, temperatures.view(torch.int64)[None]]), non_blocking=True)
        shape.hidden[:num].copy_(hidden_RD)
        found = shape.recording.run()[:num].clone()
        if not found.is_cuda:
            meanwhile(found)
            return drawn_of(found)
        here = torch.empty(found.shape, dtype=found.dtype, pin_memory=True)
        here.copy_(found, non_blocking=True)
        is_here = torch.cuda.Event()
        is_here.record()
        meanwhile(found)
        is_here.synchronize()
        return drawn_of(here)

    def _shape(self, num: int) -> DrawShape:
        if num not in self.shapes:
            decoder = self.decoder
            ints = torch.zeros(3, num, dtype=torch.int64, device=decoder.device)
            hidden = torch.zeros(num, decoder.config.dim, dtype=decoder.dtype, device=decoder.device)
            self.shapes[num] = DrawShape(hidden, ints, Recording(self.recorder, lambda: self._draw(hidden, ints)))
        return self.shapes[num]

    def _draw(self, hidden: Tensor, ints: Tensor) -> Tensor:
        return draw_rows(self.decoder.logits(hidden), ints[0], ints[1], ints[2].view(torch.float64).float())
