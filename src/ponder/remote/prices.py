"""What a model's tokens cost in $, read from a price file: TOML or JSON, a table per model.

["some-model"]
prompt = 0.15       # $ per million prompt tokens
cached = 0.075      # those that the server had cached; default: as prompt
completion = 0.60   # tokens of the answer
"""

import json
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path

from ponder.core.budget import Cost
from ponder.core.errors import BadField

MILLION = 1e6


@dataclass(frozen=True, kw_only=True)
class Price:
    """$ per million tokens. Raises BadField for a negative number."""

    prompt: float
    completion: float
    cached: float | None = None  # None: as prompt

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if value is not None and not 0 <= value < float("inf"):
                raise BadField(f"price {f.name}={value}: must be a number of $ per million tokens, at least 0")

    def usd(self, cost: Cost) -> float:
        """What the server bills for those counts."""
        cached = self.prompt if self.cached is None else self.cached
        return (cost.prompt_tokens * self.prompt + cost.reused_tokens * cached + cost.generated_tokens * self.completion) / MILLION


def read_prices(path: Path) -> dict[str, Price]:
    """Model -> price. Raises BadField naming the file and what is wrong in it."""
    try:
        text = path.read_text(encoding="utf-8")
        table = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
        return {model: Price(**row) for model, row in table.items()}
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadField(f"price file {path}: {error}") from error
    except (AttributeError, TypeError) as error:
        raise BadField(f"price file {path}: {error}; a model's table has prompt, completion and perhaps cached, in $ per million tokens") from error
