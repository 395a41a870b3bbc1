"""The compiled layer: what PyTorch makes of the same matrices, each row for itself."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from native.stored_tensors import in_float32
from ponder.accelerate.weights.dense import Bf16
from ponder.core.formats import BODY_SETTINGS, ExpertWeights, LayerWeights, ModelConfig
from ponder.models.decoder import PlainBody
from ponder.models.rotary import rotary_rows
from ponder.native.build import library
from ponder.native.layer import HONOURED, NativeBody, fuse, prompt_product
from ponder.native.matrix import NativeLinear, pack_linear

pytestmark = pytest.mark.skipif(library() is None, reason="no compiled kernels here")

CONFIG = ModelConfig(
    arch="llama", num_layers=1, dim=96, num_heads=6, num_kv_heads=2, head_dim=32, ffn_dim=160, vocab_size=64, context_len=256, norm_eps=1e-3,
    rope_theta=100.0,
)  # fmt: skip
CONFIGS = {
    "llama": CONFIG,
    "bias": replace(CONFIG, is_qkv_biased=True),
    "head norm": replace(CONFIG, qk_norm="head"),
    "row norm": replace(CONFIG, qk_norm="row"),
    "post norms": replace(CONFIG, has_post_norms=True, activation="gelu", query_scale=0.7),
    "post norms only": replace(CONFIG, has_post_norms=True, has_pre_norms=False),
    "odd widths": replace(CONFIG, dim=100, head_dim=40, ffn_dim=150, num_heads=3, num_kv_heads=1, rotary_dim=20),
    "wide": replace(CONFIG, dim=320, ffn_dim=480),
}
COUNTS = (1, 2, 7, 8, 9, 17, 64, 128, 129, 140)


def layer_of(config: ModelConfig, seed: int = 0) -> LayerWeights:
    """Random weights; q, k, v and gate, up of different bits. Matrices give float32, so that PyTorch's body is exact around them."""
    rng = torch.Generator().manual_seed(seed)

    def matrix(columns: int, *parts: tuple[int, int]):
        tensors = tuple(in_float32(torch.randn(rows, columns, generator=rng) / columns**0.5) for rows, _ in parts)
        return pack_linear(tensors, tuple(bits for _, bits in parts), torch.float32)

    def norm(width: int, is_there: bool = True) -> Tensor | None:
        return 1 + torch.randn(width, generator=rng) / 4 if is_there else None

    heads, kv, dim = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim, config.dim
    widths = {"head": (config.head_dim, config.head_dim), "row": (heads, kv), "none": (0, 0)}[config.qk_norm]
    return LayerWeights(
        attn_norm=norm(dim, config.has_pre_norms),
        qkv=matrix(dim, (heads, 4), (kv, 5), (kv, 8)),
        qkv_bias=torch.randn(heads + 2 * kv, generator=rng) if config.is_qkv_biased else None,
        o=matrix(heads, (dim, 8)),
        ffn_norm=norm(dim, config.has_pre_norms),
        gate_up=matrix(dim, (config.ffn_dim, 4), (config.ffn_dim, 8)),
        down=matrix(config.ffn_dim, (dim, 5)),
        q_norm=norm(widths[0], widths[0] > 0),
        k_norm=norm(widths[1], widths[1] > 0),
        attn_post_norm=norm(dim, config.has_post_norms),
        ffn_post_norm=norm(dim, config.has_post_norms),
    )


def native(config: ModelConfig, kind: str = "layer") -> NativeBody:
    body = fuse(layer_of(config), config)
    assert body is not None
    return body if kind == "layer" else body.of_prompts


KINDS = ["layer"]
if (lib := library()) is not None and lib.prompt_is_supported():
    KINDS.append("prompt")
ROUNDED = {"layer": 1e-3, "prompt": 6e-3}  # sums in float32; inputs and weights in bfloat16


