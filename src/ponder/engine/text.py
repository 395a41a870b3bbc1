"""Stop strings and separators, found on bytes, so that a token that holds half a character or three lines is no special case."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Match:
    """Bytes start..end of a completion are one of the strings looked for."""

    start: int
    end: int


def first_match(data: bytes | bytearray, strings: Sequence[bytes], since: int) -> Match | None:
    """The match that begins first among those that end after byte `since`; of equal beginnings the one that ends first."""
    found = None
    for string in strings:
        start = data.find(string, max(0, since - len(string) + 1))
        if start >= 0 and (found is None or (start, start + len(string)) < (found.start, found.end)):
            found = Match(start, start + len(string))
    return found


class CompletionText:
    """The bytes of a completion as it grows, and where it must end or pause."""

    def __init__(self, data: bytes, stop: Sequence[str], until: Sequence[str]) -> None:
        self.data = bytearray(data)
        self.stop = [s.encode() for s in stop]
        self.until = [s.encode() for s in until]
        self.cut: int | None = None  # where the text ends, once a stop string was found
        # a separator that paused the completion once does not pause it again
        self.oldest = len(data) if any(self.data.endswith(s) for s in self.until) else 0
        self._find_stop(0)

    @property
    def text(self) -> str:
        """Up to the stop string; bytes that are no UTF-8 become U+FFFD."""
        return bytes(self.data[: self.cut]).decode(errors="replace")

    def push(self, piece: bytes) -> str | None:
        """Adds a token's bytes. "stop" or "until" when a string was completed, whichever begins first; else None."""
        since = len(self.data)
        self.data += piece
        stop = self._find_stop(since)
        until = self._find_until(since)
        if until is not None and (stop is None or (until.start, until.end) < (stop.start, stop.end)):
            return "until"
        return "stop" if stop is not None else None

    def _find_stop(self, since: int) -> Match | None:
        match = first_match(self.data, self.stop, since) if self.stop else None
        if match is not None:
            self.cut = match.start
        return match

    def _find_until(self, since: int) -> Match | None:
        if not self.until:
            return None
        match = first_match(self.data, self.until, since)
        if match is not None and match.start < self.oldest:
            match = first_match(self.data[self.oldest :], self.until, 0)
            return match and Match(match.start + self.oldest, match.end + self.oldest)
        return match
