"""Opens a model file as a running process."""

from pathlib import Path

import torch

from ponder.core.errors import BadField
from ponder.core.formats import Tokenizer, WeightFormat
from ponder.core.schedule import Scheduler
from ponder.engine.device import find_device
from ponder.engine.device_process import DeviceProcess
from ponder.engine.keeping_process import KeepingProcess
from ponder.engine.process import LocalProcess, Settings
from ponder.models.decoder import Decoder, load
from ponder.models.place import place
from ponder.models.tokenizer import open_model


def open_twin(path: Path, weights: WeightFormat, head: WeightFormat, dtype: torch.dtype) -> tuple[Decoder, Tokenizer]:
    """Weights and tokens of a model that guesses for another, on the CPU. Raises BadModelFile, Unsupported."""
    checkpoint, tokenizer = open_model(path)
    return load(checkpoint, weights, head, dtype), tokenizer


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
    settings = settings or Settings()
    context_len = settings.context_len
    check_together(settings)
    if settings.cache is not None and where.type != "cpu":
        raise BadField(f"cache policy {settings.cache.name!r} on {device}: policies run on the CPU; open the model there, or without a policy")
    checkpoint, tokenizer = open_model(path)  # the tokenizer first: making one takes several times what stays, which the weights then fill
    plan = settings.attend if settings else None
    longest = None if plan is None else plan.reach(checkpoint.config.context_len)
    decoder = load(checkpoint, weights, head, dtype, context_len=context_len, longest=longest)
    if where.type == "cpu":
        process = (LocalProcess if settings.cache is None else KeepingProcess)(decoder, tokenizer, scheduler, settings)
    else:
        torch.cuda.set_device(where)  # kernels and recordings go where the program's current card is
        process = DeviceProcess(place(decoder, weights, where), tokenizer, scheduler, settings)
    if context_len is not None:
        process.model_id += f"/context-{context_len}"  # long answers end elsewhere
    process.rounds.open()
    return process


def check_together(settings: Settings) -> None:
    """Refuses accelerations that no law has seen work together. Raises BadField."""
    cache, attend, speculation = settings.cache, settings.attend, settings.speculation
    if cache is not None and speculation is not None and cache.drops_in_answer:
        raise BadField(
            f"cache policy {cache.name!r} with a draft: it drops keys while an answer grows, which guesses do not allow yet; "
            "set trigger=after_prompt, or leave one of them out"
        )
    if cache is not None and attend is not None:
        raise BadField(f"cache policy {cache.name!r} with attention plan {attend.name}: a policy sees attention to all keys; leave one of them out")
    if attend is not None and speculation is not None:
        raise BadField(f"attention plan {attend.name} with a draft: guesses are met by plain attention only; leave one of them out")
