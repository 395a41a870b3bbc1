"""Opens a model file as a running process."""

from pathlib import Path

import torch

from ponder.core.formats import WeightFormat
from ponder.core.schedule import Scheduler
from ponder.engine.device import find_device
from ponder.engine.device_process import DeviceProcess
from ponder.engine.process import LocalProcess, Settings
from ponder.models.checkpoint import open_checkpoint
from ponder.models.decoder import load
from ponder.models.place import place
from ponder.models.tokenizer import open_tokenizer


def open_process(
    path: Path, *, weights: WeightFormat, scheduler: Scheduler, head: WeightFormat | None = None, dtype: torch.dtype = torch.bfloat16,
    threads: int | None = None, settings: Settings | None = None, device: str = "cpu",
) -> LocalProcess:  # fmt: skip
    """A process for the model at `path` (GGUF file or Hugging Face folder). Raises BadModelFile, Unsupported, BadField.

    device: "cpu", or "cuda" with a format that packs for that very device.
    threads: CPU threads for all of torch in this program; None leaves torch's setting alone.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    where = find_device(device)
    decoder = load(open_checkpoint(path), weights, head, dtype)
    if where.type == "cpu":
        return LocalProcess(decoder, open_tokenizer(path), scheduler, settings)
    torch.cuda.set_device(where)  # kernels and recordings go where the program's current card is
    return DeviceProcess(place(decoder, weights, where), open_tokenizer(path), scheduler, settings)
