"""How the same answer is to cost less, and who else writes it, as a caller states it: one value from a command to the engine."""

from dataclasses import dataclass, fields

from ponder.core.errors import BadField


@dataclass(frozen=True)
class Partner:
    """Another model that writes the answer with this one. way: NAME or NAME:field=value,... as the catalogue reads it."""

    model: str
    way: str

    def __str__(self) -> str:
        return f"{self.model} by {self.way}"


def partner_of(model: str | None, way: str | None) -> Partner | None:
    """Nobody where no model is named. Raises BadField for a way without a model, and a model without a way."""
    if (model is None) != (way is None):
        raise BadField(
            f"--with {model}, --way {way}: another model and the way of writing with it go together, as in --with OTHER --way nudging; "
            "name both or none"
        )
    return None if model is None or way is None else Partner(model, way)


@dataclass(frozen=True, kw_only=True)
class Accelerations:
    """Each NAME or NAME:field=value,... as the catalogue reads it, or the object itself; None: not at all."""

    draft: object = None  # what guesses ahead: str or core.draft.Speculation
    cache: object = None  # which keys long prompts go on with: str or core.keeping.Policy
    partner: Partner | None = None  # who else writes the answer, which is then another
    attend: object = None  # which keys each query meets: str or core.attention_plan.AttentionPlan
    layers: object = None  # behind which layers tokens of a prompt leave: str or core.pruning.LayerPlan
    prompt: object = None  # which tokens of a prompt are read: str or core.pruning.PromptFilter
    tail: object = None  # what its last layers were trained to do instead: str (a file) or core.tail.Tail
    predictor: object = None  # what supplies keys of prompts: str (a file) or core.predictor.Predictor

    @property
    def given(self) -> dict[str, object]:
        """Those that are asked for."""
        return {field.name: value for field in fields(self) if (value := getattr(self, field.name)) is not None}


PLAIN = Accelerations()
