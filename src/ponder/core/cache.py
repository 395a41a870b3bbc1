"""Where ponder keeps what it downloaded."""

import os
from pathlib import Path


def cache_dir() -> Path:
    """Folder of everything ponder keeps: $PONDER_CACHE, else $XDG_CACHE_HOME/ponder, else ~/.cache/ponder. May not exist yet."""
    if own := os.environ.get("PONDER_CACHE"):
        return Path(own).expanduser()
    shared = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (shared if shared.is_absolute() else Path.home() / ".cache") / "ponder"
