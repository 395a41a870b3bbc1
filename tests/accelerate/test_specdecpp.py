"""SpecDec++: its policy is the best there is, its head reads what it was trained on, and no answer changes."""

from dataclasses import dataclass

import pytest
import torch

from engine.test_rounds import told
from engine.test_runners import free_asks, opened
from ponder.accelerate.accept.coupled import Coupled
from ponder.accelerate.accept.rejection import Rejection
from ponder.accelerate.draft.layer_skip import LayerSkip
from ponder.accelerate.length.accept_head import AcceptHead, load_accept_head, save_accept_head
from ponder.accelerate.length.fixed import Fixed
from ponder.accelerate.length.specdecpp import SpecDecPP
from ponder.catalogue import speculation
from ponder.core.draft import Guess
from ponder.core.errors import BadField, StoreError
from ponder.native.build import library
from ponder.testing.laws_draft import EVEN, law_control_keeps_the_distribution, law_counts_are_counts
from ponder.testing.laws_stopping import law_a_threshold_is_the_best_way_to_stop

NATIVE = library() is not None  # the compiled kernel, where there is one: it is faster


@dataclass(frozen=True)
class Known:
    """Judges a guess by the drafter's own probability, which is the truth where the law says so."""

    def chances(self, drafts):
        return [draft[-1].chance for draft in drafts]


def head(width: int = 2, seed: int = 0) -> AcceptHead:
    draws = torch.Generator().manual_seed(seed)
    w_in, w_out, w_skip = (torch.randn(*shape, generator=draws) for shape in ((4, width + 2), (4,), (width + 2,)))
    return AcceptHead(drafter="toy", w_in=w_in, w_out=w_out, w_skip=w_skip, bias=torch.ones(1), facts={"auroc": 0.5})


def test_the_threshold_policy_is_optimal():
    law_a_threshold_is_the_best_way_to_stop(lambda stop_above: SpecDecPP(head=Known(), stop_above=stop_above))


@dataclass(frozen=True)
class Newest(Fixed):
    """Looks at the newest guess alone."""

    least: float = 0.0

    def goes_on(self, requests, drafts):
        return [draft[-1].chance >= self.least for draft in drafts]


@dataclass(frozen=True)
class Whole(Fixed):
    """Goes on until there are so many."""

    most: float = 0.0

    def goes_on(self, requests, drafts):
        return [len(draft) < 6 * self.most for draft in drafts]


@pytest.mark.parametrize("wrong", [lambda h: Newest(least=h), lambda h: Whole(most=h)], ids=["newest guess", "fixed length"])
def test_other_policies_are_not(wrong):
    with pytest.raises(AssertionError, match="the best way of stopping"):
        law_a_threshold_is_the_best_way_to_stop(wrong)


@pytest.mark.parametrize("judge", [Known(), head()], ids=["known", "head"])
def test_laws_of_controls(judge):
    control = SpecDecPP(head=judge, stop_above=0.4)
    law_counts_are_counts(control)
    law_control_keeps_the_distribution(control, Rejection())


def test_requests_do_not_mix():
    """Each draft's chances multiply up by themselves, and begin anew with every draft."""
    controlling = SpecDecPP(head=Known(), stop_above=0.5).open(lambda: EVEN)
    sure, unsure = Guess(1, 0.9), Guess(1, 0.6)
    assert controlling.goes_on([1, 2], [[sure], [unsure]]) == [True, True]
    assert controlling.goes_on([2, 1], [[unsure, unsure], [sure, sure]]) == [False, True]
    assert controlling.goes_on([2, 3], [[unsure], [unsure]]) == [True, True]


def test_no_answer_changes():
    """Through the engine, in a crowd: plain decoding's answers, bit for bit, and some drafts stop before others."""
    asks, drafted = free_asks()[:4], []
    wanted = told(opened(None, is_native=NATIVE), asks)
    for control in (SpecDecPP(head=head(96), stop_above=0.6, num=4), Fixed(num=4)):
        process = opened(LayerSkip(least=0.0, num=3, ends=1), control=control, is_native=NATIVE)
        assert told(process, asks) == wanted
        drafted.append(process.totals.drafted_tokens)
    assert 0 < drafted[0] < drafted[1]


def test_the_file_holds_the_head(tmp_path):
    made = head(8)
    save_accept_head(made, tmp_path / "accept.safetensors")
    found = load_accept_head(tmp_path / "accept.safetensors")
    drafts = [[Guess(1, 0.5, None, torch.randn(8)), Guess(1, 0.2, None, torch.randn(8))], [Guess(1, 0.0, None, torch.randn(8).bfloat16())]]
    assert found.chances(drafts) == made.chances(drafts) and found.facts == made.facts and found.drafter == "toy"
    assert found.chances(drafts)[0] != found.chances([drafts[0][1:]])[0]  # the draft so far counts
    with pytest.raises(BadField, match="trained on toy, width 8"):
        found.chances([[Guess(1, 0.5, None, torch.zeros(9))]])
    with pytest.raises(BadField, match="without a hidden state"):
        found.chances([[Guess(1, 0.5)]])
    control = speculation(f"layer_skip/coupled/{tmp_path}/accept.safetensors:stop_above=0.2").control
    assert isinstance(control, SpecDecPP) and control.stop_above == 0.2 and control.head.facts == made.facts


def test_files_that_are_no_heads_are_refused(tmp_path):
    with pytest.raises(StoreError, match="train-length"):
        load_accept_head(tmp_path / "none.safetensors")
    bad = AcceptHead(drafter="toy", w_in=torch.zeros(4, 5), w_out=torch.zeros(3), w_skip=torch.zeros(5), bias=torch.zeros(1), facts={})
    save_accept_head(bad, tmp_path / "bad.safetensors")
    with pytest.raises(BadField, match="damaged"):
        load_accept_head(tmp_path / "bad.safetensors")


@pytest.mark.parametrize("change", [{"stop_above": 1.5}, {"num": -1}])
def test_bad_settings_are_refused(change):
    with pytest.raises(BadField, match="must be in"):
        SpecDecPP(head=Known(), **change)


def test_a_spec_may_have_files_in_two_parts(tmp_path):
    save_accept_head(head(8), tmp_path / "accept.safetensors")
    with pytest.raises(StoreError, match=r"heads\.safetensors"):
        speculation(f"{tmp_path}/heads.safetensors/coupled/{tmp_path}/accept.safetensors")
    assert isinstance(speculation("ngram").acceptor, Coupled)
