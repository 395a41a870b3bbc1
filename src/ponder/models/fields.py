"""Typed reads of settings that came from a file; every complaint names the file and the key."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ponder.core.errors import BadModelFile, Unsupported

MAX_SIZE = 1 << 31


@dataclass(frozen=True)
class Fields:
    """A mapping from a file. null counts as missing."""

    source: str
    values: Mapping[str, object]
    prefix: str = ""

    def get(self, key: str) -> object:
        return self.values.get(self.prefix + key)

    def size(self, key: str, default: int | None = None) -> int:
        """A positive int below 2^31. Raises BadModelFile for anything else, or when it is missing without a default."""
        value = self.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < MAX_SIZE:
            raise BadModelFile(f"{self.source}: {self.prefix}{key} is {short(value)}; must be a positive integer")
        return value

    def optional_size(self, key: str) -> int | None:
        """The same; None where it is missing or 0."""
        return self.size(key) if self.get(key) not in (None, 0) else None

    def positive(self, key: str, default: float | None = None) -> float:
        """A positive finite number."""
        value = self.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise BadModelFile(f"{self.source}: {self.prefix}{key} is {short(value)}; must be a positive number")
        return float(value)

    def optional_positive(self, key: str, default: float | None = None) -> float | None:
        """The same; the default where it is missing, None where it is 0 (or null, where the file says so)."""
        value = self.values.get(self.prefix + key, default)
        return None if value is None or value == 0 else self.positive(key, default)

    def flag(self, key: str, default: bool) -> bool:
        """True or False."""
        value = self.get(key)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise BadModelFile(f"{self.source}: {self.prefix}{key} is {short(value)}; must be true or false")
        return value

    def flags(self, key: str, num: int) -> tuple[bool, ...] | None:
        """`num` booleans or 0s and 1s (more are cut off); None where the key is missing."""
        value = self.get(key)
        if value is None:
            return None
        numbers = list(value) if hasattr(value, "__len__") and not isinstance(value, str) else []
        if len(numbers) < num or not all(x in (0, 1) for x in numbers):
            raise BadModelFile(f"{self.source}: {self.prefix}{key} is {short(value)}; must hold true or false for each of {num} layers")
        return tuple(bool(x) for x in numbers[:num])

    def refuse(self, neutral: Mapping[str, object]) -> None:
        """Raises Unsupported for a key of `neutral` with a value other than its neutral one (or null)."""
        for key, harmless in neutral.items():
            value = self.get(key)
            if value is not None and not _is_equal(value, harmless):
                raise Unsupported(f"{self.source}: {self.prefix}{key} = {short(value)} is not supported")


def short(value: object) -> str:
    """repr of at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _is_equal(value: object, harmless: object) -> bool:
    return isinstance(value, int | float | str) and value == harmless
