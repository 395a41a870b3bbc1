"""Key predictors for SmolLM2-135M (docs/cache.md, "Predicted keys"): training on a card, and what they cost and gain.

    python benchmarks/kv_prediction.py train --share 0.34 --share 0.5 --device cuda --seconds 40 --out out/smollm2
    python benchmarks/kv_prediction.py prefill --tokens 4096 --predictor out/smollm2-first-15.keys --share 0.34
    python benchmarks/kv_prediction.py answers --held-out 24 --predictor out/smollm2-first-15.keys

`train` reads the sources of Python's standard library (and its reference, in prose), which every machine has; one file in ten only measures.
Of each share of the layers it prints the distance from the model as it begins, after the closed form and after training, and saves a file.
`prefill`: CPU seconds of one thread.
"""

import argparse
import itertools
import json
import operator
import random
import sysconfig
import time
import zlib
from functools import partial
from pathlib import Path

import torch
from lib.first_token import first_token
from lib.rows import append

from ponder import catalogue
from ponder.core.accelerations import Accelerations
from ponder.core.asks import GREEDY, Extend, Prefix, Prompt
from ponder.core.formats import Checkpoint, Tokenizer
from ponder.core.predictor import Predictor, load_predictor, save_predictor
from ponder.engine.process import LocalProcess
from ponder.models.decoder import Decoder
from ponder.models.fetch import resolve
from ponder.models.tokenizer import open_model
from ponder.train.plain import plain_decoder
from ponder.train.predictor import PredictorRecipe, fit_maps, fit_predictor, measured


