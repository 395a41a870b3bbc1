"""The decoder: flat tokens in, hidden rows out. One forward for every family; a family is a setting of flags.

A step's new tokens of all sequences lie in one flat row of T tokens, so prefill chunks and single decode tokens batch for
free. Only attention knows which token belongs to which sequence, and it is an argument: `attend` writes the new keys and
values where its plan wants them and returns what each token read. The decoder holds weights and nothing else.

Shapes: T flat tokens, D width, H query heads, K key heads, E head width, F ffn width, V vocabulary, R rows of logits, N experts,
U experts that a token uses.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ponder.core.draft import Blur
from ponder.core.errors import BadField, Unsupported
from ponder.core.formats import Checkpoint, Embedding, ExpertWeights, FeedForward, LayerBody, LayerWeights, Linear, ModelConfig, WeightFormat
from ponder.models.embedding import open_embedding
from ponder.models.families import FAMILIES
from ponder.models.memory import give_back
from ponder.models.predictor import PackedPredictor
from ponder.models.rotary import Rotary, WholeRotary, rotary_kind
from ponder.models.tail import PackedTail

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]  # (layer, q_THE, k_TKE, v_TKE) -> out_TX with X = H * E

ROUTER_CHUNK = 256  # rows routed at a time


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """Weights and shape of a model. Immutable, holds no state of any sequence; safe to share between processes."""

    config: ModelConfig
    model_id: str  # of the checkpoint, the formats and dtype: equal only for equal results
    dtype: torch.dtype  # of activations between matrices; the residual stream is float32
    embed: Embedding
    layers: tuple[LayerWeights, ...]
    bodies: tuple[LayerBody, ...]  # what computes each layer
    norm: Tensor
    head: Linear
    tables: tuple[Rotary | WholeRotary, ...]
    table_of: tuple[int, ...]  # which table each layer rotates by
    body_of: Callable[[LayerWeights], LayerBody] | None = None  # what computes another layer of this shape in this format; None: nothing does
    tail: PackedTail | None = None  # what its last layers have instead of their projections; whoever calls them knows (engine.passes)
    reader: PackedPredictor | None = None  # what supplies keys of prompts in its place; as known there

    @property
    def device(self) -> torch.device:
        return self.norm.device

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weights, embedding and head included."""
        packed = sum(linear.nbytes for layer in self.layers for linear in linears(layer))
        return packed + self.head.nbytes + self.embed.nbytes

    def forward(
        self, tokens: Tensor, positions: Tensor, attend: Attend, prompts: Sequence[tuple[int, int]] = (), *, skips: frozenset[int] = frozenset(),
        mixes: Mapping[int, Blur] | None = None,
    ) -> Tensor:  # fmt: skip
        """Hidden rows after the final norm, [T, D] in `dtype`, of tokens [T] at absolute positions [T] (int64).

        `attend` is called once per layer, in order, with rotated q and k. Row i depends on token i, on what `attend` returns
        for it, and on whether it is of a prompt, alone, bit for bit where the weight format keeps that promise.
        prompts: ascending (start, stop) of rows whose tokens are of prompts. skips: layers that are left out. mixes: by row, whose embedding
        is the weighted sum of several tokens' in place of its own token's.
        """
        x_TD = self.embedded(tokens, mixes)
        x_TD = self.through([i for i in range(len(self.bodies)) if i not in skips], x_TD, positions, attend, prompts=prompts)
        return rms_norm(x_TD, self.norm, self.config.norm_eps, self.dtype)

    def embedded(self, tokens: Tensor, mixes: Mapping[int, Blur] | None = None) -> Tensor:
        """What tokens [T] enter the first layer as, float32 [T, D]; rows of `mixes` as the weighted sums."""
        x_TD = self.embed.rows(tokens)
        for row, blur in (mixes or {}).items():
            ids, weights = zip(*blur)
            x_TD[row] = torch.tensor(weights, device=x_TD.device) @ self.embed.rows(torch.tensor(ids, device=tokens.device))
        return x_TD * self.config.embed_scale if self.config.embed_scale != 1 else x_TD

    def through(
        self, layers: Sequence[int], x_TD: Tensor, positions: Tensor, attend: Attend, *, prompts: Sequence[tuple[int, int]] = ()
    ) -> Tensor:  # fmt: skip
        """The rows behind the layers, in order; x_TD may be written over. The rest as of `forward`."""
        angles = [table.at(positions) for table in self.tables]
        runs = kinds_of_rows(len(x_TD), prompts)
        for index in layers:
            body = self.bodies[index]
            q_THE, k_TKE, v_TKE = before(body, runs, x_TD, angles[self.table_of[index]])
            x_TD = after(body, runs, x_TD, attend(index, q_THE, k_TKE, v_TKE))
        return x_TD

    def projected(self, layer: int, x_TD: Tensor, positions: Tensor, prompts: Sequence[tuple[int, int]] = ()) -> tuple[Tensor, Tensor, Tensor]:
        """The queries, keys and values that rows x_TD would bring to a layer's attention, rotated."""
        angles = self.tables[self.table_of[layer]].at(positions)
        return before(self.bodies[layer], kinds_of_rows(len(x_TD), prompts), x_TD, angles)

    def flops(self, num_tokens: int, context_len: float) -> float:
        """Two per weight that a token meets (head included), and four per key, head and width element of attention."""
        config = self.config
        attention = 4.0 * config.num_layers * config.num_heads * config.head_dim * context_len
        per_layer = config.dim * config.head_dim * (2 * config.num_heads + 2 * config.num_kv_heads) + 3 * config.dim * config.ffn_dim
        return num_tokens * (2.0 * (config.num_layers * per_layer + config.dim * config.vocab_size) + attention)

    def logits(self, hidden_RD: Tensor) -> Tensor:
        """float32 [R, V] next-token logits of rows that `forward` returned."""
        logits_RV, cap = self.head.apply(hidden_RD).float(), self.config.head_softcap
        return logits_RV if cap is None else (logits_RV / cap).tanh_().mul_(cap)


