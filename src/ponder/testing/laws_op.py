"""Laws of the Op and Kernel roles and of State.select. Each raises AssertionError saying what it found."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from ponder.core.guarantee import Guarantee
from ponder.core.particles import Batch, Particles, State
from ponder.core.rng import Rng, TorchRng
from ponder.core.roles import Kernel, Op
from ponder.testing.exact import TOLERANCE, Expected, Key, Measure, averaged, difference, expected_measure, measure_of, require, returned


def same_point(item: object) -> object:
    return item


def law_expected_measure(program: Callable[[Rng], Particles], wanted: Measure, key: Key = same_point) -> Expected:
    """E mu' = wanted: at every point and in total, over every random path. Returns what it enumerated."""
    found = expected_measure(program, key)
    error = difference(found.measure, wanted)
    total = math.fsum(wanted.values())
    require(error <= TOLERANCE * max(1.0, total), f"expected measure is off by {error:.3e}: evidence {found.normaliser:.6g}, wanted {total:.6g}")
    return found


def law_keeps_the_measure(op: Op, particles: Particles) -> None:
    """E mu' = mu. For resampling, thinning, spawning and drawing."""
    law_expected_measure(lambda rng: returned(op.run(particles, rng)), measure_of(particles, same_point))


def law_leaves_its_input(op: Op, particles: Particles) -> None:
    """Particles are values: an op changes neither the state nor the weights that it was given."""
    items, log_w = repr(list(particles.state)), particles.log_w.clone()  # type: ignore[call-overload]
    returned(op.run(particles, TorchRng(0)))
    require(repr(list(particles.state)) == items, "the op changed the state that it was given")  # type: ignore[call-overload]
    require(torch.equal(particles.log_w, log_w), "the op changed the weights that it was given")


def law_guarantee_travels(op: Op, particles: Particles) -> None:
    """The result promises no more than the op, nor than the particles that went in."""
    for before in Guarantee:
        after = returned(op.run(replace(particles, guarantee=before), TorchRng(0))).guarantee
        require(after >= before, f"particles marked {before} came back marked {after}")
        require(after >= op.guarantee or op.guarantee == Guarantee.EXACT, f"a {op.guarantee} op marked its particles {after}")


def law_deterministic(op: Op, particles: Particles) -> None:
    """Equal rngs give equal particles."""
    once, twice = (returned(op.run(particles, TorchRng(3))) for _ in range(2))
    require(repr(once) == repr(twice), f"two runs from one seed differ: {once} and {twice}")


def law_parents_are_recorded(op: Op, particles: Particles) -> None:
    """After one resampling, state = old state.select(ancestors) and all weights are equal."""
    after = returned(op.run(particles, TorchRng(1)))
    require(len(after.ancestors) == len(particles.ancestors) + 1, "recorded no ancestors")
    parents = particles.state.select(torch.tensor(after.ancestors[-1]))
    require(list(after.state) == list(parents), f"{list(after.state)} does not descend from {list(parents)}")  # type: ignore[call-overload]
    require(len(set(after.log_w.tolist())) == 1, f"weights after resampling: {after.log_w.tolist()}")
    require(len(after.ess) == len(particles.ess) + 1, "recorded no effective sample size")


def law_associative(first: Op, second: Op, third: Op, particles: Particles) -> None:
    """(a >> b) >> c and a >> (b >> c) are equal, draw for draw."""
    left = (first >> second) >> third  # type: ignore[operator]
    right = first >> (second >> third)  # type: ignore[operator]
    one, other = (returned(op.run(particles, TorchRng(7))) for op in (left, right))
    require(repr(one) == repr(other), f"{one} from the left, {other} from the right")


def law_leaves_target(kernel: Kernel, target: Measure) -> None:
    """pi K = pi, as matrices: for each point x the row K(x, .) by enumeration. Increments are zero."""
    after: Measure = {}
    for point, mass in target.items():

        def stepped(rng: Rng, point: object = point) -> Measure:
            state, log_g = returned(kernel(Batch((point,)), rng))
            require(bool((log_g == 0).all()), f"the kernel changed the weight of {point}")
            return {item: 1.0 for item in state}  # type: ignore[attr-defined]

        for reached, chance in averaged(stepped, 10_000).measure.items():
            after[reached] = after.get(reached, 0.0) + mass * chance
    error = difference(after, target)
    require(error <= TOLERANCE, f"the kernel moves its target by {error:.3e}")


def law_select_gathers(state: State, view: Callable[[State], Sequence[object]]) -> None:
    """view(state.select(i)) = [view(state)[j] for j in i]: everything derived moves along, and the original stays."""
    before = list(view(state))
    for indices in ([0] * (len(state) + 1), list(range(len(state)))[::-1], [len(state) - 1]):
        after = state.select(torch.tensor(indices))
        require(len(after) == len(indices), f"select of {len(indices)} has {len(after)}")
        require(list(view(after)) == [before[i] for i in indices], f"select({indices}): {list(view(after))}, wanted {[before[i] for i in indices]}")
    require(list(view(state)) == before, "select changed its state")


PURE_LAWS: tuple[Callable[[Op, Particles], None], ...] = (law_leaves_its_input, law_guarantee_travels, law_deterministic)