def pieces(tokenizer: Tokenizer, length: int, most: int) -> tuple[list[list[int]], list[list[int]]]:
    """Stretches of `length` tokens of the standard library, up to `most` tokens: to train on, and of other files to measure on."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [path for path in sorted(root.glob("*.py")) + sorted(root.glob("*/*.py")) if "test" not in str(path.relative_to(root))]
    random.Random(0).shuffle(files)
    kept: tuple[list[list[int]], list[list[int]]] = ([], [])
    num = 0
    for path in files:
        text = path.read_text(encoding="utf-8", errors="replace")
        is_held_out = zlib.crc32(path.name.encode()) % 10 == 0
        if len(text) < 4 * length or (not is_held_out and num >= most):
            continue
        tokens = tokenizer.encode(text[:400_000])
        cut = [tokens[i : i + length] for i in range(0, len(tokens) - length + 1, length)]
        kept[is_held_out].extend(cut)
        num += 0 if is_held_out else len(cut) * length
    random.Random(1).shuffle(kept[1])
    return kept


def train(args: argparse.Namespace) -> None:
    device, start = torch.device(args.device), time.perf_counter()
    checkpoint, tokenizer = open_model(resolve(args.model))
    decoder = plain_decoder(checkpoint, device, is_half=args.half)
    learned, held_out = pieces(tokenizer, args.length, args.most)
    print(f"{len(learned)} texts to learn, {len(held_out)} others; {time.perf_counter() - start:.0f} s", flush=True)
    for share in args.share:
        train_one(args, share, (decoder, checkpoint), (learned, held_out[: args.held_out]))
        print(f"{time.perf_counter() - start:.0f} s", flush=True)


def train_one(args: argparse.Namespace, share: float, opened: tuple[Decoder, Checkpoint], texts: tuple[list[list[int]], list[list[int]]]) -> None:
    (decoder, checkpoint), (learned, held_out) = opened, texts
    recipe = PredictorRecipe(
        batch=args.batch, length=args.length, rate=args.rate, keys=args.keys, max_seconds=args.seconds, max_steps=args.steps, is_half=args.half
    )  # fmt: skip
    begun = catalogue.predictor_kind(f"kv_prediction:share={share},pick={args.pick},rank={args.rank}").of(checkpoint)
    begun = begun.with_tensors({name: x.to(decoder.device) for name, x in begun.tensors.items()})
    found = {"begun": measured(decoder, begun, held_out, recipe)}
    print(f"{len(begun.layers)} of {decoder.config.num_layers} layers; begun {found['begun']}", flush=True)
    mapped = fit_maps(decoder, begun, learned[: args.mapped], recipe)
    found["mapped"] = measured(decoder, mapped, held_out, recipe)
    print(f"mapped {found['mapped']}; sources {mapped.sources}", flush=True)
    trained = fit_predictor(decoder, mapped, learned, recipe, on_step=lambda i, x: print(i, round(x, 4), flush=True) if i % 50 == 0 else None)
    found["trained"] = measured(decoder, trained, held_out, recipe)
    trained.facts.update(found)
    out = args.out.with_name(f"{args.out.name}-{args.pick}-{len(trained.layers)}.keys")
    save_predictor(trained, out)
    row = {"what": "train", "model": args.model, "layers": len(trained.layers), "pick": args.pick, "rank": args.rank, "rate": args.rate}
    row |= {"keys": args.keys, "length": args.length, "held_out": len(held_out) * args.length, "file_mb": round(out.stat().st_size / 1e6, 2)}
    append("kv_prediction", row | trained.facts)
    print(f"{out}: {json.dumps(trained.facts)}", flush=True)


def prefill(args: argparse.Namespace) -> None:
    """CPU seconds to the first token of a prompt, the best of some, with and without predictors, in turns; of `--share` untrained ones."""
    predictors: list[Predictor | None] = [None, *map(load_predictor, args.predictor), *map(partial(untrained, args.model), args.share)]
    processes = [catalogue.open_model(resolve(args.model), threads=1, accelerations=Accelerations(predictor=one)) for one in predictors]
    found = [[first_token(process, args.tokens, torch.Generator().manual_seed(i)) for process in processes] for i in range(args.repeats)]
    for predictor, process, times in zip(predictors, processes, zip(*found), strict=True):
        row = {"what": "prefill", "model": args.model, "tokens": args.tokens, "layers": predictor and len(predictor.layers), "n": args.repeats}
        append("kv_prediction", row | {"seconds": min(seconds for seconds, _ in times), "flops": times[0][1], "nbytes": process.nbytes})


def answers(args: argparse.Namespace) -> None:
    """How many tokens of greedy answers are the plain model's, behind the first half of stretches that were not trained on."""
    tokenizer = open_model(resolve(args.model))[1]
    texts = pieces(tokenizer, args.length, 0)[1][: args.held_out]
    for path in args.predictor:
        both = [
            catalogue.open_model(resolve(args.model), threads=1, accelerations=Accelerations(predictor=one)) for one in (None, load_predictor(path))
        ]
        said = [[answer(process, text[: args.length // 2], num=12) for text in texts] for process in both]
        same = [sum(itertools.accumulate((x == y for x, y in zip(a, b)), operator.mul)) for a, b in zip(*said, strict=True)]
        row = {"what": "answers", "model": args.model, "layers": len(load_predictor(path).layers), "prompt": args.length // 2, "n": len(texts)}
        append("kv_prediction", row | {"first_same": round(sum(x > 0 for x in same) / len(same), 3), "tokens_same": round(sum(same) / len(same), 2)})


def answer(process: LocalProcess, ids: list[int], num: int) -> tuple[int, ...]:
    prompt = Prompt(messages=(("raw", process.tokenizer.decode(ids)),), max_tokens=num)
    process.rendered[(prompt.messages, prompt.prefill)] = ids
    process.add(Extend(prefix=Prefix(prompt), seed=0, sampling=GREEDY))
    while not (done := process.step()):
        pass
    return done[0][1].prefix.tokens  # type: ignore[union-attr]


def untrained(model: str, share: float) -> Predictor:
    """One whose answers mean nothing, for its cost."""
    predictor = catalogue.predictor_kind(f"kv_prediction:share={share}").of(open_model(resolve(model))[0])
    return predictor.with_tensors({name: x + 0.01 for name, x in predictor.tensors.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "prefill", "answers"))
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--pick", default="first")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("out/predictor"), help="beginning of the files' names")
    parser.add_argument("--share", type=float, action="append", help="of the layers that the reader has")
    parser.add_argument("--predictor", type=Path, action="append", default=[])
    for name, number in (("rate", 5e-4), ("keys", 1.0), ("seconds", 60.0)):
        parser.add_argument(f"--{name}", type=float, default=number)
    sizes = {"rank": 16, "batch": 16, "length": 512, "most": 4_000_000, "held_out": 32, "mapped": 256, "steps": 100_000, "tokens": 4096, "repeats": 3}
    for name, size in sizes.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=size)
    parser.add_argument("--half", action="store_true", help="products in bfloat16; always so on a card")
    args = parser.parse_args()
    args.half, args.share = args.half or args.device != "cpu", args.share or ([0.5] if args.what == "train" else [])
    torch.set_num_threads(1 if args.device == "cpu" else torch.get_num_threads())
    {"train": train, "prefill": prefill, "answers": answers}[args.what](args)


if __name__ == "__main__":
    main()
