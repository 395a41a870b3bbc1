"""Every bug of the museum breaks its law, and what we do instead keeps it.

Sources are threads, peers' code that was read, or "our own": mistakes that we could make and no test idiom of the peers would see.
"""

import pytest

from museum import inference_bugs as bugs
from museum.inference_bugs import Exhibit
from ponder.core.votes import by_path_probability
from ponder.infer.beam import Beam
from ponder.infer.best_of_n import BestOfN
from ponder.infer.ops import Advance, Condition, Draw, Move, Resample, Reweight, Spawn, Thin, start
from ponder.infer.particle_filter import ParticleFilter
from ponder.infer.resample.multinomial import multinomial
from ponder.infer.resample.residual import residual
from ponder.infer.resample.systematic import systematic
from ponder.infer.sample import Sample
from ponder.testing import laws_op, laws_process, laws_resampler, laws_strategy
from ponder.testing.exact import returned
from ponder.testing.hmm import SMALL, Gibbs, Step
from ponder.testing.toy import ToyProcess
from ponder.verify.coverage import pass_at_k

PROCESS = {law.__name__: bugs.on_toy(law) for law in laws_process.LAWS}
RIGHT = Resample(systematic, 0.9)
ALWAYS = Resample(systematic, None)
SELDOM = Resample(systematic, 0.75)


def law_prior_of_b(op):
    laws_op.law_expected_measure(lambda rng: returned(op.run(bugs.TWO, rng)), {"a": laws_op.measure_of(bugs.TWO, laws_op.same_point)["a"]})


def law_keeps_two(op):
    laws_op.law_keeps_the_measure(op, bugs.TWO)


def law_parents(op):
    laws_op.law_parents_are_recorded(op, bugs.TWO)


def law_leaves_posterior(kernel):
    laws_op.law_leaves_target(kernel, SMALL.posterior())


def law_posterior_before_evidence(op):
    laws_op.law_expected_measure(lambda rng: returned((Spawn(2) >> op).run(start(()), rng)), SMALL.posterior())


def three_steps(weigh):
    op = Advance(Step(SMALL)) >> weigh
    return op >> op >> op


