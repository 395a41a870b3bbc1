"""A two-layer decoder trained on the spot to recall what was paired with a key, and how far it still does with dual chunk attention, dense and
with sparse prefill (from 256 trained tokens on: shorter prompts are all window).

    OMP_NUM_THREADS=1 python benchmarks/recall_model.py [--trained 128] [--steps 1500] [--sequences 200]

Training (plain PyTorch, one thread, minutes): first short sequences of recurring pairs, then sequences of the trained length, some of
them pairs among filler with the questions at the end. Rotary theta is 300: its slowest wave is 15 times the trained length, as that
of Llama 2 (10,000 and 4,096). Then the weights go into the engine's own decoder: each sequence is a prompt of pairs among filler that
ends in a key, the answer is the most likely token. The same questions with and without the plan, at 1 to 4 times the trained length;
`far` are those whose pair stands farther back than the trained length (the others are within what plain attention knows). With sparse prefill
the question stands behind the prompt, where all keys are met, or `within` it, where rows before it chose what it meets. `met`: how many of the
keys before them the prompt's tokens met, counted by (row, key).
"""

import argparse
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from lib.rows import append
from torch import Tensor, nn

from ponder.accelerate.attend.dual_chunk import DualChunk
from ponder.accelerate.attend.dual_chunk_sparse import DualChunkSparse
from ponder.accelerate.weights.dense import Float32
from ponder.core.attention_plan import AttentionPlan, Piece, View
from ponder.core.formats import ModelConfig
from ponder.engine.attend import Attention, Span
from ponder.engine.pages import Pool
from ponder.engine.pages import Sequence as Pages
from ponder.engine.planned import Met, PlannedAttention
from ponder.models.decoder import Decoder, load
from ponder.testing.in_memory import InMemory

