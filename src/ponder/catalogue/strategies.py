"""Strategies and the parts that they may be given, by name."""

from ponder.catalogue.verifiers import VERIFIERS, open_verifier
from ponder.core.asks import Sampling
from ponder.core.roles import Resampler, StopRule, Strategy
from ponder.core.votes import by_path_probability, by_verdict, one_each
from ponder.infer.ab_mcts import AbMcts, beta, gaussian, mixed
from ponder.infer.adaptive import Adaptive
from ponder.infer.astar import AStar, drop, progress
from ponder.infer.atom_of_thoughts import AtomOfThoughts
from ponder.infer.beam import Beam
from ponder.infer.best_first import BestFirst
from ponder.infer.best_of_n import BestOfN
from ponder.infer.compute_optimal import ComputeOptimal
from ponder.infer.constrained_smc import ConstrainedSMC
from ponder.infer.critique_and_fuse import CritiqueAndFuse
from ponder.infer.deepconf import DeepConf, bottom_groups, lowest_group, tail_group, whole_mean
from ponder.infer.diverse_beam import DiverseBeam
from ponder.infer.dser import Dser
from ponder.infer.dvts import Dvts
from ponder.infer.entropic_filter import EntropicFilter
from ponder.infer.greedy import Greedy
from ponder.infer.hogwild import Hogwild
from ponder.infer.iad import Iad
from ponder.infer.mcts import Mcts, puct, uct
from ponder.infer.medprompt import Medprompt
from ponder.infer.minimum_risk import MinimumRisk, overlap, same_answer
from ponder.infer.ops import log_odds, log_prob
from ponder.infer.parallel_tempering import ParallelTempering
from ponder.infer.particle_filter import MeanProbability, ParticleFilter
from ponder.infer.particle_gibbs import ParticleGibbs
from ponder.infer.path_search import PathSearch
from ponder.infer.picks import argmax, drawn, vote
from ponder.infer.plangen import PlanGen
from ponder.infer.rebase import Rebase
from ponder.infer.resample.multinomial import multinomial
from ponder.infer.resample.residual import residual
from ponder.infer.resample.stratified import stratified
from ponder.infer.resample.systematic import systematic
from ponder.infer.rpc import Rpc
from ponder.infer.sample import Sample
from ponder.infer.self_consistency import SelfConsistency
from ponder.infer.self_evaluation import SelfEvaluation
from ponder.infer.self_refine import SelfRefine
from ponder.infer.solve_detect_verify import SolveDetectVerify
from ponder.infer.step_beam import StepBeam
from ponder.infer.stop.beta_test import BetaTest
from ponder.infer.stop.settled import Settled
from ponder.infer.stop.unanimous_window import UnanimousWindow
from ponder.infer.stop_wrong import StopWrong
from ponder.infer.thinksum import ThinkSum, mixture, product
from ponder.infer.tree import Steps
from ponder.infer.tree_of_thoughts import TreeOfThoughts, bfs, dfs
from ponder.infer.until_accepted import UntilAccepted
from ponder.infer.zero_order import ZeroOrder
from ponder.run.spec import FilesToo, Specs
from ponder.verify.value_prompt import ValuePrompt

LINES = Steps(until=("\n",))  # a step is a line

WARM = Sampling(temperature=0.8)

STRATEGIES: dict[str, Strategy] = {
    "greedy": Greedy(),
    "sample": Sample(),
    "best_of_n": BestOfN(num=8, verifier=MeanProbability()),
    "self_consistency": SelfConsistency(num=8),
    "weighted_best_of_n": SelfConsistency(num=8, verifier=MeanProbability()),
    "adaptive": Adaptive(num=16, rule=BetaTest()),
    "compute_optimal": ComputeOptimal(arms=(Sample(num=12, sampling=WARM), Sample(num=4, sampling=WARM), None)),
    "rpc": Rpc(num=16),
    "deepconf": DeepConf(num=16),
    "self_refine": SelfRefine(),
    "dser": Dser(),
    "solve_detect_verify": SolveDetectVerify(),
    "self_evaluation": SelfEvaluation(),
    "minimum_risk": MinimumRisk(),
    "atom_of_thoughts": AtomOfThoughts(),
    "plangen": PlanGen(arms=(Sample(), BestOfN(num=4, verifier=MeanProbability()), Beam())),
    "critique_and_fuse": CritiqueAndFuse(),
    "hogwild": Hogwild(),
    "thinksum": ThinkSum(),
    "iad": Iad(verifier=MeanProbability()),
    "until_accepted": UntilAccepted(verifier=MeanProbability(), accept_from=0.9),
    "stop_wrong": StopWrong(verifier=MeanProbability()),
    "medprompt": Medprompt(),
    "beam": Beam(),
    "diverse_beam": DiverseBeam(),
    "particle_filter": ParticleFilter(num=8, resampler=systematic, until=("\n",)),
    "step_beam": StepBeam(steps=LINES),
    "dvts": Dvts(steps=LINES),
    "rebase": Rebase(steps=LINES),
    "best_first": BestFirst(steps=LINES),
    "astar": AStar(steps=LINES),
    "mcts": Mcts(steps=LINES),
    "ab_mcts": AbMcts(steps=LINES),
    "tree_of_thoughts": TreeOfThoughts(steps=Steps(until=("\n",), max_steps=4, verifier=ValuePrompt())),
    "constrained_smc": ConstrainedSMC(num=8, resampler=systematic),
    "entropic_filter": EntropicFilter(num=8, resampler=systematic, verifier=MeanProbability(), until=("\n",)),
    "path_search": PathSearch(verifier=MeanProbability(), until=("\n",)),
    "zero_order": ZeroOrder(verifier=MeanProbability()),
    "parallel_tempering": ParallelTempering(verifier=MeanProbability(), until=("\n",)),
    "particle_gibbs": ParticleGibbs(verifier=MeanProbability(), until=("\n",)),
}

STOP_RULES: dict[str, StopRule] = {
    "beta_test": BetaTest(),
    "unanimous_window": UnanimousWindow(),
    "settled": Settled(),
}

RESAMPLERS: dict[str, Resampler] = {
    "multinomial": multinomial, "systematic": systematic, "stratified": stratified, "residual": residual,
}  # fmt: skip

PARTS = {  # field of a strategy -> what it may be set to
    "verifier": FilesToo(VERIFIERS, ".safetensors", open_verifier),
    "resampler": RESAMPLERS,
    "rule": STOP_RULES,
    "potential": {"odds": log_odds, "prob": log_prob},
    "utility": {"same_answer": same_answer, "overlap": overlap},
    "combine": {"mixture": mixture, "product": product},
    "measure": {"lowest_group": lowest_group, "bottom_groups": bottom_groups, "tail_group": tail_group, "whole_mean": whole_mean},
    "pick": {"vote": vote, "argmax": argmax, "drawn": drawn},
    "cost": {"drop": drop, "progress": progress},
    "curiosity": {"puct": puct, "uct": uct},
    "choose": {"gaussian": gaussian, "beta": beta, "mixed": mixed},
    "order": {"bfs": bfs, "dfs": dfs},
    "weigh": {"count": one_each, "verdict": by_verdict, "path_probability": by_path_probability},
}

SPECS = Specs("strategy", STRATEGIES, PARTS)


def strategy(spec: str) -> Strategy:
    """The strategy that NAME or NAME:field=value,... means. Raises UnknownName or BadField."""
    return SPECS.read(spec)  # type: ignore[return-value]
