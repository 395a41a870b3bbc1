"""Several tokens for one step of a model, trained from nothing: tokens a step against loss, accuracy and speed.

    python benchmarks/segments.py [--device cuda] [--steps 3000] [--minutes 6] [--kinds plain,smashed-2,smashed-4,smashed-8,sentence-16,sentence-32]
    python benchmarks/segments.py --table

`plain` reads and says one token a step; `smashed-M` as many as it is sure of, at most M (as HAMburger); `sentence-M` a sentence, at most M
tokens of one (as SentenceVAE). All have the same body and read the same number of tokens of the same text: passages of SQuAD and stories of
CoQA (one file each of the task data), and the documentation in Python's own library and in packages that are installed with ponder, in a
BPE vocabulary fitted to the text. The last 6 % measure only. A kind's model goes to --out and is not trained again where it is there: a run
that was cut short goes on.

Rows in benchmarks/results/segments.jsonl, one for each kind and each sureness: nats a token of unseen text (signs that end segments
included) with an interval over its stretches, how often the likeliest token comes, tokens a step (so keys a token are one over it); and
of greedy writing, one text at once and many: tokens a second beside `plain`'s in the same run, and what `plain` makes of what was said.
"""

import argparse
import ast
import hashlib
import importlib.util
import json
import math
import sysconfig
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import safetensors.torch
import tokenizers
import torch
from lib.rows import RESULTS, append
from speculation.questions import DOCUMENTS, passages

from ponder.models.segments import SegmentModel, SegmentShape, write
from ponder.tasks.data import read_docs
from ponder.train.segments import MarkedText, SegmentRecipe, fit_segments, nats_of, read_surely, segments_of, single_tokens

UNSEEN = 0.06  # of the text, at its end
SURE = (2.0, 0.95, 0.8, 0.6, 0.4, 0.2, 0.0)
GIVEN = 32  # tokens of a text that are given before it is written on


def squad() -> list[str]:
    return sorted({text for _, _, text, _ in passages()})


def coqa() -> list[str]:
    return sorted({str(doc["story"]) for doc in read_docs("coqa/bpb_0shot", DOCUMENTS)})


def docs() -> list[str]:
    """Docstrings of Python's own library and its documentation by topic."""
    return list(dict.fromkeys([*(topics[name] for name in sorted(topics)), *docstrings_under(Path(sysconfig.get_paths()["stdlib"]))]))


def docstrings_under(root: Path) -> list[str]:
    paths = [path.relative_to(root) for path in sorted(root.rglob("*.py"))]
    skipped = {"site-packages", "test", "tests", "testing", "idlelib", "lib2to3"}
    return list(dict.fromkeys(text for path in paths if not skipped & set(path.parts) for text in docstrings(root / path)))


def docstrings(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_bytes())
    except SyntaxError:  # templates, and files of another version
        return
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and (text := ast.get_docstring(node)):
            yield text


def texts_of(name: str) -> list[str]:
    """Of one of TEXTS, or the docstrings of an installed package."""
    if name in TEXTS:
        return TEXTS[name]()
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise SystemExit(f"--text {name}: neither one of {', '.join(TEXTS)} nor an installed package")
    return docstrings_under(Path(spec.origin).parent)


TEXTS = {"squad": squad, "coqa": coqa, "docs": docs}


def kept_corpus(args: argparse.Namespace) -> tuple[MarkedText, int, str]:
    """`corpus`, from --out where it was made before."""
    path = args.out / f"text-{args.text.replace(',', '-')}-{args.vocab}-{args.chars}.npz"
    if not path.exists():
        text, num_words, digest = corpus(args.text, args.vocab, args.chars)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, tokens=text.tokens.astype(np.int32), marks=text.marks, num_words=num_words, digest=digest)
    with np.load(path) as kept:
        return MarkedText(kept["tokens"].astype(np.int64), kept["marks"]), int(kept["num_words"]), str(kept["digest"])


def corpus(names: str, vocab: int, most_chars: int | None) -> tuple[MarkedText, int, str]:
    """(tokens with the ends of sentences marked, words of the vocabulary, a digest of the text). Texts in an order of their digests."""
    texts = list(dict.fromkeys(text for name in names.split(",") for text in texts_of(name)))
    texts.sort(key=lambda text: hashlib.sha256(text.encode()).digest())
    if most_chars is not None:
        total = np.cumsum([len(text) for text in texts])
        texts = texts[: int(np.searchsorted(total, most_chars)) + 1]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=vocab, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(texts[: int(len(texts) * (1 - UNSEEN))], trainer)
    ids = [token for encoding in tokenizer.encode_batch([text + "\n" for text in texts]) for token in encoding.ids]
    ends = [is_end(tokenizer.decode([token])) for token in range(tokenizer.get_vocab_size())]
    tokens = np.array(ids, np.int64)
    digest = hashlib.sha256("\0".join(texts).encode()).hexdigest()[:12]
    return MarkedText(tokens, np.array(ends)[tokens]), len(ends), digest


