"""Laws of Markov chains over whole answers: stationarity and reversibility by enumeration, exact rank tests beyond it."""

import math
from collections.abc import Callable, Hashable, Sequence

import torch

from ponder.core.rng import Rng, TorchRng
from ponder.testing.exact import TOLERANCE, Measure, averaged, difference, normalised, require

Move = Callable[[Hashable, Rng], Hashable]  # point -> next point of the chain
Matrix = dict[Hashable, Measure]  # point -> distribution of the next point


def matrix(target: Measure, move: Move, max_paths: int = 200_000) -> Matrix:
    """The chain's transition probabilities from every point of `target`, over every random path."""
    return {x: averaged(lambda rng, x=x: {move(x, rng): 1.0}, max_paths).measure for x in target}  # type: ignore[misc]


def moved(before: Measure, rows: Matrix) -> Measure:
    """The measure one step later."""
    after: Measure = {}
    for x, mass in before.items():
        for y, chance in rows[x].items():
            after[y] = after.get(y, 0.0) + mass * chance
    return after


def law_chain_keeps(target: Measure, move: Move, *, is_reversible: bool = False) -> Matrix:
    """pi K = pi, and with is_reversible also pi(x) K(x, y) = pi(y) K(y, x). Returns K."""
    pi = normalised(target)
    rows = matrix(pi, move)
    error = difference(moved(pi, rows), pi)
    require(error <= TOLERANCE, f"one step moves the target by {error:.3e}")
    stays = math.fsum(pi[x] * rows[x].get(x, 0.0) for x in pi)
    require(stays < 1 - TOLERANCE, "the chain never moves: every target is stationary under it")
    if is_reversible:
        flow = max(abs(pi[x] * rows[x].get(y, 0.0) - pi[y] * rows[y].get(x, 0.0)) for x in pi for y in pi)
        require(flow <= TOLERANCE, f"flows between two points differ by {flow:.3e}: not reversible")
    return rows


def rank_of(values: Sequence[float], at: int, rng: Rng) -> int:
    """Rank of values[at], ties broken at random: uniform on 0 .. len - 1 when the values are exchangeable."""
    below, equal = sum(v < values[at] for v in values), sum(v == values[at] for v in values)
    return below + pick_one(equal, rng)


def pick_one(num: int, rng: Rng) -> int:
    """Uniform on 0 .. num - 1."""
    return int(rng.categorical(torch.zeros(1, num, dtype=torch.float64))[0])


def uniformity(counts: Sequence[int]) -> float:
    """p-value of Pearson's test that the counts are of a uniform distribution."""
    wanted = sum(counts) / len(counts)
    statistic = math.fsum((c - wanted) ** 2 / wanted for c in counts)
    return float(torch.special.gammaincc(torch.tensor((len(counts) - 1) / 2, dtype=torch.float64), torch.tensor(statistic / 2, dtype=torch.float64)))


def law_ranks_are_uniform(
    draw: Callable[[Rng], Hashable], move: Move, see: Callable[[Hashable], float], *, back: Move | None = None, length: int = 6, num: int = 240
) -> int:
    """Exact rank test of a chain, for targets too large to enumerate. Returns the number of chains that it took.

    back: the chain in reversed time, where it is another one (for A then B, both reversible: B then A).

    A point drawn from the target itself is put at a random place of a chain and the chain is run from it to both ends:
    then the rank of its `see` in the chain is uniform, whatever the number of steps. Gandy & Scott 2020, arXiv:2001.06465,
    with their sequential scheme: up to 5 looks, a right chain is rejected with probability 1e-5 at most.
    """
    rng = TorchRng(0)
    counts, num_chains, num_looks, level = [0] * length, 0, 5, 1e-5 / 5
    ratio = level ** (1 / num_looks)
    for look in range(num_looks):
        counts = [0] * length
        for _ in range(num if look == 0 else 4 * num):
            num_chains += 1
            counts[rank_in_chain(draw, (move, back or move), see, length=length, rng=rng.fork(num_chains))] += 1
        p = uniformity(counts)
        require(p > level, f"ranks {counts} of {sum(counts)} chains are not uniform: p = {p:.2e}")
        if p > ratio + level:
            break
        level /= ratio
    return num_chains


def rank_in_chain(draw: Callable[[Rng], Hashable], moves: tuple[Move, Move], see: Callable[[Hashable], float], *, length: int, rng: Rng) -> int:
    start, at = draw(rng), pick_one(length, rng)
    later = walked(start, moves[0], length - 1 - at, rng.fork(1))
    earlier = walked(start, moves[1], at, rng.fork(2))
    return rank_of([see(x) for x in (*earlier[:0:-1], *later)], at, rng)


def walked(start: Hashable, move: Move, num_steps: int, rng: Rng) -> list[Hashable]:
    """The start and what follows it."""
    points = [start]
    for i in range(num_steps):
        points.append(move(points[-1], rng.fork(i)))
    return points
