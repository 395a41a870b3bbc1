"""A model whose last layers take keys and values from one earlier state, so that prompts leave it half-way.

Paper      Qiao et al. 2024, "SwiftKV: Fast Prefill-Optimized Inference with Knowledge-Preserving Model Transformation"
           (SingleInputKV; with share > 1 AcrossKV).
Equation   n = norm(x_r); k, v of group g = K_g n, V_g n; q of layer l >= r = Q_l attn_norm_l(x_l). Before training Q_l is the model's, K_g
           and V_g the mean of the group's, and norm layer r's.
Shapes     see core.tail.
Guarantee  approximate: it is another model. What the engine answers with it is that model's answer, bit for bit.
Cost       of a prompt of n tokens, r + (L - r) / n layers a token in place of L, and one pair of projections for each group; keys of r + G
           layers. Training: one pass of the model and three of its last layers for each token.
Choose     Long prompts with short answers, where a tail was trained on enough text; untrained it says little. Generating costs what it did.
Differs    Layers are a share of the depth. A last group may be smaller than the others.
"""

from dataclasses import dataclass

import torch

from ponder.core.errors import BadField, Unsupported
from ponder.core.formats import Checkpoint
from ponder.core.guarantee import Guarantee
from ponder.core.probe import checkpoint_of
from ponder.core.tail import Tail


@dataclass(frozen=True, kw_only=True)
class SwiftKV:
    """Raises BadField."""

    start: float = 0.5  # share of the layers that a whole prompt passes through
    share: int = 1  # neighbours that have one pair of keys and values
    guarantee = Guarantee.APPROXIMATE
    name = "swiftkv"

    def __post_init__(self) -> None:
        if not 0 < self.start <= 1 or self.share < 1:
            raise BadField(f"swiftkv start={self.start}, share={self.share}: start must be above 0 and at most 1, share at least 1")

    def of(self, checkpoint: Checkpoint) -> Tail:
        """The tail as training begins, float32. Raises Unsupported for a model whose attention has more than projections and a norm."""
        config = checkpoint.config
        if not config.has_pre_norms or config.qk_norm != "none" or any(config.windows) or config.rotary_layers or config.rope_local_theta:
            raise Unsupported(f"swiftkv of a {config.arch} model: its layers must read one norm, and see and rotate alike; use a Llama or a Qwen2")
        start = max(1, round(self.start * config.num_layers))
        layers = range(start, config.num_layers)
        groups = [layers[i : i + self.share] for i in range(0, len(layers), self.share)]

        def dense(layer: int, name: str) -> torch.Tensor:
            return checkpoint.tensor(f"layers.{layer}.{name}").dense()

        def stacked(name: str, among: list[range]) -> torch.Tensor:
            found = [torch.stack([dense(layer, name) for layer in group]).mean(0) for group in among]
            return torch.stack(found) if found else dense(0, name)[None][:0]

        each = [range(layer, layer + 1) for layer in layers]
        tensors = {"q": stacked("q", each), "k": stacked("k", groups), "v": stacked("v", groups)}
        if config.is_qkv_biased:
            biases = {"q_bias": stacked("q.bias", each), "k_bias": stacked("k.bias", groups), "v_bias": stacked("v.bias", groups)}
            tensors |= {name: bias.flatten(1) for name, bias in biases.items()}
        norm = dense(min(start, config.num_layers - 1), "attn_norm").reshape(-1)
        return Tail(model_id=checkpoint_of(checkpoint.model_id), start=start, share=self.share, norm=norm, **tensors)
