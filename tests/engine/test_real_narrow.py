"""SmolLM2 that drafts for itself with part of its feed-forwards: plain decoding's answers, every guess right with all of them, fewer with half."""

from pathlib import Path

import pytest

from ponder.catalogue import open_model
from ponder.core.accelerations import Accelerations
from ponder.core.asks import GREEDY, Extend, Extension, Prefix, Sampling
from ponder.native.build import library
from ponder.testing.prompts import varied_prompts
from ponder.testing.run import answer_turn


@pytest.mark.slow
@pytest.mark.skipif(library() is None, reason="without the kernels SmolLM2 is int4 here, of which no part can be had")
def test_answers_are_plain_decodings_and_guesses_as_good_as_what_is_kept(smollm2_path: Path):
    prompts = varied_prompts(3, max_tokens=16)
    asks = [Extend(prefix=Prefix(p), seed=i, sampling=(GREEDY, Sampling())[i % 2]) for i, p in enumerate(prompts)]
    wanted = answer_turn(asks, open_model(smollm2_path))
    shares = []
    for share in (1.0, 0.5, 0.1):
        process = open_model(smollm2_path, accelerations=Accelerations(draft=f"griffin:share={share},least=0,num=3/coupled/fixed:num=3"))
        for a, b in zip(wanted, answer_turn(asks, process), strict=True):
            assert isinstance(a, Extension) and isinstance(b, Extension)
            assert a.prefix == b.prefix and a.finish == b.finish
        shares.append(process.totals.accepted_tokens / process.totals.drafted_tokens)
    assert shares[0] > 0.9 > shares[1] > shares[2]
