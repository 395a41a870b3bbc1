"""Noise search on a denoiser whose score is known, at equal cost: what each search gains over as many random noises.

    python benchmarks/noise_search.py [QUESTIONS]

A question is a seed; the verifier is the true distance to a target. Costs are whole answers (a denoiser evaluation per state);
gains are of the verifier's score of the answer, against best_of_n with the same number of answers, paired; +- is one standard error.
"""

import math
import sys
from dataclasses import replace

import torch

from ponder.core.asks import Prompt, Sampling
from ponder.core.rng import TorchRng
from ponder.core.roles import Strategy
from ponder.infer.best_of_n import BestOfN
from ponder.infer.path_search import PathSearch
from ponder.infer.zero_order import ZeroOrder
from ponder.testing.denoiser import Denoiser, Nearness
from ponder.testing.numbers import NumberProcess
from ponder.testing.run import answer_all

PLAIN = Sampling()
PROMPT = Prompt(messages=(("raw", "q"),), max_tokens=500)
PARTS = ((1.0,) * 4, (-1.0, 0.5, 0.5, 0.5), (0.0, -1.0, -1.0, -1.0))
DENOISER = Denoiser(means=PARTS, shares=(0.5, 0.3, 0.2), deviation=0.4, num_steps=4)
ZERO_ORDER = ((8, 6, 4, 0.3), (8, 6, 4, 0.5), (8, 6, 4, 0.7), (16, 4, 4, 0.5))  # starts, rounds, neighbours, share
PATHS = ((1, 4, 0, 1), (4, 4, 0, 1), (2, 8, 1, 2), (4, 4, 1, 3), (2, 4, 2, 3))  # num, children, back, forth


def run(denoiser: Denoiser, strategy: Strategy, key: int) -> tuple[float, int]:
    """(score of the answer, cost in whole answers)."""
    done = answer_all(strategy.run(PROMPT, TorchRng(key)), NumberProcess(denoiser))
    return done.result.candidates[0].score or 0.0, round(done.cost.generated_tokens / (denoiser.size * denoiser.num_states))


def compared(denoiser: Denoiser, verifier: Nearness, strategy: Strategy, num: int) -> str:
    gains, costs = [], []
    for key in range(num):
        score, cost = run(denoiser, strategy, key)
        gains.append(score - run(denoiser, BestOfN(num=cost, verifier=verifier, sampling=PLAIN), key)[0])
        costs.append(cost)
    found = torch.tensor(gains, dtype=torch.float64)
    return f"cost {sum(costs) / num:5.1f}  gain {float(found.mean()):+.3f} +- {float(found.std()) / math.sqrt(num):.3f}"


def main() -> None:
    num = int(sys.argv[1]) if len(sys.argv) > 1 else 16
    for is_deterministic, num_steps in ((True, 4), (False, 4), (False, 8)):
        denoiser = replace(DENOISER, is_deterministic=is_deterministic, num_steps=num_steps)
        verifier = Nearness(denoiser, (-0.6, 0.9, 0.9, 0.9), width=1.0)
        print(f"{'deterministic' if is_deterministic else 'stochastic'}, {num_steps} steps, {num} questions")
        for starts, rounds, neighbours, share in ZERO_ORDER:
            search = ZeroOrder(num_starts=starts, num_rounds=rounds, num_neighbours=neighbours, share=share, verifier=verifier, sampling=PLAIN)
            print(f"  zero order {starts} + {rounds} x {neighbours}, share {share}:  {compared(denoiser, verifier, search, num)}", flush=True)
        for kept, children, back, forth in PATHS if not is_deterministic else ():
            paths = PathSearch(num=kept, num_children=children, back=back, forth=forth, verifier=verifier, until=("\n",), sampling=PLAIN)
            print(f"  paths {kept} x {children}, back {back}, forth {forth}:  {compared(denoiser, verifier, paths, num)}", flush=True)


if __name__ == "__main__":
    main()