def arguments(config: ModelConfig, num: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x_TD, cos, sin, out_TX."""
    rng = torch.Generator().manual_seed(2)
    x_TD = torch.randn(140, config.dim, generator=rng) * torch.logspace(-1, 1, 140)[:, None]
    out_TX = torch.randn(140, config.num_heads * config.head_dim, generator=rng).bfloat16()
    cos, sin = rotary_rows(config, "global", 0, config.context_len)
    positions = torch.randperm(config.context_len, generator=rng)[:140]
    return x_TD[:num], cos[positions][:num], sin[positions][:num], out_TX[:num]


def difference(found: Tensor, wanted: Tensor) -> float:
    """Root mean square over rows' entries, relative to the row; the median row, because a value near the middle of a step may fall otherwise."""
    found, wanted = found.double().flatten(1), wanted.double().flatten(1)
    return ((found - wanted).norm(dim=1) / wanted.norm(dim=1)).median().item()


def apart(body: NativeBody, plain: PlainBody, config: ModelConfig, num: int) -> dict[str, float]:
    x_TD, cos, sin, out_TX = arguments(config, num)
    found, wanted = body.before(x_TD, cos, sin), plain.before(x_TD, cos, sin)
    after = difference(body.after(x_TD.clone(), out_TX) - x_TD, plain.after(x_TD.clone(), out_TX.float()) - x_TD)
    return {"after": after, **{name: difference(a, b) for name, a, b in zip("qkv", found, wanted)}}


def is_equal(differences: dict[str, float], kind: str = "layer") -> bool:
    """Within the rounding of q, k, v to bfloat16, and of what `after` multiplies."""
    return differences["after"] < ROUNDED[kind] and max(differences[name] for name in "qkv") < ROUNDED[kind] + 1.5e-3


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Two threads that wait for each other take milliseconds a call where other programs run: only some calls have them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class Whole:
    """A Linear of the weights as they are, for activations that are not quantised."""

    weight: Tensor
    nbytes: int = 0

    def apply(self, x: Tensor) -> Tensor:
        return x @ self.weight.T


def widened(layer: LayerWeights) -> LayerWeights:
    """The layer with the weights that its codes stand for."""
    found = {name: getattr(layer, name) for name in ("qkv", "o", "gate_up", "down")}
    return replace(layer, **{name: Whole(linear.apply(torch.eye(linear.num_columns)).T) for name, linear in found.items()})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CONFIGS)
def test_equals_pytorch_around_the_same_matrices(name: str, kind: str):
    config = CONFIGS[name]
    layer = layer_of(config) if kind == "layer" else widened(layer_of(config))
    plain, body = PlainBody(layer, config, torch.float32), native(config, kind)
    for num in (1, 9, 140):
        assert is_equal(apart(body, plain, config, num), kind), (num, apart(body, plain, config, num))


@pytest.mark.parametrize("name", ["llama", "odd widths"])
def test_many_inputs_are_summed_in_parts(name: str):
    """More inputs than the prompt's kernel holds at a time, and a last part of another length."""
    config = replace(CONFIGS[name], ffn_dim=1190)
    for kind in KINDS[1:]:
        found = apart(native(config, kind), PlainBody(widened(layer_of(config)), config, torch.float32), config, 40)
        assert is_equal(found, kind), found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("part", "other"),
    [
        ("after", replace(CONFIG, activation="gelu")),
        ("q", replace(CONFIG, query_scale=1.01)),
        ("k", replace(CONFIG, rope_theta=90.0)),
        ("v", replace(CONFIG, norm_eps=0.1)),
        ("after", replace(CONFIG, norm_eps=0.1)),
    ],
)
def test_the_comparison_has_teeth(part: str, other: ModelConfig, kind: str):
    """A body of a slightly different model is not equal, by the very bounds by which the right one is."""
    layer = layer_of(CONFIG) if kind == "layer" else widened(layer_of(CONFIG))
    body, plain = native(other, kind), PlainBody(layer, CONFIG, torch.float32)
    assert is_equal(apart(native(CONFIG, kind), plain, CONFIG, 9), kind)
    if other.rope_theta != CONFIG.rope_theta:  # the table is an argument: give each its own
        x_TD, cos, sin, _ = arguments(CONFIG, 9)
        found, wanted = body.before(x_TD, *arguments(other, 9)[1:3])[1], plain.before(x_TD, cos, sin)[1]
        seen = dict.fromkeys(("after", *"qkv"), 0.0) | {"k": difference(found, wanted)}
    else:
        seen = dict.fromkeys(("after", *"qkv"), 0.0) | {part: apart(body, plain, CONFIG, 9)[part]}
    assert not is_equal(seen, kind), seen


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("name", CONFIGS)
def test_rows_do_not_depend_on_each_other(name: str, num_threads: int, kind: str):
    config = CONFIGS[name]
    body = native(config, kind)
    x_TD, cos, sin, out_TX = arguments(config, 140)
    alone = [[y.clone() for y in body.before(x_TD[i : i + 1], cos[i : i + 1], sin[i : i + 1])] for i in range(140)]
    heads = [torch.cat(rows) for rows in zip(*alone, strict=True)]
    after = torch.cat([body.after(x_TD[i : i + 1].clone(), out_TX[i : i + 1]) for i in range(140)])
    torch.set_num_threads(num_threads)
    for num in COUNTS:
        assert all(torch.equal(a, b[:num]) for a, b in zip(body.before(x_TD[:num], cos[:num], sin[:num]), heads, strict=True)), num
        assert torch.equal(body.after(x_TD[-num:].clone(), out_TX[-num:]), after[-num:]), num


