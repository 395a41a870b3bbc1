"""What a process is told when it is opened."""

from collections.abc import Callable
from dataclasses import dataclass

from ponder.core.attention_plan import AttentionPlan
from ponder.core.blend import Company
from ponder.core.draft import Speculation, Twin
from ponder.core.errors import BadField
from ponder.core.formats import Tokenizer
from ponder.core.keeping import Policy
from ponder.core.predictor import Predictor
from ponder.core.pruning import LayerPlan, PromptFilter
from ponder.core.tail import Tail
from ponder.engine.pages import PLAIN, KVFormat
from ponder.models.decoder import Decoder


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Bounds of a process, and how it keeps and reads keys and values. Raises BadField."""

    max_rows: int = 64  # most sequences computed at once
    chunk: int = 512  # tokens that a step should not exceed, shared out by the scheduler
    kv_bytes: int = 1 << 31  # bound on keys and values, stored and under way
    kv_format: KVFormat = PLAIN
    is_native: bool = True  # False: attention by PyTorch even where the compiled kernel can
    is_shared: bool = True  # False: a shared prefix is read again for each who has it
    attend: AttentionPlan | None = None  # which keys each query meets; None: all before it
    context_len: int | None = None  # most tokens of a sequence; None: as many as the model usually has
    speculation: Speculation | None = None  # how it guesses ahead; None: not at all
    twins: Callable[[Twin], tuple[Decoder, Tokenizer]] | None = None  # opens other models that guess
    company: Company | None = None  # a model that draws every token with this one, opened by `twins`; None: it draws alone
    cache: Policy | None = None  # which keys a sequence goes on with; None: all
    layers: LayerPlan | None = None  # behind which layers tokens of a prompt leave; None: behind none
    prompt: PromptFilter | None = None  # which tokens of a prompt are read; None: all
    tail: Tail | None = None  # what its last layers were trained to do instead; None: they are the model's
    predictor: Predictor | None = None  # what supplies keys of prompts; None: the model computes them

    def __post_init__(self) -> None:
        for name, value in (("max_rows", self.max_rows), ("chunk", self.chunk), ("kv_bytes", self.kv_bytes)):
            if value < 1:
                raise BadField(f"{name}={value}: must be at least 1")
