"""`ponder train-cache`: what the model's own answers attend to in their prompts, and heads that say so of a token before anything is asked."""

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from ponder.accelerate.cache.retaining_heads import save_retaining_heads
from ponder.cli import show
from ponder.cli.train import Opened, prompts_of
from ponder.cli.verbs import open_named
from ponder.core.asks import Prompt
from ponder.core.errors import BadField
from ponder.core.probe import checkpoint_of
from ponder.engine.process import LocalProcess
from ponder.engine.watch import watch
from ponder.train.draft_heads import written
from ponder.train.retaining_heads import RetainRecipe, Text, fit_retaining_heads


def train_cache(*, tasks: str, file: Path | None, out: Path, n: int, tokens: int, model: Opened, fit: RetainRecipe) -> int:
    """Has the model answer, fits heads to what its answers attended to, saves and reports them."""
    prompts = prompts_of(tasks, file, n, tokens)
    process, start = open_named(model.model, model.weights, model.threads), time.perf_counter()
    if not isinstance(process, LocalProcess):
        raise BadField(f"model {model.model!r} runs elsewhere: heads need its queries and keys; name a model that runs here")
    with show.work_bar() as bar:
        line = bar.add_task("writing", total=len(prompts), note="")
        texts = answered(process, prompts, fit.seed, on_text=partial(bar.update, line, advance=1))
    process.drop_cache()
    wrote = time.perf_counter() - start
    with show.work_bar() as bar:
        line = bar.add_task("fitting", total=None, note="")
        heads = fit_retaining_heads(
            texts, partial(watch, process.decoder), model_id=checkpoint_of(process.model_id), recipe=fit, on_text=lambda: bar.update(line, advance=1)
        )
    heads = replace(heads, facts=heads.facts | {"tasks": tasks or str(file)})
    save_retaining_heads(heads, out)
    found = {name: f"{100 * float(str(heads.facts[name])):.1f} %" for name in ("mass", "mass_best", "mass_latest")}
    show.out.print(
        f"unseen prompts, a fifth of their keys: {found['mass']} of the answers' attention to them with the heads' choice, "
        f"{found['mass_best']} with the best, {found['mass_latest']} with the latest"
    )
    show.say(f"{out}: {len(texts)} texts; writing {wrote:.0f} s, all {time.perf_counter() - start:.0f} s")
    show.say(f"use it as a cache policy: --cache {out}:0.25")
    return 0


def answered(process: LocalProcess, prompts: Sequence[Prompt], seed: int, *, on_text: partial[None]) -> list[Text]:
    """Each prompt with the model's greedy answer, which is what asks."""
    given = {prompt.question: tuple(process.tokenizer.render(prompt.messages, prompt.prefill)) for prompt in prompts}
    said = written(process, prompts, samples=1, seed=seed, on_text=on_text)
    return [Text(given[one.prompt] + one.tokens, len(given[one.prompt])) for one in said if one.tokens]
