"""Which keys an answer goes on with, and which of them each query meets, by name."""

from pathlib import Path

from ponder.accelerate.attend.dual_chunk import DualChunk
from ponder.accelerate.attend.dual_chunk_sparse import DualChunkSparse
from ponder.accelerate.attend.hyper import Hyper
from ponder.accelerate.attend.longgen import LongGen
from ponder.accelerate.attend.quest import Quest
from ponder.accelerate.attend.recycled import Recycled
from ponder.accelerate.attend.s2 import S2
from ponder.accelerate.attend.squeezed import Squeezed
from ponder.accelerate.attend.vertical_slash import VerticalSlash
from ponder.accelerate.cache.adakv import AdaKV
from ponder.accelerate.cache.after_prompt import AfterPrompt
from ponder.accelerate.cache.d2o_layers import D2OLayers
from ponder.accelerate.cache.d2o_merge import D2OMerge
from ponder.accelerate.cache.drop import Drop
from ponder.accelerate.cache.elastic_merge import ElasticMerge
from ponder.accelerate.cache.every import Every
from ponder.accelerate.cache.h2o import H2O
from ponder.accelerate.cache.knorm import Knorm
from ponder.accelerate.cache.locret import Locret
from ponder.accelerate.cache.over_budget import OverBudget
from ponder.accelerate.cache.pyramid import Pyramid
from ponder.accelerate.cache.quantise import Quantise
from ponder.accelerate.cache.retaining_heads import load_retaining_heads
from ponder.accelerate.cache.snapkv import SnapKV
from ponder.accelerate.cache.speckv import SpecKV
from ponder.accelerate.cache.spill import Spill
from ponder.accelerate.cache.streaming_llm import StreamingLLM
from ponder.accelerate.cache.tova import Tova
from ponder.accelerate.cache.uniform import Uniform
from ponder.core.attention_plan import AttentionPlan
from ponder.core.keeping import Policy
from ponder.run.spec import FilesToo, Specs

CACHES: dict[str, Policy] = {
    "snapkv": Policy(name="snapkv", scorer=SnapKV(), allocator=Uniform(), evictor=Drop(), trigger=AfterPrompt()),
    "pyramidkv": Policy(name="pyramidkv", scorer=SnapKV(), allocator=Pyramid(), evictor=Drop(), trigger=AfterPrompt()),
    "adakv": Policy(name="adakv", scorer=SnapKV(), allocator=AdaKV(), evictor=Drop(), trigger=AfterPrompt()),
    "speckv": Policy(name="speckv", scorer=SpecKV(), allocator=Uniform(), evictor=Drop(), trigger=AfterPrompt()),
    "streaming": Policy(name="streaming", scorer=StreamingLLM(), allocator=Uniform(), evictor=Drop(), trigger=OverBudget()),
    "h2o": Policy(name="h2o", scorer=H2O(), allocator=Uniform(), evictor=Drop(), trigger=OverBudget()),
    "tova": Policy(name="tova", scorer=Tova(), allocator=Uniform(), evictor=Drop(), trigger=OverBudget()),
    "d2o": Policy(name="d2o", scorer=H2O(), allocator=D2OLayers(), evictor=D2OMerge(), trigger=OverBudget()),
    "elastic": Policy(name="elastic", scorer=H2O(recent=0.1), allocator=Uniform(), evictor=ElasticMerge(), trigger=OverBudget()),
    "knorm": Policy(name="knorm", scorer=Knorm(), allocator=Uniform(), evictor=Drop(), trigger=AfterPrompt()),
}

TRAINED_CACHES = {"locret": Locret}  # scorers that hold trained heads (`ponder train-cache`)

CACHE_PARTS: dict[str, dict[str, object]] = {  # field of a cache policy -> what it may be set to
    "allocator": {"uniform": Uniform(), "pyramid": Pyramid(), "adakv": AdaKV(), "d2o": D2OLayers()},
    "evictor": {"drop": Drop(), "d2o": D2OMerge(), "elastic": ElasticMerge(), "int8": Quantise(), "int4": Quantise(bits=4), "spill": Spill()},
    "trigger": {"after_prompt": AfterPrompt(), "every": Every(every=16), "over_budget": OverBudget()},
}


def open_cache(path: Path) -> Policy:
    """The cache policy by the trained heads in a file. Raises BadField for a file without heads, StoreError for one that cannot be read."""
    scorer = TRAINED_CACHES["locret"](heads=load_retaining_heads(path))
    return Policy(name="locret", scorer=scorer, allocator=Uniform(), evictor=Drop(), trigger=AfterPrompt())


CACHE_SPECS = Specs("cache policy", FilesToo(CACHES, ".safetensors", open_cache), CACHE_PARTS)


def cache_policy(spec: str) -> Policy:
    """The cache policy that NAME, NAME:SHARE or NAME:keep=SHARE,field=value,... means; NAME may be a file of trained heads.

    Raises UnknownName, BadField or StoreError.
    """
    name, colon, rest = spec.partition(":")
    first, comma, others = rest.partition(",")
    is_bare = bool(rest) and "=" not in first
    return CACHE_SPECS.read(f"{name}{colon}keep={first}{comma}{others}" if is_bare else spec)  # type: ignore[return-value]


ATTENTION_PLANS: dict[str, AttentionPlan] = {
    "vertical_slash": VerticalSlash(), "hyper": Hyper(), "s2": S2(), "longgen": LongGen(), "dual_chunk": DualChunk(),
    "dual_chunk_sparse": DualChunkSparse(),
    "quest": Quest(), "squeezed": Squeezed(), "recycled": Recycled(),
}  # fmt: skip


def attention_plan(spec: str) -> AttentionPlan:
    """The attention plan that NAME or NAME:field=value,... means. Raises UnknownName or BadField."""
    return Specs("attention plan", ATTENTION_PLANS, {}).read(spec)  # type: ignore[return-value]
