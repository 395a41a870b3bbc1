"""Trains a small decoder of the llama family to recall pairs from up to 32k tokens, in minutes on one core: `python benchmarks/recall_train.py`.

The language is that of lib/recall. No sequence of more than a few hundred tokens is ever computed. Two things stand for the length:

positions  a context is cut into pieces that are set apart at random, so that distances up to --longest are met (Zhu et al. 2023, PoSE)
crowds     a filler key counts as exp(bias) keys in every softmax, as if the context held as many fillers as a long one has

The model is written as a folder (config.json, model.safetensors, tokenizer.json), which `ponder.load` opens like any other. What it gets right
at which length is measured by `python benchmarks/long_quality.py recall`, with the engine, on contexts that are really that long.
"""

import argparse
import json
import math
import random
import time
from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as F
from lib import recall
from lib.rows import append
from torch import Tensor, nn

from ponder.core.cache import cache_dir

DIM, HEADS, KV_HEADS, WIDTH, LAYERS, FFN, THETA, EPS = 128, 4, 2, 32, 3, 256, 1e7, 1e-5
MASK = -100


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn_norm, self.ffn_norm = (nn.Parameter(torch.ones(DIM)) for _ in range(2))
        self.q, self.k, self.v = (nn.Linear(DIM, heads * WIDTH, bias=False) for heads in (HEADS, KV_HEADS, KV_HEADS))
        self.o, self.down = nn.Linear(HEADS * WIDTH, DIM, bias=False), nn.Linear(FFN, DIM, bias=False)
        self.gate, self.up = (nn.Linear(DIM, FFN, bias=False) for _ in range(2))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, bias: Tensor) -> Tensor:
        batch, num, _ = x.shape
        read = F.rms_norm(x, (DIM,), self.attn_norm, EPS)
        q, k, v = (f(read).view(batch, num, -1, WIDTH).transpose(1, 2) for f in (self.q, self.k, self.v))
        q, k, half = turned(q, cos, sin), turned(k, cos, sin), HEADS // KV_HEADS
        found = F.scaled_dot_product_attention(q, k.repeat_interleave(half, 1), v.repeat_interleave(half, 1), attn_mask=bias)
        x = x + self.o(found.transpose(1, 2).reshape(batch, num, -1))
        read = F.rms_norm(x, (DIM,), self.ffn_norm, EPS)
        return x + self.down(F.silu(self.gate(read)) * self.up(read))


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Parameter(torch.randn(recall.VOCAB, DIM) * 0.5)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm, self.head = nn.Parameter(torch.ones(DIM)), nn.Linear(DIM, recall.VOCAB, bias=False)

    def forward(self, tokens: Tensor, positions: Tensor, crowd: Tensor) -> Tensor:
        """Logits [B, T, V]; crowd [B, T]: log of how many keys each key stands for."""
        frequencies = THETA ** -(torch.arange(WIDTH // 2) / (WIDTH // 2))
        angle = positions[:, None, :, None].float() * frequencies
        x, num = self.embed[tokens], tokens.shape[1]
        bias = crowd[:, None, None].masked_fill(~torch.ones(num, num, dtype=torch.bool).tril(), -math.inf)
        for layer in self.layers:
            x = layer(x, angle.cos(), angle.sin(), bias)
        return self.head(F.rms_norm(x, (DIM,), self.norm, EPS))


def sequence(rng: random.Random, length: int, num_pairs: int, asked: int, longest: int) -> tuple[list[int], list[int], list[int], float]:
    """Tokens, positions, what follows each token (MASK where nobody asks), and the log of the filler's crowd."""
    made = recall.world(rng, length, num_pairs)
    tokens = list(made.context)
    wanted = [MASK] * (length - 1)
    for _ in range(asked):
        keys = rng.sample(sorted(made.pairs), min(num_pairs, rng.choice((1, 1, 1, 2, 3, 4))))
        question, answer = made.question(keys), made.answer(keys)
        wanted += [MASK] * len(question) + answer
        tokens += question + answer
    stretch = math.exp(rng.uniform(0, math.log(longest / length)))
    gaps = int(length * (stretch - 1))
    cuts = sorted([*rng.sample(made.starts[1:], min(6, len(made.starts) - 1)), length])
    shares = sorted(rng.randint(0, gaps) for _ in range(len(cuts) - 1))
    jumps = [b - a for a, b in zip([0, *shares], [*shares, gaps])]
    positions, at, jump = [], 0, dict(zip(cuts, jumps, strict=True))
    for i in range(len(tokens)):
        at += jump.get(i, 0)
        positions.append(at)
        at += 1
    return tokens, positions, [*wanted, MASK], math.log(stretch)


def batch(rng: random.Random, num: int, length: int, pairs: tuple[int, int], asked: int, longest: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    found = [sequence(rng, length, rng.randint(*pairs), asked, longest) for _ in range(num)]
    most = max(len(tokens) for tokens, *_ in found)
    tokens, positions, wanted = (
        torch.tensor([row[i] + [fill] * (most - len(row[i])) for row in found]) for i, fill in ((0, recall.END), (1, 0), (2, MASK))
    )
    is_filler = (tokens >= recall.NUM_KEYS + recall.NUM_VALUES) & (tokens < recall.ASK)
    crowd = torch.where(is_filler, torch.tensor([row[3] for row in found])[:, None], 0.0)
    return tokens, positions, wanted, crowd


def train(steps: int, seed: int, longest: int, say: int = 200) -> tuple[Net, float]:
    """A trained net, and the CPU seconds that it took."""
    torch.manual_seed(seed)
    net, rng, start = Net(), random.Random(seed), time.process_time()
    optimiser = torch.optim.AdamW(net.parameters(), weight_decay=0.01, betas=(0.9, 0.98))
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = 2e-3 * min(1.0, step / 100) * (0.02 + 0.98 * (0.5 + 0.5 * math.cos(math.pi * step / steps)))
        part = step / steps
        if part < 0.35:  # pairs alone, close together
            made = batch(rng, 48, 24, (6, 10), 6, 24 if part < 0.2 else 400)
        elif part < 0.7:
            made = batch(rng, 16, 96, (6, 24), 8, longest if part > 0.45 else 2000)
        else:
            made = batch(rng, 12, 192, (4, 40), 8, longest)
        tokens, positions, wanted, crowd = made
        loss = F.cross_entropy(net(tokens, positions, crowd).flatten(0, 1), wanted.flatten(), ignore_index=MASK)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        if say and step % say == say - 1:
            print(f"step {step + 1}: loss {loss.item():.4f}, {time.process_time() - start:.0f} s", flush=True)
    return net, time.process_time() - start


def write(net: Net, folder: Path, longest: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {"model.embed_tokens.weight": net.embed, "model.norm.weight": net.norm, "lm_head.weight": net.head.weight}
    for i, layer in enumerate(net.layers):
        own = {
            "input_layernorm": layer.attn_norm, "post_attention_layernorm": layer.ffn_norm, "self_attn.q_proj": layer.q.weight,
            "self_attn.k_proj": layer.k.weight, "self_attn.v_proj": layer.v.weight, "self_attn.o_proj": layer.o.weight,
            "mlp.gate_proj": layer.gate.weight, "mlp.up_proj": layer.up.weight, "mlp.down_proj": layer.down.weight,
        }  # fmt: skip
        tensors |= {f"model.layers.{i}.{name}.weight": tensor for name, tensor in own.items()}
    safetensors.torch.save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": recall.VOCAB, "hidden_size": DIM, "intermediate_size": FFN,
        "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": WIDTH, "rope_theta": THETA,
        "max_position_embeddings": longest + 1024, "rms_norm_eps": EPS, "tie_word_embeddings": False, "hidden_act": "silu",
        "eos_token_id": recall.END, "torch_dtype": "float32",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    recall.write_tokenizer(folder)


def default_folder(seed: int = 0) -> Path:
    return cache_dir() / "models" / f"recall-{seed}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest", type=int, default=33000)
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    torch.set_num_threads(1)
    folder = args.out or default_folder(args.seed)
    net, seconds = train(args.steps, args.seed, args.longest)
    write(net, folder, args.longest)
    append("recall", {
        "what": "trained", "model": folder.name, "seed": args.seed, "steps": args.steps, "longest": args.longest, "cpu_s": round(seconds, 1),
        "num_weights": sum(p.numel() for p in net.parameters()), "layers": LAYERS, "heads": HEADS, "kv_heads": KV_HEADS, "theta": THETA,
    })  # fmt: skip


if __name__ == "__main__":
    main()