EXHIBITS = (
    Exhibit("a probe passes the last live particle", "https://github.com/gwastro/pycbc/pull/3613",
            laws_resampler.law_never_picks_the_dead, bugs.unclamped, systematic),
    Exhibit("the first particle always stays", "https://github.com/at-wat/mcl_3dl/issues/232",
            laws_resampler.law_unbiased, bugs.first_always_stays, systematic),
    Exhibit("counts are rounded", "REBASE: children by ceil(width * softmax) (code read)",
            laws_resampler.law_unbiased, bugs.rounded_counts, residual),
    Exhibit("all dead is taken as all equal", "https://github.com/genlm/llamppl/pull/39",
            laws_resampler.law_refuses_bad_weights, bugs.all_dead_is_all_equal, multinomial),
    Exhibit("global random state", "https://github.com/pymc-devs/pymc/pull/6162",
            laws_resampler.law_uses_only_its_rng, bugs.global_state, multinomial),
    Exhibit("cuts that hide a branch from the enumerator", "our own",
            laws_resampler.law_cuts_are_honest, bugs.hidden_cuts, systematic),
    Exhibit("ancestors off by one", "probabilistic-inference-scaling: index of the reference one step off (code read)",
            law_keeps_two, bugs.WrongResample(bugs.neighbours), ALWAYS),
    Exhibit("recorded parents off by one", "our own",
            law_parents, bugs.RecordsNeighbours(), Resample(multinomial, None)),
    Exhibit("weights move, particles do not", "https://github.com/pyro-ppl/pyro/issues/2138",
            law_keeps_two, bugs.WrongResample(bugs.state_left_behind), ALWAYS),
    Exhibit("particles move, weights do not", "https://github.com/johnhw/pfilter/issues/8",
            law_keeps_two, bugs.WrongResample(bugs.weights_left_behind), ALWAYS),
    Exhibit("zero weights leave the evidence at resampling", "https://github.com/treeppl/treeppl/issues/64",
            bugs.law_deadly_smc_is_exact, bugs.smc(bugs.WrongResample(bugs.over_survivors), bugs.DEADLY), bugs.smc(ALWAYS, bugs.DEADLY)),
    Exhibit("weights dropped when nothing is resampled", "FK-steering, adaptive mode (code read)",
            bugs.law_smc_is_exact, bugs.smc(bugs.WrongResample(bugs.keep, 0.8, bugs.forgotten)), bugs.smc(Resample(systematic, 0.8))),
    Exhibit("weights set instead of multiplied", "https://github.com/nimble-dev/nimble/pull/765",
            law_posterior_before_evidence, three_steps(bugs.Overwriting()), three_steps(Reweight(SMALL.log_potential))),
    Exhibit("evidence as if weights had been equal", "https://github.com/baggepinnen/LowLevelParticleFilters.jl/issues/134",
            law_posterior_before_evidence, three_steps(bugs.UniformIncrement()), three_steps(Reweight(SMALL.log_potential) >> RIGHT)),
    Exhibit("final weights ignored", "https://github.com/TuringLang/Turing.jl/issues/2656",
            bugs.law_smc_is_exact, bugs.smc(SELDOM, last=bugs.UnweightedDraw()), bugs.smc(SELDOM, last=Draw())),
    Exhibit("sign of the log-weight", "https://github.com/blackjax-devs/blackjax/issues/914",
            bugs.law_smc_is_exact, bugs.smc(SELDOM, sign=-1.0), bugs.smc(SELDOM)),
    Exhibit("evidence of the survivors only", "https://github.com/treeppl/treeppl/issues/64",
            law_prior_of_b, bugs.DropsQuietly(), Condition(lambda state: bugs.torch.tensor([x == "a" for x in state]))),
    Exhibit("thinning without lifting", "https://github.com/QInfer/python-qinfer/issues/72",
            law_keeps_two, bugs.ThinsWithoutLifting(), Thin(0.9)),
    Exhibit("a move that its target does not know", "https://github.com/probcomp/gen-quickstart/issues/49",
            law_leaves_posterior, bugs.UnacceptedMove(), Gibbs(SMALL, 2)),
    Exhibit("a move inside SMC that its target does not know", "https://github.com/probcomp/gen-quickstart/issues/49",
            bugs.law_smc_is_exact, bugs.smc(SELDOM, last=Move(bugs.UnacceptedMove())), bugs.smc(SELDOM, last=Move(Gibbs(SMALL, 2)))),
    Exhibit("forks share what they grow", "llamppl deep-copies particles to avoid it (code read)",
            bugs.law_forks_do_not_share, bugs.InPlaceStep(), bugs.CopyingStep()),
    Exhibit("cached log-probabilities stay behind after select", "our own",
            bugs.law_cache_moves_along, False, True),
    Exhibit("verdicts of the particle that stood here before", "probabilistic-inference-scaling: reference reward read one step off (code read)",
            bugs.law_filter_is_unbiased, bugs.FilterOfNeighbours, ParticleFilter),
    Exhibit("the resampler setting goes nowhere", "its_hub ParticleFiltering.resampling_method (code read)",
            bugs.law_resampler_is_forwarded, bugs.ForgetsItsResampler, ParticleFilter),
    Exhibit("samples from one cache entry", "https://github.com/EleutherAI/lm-evaluation-harness/issues/3046",
            laws_strategy.law_seeds_are_apart, bugs.OneSeed(num=3), Sample(num=3)),
    Exhibit("padded beams", "search-and-learn beam_search (code read)",
            laws_strategy.law_candidates_are_distinct, bugs.PaddedBeam(width=3), Beam(width=3)),
    Exhibit("draws on when the budget is spent", "https://github.com/Red-Hat-AI-Innovation-Team/its_hub/issues/237",
            laws_strategy.law_ends_when_spent, bugs.KeepsAsking(), Sample(num=3)),
    Exhibit("an abstention is a zero", "our own",
            bugs.law_verdicts_beat_abstentions, bugs.AbstentionIsZero, BestOfN),
    Exhibit("votes by spelling", "optillm self_consistency: string similarity of at least 0.8 (code read)",
            bugs.law_meaning_decides, bugs.by_string_similarity, bugs.by_meaning),
    Exhibit("no answer is the most common answer", "our own",
            bugs.law_the_silent_do_not_vote, bugs.no_answer_is_an_answer, bugs.by_meaning),
    Exhibit("a path sampled twice counts twice", "perplexity consistency without its set of distinct paths, arXiv:2502.00511",
            bugs.law_copies_add_nothing, bugs.every_sample_counts, by_path_probability),
    Exhibit("pass@k by plugging in the rate", "arXiv:2107.03374, appendix A",
            laws_strategy.law_pass_at_k, bugs.naive_pass_at_k, pass_at_k),
    Exhibit("a length limit that forgets earlier steps", "REBASE: cum_tokens is not summed along ancestors (code read)",
            PROCESS["law_in_pieces"], bugs.LimitOfTheStep, ToyProcess),
    Exhibit("cancelled tokens are free", "its_hub GenerationUsage (code read)",
            PROCESS["law_cancel"], bugs.FreeCancel, ToyProcess),
    Exhibit("the stop string stays in the text", "our own",
            PROCESS["law_stop"], bugs.StopStays, ToyProcess),
    Exhibit("the beginning of a stop string is streamed", "our own",
            PROCESS["law_partial"], bugs.ShowsAll, ToyProcess),
    Exhibit("answers depend on their neighbours", "our own",
            PROCESS["law_alone_or_in_a_crowd"], bugs.DrawsInTurn, ToyProcess),
    Exhibit("reused tokens vanish from the count", "its_hub usage = 0, DVTS completion_tokens = -1 (code read)",
            PROCESS["law_costs"], bugs.ReusedIsComputed, ToyProcess),
)  # fmt: skip


@pytest.mark.parametrize("exhibit", EXHIBITS, ids=lambda e: e.name)
def test_the_law_kills_the_bug(exhibit):
    with pytest.raises(AssertionError):
        exhibit.law(exhibit.wrong)


@pytest.mark.parametrize("exhibit", EXHIBITS, ids=lambda e: e.name)
def test_the_right_way_passes(exhibit):
    exhibit.law(exhibit.right)


def test_every_exhibit_names_its_source():
    assert all(e.source for e in EXHIBITS) and len({e.name for e in EXHIBITS}) == len(EXHIBITS)
