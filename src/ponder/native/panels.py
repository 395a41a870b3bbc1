"""What a query would make of many vectors at once: the best of all, or the groups that pass a test (panels.cpp; else PyTorch).

A panel holds vectors sixteen by sixteen, pairs of dims side by side, as the compiled loops read them, whoever reads them. Compiled loops
are for bfloat16; a product is the same, bit for bit, wherever a vector stands and whatever stands beside it.

Shapes: K key heads, R query rows of each, P vectors, W their width (even), G = ceil(P / 16); C groups, N keys.
"""

import ctypes
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ponder.native.build import library
from ponder.native.lists import address

SIDE = 16
pointer, i32, i64 = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64

Panel = tuple[Tensor, int]  # [K, G, W / 2, 16, 2], and how many vectors of it are looked at


class PanelStruct(ctypes.Structure):
    _fields_ = [("pairs", pointer), ("head_stride", i64), ("num", i32)]


class LevelStruct(ctypes.Structure):
    _fields_ = [("panel", PanelStruct), ("log_sizes", pointer), ("above", pointer), ("log_least", ctypes.c_float)]


class AskedStruct(ctypes.Structure):
    _fields_ = [("q", pointer), *((name, i32) for name in ("num_kv_heads", "num_rows", "width", "num_threads")), ("scale", ctypes.c_float)]


@dataclass(frozen=True, kw_only=True)
class Level:
    """Groups of keys, each by a vector that stands for all of them. A group passes for a row if a key of it, promised what the vector
    promises, has at least the share `least` of all."""

    panel: Panel
    sizes: Tensor  # float32 [K, C]: keys of each; none is met of an empty one
    log_sizes: Tensor
    least: float  # above 0
    above: Tensor | None = None  # int32 [K, C]: the group of a level above that each is in


def packed(rows_KPW: Tensor) -> Tensor:
    """[K, G, W / 2, 16, 2]; zeros behind the last vector."""
    num = rows_KPW.shape[1]
    rows = F.pad(rows_KPW, (0, 0, 0, -num % SIDE)).unflatten(1, (-1, SIDE)).unflatten(3, (-1, 2))
    return rows.transpose(2, 3).contiguous()


def unpacked(panel: Panel) -> Tensor:
    """The vectors [K, P, W]."""
    pairs, num = panel
    return pairs.transpose(2, 3).flatten(3).flatten(1, 2)[:, :num]


