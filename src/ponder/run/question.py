"""A question, and whether texts answer it, kept across runs: running a test suite costs more than drawing a short answer."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from ponder.core.asks import Prompt
from ponder.core.errors import StoreError


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question of a task and how a text that answers it is scored."""

    id: str
    prompt: Prompt
    is_right: Callable[[str], bool]


def text_key(question: str, text: str) -> str:
    """Names a text as an answer to a question."""
    return hashlib.sha256(f"{question}\n{text}".encode(errors="surrogatepass")).hexdigest()[:32]


@dataclass
class Scores:
    """Whether texts were right, one JSON line each, kept across runs."""

    path: Path
    known: dict[str, bool] = field(default_factory=dict)

    def open(self) -> "Scores":
        """Reads what is there; a last line that a kill cut off is dropped, and written again when its text is scored again."""
        try:
            lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True) if self.path.exists() else []
            whole = [line for line in lines if line.endswith("\n")]
            if len(whole) < len(lines):
                self.path.write_text("".join(whole), encoding="utf-8")
            self.known = dict(json.loads(line) for line in whole)
        except (OSError, ValueError) as error:
            raise StoreError(f"{self.path}: {error}; move it away: what it holds is scored again") from error
        return self

    def of(self, question: Question) -> Question:
        """The question, each text of it scored once in all runs."""

        def is_right(text: str) -> bool:
            key = text_key(question.id, text)
            if key not in self.known:
                self.keep(key, question.is_right(text))
            return self.known[key]

        return replace(question, is_right=is_right)

    def keep(self, key: str, right: bool) -> None:
        """Notes what the text of that key is. Raises StoreError when the disk is full."""
        self.known[key] = right
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps([key, right]) + "\n")
        except OSError as error:
            raise StoreError(f"{self.path}: {error}; free disk space, then run again with --resume: samples are kept") from error
