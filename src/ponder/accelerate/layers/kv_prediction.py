"""A small reader goes through the prompt, and trained maps make the large model's keys and values of its own.

Paper      Horton et al. 2024, "KV Prediction for Improved Time to First Token", arXiv:2410.08391 (its layer-pruned readers).
Equation   k_l = rotate(K_l k_j + b_l), v_l = V_l v_j + c_l with j = sources[l], k_j before rotation. Before training the reader is `share` of
           the model's layers as they are; l reads itself where the reader has it, else the reader's last layer before it, by K = V = 1.
Shapes     see core.predictor.
Guarantee  approximate: a prompt's keys are guessed. What the engine answers with them is the model's answer behind those keys, bit for bit.
Cost       of a prompt of n tokens, M layers and 2 L products [J, J] a token in place of L layers, and L for its last token; keys of M layers
           more in memory. Training: a pass of the model, one of the reader and one of the model behind predicted keys, two of these backwards.
Choose     Long prompts with short answers, where a predictor was trained on enough text. Generating costs what it did.
Differs    The reader's weights are the model's with corrections of low rank, so that the file is small; it speaks no tokens, so it has no loss
           of its own; maps have biases; a prompt's last token passes the model with predicted keys of its own, so that prefixes can be shared.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from ponder.core.errors import BadField, Unsupported
from ponder.core.formats import Checkpoint
from ponder.core.guarantee import Guarantee
from ponder.core.predictor import CORRECTED, Predictor
from ponder.core.probe import checkpoint_of

PICKS = ("first", "spread")


@dataclass(frozen=True, kw_only=True)
class KVPrediction:
    """Raises BadField."""

    share: float = 0.5  # of the layers that the reader has
    pick: str = "first"  # which: the first ones, or "spread" evenly
    rank: int = 16  # of the corrections; 0: the reader's layers stay as they are
    guarantee: ClassVar[Guarantee] = Guarantee.APPROXIMATE
    name: ClassVar[str] = "kv_prediction"

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1 or self.pick not in PICKS or self.rank < 0:
            raise BadField(
                f"kv_prediction share={self.share}, pick={self.pick!r}, rank={self.rank}: share must be above 0 and at most 1, pick one of "
                f"{', '.join(PICKS)}, rank at least 0"
            )

    def of(self, checkpoint: Checkpoint) -> Predictor:
        """The predictor as training begins, float32. Raises Unsupported for a model whose layers differ in more than their weights."""
        config = checkpoint.config
        if config.unusual or any(config.windows) or config.rotary_layers or config.rope_local_theta:
            raise Unsupported(f"kv_prediction of a {config.arch} model: its layers must be plain, and see and rotate alike; use a Llama or a Qwen2")
        num = max(1, round(self.share * config.num_layers))
        layers = tuple(range(num)) if self.pick == "first" else tuple(i * config.num_layers // num for i in range(num))
        sources = tuple(max(j for j, layer in enumerate(layers) if layer <= i) for i in range(config.num_layers))
        width, heads = config.num_kv_heads * config.head_dim, config.num_heads * config.head_dim
        sizes = {"qkv": (config.dim, heads + 2 * width), "o": (heads, config.dim)}
        sizes |= {"gate_up": (config.dim, 2 * config.ffn_dim), "down": (config.ffn_dim, config.dim)}
        corrections = {}
        draws = torch.Generator().manual_seed(0)
        for name in CORRECTED if self.rank else ():
            num_in, num_out = sizes[name]
            corrections[f"{name}.in"] = torch.randn(num, self.rank, num_in, generator=draws) * num_in**-0.5
            corrections[f"{name}.out"] = torch.zeros(num, num_out, self.rank)
        same, none = torch.eye(width).repeat(config.num_layers, 1, 1), torch.zeros(config.num_layers, width)
        return Predictor(
            model_id=checkpoint_of(checkpoint.model_id), layers=layers, sources=sources, k=same, v=same.clone(), k_bias=none, v_bias=none.clone(),
            corrections=corrections,
        )  # fmt: skip