def appended(panel: Panel, rows_KPW: Tensor) -> Panel:
    """A panel with more vectors behind its own, in place where there is room."""
    pairs, num = panel
    stop = num + rows_KPW.shape[1]
    if missing := -(-stop // SIDE) - pairs.shape[1]:
        pairs = F.pad(pairs, (0,) * 7 + (max(missing, pairs.shape[1] // 2),)) if missing > 0 else pairs
    at = torch.arange(num, stop)
    pairs[:, at // SIDE, :, at % SIDE] = rows_KPW.unflatten(2, (-1, 2)).transpose(0, 1)
    return pairs, stop


def best(q_KRE: Tensor, panels: Sequence[Panel], num: int, *, are_boxes: bool = False, then: Sequence[int] = ()) -> np.ndarray:
    """int32 [K, min(num, P) + len(then)]: the vectors of all panels, one after the other, that give most to one of a head's rows, ascending; of
    equal ones the earlier; then `then`. are_boxes: a vector is the largest, then the least of each dim of a box, and gives the most that a
    point of it could."""
    num = min(num, sum(some for _, some in panels))
    out = np.empty((len(q_KRE), num + len(then)), np.int32)
    out[:, num:] = then
    if (run := _compiled("panels_best", q_KRE, panels)) is None:
        out[:, :num] = best_slowly(q_KRE, panels, num, are_boxes=are_boxes)
        return out
    structs = (PanelStruct * len(panels))(*map(_struct, panels))
    run(ctypes.byref(_asked(q_KRE)), structs, len(panels), are_boxes, num, address(out), out.shape[1])
    return out


def best_slowly(q_KRE: Tensor, panels: Sequence[Panel], num: int, *, are_boxes: bool = False) -> np.ndarray:
    """The same by PyTorch."""
    q = q_KRE.float()
    if are_boxes:
        q = torch.cat([q.clamp(min=0), q.clamp(max=0)], 2)
    return largest_slowly(torch.cat([(unpacked(panel).float() @ q.mT).amax(2) for panel in panels], 1), num)


def largest(scores_KN: Tensor, num: int) -> np.ndarray:
    """int32 [K, min(num, N)], ascending: the places of the largest of each row of float32; of equal ones the earlier."""
    if (run := _function("panels_largest")) is None:
        return largest_slowly(scores_KN, num)
    scores_KN = scores_KN.contiguous()
    out = np.empty((len(scores_KN), min(num, scores_KN.shape[1])), np.int32)
    run(scores_KN.data_ptr(), *scores_KN.shape, out.shape[1], address(out))
    return out


def largest_slowly(scores_KN: Tensor, num: int) -> np.ndarray:
    """The same by PyTorch."""
    found = scores_KN.sort(dim=1, descending=True, stable=True).indices[:, :num].sort(dim=1).values
    return found.to(torch.int32).numpy()


def passing(
    q_KRE: Tensor, labels_KN: Tensor, fine: Level, coarse: Level | None = None, *, then: range = range(0)
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """int32 keys of one head after the other, and ends [K]: the keys, labelled int32 with their groups, of those that pass for one of the
    head's rows, ascending, and `then`.

    With a coarse level, groups are looked at only where the group that they are in passes for the row, and all others count, as keys of
    which each is promised the same, by their coarse vector.
    """
    levels = [fine] if coarse is None else [fine, coarse]
    if (run := _compiled("panels_pass", q_KRE, [level.panel for level in levels])) is None:
        found = [np.concatenate([some, np.array(then, np.int32)]) for some in passing_slowly(q_KRE, labels_KN, fine, coarse)]
        return np.concatenate(found), np.cumsum([len(some) for some in found], dtype=np.int32)
    num_heads, num_keys = labels_KN.shape
    out, ends = np.empty(num_heads * (num_keys + len(then)), np.int32), np.empty(num_heads, np.int32)
    above = None if coarse is None else ctypes.byref(_level(coarse))
    run(
        ctypes.byref(_asked(q_KRE)), ctypes.byref(_level(fine)), above, labels_KN.data_ptr(), num_keys, then.start, then.start + len(then),
        address(out), address(ends),
    )  # fmt: skip
    return out[: ends[-1]], ends


def passing_slowly(q_KRE: Tensor, labels_KN: Tensor, fine: Level, coarse: Level | None = None) -> list[np.ndarray]:
    """The same by PyTorch, a head's by itself, without `then`."""
    q, scale = q_KRE.float(), q_KRE.shape[2] ** -0.5
    scores = q @ unpacked(fine.panel).float().mT * scale
    if coarse is None:
        shares = (scores + fine.log_sizes[:, None]).softmax(-1) / fine.sizes.clamp(min=1)[:, None]
        met = shares >= fine.least
    else:
        assert fine.above is not None
        over = q @ unpacked(coarse.panel).float().mT * scale + coarse.log_sizes[:, None]
        is_open = over.softmax(-1) / coarse.sizes.clamp(min=1)[:, None] >= coarse.least
        is_seen = is_open.gather(2, fine.above.long()[:, None].expand(-1, q.shape[1], -1))
        whole = scores + fine.log_sizes[:, None]
        looked = torch.cat([whole.masked_fill(~is_seen, -math.inf), over.masked_fill(is_open, -math.inf)], 2)
        met = (looked.softmax(-1)[..., : scores.shape[2]] / fine.sizes.clamp(min=1)[:, None] >= fine.least) & is_seen
    kept = met.any(1).gather(1, labels_KN.long()).numpy()
    return [np.flatnonzero(some).astype(np.int32) for some in kept]


@functools.cache
def _function(name: str) -> Callable[..., None] | None:
    """A compiled loop, None where there is no compiler."""
    lib = library()
    if lib is None:
        return None
    found = getattr(lib, name)
    found.restype = None
    found.argtypes = {
        "panels_best": [pointer, pointer, i32, i32, i32, pointer, i64],
        "panels_pass": [pointer, pointer, pointer, pointer, i32, i32, i32, pointer, pointer],
        "panels_largest": [pointer, i32, i32, i32, pointer],
    }[name]
    return cast(Callable[..., None], found)


def _compiled(name: str, q_KRE: Tensor, panels: Sequence[Panel]) -> Callable[..., None] | None:
    is_for_it = q_KRE.dtype == panels[0][0].dtype == torch.bfloat16 and q_KRE.shape[2] % 2 == 0
    return _function(name) if is_for_it else None


def _asked(q_KRE: Tensor) -> AskedStruct:
    q_KRE = q_KRE.contiguous()
    asked = AskedStruct(q_KRE.data_ptr(), *q_KRE.shape, torch.get_num_threads(), q_KRE.shape[2] ** -0.5)
    asked.held = q_KRE  # may be a copy, which must stay while it is read
    return asked


def _struct(panel: Panel) -> PanelStruct:
    pairs, num = panel
    return PanelStruct(pairs.data_ptr(), pairs.stride(0) // 2, num)


def _level(level: Level) -> LevelStruct:
    above = None if level.above is None else level.above.data_ptr()
    return LevelStruct(_struct(level.panel), level.log_sizes.data_ptr(), above, math.log(level.least))
