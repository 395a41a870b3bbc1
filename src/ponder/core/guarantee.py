"""What a technique promises, as a word that travels through composition."""

from collections.abc import Iterable
from enum import IntEnum


class Guarantee(IntEnum):
    """Ordered from strongest to weakest, so that a composition promises the maximum of its parts.

    EXACT        the result has exactly the stated distribution (or is the stated value)
    UNBIASED     expectations under the returned weighted particles are exactly the target's, normaliser included
    BIASED       a stated target is missed by an amount that the technique does not control (beam, argmax, vote)
    APPROXIMATE  the computation itself is changed (quantised weights, evicted keys)
    """

    EXACT = 0
    UNBIASED = 1
    BIASED = 2
    APPROXIMATE = 3

    def __str__(self) -> str:
        return self.name.lower()


def weakest(guarantees: Iterable[Guarantee]) -> Guarantee:
    """The guarantee of a composition: the weakest of its parts; EXACT for an empty one."""
    return max(guarantees, default=Guarantee.EXACT)
