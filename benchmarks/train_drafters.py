"""Heads that guess ahead and a table of likely followers, trained on text that the model itself writes, and measured on chat that it never saw.

    python benchmarks/train_drafters.py --model smollm2-135m --device cuda --out out/smollm2 --write-seconds 60 --fit-seconds 60
    python benchmarks/train_drafters.py --model smollm2-135m --out out/smollm2 --replay out/smollm2/FILE.safetensors --sizes 16,64    # anywhere
    python benchmarks/train_drafters.py --model smollm2-135m --tiny --weights bf16        # the same in a minute on one core, for a look

The model first asks itself questions (it goes on from where a user's message begins, as in Xu et al. 2024, Magpie, arXiv:2406.08464), and
answers them, and those of --prompts (one JSON text a line, as `spec_bench.py --write-lessons` writes them), greedily and drawn. Heads of every
--kinds are fitted to these answers. Measured, on greedy answers to lib/chat_prompts: how often what came is among a head's likeliest 1 and 5,
and accepted tokens a round by replay (train/replay) with trees of --sizes tokens; the answers are kept in held_out.safetensors, so that a replay
needs no card. A file for each kind, and rows in results/train_drafters.jsonl.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from lib.chat_prompts import CHAT_PROMPTS
from lib.rows import append

import ponder
from ponder.accelerate.draft.followers import save_followers
from ponder.accelerate.draft.heads import Heads, save_heads
from ponder.accelerate.draft.hydra_heads import save_hydra
from ponder.catalogue.drafts import open_drafter
from ponder.catalogue.engines import formats_of, weights_on
from ponder.core.draft import Drafter, Host
from ponder.core.errors import BadField
from ponder.core.probe import checkpoint_of
from ponder.core.tensor_file import load_tensors, save_tensors
from ponder.engine.device import find_device
from ponder.models.decoder import Decoder, load
from ponder.models.place import place
from ponder.models.tokenizer import TextTokenizer, open_model
from ponder.train.guessing import NONE, Chained, Corpus, Guessed, GuessRecipe, Parallel, corpus, fit_guessing, joined
from ponder.train.own_text import batches, write
from ponder.train.replay import Line, replayed
from ponder.train.table import filled

MARK = "\u241f"
AHEAD = 6  # tokens that the longest row of heads looks ahead, and one more
PLACES = 900_000  # tokens of keys of a batch


@dataclass(frozen=True)
class Writer:
    """A model that writes, and what it reads and says."""

    decoder: Decoder
    tokenizer: TextTokenizer
    seed: int
    is_recorded: bool

    @property
    def eos_ids(self) -> frozenset[int]:
        return self.tokenizer.eos_ids

    def ask_itself(self, num: int, most: int) -> list[str]:
        """Questions, no two alike: what the model puts where a user's message stands."""
        head = self.tokenizer.template.render((("user", MARK),)).partition(MARK)[0] if self.tokenizer.template else "User: "
        start = self.tokenizer.encode(head, parse_special=True)
        text = write(
            self.decoder, [start] * num, num=most, temperatures=[1.0] * num, eos_ids=self.eos_ids, draws=self.draws(self.seed),
            is_recorded=self.is_recorded,
        )  # fmt: skip
        found: dict[str, None] = {}
        for row in text.tokens_BN.tolist():
            tokens = [token for token in row if token != NONE]
            said = self.tokenizer.decode(tokens).strip()
            if tokens and tokens[-1] in self.eos_ids and 10 <= len(said) <= 600:
                found[said] = None
        return list(found)

    def draws(self, seed: int) -> torch.Generator:
        return torch.Generator(device=self.decoder.device).manual_seed(seed)

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        return [self.tokenizer.render((("user", text),)) for text in texts]

    def answers(self, texts: Sequence[str], *, num: int, most: int, greedy: float, seconds: float) -> Iterator[Corpus]:
        """Batches of answers until the time is over; of every batch a share `greedy` is greedy, the rest drawn at 0.7."""
        ids, began = self.ids(texts), time.perf_counter()
        groups = list(batches(ids, num=num, most=most, places=PLACES))
        for at in torch.randperm(len(groups), generator=torch.Generator().manual_seed(self.seed)).tolist():
            if time.perf_counter() - began > seconds:
                return
            group = groups[at]
            heat = [0.0 if i < greedy * len(group) else 0.7 for i in torch.randperm(len(group)).tolist()]
            made = write(
                self.decoder, [ids[i] for i in group], num=num, temperatures=heat, eos_ids=self.eos_ids, draws=self.draws(self.seed + at + 1),
                is_recorded=self.is_recorded,
            )  # fmt: skip
            yield corpus(made, AHEAD)


def opened(args: argparse.Namespace) -> Writer:
    device = find_device(args.device)
    name = weights_on(args.device, args.weights)
    matrices, head, dtype = formats_of(name, args.device)
    path = Path(args.model) if Path(args.model).exists() else ponder.pull(args.model)
    checkpoint, tokenizer = open_model(path)
    decoder = load(checkpoint, matrices, head, dtype)
    return Writer(place(decoder, matrices, device) if device.type != "cpu" else decoder, tokenizer, args.seed, not args.plain)