def is_end(piece: str) -> bool:
    return "\n" in piece or piece.strip()[-1:] in (".", "!", "?", ";", ":")


def split(text: MarkedText) -> tuple[MarkedText, MarkedText]:
    at = int(len(text.tokens) * (1 - UNSEEN))
    return MarkedText(text.tokens[:at], text.marks[:at]), MarkedText(text.tokens[at:], text.marks[at:])


def shape_of(kind: str, vocab: int, args: argparse.Namespace) -> SegmentShape:
    name, _, most = kind.partition("-")
    return SegmentShape(vocab=vocab, most=int(most or 1), has_end=name == "sentence", dim=args.dim, heads=args.heads, layers=args.layers)


def trained(
    kind: str, seen: MarkedText, vocab: int, recipe: SegmentRecipe, args: argparse.Namespace, digest: str
) -> tuple[SegmentModel, dict[str, object]]:
    """From --out, where it is there for the same text and sizes; else trained, and put there."""
    shape, path = shape_of(kind, vocab, args), args.out / f"{kind}.safetensors"
    wanted = json.dumps({"shape": asdict(shape), "recipe": asdict(recipe) | {"max_seconds": 0.0}, "text": digest}, sort_keys=True)
    if path.exists():
        with safetensors.safe_open(path, "pt") as file:
            facts = file.metadata()
        if facts["wanted"] == wanted:
            model = SegmentModel(shape).to(args.device).eval()
            model.load_state_dict(safetensors.torch.load_file(path, device=args.device))
            return model, json.loads(facts["facts"])
    model, found = fit_segments(shape, seen, recipe, device=args.device, on_step=lambda step, nats: step % 200 or print(kind, step, round(nats, 3)))
    args.out.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(model.state_dict(), path, {"wanted": wanted, "facts": json.dumps(found)})
    return model, found


def with_interval(nats_B: torch.Tensor, num_B: torch.Tensor) -> tuple[float, float]:
    """A ratio of sums over stretches, and half of its 95 % interval."""
    ratio = float(nats_B.sum() / num_B.sum())
    rest = nats_B - ratio * num_B
    return ratio, 1.96 * float(rest.std()) / math.sqrt(len(rest)) / float(num_B.mean())


def stretches(text: MarkedText, num: int, length: int, device: str) -> tuple[np.ndarray, torch.Tensor]:
    starts = np.linspace(0, len(text.tokens) - length - 1, num).astype(np.int64)
    return starts, torch.from_numpy(text.tokens[starts[:, None] + np.arange(length)]).to(device)


@torch.inference_mode()
def read_row(model: SegmentModel, unseen: MarkedText, sure: float, args: argparse.Namespace) -> dict[str, object]:
    """What reading unseen text says: a sentence model's in its own segments, any other's as it would cut it."""
    starts, tokens_BT = stretches(unseen, args.texts, args.length, args.device)
    if model.shape.has_end:
        segments = segments_of(model.shape, unseen, starts, length=args.length, rng=np.random.default_rng(0)).to(args.device)
        parts = [nats_of(model, some, GIVEN) for some in segments.split(16)]
        nats_B, num_B, right_B, steps_B = (torch.cat(x) for x in zip(*parts, strict=True))
    else:
        nats_B, num_B, right_B, steps_B = read_surely(model, tokens_BT, sure, GIVEN)
    nats, half = with_interval(nats_B.cpu(), num_B.cpu())
    return {
        "nats_a_token": round(nats, 4), "nats_half": round(half, 4), "top1": round(float(right_B.sum() / num_B.sum()), 4),
        "tokens_a_step": round(float(num_B.sum() / steps_B.sum()), 3), "n": len(num_B),
    }  # fmt: skip


@torch.inference_mode()
def judged(judge: SegmentModel, given_BT: torch.Tensor, tokens: list[list[int]]) -> float:
    """Nats a token of what was written behind what was given, by the plain model."""
    num = min(map(len, tokens))
    whole_BT = torch.cat([given_BT, torch.tensor([row[:num] for row in tokens], device=given_BT.device)], 1)
    states, _ = judge.states(judge.words(whole_BT))
    logits = judge.first(states[:, given_BT.shape[1] - 1 : -1].flatten(0, 1)).float()
    return float(torch.nn.functional.cross_entropy(logits, whole_BT[:, given_BT.shape[1] :].flatten()))


