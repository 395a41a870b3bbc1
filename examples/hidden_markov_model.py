"""A particle filter over a hidden Markov model: the estimated evidence next to the exact one.

The same ops run over a language model's answers; only the kernel differs.
"""

import math
import statistics

from ponder.core.particles import Batch, uniform_particles
from ponder.core.rng import TorchRng
from ponder.infer.ops import Advance, Resample, Reweight
from ponder.infer.resample.systematic import systematic
from ponder.testing.exact import returned
from ponder.testing.hmm import HMM, Step

WEATHER = HMM(
    initial=(0.5, 0.5),
    transition=((0.8, 0.2), (0.3, 0.7)),  # dry, wet
    emission=((0.9, 0.2), (0.9, 0.2), (0.1, 0.8), (0.1, 0.8), (0.1, 0.8)),  # no umbrella twice, then three umbrellas
)


def estimate(num: int, seed: int) -> float:
    step = Advance(Step(WEATHER)) >> Reweight(WEATHER.log_potential) >> Resample(systematic)
    particles, rng = uniform_particles(Batch(((),) * num)), TorchRng(seed)
    for t in range(len(WEATHER.emission)):
        particles = returned(step.run(particles, rng.fork(t)))
    return math.exp(particles.log_evidence)


def main(num: int = 500, runs: int = 20) -> None:
    found = [estimate(num, seed) for seed in range(runs)]
    error = statistics.stdev(found) / math.sqrt(runs)
    print(f"evidence: {statistics.mean(found):.4f} +- {error:.4f} estimated, {runs} runs of {num} particles")
    print(f"evidence: {WEATHER.evidence():.4f} exact")


if __name__ == "__main__":
    main()
