"""How the same answer is to cost less, as a caller states it: one value that goes from a command to the engine."""

from dataclasses import dataclass, fields


@dataclass(frozen=True, kw_only=True)
class Accelerations:
    """Each NAME or NAME:field=value,... as the catalogue reads it, or the object itself; None: not at all."""

    draft: object = None  # what guesses ahead: str or core.draft.Speculation
    cache: object = None  # which keys long prompts go on with: str or core.keeping.Policy
    attend: object = None  # which keys each query meets: str or core.attention_plan.AttentionPlan
    prompt: object = None  # which tokens of a prompt are read: str or core.pruning.PromptFilter

    @property
    def given(self) -> dict[str, object]:
        """Those that are asked for."""
        return {field.name: value for field in fields(self) if (value := getattr(self, field.name)) is not None}


PLAIN = Accelerations()
