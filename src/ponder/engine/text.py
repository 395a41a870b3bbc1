"""Stop strings and separators, found in a completion's text as it grows, and how much of that text is safe to show.

Tokens are bytes: they may hold half a character, or no UTF-8 at all. A half character waits until it is whole; bytes that
can become none are U+FFFD, one for each longest beginning of a character (Unicode 16, section 3.9, as Python decodes).
"""

import codecs
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Match:
    """Characters start..end of a completion are one of the strings looked for."""

    start: int
    end: int


def first_match(data: str, strings: Sequence[str], since: int) -> Match | None:
    """The match that begins first among those that end after `since`; of equal beginnings the one that ends first."""
    found = None
    for string in strings:
        start = data.find(string, max(0, since - len(string) + 1))
        if start >= 0 and (found is None or (start, start + len(string)) < (found.start, found.end)):
            found = Match(start, start + len(string))
    return found


def open_end(data: str, strings: Sequence[str]) -> int:
    """Where the longest end of `data` begins that may become one of the strings; len(data) when none may."""
    starts = (
        len(data) - size for string in strings for size in range(min(len(data), len(string) - 1), 0, -1) if data.endswith(string[:size])
    )  # fmt: skip
    return min(starts, default=len(data))


class CompletionText:
    """The text of a completion as it grows, and where it must end or pause."""

    def __init__(self, data: bytes, stop: Sequence[str], until: Sequence[str]) -> None:
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.whole = self.decoder.decode(data)  # without a half character at its end
        self.stop, self.until = tuple(stop), tuple(until)
        self.cut: int | None = None  # where the text ends, once a stop string was found
        # a separator that paused the completion once does not pause it again
        self.oldest = len(self.whole) if self.whole.endswith(self.until) else 0
        self._find_stop(0)

    @property
    def text(self) -> str:
        """Up to the stop string; a half character at the end is U+FFFD."""
        if self.cut is not None:
            return self.whole[: self.cut]
        text = self.whole + self.decoder.getstate()[0].decode(errors="replace")
        match = first_match(text, self.stop, len(self.whole))  # a stop string may hold U+FFFD
        return text if match is None else text[: match.start]

    @property
    def safe(self) -> str:
        """What may be shown already: it only grows, every later `text` begins with it, and no part of a stop string is in it."""
        return self.whole[: open_end(self.whole, self.stop) if self.cut is None else self.cut]

    def push(self, piece: bytes) -> str | None:
        """Adds a token's bytes. "stop" or "until" when a string was completed, whichever begins first; else None."""
        since = len(self.whole)
        self.whole += self.decoder.decode(piece)
        stop = self._find_stop(since)
        until = self._find_until(since)
        if until is not None and (stop is None or (until.start, until.end) < (stop.start, stop.end)):
            return "until"
        return "stop" if stop is not None else None

    def _find_stop(self, since: int) -> Match | None:
        match = first_match(self.whole, self.stop, since) if self.stop else None
        if match is not None:
            self.cut = match.start
        return match

    def _find_until(self, since: int) -> Match | None:
        if not self.until:
            return None
        match = first_match(self.whole, self.until, since)
        if match is not None and match.start < self.oldest:
            match = first_match(self.whole[self.oldest :], self.until, 0)
            return match and Match(match.start + self.oldest, match.end + self.oldest)
        return match