Runs = Sequence[tuple[int, int, bool]]  # (start, stop, whether of prompts) of rows, one after the other


def kinds_of_rows(num: int, prompts: Sequence[tuple[int, int]]) -> Runs:
    """`num` rows as runs of one kind each; neighbours differ."""
    runs: list[tuple[int, int, bool]] = []
    for start, stop, is_prompt in [*((*prompt, True) for prompt in prompts), (num, num, False)]:
        last = runs[-1] if runs else (0, 0, False)
        if last[1] < start:
            runs.append((last[1], start, False))
        if runs and runs[-1][2] and is_prompt:
            start = runs.pop()[0]
        if start < stop:
            runs.append((start, stop, is_prompt))
    return runs


def before(body: LayerBody, runs: Runs, x_TD: Tensor, angles: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """`before` of the body that each run of rows meets."""
    cos, sin = angles
    if len(runs) <= 1 or body.of_prompts is body:
        return (body.of_prompts if runs and runs[0][2] else body).before(x_TD, cos, sin)
    wholes: tuple[Tensor, ...] = ()
    for start, stop, is_prompt in runs:
        some = (body.of_prompts if is_prompt else body).before(x_TD[start:stop], cos[start:stop], sin[start:stop])
        wholes = wholes or tuple(part.new_empty(len(x_TD), *part.shape[1:]) for part in some)
        for whole, part in zip(wholes, some, strict=True):
            whole[start:stop] = part
    q_THE, k_TKE, v_TKE = wholes
    return q_THE, k_TKE, v_TKE


def after(body: LayerBody, runs: Runs, x_TD: Tensor, out_TX: Tensor) -> Tensor:
    """`after` of the body that each run of rows meets."""
    if len(runs) <= 1 or body.of_prompts is body:
        return (body.of_prompts if runs and runs[0][2] else body).after(x_TD, out_TX)
    return torch.cat([(body.of_prompts if is_prompt else body).after(x_TD[start:stop], out_TX[start:stop]) for start, stop, is_prompt in runs])


@dataclass(frozen=True)
class PlainBody:
    """A LayerBody in plain PyTorch around the packed matrices; the oracle of the fused ones."""

    layer: LayerWeights
    config: ModelConfig
    dtype: torch.dtype

    @property
    def of_prompts(self) -> LayerBody:
        return self

    def before(self, x_TD: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        layer, config = self.layer, self.config
        qkv = layer.qkv.apply(self._normed(x_TD, layer.attn_norm))
        if layer.qkv_bias is not None:
            qkv = qkv + layer.qkv_bias
        num_rotated = config.num_heads + config.num_kv_heads
        qkv_TJE = qkv.view(len(qkv), -1, config.head_dim)  # J = H + K + K
        qk_TJE, v_TKE = qkv_TJE[:, :num_rotated], qkv_TJE[:, num_rotated:]
        if layer.q_norm is not None and layer.k_norm is not None:
            q_THE, k_TKE = qk_TJE[:, : config.num_heads], qk_TJE[:, config.num_heads :]
            qk_TJE = torch.cat([head_norm(q_THE, layer.q_norm, config.norm_eps), head_norm(k_TKE, layer.k_norm, config.norm_eps)], 1)
        qk_TJE = rotate(qk_TJE, cos, sin)
        if config.query_scale != 1:
            qk_TJE[:, : config.num_heads] *= config.query_scale
        qk_TJE = qk_TJE.to(self.dtype)
        return qk_TJE[:, : config.num_heads], qk_TJE[:, config.num_heads :], v_TKE

    def after(self, x_TD: Tensor, out_TX: Tensor) -> Tensor:
        layer = self.layer
        x_TD = x_TD.add_(self._post_normed(layer.o.apply(out_TX), layer.attn_post_norm))
        read_TD = self._normed(x_TD, layer.ffn_norm)
        if layer.experts is not None:
            ffn_TD = mix_experts(read_TD, layer.experts, self.config)
        else:
            assert layer.gate_up is not None
            assert layer.down is not None
            ffn_TD = feed_forward(read_TD, FeedForward(layer.gate_up, layer.down), self.config.activation)
        return x_TD.add_(self._post_normed(ffn_TD, layer.ffn_post_norm))

    def _normed(self, x_TD: Tensor, weight: Tensor | None) -> Tensor:
        return x_TD.to(self.dtype) if weight is None else rms_norm(x_TD, weight, self.config.norm_eps, self.dtype)

    def _post_normed(self, x_TD: Tensor, weight: Tensor | None) -> Tensor:
        return x_TD if weight is None else rms_norm(x_TD.float(), weight, self.config.norm_eps, torch.float32)


@dataclass(frozen=True)
class BodyOf:
    """The format's own body of a layer, or the plain one."""

    weights: WeightFormat
    config: ModelConfig
    dtype: torch.dtype

    def __call__(self, layer: LayerWeights) -> LayerBody:
        return self.weights.fuse(layer, self.config) or PlainBody(layer, self.config, self.dtype)


def rms_norm(x_TD: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """Root-mean-square norm in float32, returned in `dtype`."""
    return F.rms_norm(x_TD, (x_TD.shape[-1],), weight, eps).to(dtype)


def head_norm(x_TJE: Tensor, weight: Tensor, eps: float) -> Tensor:
    """float32: the norm of each head where weight is [E], of all heads together where it is [J * E]."""
    is_row = len(weight) != x_TJE.shape[-1]
    x = x_TJE.float().flatten(1) if is_row else x_TJE.float()
    return F.rms_norm(x, (len(weight),), weight, eps).view(x_TJE.shape)


def rotate(x_THE: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding over halves: (a, b) -> (a cos - b sin, b cos + a sin). Computed in float32."""
    x_THE = x_THE.float()
    num_tokens, num_heads, width = x_THE.shape
    swapped = x_THE.view(num_tokens, num_heads, 2, width // 2).flip(2).view_as(x_THE)
    return torch.addcmul(x_THE * cos, swapped, sin)


def feed_forward(x_TD: Tensor, ffn: FeedForward, activation: str) -> Tensor:
    """down(act(gate x) * up x), in the type of x."""
    gate_TF, up_TF = ffn.gate_up.apply(x_TD).chunk(2, -1)
    act_TF = F.silu(gate_TF) if activation == "silu" else F.gelu(gate_TF, approximate="tanh")
    return ffn.down.apply(act_TF.mul_(up_TF))


def mix_experts(x_TD: Tensor, weights: ExpertWeights, config: ModelConfig) -> Tensor:
    """float32 [T, D]: what the experts that each row chooses say, weighted, and the shared expert where there is one.

    Rows are gathered by expert; a row's terms are added in the order of the experts, whatever other rows choose.
    Source: Mixtral (Jiang et al. 2024) section 2.1; the shared expert and its gate as in Qwen2-MoE.
    """
    logits_TN = router_logits(x_TD, weights.router)
    weight_TU, expert_TU = logits_TN[:, : config.num_experts].softmax(-1).topk(config.num_experts_used)
    if config.is_router_normed:
        weight_TU = weight_TU / weight_TU.sum(-1, keepdim=True)
    pairs = expert_TU.flatten().argsort(stable=True)
    sizes = expert_TU.flatten().bincount(minlength=config.num_experts).tolist()
    scales = weight_TU.flatten()[pairs, None].split(sizes)
    rows = pairs.div(config.num_experts_used, rounding_mode="floor").split(sizes)
    out_TD = torch.zeros(x_TD.shape, dtype=torch.float32, device=x_TD.device)
    for expert, some, scale in zip(weights.experts, rows, scales, strict=True):
        if len(some):
            out_TD.index_add_(0, some, feed_forward(x_TD[some], expert, config.activation).float() * scale)
    if weights.shared is not None:
        out_TD += logits_TN[:, config.num_experts :].sigmoid() * feed_forward(x_TD, weights.shared, config.activation).float()
    return out_TD


def router_logits(x_TD: Tensor, router_ND: Tensor) -> Tensor:
    """float32 [T, N]. A batch of one-row products: their sums, unlike those of one matrix product, do not depend on T."""
    x_T1D, router_DN = x_TD.float()[:, None], router_ND.T
    return torch.cat([torch.bmm(part, router_DN.expand(len(part), -1, -1))[:, 0] for part in x_T1D.split(ROUTER_CHUNK)])


def linears(layer: LayerWeights) -> list[Linear]:
    """All packed matrices of a layer."""
    experts = [] if layer.experts is None else [*layer.experts.experts, *([layer.experts.shared] if layer.experts.shared else [])]
    dense = [layer.qkv, layer.o, *(m for m in (layer.gate_up, layer.down) if m is not None)]
    return dense + [m for expert in experts for m in (expert.gate_up, expert.down)]


def load(
    checkpoint: Checkpoint,
    weights: WeightFormat,
    head: WeightFormat | None = None,
    dtype: torch.dtype = torch.bfloat16,
    *,
    context_len: int | None = None,
    longest: int | None = None,
) -> Decoder:
    """Packs a checkpoint, matrix by matrix, so that the whole model is never held in float32.

    head: format of the output head; None for the same as the rest. context_len: of the decoder; None for the model's own.
    longest: most that context_len may be; None for what the model allows.
    Raises Unsupported for an unknown architecture, BadField for a context that the model does not allow.
    """
    config = with_context(checkpoint.config, context_len, longest)
    if config.arch not in FAMILIES:
        raise Unsupported(f"model architecture {config.arch!r}: the decoder runs {', '.join(FAMILIES)}")
    head = head or weights
    kinds = [rotary_kind(config, i) for i in range(config.num_layers)]
    used = sorted(set(kinds))
    tables = tuple(Rotary(config, kind) for kind in used)
    packed_head = head.pack((checkpoint.tensor("embed" if config.is_head_tied else "head"),))  # first: packing it takes twice its bytes
    embed = head.lookup(packed_head) if config.is_head_tied else None
    layers = tuple(load_layer(checkpoint, weights, i, dtype) for i in range(config.num_layers))
    matrices = [linear for layer in layers for linear in linears(layer)]
    weights.complete([*matrices, packed_head] if head is weights else matrices)
    if head is not weights:
        head.complete([packed_head])
    body_of = BodyOf(weights, config, dtype)
    bodies = tuple(map(body_of, layers))
    give_back()
    rope = "" if config.rope_factors == checkpoint.config.rope_factors else "/long"
    return Decoder(
        config=config,
        model_id=f"{checkpoint.model_id}/{weights.name}/{head.name}/{str(dtype).removeprefix('torch.')}{rope}",
        dtype=dtype,
        embed=embed or open_embedding(checkpoint.tensor("embed"), dtype),
        layers=layers,
        bodies=bodies,
        norm=load_vector(checkpoint, "norm"),
        head=packed_head,
        tables=tables,
        table_of=tuple(used.index(kind) for kind in kinds),
        body_of=body_of,
    )


def with_context(config: ModelConfig, context_len: int | None, longest: int | None = None) -> ModelConfig:
    """`config` for contexts of at most context_len tokens: beyond the usual length with the long rotary factors, where there are any."""
    if context_len is None:
        return config
    longest = longest or config.long_context_len or config.context_len
    if not 0 < context_len <= longest:
        raise BadField(f"context_len is {context_len}; the model's own allows 1 to {longest}")
    factors = config.long_rope_factors if context_len > config.context_len else config.rope_factors
    return replace(config, context_len=context_len, rope_factors=factors)


def load_layer(checkpoint: Checkpoint, weights: WeightFormat, index: int, dtype: torch.dtype) -> LayerWeights:
    config, prefix = checkpoint.config, f"layers.{index}."
    give_back()

    def pack(*names: str) -> Linear:
        return weights.pack(tuple(checkpoint.tensor(prefix + name) for name in names))

    def norm(name: str, is_there: bool) -> Tensor | None:
        return load_vector(checkpoint, prefix + name) if is_there else None

    bias = None
    if config.is_qkv_biased:
        bias = torch.cat([load_vector(checkpoint, f"{prefix}{name}.bias") for name in "qkv"]).to(dtype)
    is_sparse, has_qk_norm = config.is_sparse(index), config.qk_norm != "none"
    return LayerWeights(
        attn_norm=norm("attn_norm", config.has_pre_norms),
        qkv=pack("q", "k", "v"),
        qkv_bias=bias,
        o=pack("o"),
        ffn_norm=norm("ffn_norm", config.has_pre_norms),
        gate_up=None if is_sparse else pack("gate", "up"),
        down=None if is_sparse else pack("down"),
        q_norm=norm("q_norm", has_qk_norm),
        k_norm=norm("k_norm", has_qk_norm),
        attn_post_norm=norm("attn_post_norm", config.has_post_norms),
        ffn_post_norm=norm("ffn_post_norm", config.has_post_norms),
        experts=load_experts(checkpoint, pack, prefix) if is_sparse else None,
    )


def load_experts(checkpoint: Checkpoint, pack: Callable[..., Linear], prefix: str) -> ExpertWeights:
    def ffn(name: str) -> FeedForward:
        return FeedForward(pack(f"{name}.gate", f"{name}.up"), pack(f"{name}.down"))

    config = checkpoint.config
    router, has_shared = checkpoint.tensor(f"{prefix}router").dense(), config.shared_expert_dim > 0
    if has_shared:
        router = torch.cat([router, load_vector(checkpoint, f"{prefix}shared.router")[None]])
    return ExpertWeights(router, tuple(ffn(f"experts.{e}") for e in range(config.num_experts)), ffn("shared") if has_shared else None)


def load_vector(checkpoint: Checkpoint, name: str) -> Tensor:
    return checkpoint.tensor(name).dense().reshape(-1)
