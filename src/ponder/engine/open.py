"""Opens a model file as a running process."""

from pathlib import Path

import torch

from ponder.core.formats import WeightFormat
from ponder.core.schedule import Scheduler
from ponder.engine.process import LocalProcess, Settings
from ponder.models.decoder import load
from ponder.models.tokenizer import open_model


def open_process(
    path: Path, *, weights: WeightFormat, scheduler: Scheduler, head: WeightFormat | None = None, dtype: torch.dtype = torch.bfloat16,
    threads: int | None = None, settings: Settings | None = None, context_len: int | None = None,
) -> LocalProcess:  # fmt: skip
    """A process for the model at `path` (GGUF file or Hugging Face folder). Raises BadModelFile, Unsupported, BadField.

    threads: CPU threads for all of torch in this program; None leaves torch's setting alone.
    context_len: most tokens of a sequence; None for as many as the model usually has.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    checkpoint, tokenizer = open_model(path)  # the tokenizer first: making one takes several times what stays, which the weights then fill
    process = LocalProcess(load(checkpoint, weights, head, dtype, context_len=context_len), tokenizer, scheduler, settings)
    if context_len is not None:
        process.model_id += f"/context-{context_len}"  # long answers end elsewhere
    return process
