"""`--draft`: what it may say, and that an answer does not depend on it."""

import pytest

from ponder import catalogue
from ponder.accelerate.accept.coupled import Coupled
from ponder.accelerate.accept.rejection import Rejection
from ponder.accelerate.draft.ngram import Ngram
from ponder.accelerate.length.expected import Expected
from ponder.accelerate.length.fixed import Fixed
from ponder.connect.elsewhere import check_settings
from ponder.core.accelerations import Accelerations
from ponder.core.errors import BadField, UnknownName


def test_what_a_draft_may_say():
    plain = catalogue.speculation("ngram")
    assert (plain.drafter, plain.acceptor, plain.control) == (Ngram(), Coupled(), Expected())
    full = catalogue.speculation("ngram:num=4,longest=5/rejection/fixed:num=3")
    assert (full.drafter, full.acceptor, full.control) == (Ngram(num=4, longest=5), Rejection(), Fixed(num=3))


@pytest.mark.parametrize("spec", ["nggram", "ngram/couple", "ngram/coupled/fix", "ngram:scope=session", ""])
def test_unknown_names_are_refused(spec):
    with pytest.raises(UnknownName):
        catalogue.speculation(spec)


def test_wrong_drafts_are_refused_before_a_model_is_opened():
    with pytest.raises(BadField, match="has 4 parts"):
        catalogue.speculation("ngram/coupled/fixed/fixed")
    for model, error in (("nowhere.gguf", UnknownName), ("http://127.0.0.1:1/v1#x", UnknownName)):
        with pytest.raises(error):
            check_settings(model, weights=None, device="cpu", threads=None, context=None, accelerations=Accelerations(draft="nothing"))
    with pytest.raises(BadField, match="draft=ngram"):
        check_settings("http://127.0.0.1:1/v1#x", weights=None, device="cpu", threads=None, context=None, accelerations=Accelerations(draft="ngram"))


@pytest.mark.parametrize(
    "pair", [{"draft": "ngram", "attend": "s2"}, {"cache": "snapkv:0.5", "attend": "s2"}, {"cache": "h2o:0.5", "layers": "lazyllm:0.5"}]
)
def test_accelerations_that_do_not_go_together_are_refused_before_a_model_is_read(pair, tmp_path):
    with pytest.raises(BadField, match=r"leave one (of them )?out"):
        catalogue.open_model(tmp_path / "nothing.gguf", accelerations=Accelerations(**pair))