def given_to(model: SegmentModel, unseen: MarkedText, num: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Beginnings of `num` texts in the model's own segments, and their tokens."""
    starts, tokens_BT = stretches(unseen, num, GIVEN, device)
    if not model.shape.has_end:
        return single_tokens(model.shape, tokens_BT), tokens_BT
    segments = segments_of(model.shape, unseen, starts, length=GIVEN, rng=np.random.default_rng(0)).to(device)
    return segments, tokens_BT


def written(model: SegmentModel, judge: SegmentModel, unseen: MarkedText, sure: float, num: int, args: argparse.Namespace) -> dict[str, float]:
    """Sampled at temperature 1, by the clock after one warm-up; as many steps as give about --write tokens."""
    segments, given_BT = given_to(model, unseen, num, args.device)
    if model.shape.has_end and num > 1:  # rows of fewer segments than others have pads at their end: written on apart
        segments, given_BT = segments[:1].expand(num, -1, -1), given_BT[:1].expand(num, -1)
    draws = torch.Generator(args.device).manual_seed(0)
    pick = lambda logits: torch.multinomial(logits.softmax(-1), 1, generator=draws)[:, 0]
    begun = write(model, segments, num_steps=4, sure=sure, pick=pick)
    steps = max(1, round(args.write * 4 * num / sum(map(sum, begun.lengths))))
    if args.device != "cpu":
        torch.cuda.synchronize()
    start = time.perf_counter()
    found = write(model, segments, num_steps=steps, sure=sure, pick=pick)
    if args.device != "cpu":
        torch.cuda.synchronize()
    seconds, total = time.perf_counter() - start, sum(map(sum, found.lengths))
    layers = steps * model.shape.layers + found.num_micro * model.shape.micro
    return {
        "tokens_per_second": round(total / seconds, 1), "tokens_a_step": round(total / num / steps, 3),
        "layers_a_token": round(layers * num / total, 3), "judged_nats": round(judged(judge, given_BT, found.tokens), 4),
    }  # fmt: skip


def measure(args: argparse.Namespace) -> None:
    began = time.perf_counter()
    text, vocab, digest = kept_corpus(args)
    seen, unseen = split(text)
    kinds = args.kinds.split(",")
    judge: SegmentModel | None = None
    plain: dict[int, float] = {}
    for at, kind in enumerate(kinds):
        left = args.minutes * 60 - (time.perf_counter() - began)
        recipe = SegmentRecipe(
            batch=args.batch, length=args.length, max_steps=args.steps, max_seconds=max(1.0, 0.8 * left / (len(kinds) - at)), rate=args.rate
        )
        model, facts = trained(kind, seen, vocab, recipe, args, digest)
        if args.train_only:
            continue
        judge = judge or model
        same: dict[str, object] = {
            "kind": kind, "most": model.shape.most, "text": args.text, "digest": digest, "seen_tokens": len(seen.tokens), "vocab": vocab,
            "dim": args.dim, "layers": args.layers, "batch": args.batch, "length": args.length, "device": args.device, "seed": recipe.seed,
        }  # fmt: skip
        for sure in SURE if kind.startswith("smashed") else (2.0,):
            row = same | facts | {"sure": sure} | read_row(model, unseen, sure, args)
            for num in (1, args.many):
                found = written(model, judge, unseen, sure, num, args)
                plain.setdefault(num, found["tokens_per_second"])
                row[f"write_{num}"] = found | {"speed_up": round(found["tokens_per_second"] / plain[num], 3)}
            append("segments", row)


def table(rows: Sequence[dict[str, object]]) -> Iterator[str]:
    """The newest row of each kind and sureness, as markdown."""
    newest = {(row["kind"], row["sure"]): row for row in rows}
    heads = ("steps", "goes on at", "tokens a step", "nats a token", "likeliest comes", "layers a token", "written, judged by plain")
    yield "| " + " | ".join((*heads, "x plain, one text", "x plain, many")) + " |"
    yield "|" + "---|" * 9
    for (kind, sure), row in newest.items():
        one, many = (row[f"write_{num}"] for num in sorted(int(str(name).removeprefix("write_")) for name in row if name.startswith("write_")))
        cells = (
            kind, "-" if sure > 1 else sure, row["tokens_a_step"], f"{row['nats_a_token']} ± {row['nats_half']}", f"{row['top1']:.1%}",
            many["layers_a_token"], many["judged_nats"], one["speed_up"], many["speed_up"],
        )  # fmt: skip
        yield "| " + " | ".join(map(str, cells)) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="print what was measured and measure nothing")
    parser.add_argument(
        "--kinds", default="plain,smashed-2,smashed-4,smashed-8,sentence-16,sentence-32", help="plain first: the others are beside it"
    )
    parser.add_argument("--text", default="squad,coqa,docs,torch,numpy,sympy", help="squad, coqa, docs, or the docstrings of a package")
    parser.add_argument("--train-only", action="store_true", help="put models into --out and measure nothing: kinds can be trained side by side")
    parser.add_argument("--chars", type=int, help="most characters of text")
    parser.add_argument("--vocab", type=int, default=2048)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--length", type=int, default=256, help="tokens of a stretch")
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--texts", type=int, default=128, help="unseen stretches that are read")
    parser.add_argument("--many", type=int, default=64, help="texts written at once")
    parser.add_argument("--write", type=int, default=256, help="tokens written of each, about")
    parser.add_argument("--minutes", type=float, default=6.0, help="of all kinds together; training ends in time")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("out/segments"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.table:
        rows = (RESULTS / "segments.jsonl").read_text(encoding="utf-8").splitlines()
        print("\n".join(table([json.loads(row) for row in rows])))
    else:
        measure(args)


if __name__ == "__main__":
    main()