def questions(writer: Writer, args: argparse.Namespace) -> list[str]:
    """The model's own, then those of the files; none that is measured on."""
    own: list[str] = []
    began = time.perf_counter()
    while len(own) < args.own and time.perf_counter() - began < args.write_seconds / 3:
        own += replace(writer, seed=writer.seed + 7919 * (1 + len(own))).ask_itself(min(args.most, args.own), args.asked)
    found = dict.fromkeys(own)
    for path in args.prompts:
        found |= dict.fromkeys(json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line)
    note(f"{len(found)} questions, of which {len(dict.fromkeys(own))} its own, in {time.perf_counter() - began:.0f} s; such as {own[:3]}")
    return [text for text in found if text not in CHAT_PROMPTS]


def lines_of(writer: Writer, texts: Sequence[str], num: int) -> tuple[list[Line], Corpus]:
    """Greedy answers to these, and the same as a corpus."""
    ids = writer.ids(texts)
    made = write(writer.decoder, ids, num=num, temperatures=[0.0] * len(ids), eos_ids=writer.eos_ids, draws=writer.draws(0))
    lines = []
    for prompt, row, states in zip(ids, made.tokens_BN.tolist(), made.states_BND.cpu()):
        tokens = [token for token in row if token != NONE]
        lines.append(Line(tuple(prompt), tuple(tokens), states[: len(tokens)]))
    return lines, corpus(made, AHEAD)


def host_of(writer: Writer) -> Host:
    decoder = writer.decoder

    def no_runner(twin: object) -> None:
        raise BadField("a replay runs no models")

    return Host(
        vocab_size=len(writer.tokenizer.pieces), eos_ids=writer.eos_ids, num_layers=decoder.config.num_layers, dim=decoder.config.dim,
        runner=no_runner, logits=lambda h: decoder.logits(h.to(decoder.device)).cpu(),  # type: ignore[arg-type]
    )  # fmt: skip


def kind_of(spec: str, recipe: GuessRecipe, width: int, device: torch.device) -> Parallel | Chained:
    """medusa, or hydra:CELLS,INNER."""
    name, _, given = spec.partition(":")
    if name == "medusa":
        return Parallel(recipe, width, device)
    cells, inner = (int(x) for x in (given or "2,768").split(","))
    return Chained(recipe, width, device, inner=inner, num_cells=cells)


def fit(writer: Writer, spec: str, learned: Corpus, unseen: Corpus, lines: Sequence[Line], args: argparse.Namespace) -> None:
    """One kind of heads: fitted, measured, saved."""
    name, _, rest = spec.partition("/")
    num, num_scored = (int(x) for x in (rest or "4,4096").split(","))
    recipe = GuessRecipe(
        num=num, num_scored=num_scored, num_read=max(num_scored, args.read), batch=args.batch, rate=args.rate, soft=args.soft,
        max_seconds=args.fit_seconds, max_steps=args.max_steps, seed=args.seed,
    )  # fmt: skip
    if num >= AHEAD:
        raise BadField(f"{spec}: at most {AHEAD - 1} heads")
    decoder = writer.decoder
    target = Guessed(
        model_id=checkpoint_of(decoder.model_id), vocab_size=decoder.config.vocab_size, eos_ids=writer.eos_ids, logits=decoder.logits
    )  # fmt: skip
    heads = fit_guessing(
        target, lambda *given: kind_of(name, *given), learned, unseen, recipe=recipe, on_step=lambda i, losses: note(f"  {spec} step {i}: {losses}")
    )  # fmt: skip
    facts = heads.facts | {"spec": spec}
    path = args.out / f"{name.replace(':', '-').replace(',', 'x')}-{num}.safetensors"
    (save_heads if isinstance(heads, Heads) else save_hydra)(heads, path)  # type: ignore[operator]
    note(f"{path}: {path.stat().st_size / 1e6:.1f} MB, {facts}")
    append("train_drafters", {"what": "heads", "model": args.model, "spec": spec, "file_mb": round(path.stat().st_size / 1e6, 1)} | facts)
    replay(writer, path, lines, args)


def replay(writer: Writer, path: Path, lines: Sequence[Line], args: argparse.Namespace) -> None:
    """Accepted tokens a round of the drafter in a file."""
    drafter, host = open_drafter(path), host_of(writer)
    for size in (int(x) for x in args.sizes.split(",") if x):
        began = time.perf_counter()
        scores = replayed(replace(drafter, **of_size(drafter, size)), host, lines, room=size)  # type: ignore[type-var]
        rounds, accepted, drafted = (sum(getattr(s, field) for s in scores) for field in ("rounds", "accepted", "drafted"))
        append("train_drafters", {
            "what": "replay", "model": args.model, "heads": path.name, "tree": size, "rounds": rounds, "n": len(scores),
            "accepted_a_round": round(accepted / max(1, rounds), 3), "drafted_a_round": round(drafted / max(1, rounds), 2),
            "interval": interval(scores), "seconds": round(time.perf_counter() - began, 1),
        })  # fmt: skip


