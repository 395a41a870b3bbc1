"""Dictionaries of hidden states: each state as a few of the states that were seen, so that two models can be compared.

Paper      Leask et al. 2025, "Inference-Time Decomposition of Activations (ITDA)" (arXiv:2505.17769)
Equation   x ~ sum_k w_k a_k: atom a_k has the largest |<r, a>| with the residual r, w_k = <r, a_k>, r <- r - w_k a_k (matching pursuit,
           Mallat & Zhang 1993). A state whose residual keeps more than `error` of its squared length becomes an atom.
Shapes     states [N, D] -> atoms [M, D], unit rows; decompositions index [N, K], weight [N, K]
Guarantee  residuals never grow; a turned copy of the states (any rotation) gives the same atoms. No optimum: greedy.
Cost       N x K products with the atoms; no gradient.

Atoms carry the names of the states that they were (text and place), which mean the same in every model: the Jaccard index of
two models' names says how alike they read the same texts, whatever their widths.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ponder.core.errors import BadField


@dataclass(frozen=True, eq=False)
class Dictionary:
    """Unit rows and the names of the states that they were, in the order in which they were found."""

    atoms_MD: Tensor
    names: tuple[Hashable, ...]


def pursue(states_ND: Tensor, atoms_MD: Tensor, num: int) -> tuple[Tensor, Tensor, Tensor]:
    """Matching pursuit with `num` atoms: (index [N, K], weight [N, K], residual [N, D]). Raises BadField without atoms."""
    if not len(atoms_MD) or num < 1:
        raise BadField(f"pursuit with {num} of {len(atoms_MD)} atoms: needs at least one of each")
    residual_ND, index, weight = states_ND.clone(), [], []
    for _ in range(num):
        products_NM = residual_ND @ atoms_MD.T
        best_N = products_NM.abs().argmax(1)
        w_N = products_NM.gather(1, best_N[:, None])[:, 0]
        residual_ND -= w_N[:, None] * atoms_MD[best_N]
        index.append(best_N)
        weight.append(w_N)
    return torch.stack(index, 1), torch.stack(weight, 1), residual_ND


def rebuild(atoms_MD: Tensor, index_NK: Tensor, weight_NK: Tensor) -> Tensor:
    """[N, D]: what decompositions stand for."""
    return (weight_NK[..., None] * atoms_MD[index_NK]).sum(1)


def build(states_ND: Tensor, names: Sequence[Hashable], *, num: int, error: float, max_atoms: int = 4096) -> Dictionary:
    """A dictionary in one pass: states come in order, and one that `num` atoms leave with more than `error` of its squared
    length becomes the next atom. States of length 0 are left out. Raises BadField."""
    if len(states_ND) != len(names) or not 0 < error < 1 or num < 1 or max_atoms < 1:
        raise BadField(
            f"{len(states_ND)} states, {len(names)} names, num={num}, error={error}, max_atoms={max_atoms}: a name per state, error in (0, 1)"
        )
    atoms_MD, found = states_ND.new_zeros(max_atoms, states_ND.shape[1]), list[Hashable]()
    for x_D, name in zip(states_ND, names):
        length = float(x_D.norm())
        if not length or len(found) == max_atoms:
            continue
        unit_D = x_D / length
        left = float(pursue(unit_D[None], atoms_MD[: len(found)], num)[2].square().sum()) if found else 1.0
        if left > error:
            atoms_MD[len(found)] = unit_D
            found.append(name)
    return Dictionary(atoms_MD[: len(found)].clone(), tuple(found))


def unexplained(states_ND: Tensor, dictionary: Dictionary, *, num: int) -> float:
    """Share of the states' variance that `num` atoms leave: 0 is perfect, 1 no better than the mean state."""
    residual_ND = pursue(states_ND, dictionary.atoms_MD, num)[2]
    return float(residual_ND.square().sum() / (states_ND - states_ND.mean(0)).square().sum())


def similarity(one: Dictionary, other: Dictionary) -> float:
    """Jaccard index of the atoms' names, in [0, 1]; 1 for two empty dictionaries."""
    a, b = set(one.names), set(other.names)
    return len(a & b) / len(a | b) if a | b else 1.0
