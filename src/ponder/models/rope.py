"""Rotary settings of a model file: theta, and how its frequencies are stretched for contexts longer than it was trained on.

Every scaling becomes divisors of the frequencies theta^(-2i/R), and a factor of cos and sin:

    linear    (Chen et al. 2023)                   one divisor for all
    llama3    (Llama 3.1, rope_type "llama3")      1 for short waves, `factor` for long ones, smooth between
    yarn      (Peng et al. 2023, eqs. 15, 17, 22)  the same with a ramp over i; cos and sin times 0.1 ln(factor) + 1
    longrope  (Ding et al. 2024)                   listed, one list for the old context and one beyond; sqrt(1 + ln(factor) / ln(old))

Shapes     R: width of the part of a head that rotates; R/2 divisors.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ponder.core.errors import BadModelFile, Unsupported
from ponder.models.families import Family
from ponder.models.fields import Fields, short

SCALINGS = ("default", "linear", "llama3", "yarn", "longrope")


@dataclass(frozen=True, kw_only=True)
class Rope:
    """What ModelConfig needs to know; see its fields of the same names. context_len: up to where `factors` hold."""

    theta: float
    context_len: int
    factors: tuple[float, ...] | None = None
    scale: float = 1.0
    rotary_dim: int
    local_theta: float | None = None
    long_factors: tuple[float, ...] | None = None
    long_context_len: int | None = None


def llama3_factors(rotary_dim: int, theta: float, scaling: Fields) -> tuple[float, ...]:
    """rotary_dim/2 divisors; a wave is long when fewer than low_freq_factor of it fit the old context."""
    factor, old = scaling.positive("factor"), scaling.positive("original_max_position_embeddings")
    low, high = scaling.positive("low_freq_factor"), scaling.positive("high_freq_factor")
    if not low < high:
        raise BadModelFile(f"{scaling.source}: low_freq_factor {low} must be below high_freq_factor {high}")
    waves = [old * theta ** (-2 * i / rotary_dim) / (2 * math.pi) for i in range(rotary_dim // 2)]  # that fit the old context
    return tuple(_stretched(factor, (w - low) / (high - low)) for w in waves)


def yarn_factors(rotary_dim: int, theta: float, *, factor: float, old: float, fast: float, slow: float, is_whole: bool = True) -> tuple[float, ...]:
    """rotary_dim/2 divisors: 1 where more than `fast` waves fit the old context, `factor` below `slow`, a ramp over i between.

    is_whole: the ends of the ramp are whole numbers.
    """

    def place(num_waves: float) -> float:
        return rotary_dim * math.log(old / (num_waves * 2 * math.pi)) / (2 * math.log(theta))

    low, high = place(fast), place(slow)
    if is_whole:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotary_dim - 1)
    width = high - low or 0.001
    return tuple(_stretched(factor, 1 - (i - low) / width) for i in range(rotary_dim // 2))


def yarn_scale(factor: float) -> float:
    """Of cos and sin."""
    return 0.1 * math.log(factor) + 1 if factor > 1 else 1.0


def longrope_scale(factor: float, old: float) -> float:
    """Of cos and sin."""
    return math.sqrt(1 + math.log(factor) / math.log(old)) if factor > 1 else 1.0


def _stretched(factor: float, kept: float) -> float:
    """Divisor of a frequency of which the share `kept`, cut to [0, 1], stays as it was."""
    kept = min(1.0, max(0.0, kept))
    return 1 / ((1 - kept) / factor + kept)


def hf_rope(fields: Fields, family: Family, head_dim: int, context_len: int) -> Rope:
    """From the older rope_theta, rope_scaling, rope_local_base_freq or the newer rope_parameters. Raises BadModelFile, Unsupported."""
    scaling = fields.values.get("rope_parameters") or fields.values.get("rope_scaling") or {}
    local_theta = fields.positive("rope_local_base_freq", family.rope_local_theta) if family.rope_local_theta else None
    if not isinstance(scaling, dict):
        raise BadModelFile(f"{fields.source}: rope scaling is {short(scaling)}; must be an object")
    if "full_attention" in scaling or "sliding_attention" in scaling:
        scaling, local_theta = _per_kind(fields, scaling, family)
    inner = Fields(fields.source, scaling)
    theta = inner.positive("rope_theta") if "rope_theta" in scaling else fields.positive("rope_theta", family.rope_theta)
    share = (inner if "partial_rotary_factor" in scaling else fields).positive("partial_rotary_factor", 1.0)
    if share > 1 or (share != 1 and not family.can_rotate_partly):
        raise Unsupported(f"{fields.source}: partial_rotary_factor = {share} is not supported for this family")
    rotary_dim = int(head_dim * share)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    kind = "longrope" if kind == "su" else kind
    if kind == "longrope":
        old = inner.size("original_max_position_embeddings", fields.optional_size("original_max_position_embeddings"))
        return _longrope(inner, theta, rotary_dim, old=old, context_len=context_len)
    factors, scale = _hf_factors(inner, str(kind), theta, rotary_dim)
    if kind == "yarn":
        context_len = max(context_len, int(inner.positive("factor") * inner.positive("original_max_position_embeddings")))
    return Rope(theta=theta, context_len=context_len, factors=factors, scale=scale, rotary_dim=rotary_dim, local_theta=local_theta)


def _per_kind(fields: Fields, scaling: Mapping[str, object], family: Family) -> tuple[dict[str, object], float | None]:
    """(scaling of layers that see everything, theta of layers with a window)."""
    full, local = scaling.get("full_attention") or {}, scaling.get("sliding_attention") or {}
    if not isinstance(full, dict) or not isinstance(local, dict) or family.rope_local_theta is None:
        raise Unsupported(f"{fields.source}: rope_parameters = {short(scaling)} is not supported for this family")
    if local.get("rope_type", "default") != "default":
        raise Unsupported(f"{fields.source}: rope scaling {short(local['rope_type'])} of layers with a window is not supported")
    return full, Fields(fields.source, local).positive("rope_theta", family.rope_local_theta)


def _hf_factors(inner: Fields, kind: str, theta: float, rotary_dim: int) -> tuple[tuple[float, ...] | None, float]:
    if kind == "default":
        return None, 1.0
    if kind == "linear":
        return (inner.positive("factor"),) * (rotary_dim // 2), 1.0
    if kind == "llama3":
        return llama3_factors(rotary_dim, theta, inner), 1.0
    if kind != "yarn":
        raise Unsupported(f"{inner.source}: rope scaling {short(kind)} is not supported; supported are {', '.join(SCALINGS)}")
    inner.refuse({"mscale": 0, "mscale_all_dim": 0})
    factor, old = inner.positive("factor"), inner.positive("original_max_position_embeddings")
    fast, slow = inner.positive("beta_fast", 32.0), inner.positive("beta_slow", 1.0)
    factors = yarn_factors(rotary_dim, theta, factor=factor, old=old, fast=fast, slow=slow, is_whole=inner.values.get("truncate", True) is True)
    return factors, inner.positive("attention_factor", yarn_scale(factor))


def _longrope(inner: Fields, theta: float, rotary_dim: int, *, old: int, context_len: int) -> Rope:
    lists = [inner.values.get(key) for key in ("short_factor", "long_factor")]
    near, far = (checked_factors(inner.source, key, x, rotary_dim) for key, x in zip(("short_factor", "long_factor"), lists, strict=True))
    factor = inner.positive("factor", context_len / old)
    scale = inner.positive("attention_factor", longrope_scale(factor, old))
    return Rope(
        theta=theta,
        context_len=min(old, context_len),
        factors=near,
        scale=scale,
        rotary_dim=rotary_dim,
        long_factors=far,
        long_context_len=context_len,
    )


def checked_factors(source: str, name: str, values: object, rotary_dim: int) -> tuple[float, ...]:
    """`values` as rotary_dim/2 positive finite numbers. Raises BadModelFile."""
    numbers = values if isinstance(values, list | tuple) else ()
    if len(numbers) != rotary_dim // 2 or not all(isinstance(x, int | float) and 0 < x < math.inf for x in numbers):
        raise BadModelFile(f"{source}: {name} must hold {rotary_dim // 2} positive numbers, it holds {len(numbers)}")
    return tuple(float(x) for x in numbers)


def gguf_rope(fields: Fields, family: Family, head_dim: int, *, context_len: int, tables: Mapping[str, tuple[float, ...]]) -> Rope:
    """From metadata and the tensors rope_freqs, rope_factors_short and rope_factors_long (`tables`). Raises BadModelFile, Unsupported."""
    rotary_dim = fields.size("rope.dimension_count", head_dim)
    if rotary_dim > head_dim or (rotary_dim != head_dim and not family.can_rotate_partly):
        raise Unsupported(f"{fields.source}: {fields.prefix}rope.dimension_count = {rotary_dim} differs from the head size {head_dim}")
    theta = fields.positive("rope.freq_base", family.rope_theta)
    local_theta = fields.positive("rope.freq_base_swa", family.rope_local_theta) if family.rope_local_theta else None
    found = {name: checked_factors(fields.source, f"{name}.weight", values, rotary_dim) for name, values in tables.items()}
    kind = fields.values.get(f"{fields.prefix}rope.scaling.type", "none")
    if kind not in ("none", "linear", "yarn", "longrope"):
        raise Unsupported(f"{fields.source}: rope scaling {short(kind)} is not supported; none, linear, yarn and longrope are")
    old = fields.optional_size("rope.scaling.original_context_length") or context_len
    long, factors, scale = found.get("rope_factors_long"), found.get("rope_freqs", found.get("rope_factors_short")), 1.0
    if kind in ("linear", "yarn") and long is not None:
        raise Unsupported(f"{fields.source}: rope scaling {short(kind)} together with rope_factors_long.weight is not supported")
    if kind == "linear":
        factors = _times(fields.positive("rope.scaling.factor", 1.0), factors, rotary_dim)
    elif kind == "yarn":
        fields.refuse({"rope.scaling.attn_factor": 1.0, "rope.scaling.yarn_log_multiplier": 0.0, "rope.scaling.yarn_ext_factor": 1.0})
        fields.refuse({"rope.scaling.yarn_attn_factor": 1.0})
        factor = fields.positive("rope.scaling.factor")
        fast, slow = fields.positive("rope.scaling.yarn_beta_fast", 32.0), fields.positive("rope.scaling.yarn_beta_slow", 1.0)
        factors, scale = yarn_factors(rotary_dim, theta, factor=factor, old=old, fast=fast, slow=slow), yarn_scale(factor)
    elif long is not None:
        scale = fields.positive("rope.scaling.attn_factor", longrope_scale(context_len / old, old))
    return Rope(
        theta=theta,
        context_len=context_len if long is None else min(old, context_len),
        factors=factors,
        scale=scale,
        rotary_dim=rotary_dim,
        local_theta=local_theta,
        long_factors=long,
        long_context_len=context_len if long else None,
    )


def _times(linear: float, factors: tuple[float, ...] | None, rotary_dim: int) -> tuple[float, ...] | None:
    if factors is None and linear == 1:
        return None
    return tuple(linear * f for f in factors or (1.0,) * (rotary_dim // 2))
