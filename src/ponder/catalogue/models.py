"""A model at a path, as a running process."""

from dataclasses import replace
from functools import partial
from pathlib import Path

from ponder.catalogue.drafts import speculation
from ponder.catalogue.engines import KV_FORMATS, SCHEDULERS, formats_of, weights_on
from ponder.catalogue.keys import attention_plan, cache_policy
from ponder.catalogue.prompts import layer_plan, prompt_filter
from ponder.core.accelerations import PLAIN as PLAIN_RUN
from ponder.core.accelerations import Accelerations
from ponder.core.draft import Twin
from ponder.core.errors import UnknownName
from ponder.core.formats import Tokenizer
from ponder.core.predictor import load_predictor
from ponder.core.tail import load_tail
from ponder.engine.open import open_process, open_twin
from ponder.engine.process import LocalProcess, Settings
from ponder.models.decoder import Decoder
from ponder.models.fetch import resolve


def accelerated(settings: Settings, accelerations: Accelerations) -> Settings:
    """Settings with what the accelerations name. Raises UnknownName or BadField."""
    draft, cache, attend = accelerations.draft, accelerations.cache, accelerations.attend
    if draft is not None:
        settings = replace(settings, speculation=speculation(draft) if isinstance(draft, str) else draft)  # type: ignore[arg-type]
    if cache is not None:
        settings = replace(settings, cache=cache_policy(cache) if isinstance(cache, str) else cache)  # type: ignore[arg-type]
    if attend is not None:
        settings = replace(settings, attend=attention_plan(attend) if isinstance(attend, str) else attend)  # type: ignore[arg-type]
    if (layers := accelerations.layers) is not None:
        settings = replace(settings, layers=layer_plan(layers) if isinstance(layers, str) else layers)  # type: ignore[arg-type]
    if (prompt := accelerations.prompt) is not None:
        settings = replace(settings, prompt=prompt_filter(prompt) if isinstance(prompt, str) else prompt)  # type: ignore[arg-type]
    if (tail := accelerations.tail) is not None:
        settings = replace(settings, tail=load_tail(Path(tail)) if isinstance(tail, str) else tail)  # type: ignore[arg-type]
    if (found := accelerations.predictor) is not None:
        settings = replace(settings, predictor=load_predictor(Path(found)) if isinstance(found, str) else found)  # type: ignore[arg-type]
    return settings


def open_model(
    path: Path, weights: str | None = None, threads: int | None = None, *, scheduler: str = "sarathi", kv: str = "plain",
    settings: Settings | None = None, device: str = "cpu", accelerations: Accelerations = PLAIN_RUN,
) -> LocalProcess:  # fmt: skip
    """The model at `path` as a running process. Raises UnknownName for a format or scheduler, BadModelFile, Unsupported, BadField.

    weights: None for "native" on the CPU and "dense" on another device. settings: bounds of the process; `kv` overrides its KV format,
    accelerations what it says of them.
    """
    for kind, name, table in (("scheduler", scheduler, SCHEDULERS), ("KV format", kv, KV_FORMATS)):
        if name not in table:
            raise UnknownName(kind, name, table)  # type: ignore[arg-type]
    matrices, head, dtype = formats_of(weights_on(device, weights), device)
    settings = replace(accelerated(settings or Settings(), accelerations), kv_format=KV_FORMATS[kv], twins=partial(twin_of, path))
    return open_process(
        path, weights=matrices, head=head, dtype=dtype, threads=threads, scheduler=SCHEDULERS[scheduler], settings=settings, device=device,
    )  # fmt: skip


def twin_of(path: Path, twin: Twin) -> tuple[Decoder, Tokenizer]:
    """The model that guesses for the one at `path`. Raises UnknownName, BadModelFile, PonderError for one that is not in the cache."""
    matrices, head, dtype = formats_of(weights_on("cpu", twin.weights), "cpu")
    return open_twin(path if twin.model is None else resolve(twin.model), matrices, head, dtype)
