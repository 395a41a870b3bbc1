"""`ponder train-keys`: a small reader of the model's own layers, and maps from its keys to all layers', fitted to what the model reads and writes."""

import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from ponder import catalogue
from ponder.cli import show
from ponder.cli.train import Opened, prompts_of
from ponder.cli.train_cache import answered
from ponder.cli.verbs import open_named
from ponder.core.errors import BadField
from ponder.core.predictor import save_predictor
from ponder.engine.device import find_device
from ponder.engine.process import LocalProcess
from ponder.models.fetch import resolve
from ponder.models.tokenizer import open_model
from ponder.train.plain import plain_decoder
from ponder.train.predictor import PredictorRecipe, fit_maps, fit_predictor, measured

MEASURED = 8  # one of so many stretches only measures
LEAST = 4 * MEASURED


def train_keys(
    *, kind: str, tasks: str, file: Path | None, out: Path, n: int, tokens: int, model: Opened, fit: PredictorRecipe
) -> int:  # fmt: skip
    """Has the model answer, trains a predictor on the prompts and answers, saves and reports it."""
    begins, where = catalogue.predictor_kind(kind), find_device(model.device)
    prompts, start = prompts_of(tasks, file, n, tokens), time.perf_counter()
    process = open_named(model.model, model.weights, model.threads)
    if not isinstance(process, LocalProcess):
        raise BadField(f"model {model.model!r} runs elsewhere: a predictor needs its weights; name a model that runs here")
    with show.work_bar() as bar:
        line = bar.add_task("writing", total=len(prompts), note="")
        texts = answered(process, prompts, fit.seed, on_text=partial(bar.update, line, advance=1))
    stream = [token for text in texts for token in text.tokens]
    pieces = [stream[i : i + fit.length] for i in range(0, len(stream) - fit.length + 1, fit.length)]
    if len(pieces) < LEAST:
        raise BadField(f"{len(stream)} tokens: at least {LEAST * fit.length}; name more --task, a larger --n or a longer --prompts file")
    held_out, learned = pieces[: len(pieces) // MEASURED], pieces[len(pieces) // MEASURED + 1 :]  # the piece between may share a text with both
    checkpoint = open_model(resolve(model.model))[0]
    fit = replace(fit, is_half=where.type != "cpu")
    decoder = plain_decoder(checkpoint, where, is_half=fit.is_half)
    begun = begins.of(checkpoint)
    begun = begun.with_tensors({name: x.to(where) for name, x in begun.tensors.items()})
    with show.waiting("fitting maps"), torch.inference_mode(False):
        mapped = fit_maps(decoder, begun, learned, fit)
    with show.work_bar() as bar:
        line = bar.add_task("training", total=None, note="")
        trained = fit_predictor(decoder, mapped, learned, fit, on_step=lambda i, loss: bar.update(line, advance=1))
    found = {name: measured(decoder, one, held_out, fit) for name, one in (("begun", begun), ("mapped", mapped), ("trained", trained))}
    save_predictor(replace(trained, facts=trained.facts | found | {"tasks": tasks or str(file), "kind": kind}), out)
    for name, row in found.items():
        show.out.print(
            f"{name}: {row['kl']:.2f} nats from the model a token, {row['agreement']:.1%} the same token, behind unseen prompts; "
            f"without the prompt {row['blind_kl']:.2f}, {row['blind_agreement']:.1%}"
        )
    show.say(f"{out}: {len(stream)} tokens, {trained.facts['num_steps']} steps; {time.perf_counter() - start:.0f} s")
    show.say(f"use it as: --predictor {out}")
    return 0
