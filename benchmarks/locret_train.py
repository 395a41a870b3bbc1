"""Trains Locret's retaining heads for a benchmark: `python benchmarks/locret_train.py recall|squad [--model M] [--texts N]`.

Texts are contexts with a question and its right answer, which is what asks (train/retaining_heads); none of them is one that the evaluation uses.
recall: contexts of 160 to 400 tokens; what is learned holds for 32k, because a head reads one token at a time. squad: passages of about 500 tokens.
Heads go to out/locret-TASK.safetensors; `ponder train-cache` does the same with prompts and answers of anybody's own.
"""

import argparse
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from lib import long_tasks, recall
from lib.rows import append
from recall_train import default_folder

import ponder
from ponder.accelerate.cache.retaining_heads import save_retaining_heads
from ponder.catalogue import open_model
from ponder.core.formats import Tokenizer
from ponder.core.probe import checkpoint_of
from ponder.engine.watch import watch
from ponder.train.retaining_heads import RetainRecipe, Text, fit_retaining_heads


def recall_texts(num: int) -> Iterator[Text]:
    for seed in range(num):
        rng = random.Random(f"heads-{seed}")
        world = recall.world(rng, rng.randint(160, 400), rng.randint(8, 24))
        tokens = list(world.context)
        for _ in range(6):
            keys = rng.sample(sorted(world.pairs), rng.choice((1, 3)))
            tokens += world.question(keys) + world.answer(keys)
        yield Text(tuple(tokens), len(world.context))


def squad_texts(tokenizer: Tokenizer, num: int) -> Iterator[Text]:
    """From the end of the file; the evaluation begins at its other end."""
    for context in long_tasks.squad_contexts(tokenizer, 420, num, num_turns=1, from_end=True):
        first, _ = context.turns[0]
        prompt = tokenizer.render((("user", context.text + first.text),))
        begins = long_tasks.common([prompt, tokenizer.render((("user", context.text + "?"),))])
        yield Text((*prompt, *tokenizer.encode(first.answer)), begins)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("recall", "squad"))
    parser.add_argument("--model", default=None)
    parser.add_argument("--texts", type=int, default=60)
    parser.add_argument("--epochs", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(1)
    is_recall = args.task == "recall"
    path = (
        Path(args.model) if args.model and Path(args.model).exists() else default_folder() if is_recall else ponder.pull(args.model or "smollm2-135m")
    )
    process = open_model(path, "bf16" if is_recall else None, threads=1)
    texts = list(recall_texts(args.texts) if is_recall else squad_texts(process.tokenizer, args.texts))
    heads = fit_retaining_heads(
        texts, partial(watch, process.decoder), model_id=checkpoint_of(process.model_id), recipe=RetainRecipe(epochs=args.epochs)
    )  # fmt: skip
    out = Path(f"out/locret-{args.task}.safetensors")
    save_retaining_heads(heads, out)
    model = path.name if is_recall else args.model or "smollm2-135m"
    append("cache_oracle", {"what": "heads", "task": args.task, "model": model, "nbytes": out.stat().st_size} | heads.facts)


if __name__ == "__main__":
    main()
