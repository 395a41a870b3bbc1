"""Which tokens of a prompt are read, how far, and how tails and key predictors begin that are trained to need less of it, by name."""

from ponder.accelerate.layers.kv_prediction import KVPrediction
from ponder.accelerate.layers.swiftkv import SwiftKV
from ponder.accelerate.prompt.gemfilter import GemFilter
from ponder.accelerate.prompt.lazyllm import LazyLLM
from ponder.accelerate.prompt.specpc import SpecPC
from ponder.core.pruning import LayerPlan, PromptFilter
from ponder.run.spec import Specs

LAYER_PLANS: dict[str, LayerPlan] = {"lazyllm": LazyLLM()}

PROMPT_FILTERS: dict[str, PromptFilter] = {"gemfilter": GemFilter(), "specpc": SpecPC()}

TAILS: dict[str, SwiftKV] = {"swiftkv": SwiftKV()}

PREDICTORS: dict[str, KVPrediction] = {"kv_prediction": KVPrediction()}


def prompt_filter(spec: str) -> PromptFilter:
    """The prompt filter that NAME, NAME:SHARE or NAME:keep=SHARE,field=value,... means. Raises UnknownName or BadField."""
    return Specs("prompt filter", PROMPT_FILTERS, {}).read(with_keep(spec))  # type: ignore[return-value]


def layer_plan(spec: str) -> LayerPlan:
    """The layer plan that NAME, NAME:SHARE or NAME:keep=SHARE,field=value,... means. Raises UnknownName or BadField."""
    return Specs("layer plan", LAYER_PLANS, {}).read(with_keep(spec))  # type: ignore[return-value]


def with_keep(spec: str) -> str:
    """A spec whose first setting may be a bare share."""
    name, colon, rest = spec.partition(":")
    return f"{name}{colon}keep={rest}" if rest and "=" not in rest.partition(",")[0] else spec


def tail_kind(spec: str) -> SwiftKV:
    """How the tail begins that NAME or NAME:field=value,... means. Raises UnknownName or BadField."""
    return Specs("tail", TAILS, {}).read(spec)  # type: ignore[return-value]


def predictor_kind(spec: str) -> KVPrediction:
    """How the key predictor begins that NAME or NAME:field=value,... means. Raises UnknownName or BadField."""
    return Specs("key predictor", PREDICTORS, {}).read(spec)  # type: ignore[return-value]