NUM_KEYS, NUM_VALUES, VOCAB = 16, 16, 48  # keys 1..16, values 17..32, the rest is filler
DIM, HEADS, WIDTH, LAYERS, THETA = 64, 2, 32, 2, 300.0


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn_norm, self.ffn_norm = (nn.Parameter(torch.ones(DIM)) for _ in range(2))
        self.qkv, self.o = nn.Linear(DIM, 3 * DIM, bias=False), nn.Linear(DIM, DIM, bias=False)
        self.gate_up, self.down = nn.Linear(DIM, 4 * DIM, bias=False), nn.Linear(2 * DIM, DIM, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, num, _ = x.shape
        qkv = self.qkv(F.rms_norm(x, (DIM,), self.attn_norm, 1e-5)).view(batch, num, 3 * HEADS, WIDTH).transpose(1, 2)
        q, k, v = qkv.split(HEADS, 1)
        turn = lambda t: torch.cat([t[..., :16] * cos - t[..., 16:] * sin, t[..., 16:] * cos + t[..., :16] * sin], -1)
        read = F.scaled_dot_product_attention(turn(q), turn(k), v, is_causal=True)
        x = x + self.o(read.transpose(1, 2).reshape(batch, num, DIM))
        gate, up = self.gate_up(F.rms_norm(x, (DIM,), self.ffn_norm, 1e-5)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Parameter(torch.randn(VOCAB, DIM) * 0.5)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm, self.head = nn.Parameter(torch.ones(DIM)), nn.Linear(DIM, VOCAB, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        angle = torch.outer(torch.arange(tokens.shape[1]).float(), THETA ** -(torch.arange(WIDTH // 2) / (WIDTH // 2)))
        x = self.embed[tokens]
        for layer in self.layers:
            x = layer(x, angle.cos(), angle.sin())
        return self.head(F.rms_norm(x, (DIM,), self.norm, 1e-5))


def pairs_among_filler(num: int, length: int, generator: torch.Generator, *, pairs: int = 8, asked: int = 8) -> tuple[Tensor, Tensor]:
    """Tokens [num, length], and what follows each question, -100 elsewhere: pairs at random even places, then the questions."""
    tokens = torch.randint(NUM_KEYS + NUM_VALUES + 1, VOCAB, (num, length), generator=generator)
    keys = torch.rand(num, NUM_KEYS, generator=generator).argsort(1)[:, :pairs] + 1
    values = torch.randint(0, NUM_VALUES, (num, pairs), generator=generator) + NUM_KEYS + 1
    at = torch.rand(num, (length - 2 * asked) // 2, generator=generator).argsort(1)[:, :pairs] * 2
    tokens.scatter_(1, at, keys).scatter_(1, at + 1, values)
    tokens[:, length - 2 * asked :: 2], tokens[:, length - 2 * asked + 1 :: 2] = keys[:, :asked], values[:, :asked]
    wanted = torch.full((num, length), -100)
    wanted[:, length - 2 * asked :: 2] = values[:, :asked]
    return tokens, wanted


def recurring_pairs(num: int, length: int, generator: torch.Generator, *, pairs: int) -> tuple[Tensor, Tensor]:
    """Nothing but pairs, each wanted from its second time on."""
    keys = torch.rand(num, NUM_KEYS, generator=generator).argsort(1)[:, :pairs] + 1
    values = torch.randint(0, NUM_VALUES, (num, pairs), generator=generator) + NUM_KEYS + 1
    which = torch.randint(0, pairs, (num, length // 2), generator=generator)
    tokens = torch.stack([keys.gather(1, which), values.gather(1, which)], 2).flatten(1)
    seen = (which[:, :, None] == which[:, None]).tril(-1).any(-1)
    wanted = torch.full((num, length), -100)
    wanted[:, ::2] = torch.where(seen, tokens[:, 1::2], -100)
    return tokens, wanted


def train(length: int, steps: int, seed: int) -> tuple[Net, float]:
    """A trained net, and the CPU seconds it took."""
    torch.manual_seed(seed)
    net, generator, start = Net(), torch.Generator().manual_seed(seed), time.process_time()
    optimiser = torch.optim.AdamW(net.parameters(), weight_decay=0.01)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = 3e-3 * min(1.0, step / 50) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        if step < steps // 5:
            tokens, wanted = recurring_pairs(64, 32, generator, pairs=4)
        else:
            parts = pairs_among_filler(16, length, generator), recurring_pairs(8, length, generator, pairs=8)
            tokens, wanted = (torch.cat(x) for x in zip(*parts, strict=True))
        loss = F.cross_entropy(net(tokens).flatten(0, 1), wanted.flatten())
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
    return net, time.process_time() - start


@dataclass(frozen=True)
class Trained:
    """A Checkpoint over the net."""

    net: Net
    config: ModelConfig
    model_id: str = "recall"

    def tensor(self, name: str) -> InMemory:
        if not name.startswith("layers."):
            found = {"embed": self.net.embed, "norm": self.net.norm, "head": self.net.head.weight}[name]
            return InMemory(found.detach(), name)
        _, index, part = name.split(".")
        layer = self.net.layers[int(index)]
        q, k, v = layer.qkv.weight.chunk(3)
        gate, up = layer.gate_up.weight.chunk(2)
        own = {"q": q, "k": k, "v": v, "o": layer.o.weight, "gate": gate, "up": up, "down": layer.down.weight}
        return InMemory((own | {"attn_norm": layer.attn_norm, "ffn_norm": layer.ffn_norm})[part].detach(), name)


def decoder_of(net: Net, context_len: int) -> Decoder:
    config = ModelConfig(
        arch="llama", num_layers=LAYERS, dim=DIM, num_heads=HEADS, num_kv_heads=HEADS, head_dim=WIDTH, ffn_dim=2 * DIM, vocab_size=VOCAB,
        context_len=context_len, norm_eps=1e-5, rope_theta=THETA,
    )  # fmt: skip
    return load(Trained(net, config), Float32(), None, torch.float32)


class Counting(DualChunkSparse):
    """Counts what its rows meet; one at a time."""

    met: ClassVar[Met] = Met()

    def pieces(self, view: View) -> Sequence[Piece]:
        found = super().pieces(view)
        if view.start < view.num_prompt:
            self.met.add(found, view)
        return found


def chunks_of(trained: int) -> tuple[int, int]:
    """chunk and local: about 3/4 and 1/8 of what the model was trained for."""
    return max(64, trained * 3 // 4 // 64 * 64), trained // 8


def sparse_plans(trained: int) -> dict[str, Counting]:
    chunk, local = chunks_of(trained)
    settings = {"chunk": chunk, "local": local, "segment": chunk, "dense_below": trained, "window": 16, "every": 4}
    return {
        "sparse_one_look": Counting(mass=0.95, check=0, **settings), "sparse": Counting(mass=0.95, check=64, **settings),
        "sparse_continuous": Counting(mass=0.95, check=64, is_continuous=True, **settings), "sparse_99": Counting(mass=0.99, check=64, **settings),
    }  # fmt: skip


@torch.inference_mode()
def are_right(decoder: Decoder, plan: AttentionPlan | None, tokens: Tensor, wanted: Tensor, *, behind: int = 0) -> Tensor:
    """Whether the most likely token after the last key of each sequence is its value; the last `behind` tokens are not the prompt's."""
    pool = Pool((LAYERS, HEADS, WIDTH), torch.float32, 1 << 24)
    attention = Attention(decoder.config, pool) if plan is None else PlannedAttention(decoder.config, pool, plan)
    found = []
    for row, value in zip(tokens, wanted, strict=True):
        pages = Pages(pool)
        assert pages.reserve(len(row))
        step = attention.plan([Span(pages, 0, len(row), len(row) - behind)])
        hidden_TD = decoder.forward(row, step.positions, step.attend, step.prompts)
        found.append(bool(decoder.logits(hidden_TD[-1:]).argmax() == value))
        pages.release()
    return torch.tensor(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("trained", 128), ("steps", 1500), ("sequences", 200), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    net, seconds = train(args.trained, args.steps, args.seed)
    chunk, local = chunks_of(args.trained)
    plan, sparse = DualChunk(chunk=chunk, local=local), sparse_plans(args.trained) if args.trained >= 256 else {}
    for times in (1, 4, 2):
        length, generator = times * args.trained, torch.Generator().manual_seed(args.seed + 1000)
        tokens, wanted = pairs_among_filler(args.sequences, length, generator, asked=1)
        tokens, wanted = tokens[:, :-1], wanted[:, -2]
        decoder = decoder_of(net, length)
        gap = length - 2 - (tokens[:, :-1] == tokens[:, -1:]).int().argmax(1)  # from the question back to its pair
        is_far = gap >= args.trained
        row: dict[str, object] = {"num_far": int(is_far.sum())}
        variants = [(name, one, 1) for name, one in sparse.items()] + [(f"{name}_within", one, 0) for name, one in sparse.items()]
        for name, chosen, behind in (("plain", None, 0), ("dual_chunk", plan, 0), *variants):
            met = Counting.met = Met()
            right = are_right(decoder, chosen, tokens, wanted, behind=behind).float()
            row |= {f"{name}_met": round(met.keys / met.of, 3)} if met.of else {}
            row |= {name: round(right.mean().item(), 3), f"{name}_far": round(right[is_far].mean().item(), 3) if is_far.any() else None}
        append("attend", {
            "what": "recall", "trained_len": args.trained, "len": length, "n": args.sequences, "steps": args.steps, "seed": args.seed,
            "train_cpu_s": round(seconds, 1), "chunk": plan.chunk, "local": plan.local, **row,
        })  # fmt: skip


if __name__ == "__main__":
    main()
