"""Freed memory goes back to the system: packing leaves holes between the matrices that stay, and the C library keeps them for later.

So do the large tensors of a step that die among small ones that live, as the rows of stored prefixes do: over hours the holes add up to
many times what is in use.
"""

import ctypes
from collections.abc import Callable


class _Heap(ctypes.Structure):
    """What mallinfo2 tells of the C library's heaps, in bytes (malloc.h)."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    )


def _find(name: str, restype: type | None = ctypes.c_int) -> Callable[..., object] | None:
    try:
        function = getattr(ctypes.CDLL(None), name)  # glibc only
    except (OSError, AttributeError, TypeError):  # TypeError: Windows has no CDLL of the program itself
        return None
    function.restype = restype
    return function  # type: ignore[no-any-return]


TRIM, HEAP = _find("malloc_trim"), _find("mallinfo2", _Heap)


def give_back(above: int = 0) -> None:
    """Returns what is free to the system, in about a millisecond; does nothing where the C library has no call for it.

    above: bytes free in the heap up to which they stay for later, where the C library tells how many there are.
    """
    if TRIM is not None and (not above or HEAP is None or HEAP().fordblks > above):  # type: ignore[attr-defined]
        TRIM(0)
