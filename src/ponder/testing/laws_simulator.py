"""Statistical laws on a simulated world: fixed problems and seeds, and bounds of SIGMAS standard errors of the difference.

Each takes a strategy (or two) and raises AssertionError where what it reaches is not what probability says it must reach.
"""

import math
from collections.abc import Callable, Sequence

from ponder.core.roles import Strategy, Verifier
from ponder.testing.closed_forms import best_of_n_of, coverage_of, vote_of
from ponder.testing.exact import require
from ponder.testing.simulator import Played, World, play_many

SIGMAS = 4.0
Wanted = Callable[[int], float]  # problem -> the chance that the strategy is right there


def require_rate(found: Sequence[bool], wanted: Sequence[float], what: str) -> None:
    """The number of hits is that of independent trials with those chances, up to SIGMAS standard errors."""
    gap = math.fsum(found) - math.fsum(wanted)
    error = math.sqrt(max(1.0, math.fsum(p * (1 - p) for p in wanted)))
    share, aim = math.fsum(found) / len(found), math.fsum(wanted) / len(wanted)
    require(abs(gap) <= SIGMAS * error, f"{what}: {share:.4f} of {len(found)} problems, the closed form says {aim:.4f} ({gap / error:+.1f} s.e.)")


def law_coverage(strategy: Strategy, world: World, *, num: int, problems: int) -> None:
    """Some of `num` samples is right with probability 1 - (1 - p)^num."""
    played = list(play_many(strategy, world, problems))
    wanted = [coverage_of(world.problem(i).accuracy, num) for i in range(problems)]
    require_rate([one.has_right for one in played], wanted, f"coverage of {num}")


def law_best_of_n(strategy: Strategy, world: World, *, num: int, auroc: float, problems: int) -> None:
    """The best-judged of `num` samples is right as often as binormal verdicts of that area make it."""
    played = list(play_many(strategy, world, problems))
    wanted = [best_of_n_of(world.problem(i).accuracy, num, auroc) for i in range(problems)]
    require_rate([one.is_right for one in played], wanted, f"best of {num} at AUROC {auroc}")


def law_vote(strategy: Strategy, world: World, *, num: int, problems: int) -> None:
    """`num` votes elect the right answer as often as multinomial counts do. Needs a world of one step and one wording,
    where a tie is decided by the answers' probabilities alone."""
    require(world.depth == (1, 1) and world.num_wordings == 1, "the closed form of a vote needs one step and one wording")
    played = list(play_many(strategy, world, problems))
    wanted = [vote_of(world.problem(i).answers, num) for i in range(problems)]
    require_rate([one.is_right for one in played], wanted, f"vote of {num}")


def law_steering_pays(
    steered: Callable[[Verifier], Strategy], plain: Callable[[Verifier], Strategy], *, informed: Verifier, noise: Verifier, world: World,
    problems: int,
) -> None:  # fmt: skip
    """Where step verdicts inform, `steered` is right more often than `plain` for the tokens, both with the same verifier;
    where they are noise it is not, and both are right as often as one sample is."""
    gain = paired_gain(list(play_many(steered(informed), world, problems)), list(play_many(plain(informed), world, problems)))
    require(gain[0] > SIGMAS * gain[1], f"informative verdicts: gain {gain[0]:+.4f}, standard error {gain[1]:.4f}")
    blind = list(play_many(steered(noise), world, problems))
    lost = paired_gain(blind, list(play_many(plain(noise), world, problems)))
    require(lost[0] <= SIGMAS * lost[1], f"noise: gain {lost[0]:+.4f}, standard error {lost[1]:.4f}: it knows what it cannot know")
    accuracy = [world.problem(i).accuracy for i in range(problems)]
    error = math.sqrt(math.fsum(p * (1 - p) for p in accuracy)) / problems
    gap = math.fsum(one.is_right for one in blind) / problems - math.fsum(accuracy) / problems
    require(abs(gap) <= SIGMAS * error, f"noise: right {gap:+.4f} more often than one sample, standard error {error:.4f}")


def law_spends_where_it_pays(
    adaptive: Strategy, uniform: Callable[[int], Strategy], *, varied: World, alike: World, problems: int
) -> None:  # fmt: skip
    """Where questions differ in difficulty, `adaptive` is right more often than `uniform(num)`, whose num equal answers cost at least as
    much in all; where they are alike, as often. All questions of a world have one depth."""
    gains = {}
    for name, world in (("varied", varied), ("alike", alike)):
        require(world.depth[0] == world.depth[1], "answers of equal length are needed to count equal tokens")
        mine = list(play_many(adaptive, world, problems))
        per_answer = world.depth[0] * world.step_tokens + 2
        num = math.ceil(sum(one.tokens for one in mine) / problems / per_answer - 1e-9)
        gains[name] = paired_gain(mine, list(play_many(uniform(num), world, problems)))
    gain, error = gains["varied"]
    require(gain > SIGMAS * error, f"questions that differ: gain {gain:+.4f}, standard error {error:.4f}")
    gain, error = gains["alike"]
    require(abs(gain) <= SIGMAS * error + 1 / problems, f"questions that are alike: gain {gain:+.4f}, standard error {error:.4f}")


def paired_gain(one: Sequence[Played], other: Sequence[Played]) -> tuple[float, float]:
    """(mean difference of being right, its standard error); refuses a comparison at unequal cost (more than 2 % apart)."""
    spent, allowed = sum(p.tokens for p in one), sum(p.tokens for p in other)
    require(spent <= 1.02 * allowed, f"not at equal cost: {spent} tokens against {allowed}")
    gains = [float(a.is_right) - float(b.is_right) for a, b in zip(one, other, strict=True)]
    mean = math.fsum(gains) / len(gains)
    return mean, math.sqrt(max(1e-12, math.fsum((g - mean) ** 2 for g in gains)) / len(gains) / (len(gains) - 1))