def of_size(drafter: Drafter, num: int) -> dict[str, int]:
    """Settings of a drafter for trees of `num` tokens."""
    return {"num_tokens": num, "branches": 8} | ({"width": max(6, num // 4)} if hasattr(drafter, "width") else {})


def save_lines(lines: Sequence[Line], path: Path) -> None:
    tensors = {}
    for i, line in enumerate(lines):
        tensors |= {f"{i}.prompt": torch.tensor(line.prompt), f"{i}.tokens": torch.tensor(line.tokens), f"{i}.states": line.states_ND}
    save_tensors(tensors, {"kind": "ponder lines 1"}, path)


def load_lines(path: Path) -> list[Line]:
    tensors, _ = load_tensors(path, "train first")
    read = [[tensors[f"{i}.{name}"] for name in ("prompt", "tokens", "states")] for i in range(len(tensors) // 3)]
    return [Line(tuple(prompt.tolist()), tuple(tokens.tolist()), states) for prompt, tokens, states in read]


def interval(scores: Sequence[object]) -> list[float]:
    """95 % of accepted tokens a round, by drawing texts anew a thousand times."""
    counts = torch.tensor([[s.accepted, s.rounds] for s in scores], dtype=torch.float64)  # type: ignore[attr-defined]
    picks = torch.randint(len(counts), (1000, len(counts)), generator=torch.Generator().manual_seed(0))
    sums = counts[picks].sum(1)
    return [round(float(x), 3) for x in (sums[:, 0] / sums[:, 1].clamp_min(1)).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64))]


def note(text: str) -> None:
    print(text, flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="a name, or a path")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--weights", help="a weight format; by default what is best on the device")
    parser.add_argument("--out", type=Path, default=Path("out/drafters"))
    parser.add_argument("--prompts", type=Path, nargs="*", default=[], help="files of more questions")
    parser.add_argument("--own", type=int, default=12_000, help="questions that the model is to ask itself")
    parser.add_argument("--asked", type=int, default=96, help="most tokens of a question")
    parser.add_argument("--most", type=int, default=2048, help="sequences at once")
    parser.add_argument("--new", type=int, default=256, help="most tokens of an answer")
    parser.add_argument("--greedy", type=float, default=0.7, help="share of the answers that are greedy")
    parser.add_argument("--write-seconds", type=float, default=60.0)
    parser.add_argument("--fit-seconds", type=float, default=60.0, help="of each kind")
    parser.add_argument("--max-steps", type=int, default=1_000_000)
    parser.add_argument(
        "--kinds", default="hydra:2,768/5,16384;medusa/4,8192", help="medusa or hydra:CELLS,INNER, each /HEADS,SCORED, between semicolons"
    )
    parser.add_argument("--read", type=int, default=16_384, help="tokens whose rows heads read")
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--soft", type=float, default=0.3)
    parser.add_argument("--sizes", default="16,64", help="tokens of the replayed trees")
    parser.add_argument("--replay", type=Path, nargs="*", default=[], help="replay these drafters on the held-out answers in --out, and stop")
    parser.add_argument("--measured", type=int, default=len(CHAT_PROMPTS), help="chat prompts that only measure")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plain", action="store_true", help="no recordings on a card")
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    if args.tiny:
        args.own, args.asked, args.most, args.new, args.measured, args.batch, args.max_steps = 12, 24, 12, 32, 4, 128, 20
    return args


def main() -> None:
    args = arguments()
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    writer, began = opened(args), time.perf_counter()
    for path in args.replay:
        replay(writer, path, load_lines(args.out / "held_out.safetensors"), args)
    if args.replay:
        return
    texts = questions(writer, args)
    parts = []
    for part in writer.answers(texts, num=args.new, most=args.most, greedy=args.greedy, seconds=args.write_seconds):
        parts.append(part)
        note(f"  {sum(map(len, parts))} tokens in {time.perf_counter() - began:.0f} s")
    learned = joined(parts)
    lines, unseen = lines_of(writer, CHAT_PROMPTS[: args.measured], min(args.new, 160))
    save_lines(lines, args.out / "held_out.safetensors")
    table = filled(learned, unseen, writer.decoder.logits, writer.decoder.config.vocab_size, model_id=checkpoint_of(writer.decoder.model_id))
    save_followers(table, args.out / "followers.safetensors")
    append("train_drafters", {"what": "followers", "model": args.model, "shares": table.shares} | table.facts)
    note(f"{len(learned)} tokens learned from, {len(unseen)} to measure on; {time.perf_counter() - began:.0f} s")
    for spec in args.kinds.split(";"):
        fit(writer, spec, learned, unseen, lines, args)


if __name__ == "__main__":
    main()