@pytest.mark.parametrize("kind", KINDS)
def test_results_do_not_depend_on_threads(kind: str):
    body, found = native(CONFIGS["post norms"], kind), []
    x_TD, cos, sin, out_TX = arguments(CONFIGS["post norms"], 140)
    for num in (1, 2, 3):
        torch.set_num_threads(num)
        found.append([*body.before(x_TD, cos, sin), body.after(x_TD.clone(), out_TX)])
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


def test_before_leaves_the_stream_as_it_is():
    x_TD, cos, sin, _ = arguments(CONFIG, 5)
    kept = x_TD.clone()
    native(CONFIG).before(x_TD, cos, sin)
    assert torch.equal(x_TD, kept)


def test_threads_of_python_do_not_share_what_they_get():
    arguments_of = {seed: (arguments(CONFIG, 5)[0] * seed, *arguments(CONFIG, 5)[1:3]) for seed in (1, 2)}
    body = native(CONFIG)
    wanted = {seed: [y.clone() for y in body.before(*args)] for seed, args in arguments_of.items()}
    is_done = threading.Barrier(2, timeout=60)

    def run(seed: int) -> bool:
        found = body.before(*arguments_of[seed])
        is_done.wait()
        return all(torch.equal(a, b) for a, b in zip(found, wanted[seed], strict=True))

    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(run, arguments_of))


@pytest.mark.parametrize("kind", KINDS)
def test_no_tokens_are_no_tokens(kind: str):
    x_TD, cos, sin, out_TX = arguments(CONFIG, 0)
    body = native(CONFIG, kind)
    assert [len(y) for y in (*body.before(x_TD, cos, sin), body.after(x_TD, out_TX))] == [0] * 4


def test_layers_it_does_not_know_are_declined():
    layer = layer_of(CONFIG)
    dense = Bf16().pack((in_float32(torch.randn(96, 192)),))
    assert fuse(replace(layer, o=dense), CONFIG) is None
    assert fuse(replace(layer, experts=ExpertWeights(torch.zeros(2, 96), (), None), gate_up=None, down=None), CONFIG) is None
    assert set(BODY_SETTINGS) <= HONOURED, "a new setting: honour it, or decline it"


@pytest.mark.skipif(len(KINDS) == 1, reason="no matrix registers here")
def test_the_product_of_prompts_is_that_of_the_weights():
    """Its time stands for that of a prompt's body, so it must be the same work."""
    linear = layer_of(CONFIG).gate_up
    assert isinstance(linear, NativeLinear)
    product = prompt_product(linear)
    assert product is not None
    x = torch.randn(70, CONFIG.dim, generator=torch.Generator().manual_seed(4))
    assert difference(product(x), x @ linear.apply(torch.eye(CONFIG.dim))) < ROUNDED["prompt"]
    assert torch.equal(product(x)[5:40], product(x[5:40]))


def test_matrices_of_others_have_no_product_of_prompts():
    assert prompt_product(Bf16().pack((in_float32(torch.randn(96, 192)),))) is None
