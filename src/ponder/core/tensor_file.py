"""Files of named tensors with facts about them: what heads of every kind are kept in (safetensors)."""

from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

from ponder.core.errors import BadField, StoreError


def save_tensors(tensors: Mapping[str, Tensor], facts: dict[str, str], path: Path) -> None:
    """Raises StoreError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata=facts)
    except OSError as error:
        raise StoreError(f"{path}: {error}; free disk space or name another file") from error


def kind_of(path: Path, mend: str) -> str | None:
    """What the facts call the file's kind. Raises as `load_tensors` does."""
    return load_tensors(path, mend)[1].get("kind")


def load_tensors(path: Path, mend: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, facts). Raises BadField for a file of another kind, StoreError for one that cannot be read; `mend` says what to do then."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118  # not a dict
    except OSError as error:
        raise StoreError(f"{path}: {error}; {mend}") from error
    except safetensors.SafetensorError as error:
        raise BadField(f"{path} is no safetensors file ({error}); {mend}") from error
