"""What kvpress keeps of the inputs of tests/accelerate/test_cache_scorers.py: writes tests/accelerate/kvpress_kept.json.

Runs in an environment of its own, with kvpress (0.5.5, which wants transformers below 5.3) and numpy:
`python benchmarks/peers/kvpress_kept.py`. Queries reach kvpress as hidden states under an identity projection and no rotation.
"""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import kvpress
import numpy as np
import torch

L, H, K, E = 4, 6, 2, 16
OUT = Path(__file__).resolve().parents[2] / "tests/accelerate/kvpress_kept.json"


def inputs(num, layer):
    """(q [n, H, E], k [K, n, E]) float32: the same numbers in the test."""
    rng = np.random.RandomState(1000 * layer + num)
    q, k = (rng.standard_normal((num, heads, E)).astype(np.float32) * 1.5 for heads in (H, K))
    return torch.from_numpy(q), torch.from_numpy(k).transpose(0, 1).contiguous()


def module_of(layer):
    config = SimpleNamespace(num_attention_heads=H, num_key_value_heads=K, num_hidden_layers=L, _attn_implementation="sdpa", head_dim=E)
    return SimpleNamespace(config=config, head_dim=E, layer_idx=layer, q_proj=torch.nn.Identity())


def attentions_of(q, k):
    scores = q.transpose(0, 1) @ k.repeat_interleave(H // K, 0).transpose(1, 2) / math.sqrt(E)
    return scores.masked_fill(torch.ones(scores.shape[1:], dtype=torch.bool).triu(1), -math.inf).softmax(-1)[None]


def kept(press, num, layer):
    """Positions that each head keeps."""
    q, k = inputs(num, layer)
    module, values = module_of(layer), torch.arange(num).float()[None, None, :, None].expand(1, K, num, E)
    attentions = attentions_of(q, k) if isinstance(press, kvpress.ObservedAttentionPress) else None
    embeddings = (torch.ones(1, num, E), torch.zeros(1, num, E))
    _, left = press.compress(module, q.flatten(1)[None], k[None], values, attentions, {"position_embeddings": embeddings})
    if isinstance(press, kvpress.AdaKVPress):
        _, heads, places = module.masked_key_indices
        gone = [set(places[heads == head].tolist()) for head in range(K)]
        return [[i for i in range(num) if i not in gone[head]] for head in range(K)]
    return [sorted(left[0, head, :, 0].long().tolist()) for head in range(K)]


def main():
    rows = []
    for num, ratio in ((200, 0.75), (200, 0.5), (311, 0.8)):
        presses = {
            "snapkv": kvpress.SnapKVPress(ratio, window_size=16, kernel_size=5),
            "streaming": kvpress.StreamingLLMPress(ratio, n_sink=4),
            "knorm": kvpress.KnormPress(ratio),
            "tova": kvpress.TOVAPress(ratio),
            "observed": kvpress.ObservedAttentionPress(ratio),
            "pyramidkv": kvpress.PyramidKVPress(ratio, window_size=16, kernel_size=5, beta=2),
            "adakv": kvpress.AdaKVPress(kvpress.SnapKVPress(ratio, window_size=16, kernel_size=5), alpha_safeguard=0.2),
        }
        for name, press in presses.items():
            rows.append({"method": name, "num": num, "ratio": ratio, "kept": [kept(press, num, layer) for layer in range(L)]})
    OUT.write_text(json.dumps(rows) + "\n")


if __name__ == "__main__":
    main()
