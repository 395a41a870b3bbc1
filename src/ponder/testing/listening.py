"""A small model that minds what others write beside it: its next token depends on its own last one and on the last one that it heard."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ponder.core.asks import Prefix
from ponder.core.rng import hash_seed
from ponder.testing.toy import SmallLM, ToyLM


@dataclass(frozen=True)
class ListeningLM(SmallLM):
    """p(x | own last, heard last) = (1 - share) p(x | own last) + share p(x | heard last), or p(x | own last) while nothing was heard."""

    lm: ToyLM
    share: float = 0.5
    heard: int | None = None

    @property
    def alphabet(self) -> Sequence[str]:  # type: ignore[override]
        return self.lm.alphabet

    @property
    def key(self) -> int:
        return hash_seed("listening", self.lm.key, repr(self.share))

    def encode(self, text: str) -> list[int | None]:
        return self.lm.encode(text)

    def beside(self, heard: tuple[int, ...]) -> "ListeningLM":
        return ListeningLM(self.lm, self.share, heard[-1] if heard else None)

    def log_p(self, prefix: Prefix) -> tuple[float, ...]:
        return self._mixed(self.lm.log_p(prefix))

    def row(self, last: int | None) -> tuple[float, ...]:
        return self._mixed(self.lm.row(last))

    def _mixed(self, own: tuple[float, ...]) -> tuple[float, ...]:
        if self.heard is None or self.heard >= self.lm.end:
            return own
        other = self.lm.row(self.heard)
        return tuple(math.log((1 - self.share) * math.exp(x) + self.share * math.exp(y)) for x, y in zip(own, other))
