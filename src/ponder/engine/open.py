"""Opens a model file as a running process."""

from pathlib import Path

import torch

from ponder.core.formats import WeightFormat
from ponder.core.schedule import Scheduler
from ponder.engine.process import LocalProcess, Settings
from ponder.models.checkpoint import open_checkpoint
from ponder.models.decoder import load
from ponder.models.tokenizer import open_tokenizer


def open_process(
    path: Path, *, weights: WeightFormat, scheduler: Scheduler, head: WeightFormat | None = None, dtype: torch.dtype = torch.bfloat16,
    threads: int | None = None, settings: Settings | None = None,
) -> LocalProcess:  # fmt: skip
    """A process for the model at `path` (GGUF file or Hugging Face folder). Raises BadModelFile, Unsupported.

    threads: CPU threads for all of torch in this program; None leaves torch's setting alone.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    decoder = load(open_checkpoint(path), weights, head, dtype)
    return LocalProcess(decoder, open_tokenizer(path), scheduler, settings)
