"""Where the tokens of answers that are written side by side stand, for each of their writers.

All begin alike with a common prompt. Behind it a writer meets stretches of the others' text and of its own, one after the other, its own
newest token last. A text is the rest of its writer's prompt and then its answer; a step of it ends where a separator does, or where it is over.

    contiguous    each other writer's whole text, then one's own
    interleaved   the steps that are done, whosever, in the order of their ends; then one's own step. Steps of others that are not done
                  are not met
    combined      as interleaved, with the others' steps that are not done before one's own

Time is counted in tokens of answers: at time i a writer's token i (from 0) meets the first i tokens of the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from ponder.core.errors import BadField

LAYOUTS = ("contiguous", "interleaved", "combined")


def check_layout(layout: str) -> None:
    """Raises BadField for one that there is not."""
    if layout not in LAYOUTS:
        raise BadField(f"layout {layout!r}: must be one of {', '.join(LAYOUTS)}")


@dataclass
class Writer:
    """A text so far: num_rest tokens of its prompt, then num tokens of its answer, of which steps end after the first `ends`."""

    num_rest: int
    separator: bytes
    num: int = 0
    ends: list[int] = field(default_factory=list)
    tail: bytes = b""  # since the last end

    def push(self, piece: bytes) -> None:
        """One more token, which stands for those bytes. What it holds behind a separator belongs to the step that ends."""
        self.num += 1
        self.tail += piece
        if self.separator in self.tail:
            self.end()

    def end(self) -> None:
        """A step ends here."""
        if not self.ends or self.num > self.ends[-1]:
            self.ends.append(self.num)
        self.tail = b""


Stretch = tuple[int, int, int]  # writer, first, last: tokens of its text


def stretches(layout: str, writers: Sequence[Writer], me: int, time: int) -> list[Stretch]:
    """What the token `time` of writer `me` meets behind the common prompt, in order; it is itself the last."""
    seen = [min(time + (o == me), writer.num) for o, writer in enumerate(writers)]
    if layout == "contiguous":
        found = [(o, 0, writer.num_rest + seen[o]) for o, writer in enumerate(writers) if o != me]
        return [s for s in found if s[1] < s[2]] + [(me, 0, writers[me].num_rest + time + 1)]
    done = sorted((end, o) for o, writer in enumerate(writers) for end in writer.ends if end <= min(time, seen[o]))
    at = [0] * len(writers)
    found = []
    for end, o in done:
        _add(found, (o, at[o], writers[o].num_rest + end))
        at[o] = writers[o].num_rest + end
    if layout == "combined":
        for o, writer in enumerate(writers):
            if o != me:
                _add(found, (o, at[o], writer.num_rest + seen[o]))
    _add(found, (me, at[me], writers[me].num_rest + time + 1))
    return found


def _add(found: list[Stretch], stretch: Stretch) -> None:
    """Joins what follows itself; leaves out what is empty."""
    writer, first, last = stretch
    if found and found[-1][0] == writer and found[-1][2] == first:
        found[-1] = (writer, found[-1][1], last)
    elif first < last:
        found.append(stretch)
