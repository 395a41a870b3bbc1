"""Opens a model file as a running process."""

from pathlib import Path

import torch

from ponder.core.errors import BadField
from ponder.core.formats import Tokenizer, WeightFormat
from ponder.core.schedule import Scheduler
from ponder.engine.device import find_device
from ponder.engine.device_process import DeviceProcess
from ponder.engine.keeping_process import KeepingProcess
from ponder.engine.pages import PLAIN
from ponder.engine.passes import with_predictor, with_tail
from ponder.engine.process import LocalProcess, Settings
from ponder.engine.thinning_process import ThinningProcess
from ponder.models.decoder import Decoder, load
from ponder.models.joint import join
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
    if settings.layers is not None and where.type != "cpu":
        raise BadField(f"layer plan {settings.layers.name} on {device}: plans run on the CPU; open the model there, or leave it out")
    if settings.prompt is not None and where.type != "cpu":
        raise BadField(f"prompt filter {settings.prompt.name} on {device}: prompts are filtered on the CPU; open the model there, or leave it out")
    if settings.tail is not None and where.type != "cpu":
        raise BadField(f"a tail on {device}: its layers run on the CPU; open the model there, or leave it out")
    if settings.predictor is not None and where.type != "cpu":
        raise BadField(f"a key predictor on {device}: it runs on the CPU; open the model there, or leave it out")
    if settings.company is not None and where.type != "cpu":
        raise BadField(f"{settings.company.blend} on {device}: two models draw together on the CPU only; open them there")
    checkpoint, tokenizer = open_model(path)  # the tokenizer first: making one takes several times what stays, which the weights then fill
    plan = settings.attend if settings else None
    longest = None if plan is None else plan.reach(checkpoint.config.context_len)
    decoder = load(checkpoint, weights, head, dtype, context_len=context_len, longest=longest)
    if settings.tail is not None:
        decoder = with_tail(decoder, settings.tail, weights)
    if settings.predictor is not None:
        decoder = with_predictor(decoder, settings.predictor, checkpoint, weights)
    if settings.company is not None:
        decoder = in_company(decoder, tokenizer, settings)
    if where.type == "cpu":
        process = process_for(settings)(decoder, tokenizer, scheduler, settings)
    else:
        torch.cuda.set_device(where)  # kernels and recordings go where the program's current card is
        process = DeviceProcess(place(decoder, weights, where), tokenizer, scheduler, settings)
    if context_len is not None:
        process.model_id += f"/context-{context_len}"  # long answers end elsewhere
    process.rounds.open()
    return process


def process_for(settings: Settings) -> type[LocalProcess]:
    """What runs a model on the CPU with such settings."""
    if settings.layers is not None:
        return ThinningProcess
    return LocalProcess if settings.cache is None else KeepingProcess


def in_company(decoder: Decoder, tokenizer: Tokenizer, settings: Settings) -> Decoder:
    """The decoder with the one that draws with it. Raises BadField for one with other tokens, Unsupported."""
    company = settings.company
    if company is None or settings.twins is None:
        raise BadField(f"company {company}: this process opens no other model; use catalogue.open_model")
    other, theirs = settings.twins(company.twin)
    if theirs.pieces != tokenizer.pieces:
        raise BadField(
            f"{company.twin.model} with {company.blend}: its {len(theirs.pieces)} tokens are not this model's {len(tokenizer.pieces)}, and both "
            "must read the same; take one of its family, or --way nudging, which exchanges text"
        )
    return join(decoder, other, company.blend)


def check_together(settings: Settings) -> None:
    """Refuses accelerations that no law has seen work together. Raises BadField."""
    cache, attend, speculation = settings.cache, settings.attend, settings.speculation
    alone = (cache, attend, settings.prompt, settings.layers)
    if settings.company is not None and any(other is not None for other in alone):
        raise BadField(
            f"{settings.company.blend} with a cache policy, an attention plan, a prompt filter or a layer plan: which of two models' keys matter is "
            "not defined; leave one of them out"
        )
    for name, other in (("draft", speculation), ("cache policy", cache), ("attention plan", attend)):
        if settings.layers is not None and other is not None:
            raise BadField(f"layer plan {settings.layers.name} with a {name}: layers then know different tokens; leave one of them out")
    for name, trained in (("tail", settings.tail), ("key predictor", settings.predictor)):
        others = {"draft": speculation, "cache policy": cache, "attention plan": attend, "prompt filter": settings.prompt}
        others |= {
            "layer plan": settings.layers,
            "partner": settings.company,
            "KV format": None if settings.kv_format is PLAIN else settings.kv_format,
            "tail": None if name == "tail" else settings.tail,
        }
        for kind in [kind for kind, other in others.items() if other is not None and trained is not None]:
            raise BadField(f"a {name} with a {kind}: no law has seen the two together; leave one of them out")
    if attend is None or not attend.is_for_answers:
        return
    if cache is not None:
        raise BadField(
            f"cache policy {cache.name!r} with attention plan {attend.name}: the plan is for answers, which meet dropped keys; leave one out"
        )
    if speculation is not None:
        raise BadField(f"attention plan {attend.name} with a draft: the plan is for answers, and guesses are met by plain attention; leave one out")
