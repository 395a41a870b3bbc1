"""Models that guess: one that is the target itself is always right; leaving out a layer that does nothing changes nothing."""

from dataclasses import replace

import pytest
import torch

from engine.test_branches import pages_of
from engine.test_rounds import DECODER, KERNELS, asks, told
from engine.tiny_models import ByteTokenizer, StateCheckpoint, tiny
from ponder.accelerate.accept.coupled import Coupled
from ponder.accelerate.accept.rejection import Rejection
from ponder.accelerate.draft.draft_model import DraftModel
from ponder.accelerate.draft.griffin import Griffin
from ponder.accelerate.draft.layer_skip import LayerSkip
from ponder.accelerate.length.fixed import Fixed
from ponder.accelerate.schedule.sarathi import Sarathi
from ponder.accelerate.weights.dense import Bf16, Bf16Head
from ponder.core.asks import Ask, Extend, Extension, Prefix, Sampling, chat
from ponder.core.draft import Acceptor, Context, Drafter, LengthControl, Speculation
from ponder.core.errors import BadField
from ponder.engine.attend import Attention
from ponder.engine.pages import Sequence as Pages
from ponder.engine.process import LocalProcess, Settings
from ponder.engine.runners import TwinRunner
from ponder.models.decoder import Decoder, load


def opened(
    drafter: Drafter | None, decoder: Decoder = DECODER, *, acceptor: Acceptor | None = None, control: LengthControl | None = None,
    is_native: bool = False, kv_bytes: int = 1 << 24,
):  # fmt: skip
    speculation = None if drafter is None else Speculation(drafter=drafter, acceptor=acceptor or Coupled(), control=control or Fixed(num=3))
    settings = Settings(speculation=speculation, twins=lambda twin: (decoder, ByteTokenizer()), is_native=is_native, kv_bytes=kv_bytes)
    return LocalProcess(decoder, ByteTokenizer(), Sarathi(), settings)


def free_asks() -> list[Ask]:
    return [ask for ask in asks() if isinstance(ask, Extend) and ask.prefix.prompt.form is None and not ask.forced]


def silent(layer: int) -> Decoder:
    """A model whose layer adds nothing to the stream."""
    checkpoint, _ = tiny("llama")
    silenced = (f"layers.{layer}.self_attn.o_proj.weight", f"layers.{layer}.mlp.down_proj.weight")
    state = {name: torch.zeros_like(x) if name.endswith(silenced) else x for name, x in checkpoint.state.items()}
    return load(StateCheckpoint(checkpoint.config, state), Bf16(), Bf16Head())


@pytest.mark.parametrize("is_native", KERNELS)
def test_the_target_as_its_own_twin_is_always_right(is_native: bool):
    """With penalties, truncation and drift: a draft is what plain decoding draws, so every token of it is accepted but for ends."""
    wanted = told(opened(None, is_native=is_native), free_asks())
    process = opened(DraftModel(least=0.0, num=3), is_native=is_native)
    assert told(process, free_asks()) == wanted
    runner = process.rounds.drafting.runner
    assert not runner.readings and runner.pool.num_used == 0
    wasted = process.totals.drafted_tokens - process.totals.accepted_tokens
    assert process.totals.accepted_tokens > 100
    assert wasted <= 3 * sum(isinstance(a, Extension) and a.finish in ("stop", "until") for a in wanted)


@pytest.mark.parametrize("is_native", KERNELS)
def test_a_layer_that_does_nothing_may_be_left_out(is_native: bool):
    decoder = silent(1)
    wanted = told(opened(None, decoder, is_native=is_native), free_asks())
    process = opened(LayerSkip(least=0.0, num=3, ends=1), decoder, is_native=is_native)
    assert told(process, free_asks()) == wanted
    wasted = process.totals.drafted_tokens - process.totals.accepted_tokens
    assert process.totals.accepted_tokens > 100 and wasted <= 3 * sum(isinstance(a, Extension) and a.finish in ("stop", "until") for a in wanted)


@pytest.mark.parametrize("drafter", [LayerSkip(least=0.0, num=3, ends=1), Griffin(least=0.0, num=3, share=0.1)])
def test_what_a_thinned_model_wrote_is_never_read(drafter: Drafter):
    """After every step keys are plain decoding's, though the layer that was left out matters and most drafts are wrong."""
    extends = free_asks()[:6]
    plain = opened(None)
    wanted = told(plain, extends)
    process = opened(drafter)
    tickets = [process.add(ask) for ask in extends]
    found = {}
    while process.jobs:
        found |= dict(process.step())
        for _, track in process.running:
            stored = plain.store.find(tuple(track.key[: track.num_computed]))
            theirs = Pages(plain.pool, plain.store.pages(stored), stored.num_tokens)
            assert stored.num_tokens == track.num_computed
            for mine, other in zip(pages_of(track.pages, track.num_computed), pages_of(theirs, track.num_computed)):
                assert torch.equal(mine, other)
    assert [found[t].prefix for t in tickets] == [a.prefix for a in wanted]
    assert process.totals.drafted_tokens > 2 * process.totals.accepted_tokens


@pytest.mark.parametrize("drafter", [DraftModel(num=2, is_weighed=True), LayerSkip(num=2, ends=1, is_weighed=True)])
def test_weighed_drafts_go_with_rejection(drafter: Drafter):
    process = opened(drafter, acceptor=Rejection())
    greedy = [ask for ask in free_asks() if isinstance(ask, Extend) and ask.sampling.temperature == 0]
    assert told(process, greedy) == told(opened(None), greedy)
    sampled = [Extend(prefix=Prefix(chat("x", max_tokens=12)), seed=seed) for seed in range(3)]
    assert all(isinstance(a, Extension) and len(a.prefix.tokens) > 0 for a in told(process, sampled))
    assert process.totals.drafted_tokens > 10


def test_a_twin_short_of_memory_forgets_and_reads_again():
    """Guesses of a twin that holds one request at a time equal those of one that holds all; one that holds none says so."""
    contexts = [Context(request=i, tokens=[60 + i] * (40 + i), num_prompt=30, room=4, max_depth=4, seed=i, sampling=Sampling()) for i in range(3)]
    make = lambda pool: Attention(DECODER.config, pool, is_native=False)
    pages = Pages(TwinRunner(DECODER, make, 1 << 20).pool).pool
    room = 4 * pages.heads * pages.page_nbytes
    roomy, narrow, none = TwinRunner(DECODER, make), TwinRunner(DECODER, make, room), TwinRunner(DECODER, make, pages.page_nbytes)
    with torch.inference_mode():
        for draft in ([], [65], [65, 66]):
            wanted = roomy.guess(contexts, [draft] * 3)
            for context, guess in zip(contexts, wanted):
                assert narrow.guess([context], [draft]) == [guess]
        assert len(narrow.readings) == 1 and len(roomy.readings) == 3
        assert none.guess(contexts, [[]] * 3) == [None] * 3
        long = replace(contexts[0], request=9, tokens=[60] * 600)
        assert roomy.guess([long], [[]]) == [None]


@torch.inference_mode()
def test_a_greedy_guess_says_how_sure_its_model_is():
    """And a drawn one how likely the draw was, at its temperature."""
    runner = TwinRunner(DECODER, lambda pool: Attention(DECODER.config, pool, is_native=False))
    greedy, drawn = (
        Context(request=i, tokens=list(range(40, 80)), num_prompt=30, room=4, max_depth=4, seed=3, sampling=Sampling(temperature=t))
        for i, t in enumerate((0.0, 0.7))
    )
    sure, likely = runner.guess([greedy, drawn], [[], []], with_log_q=True)
    logits = DECODER.logits(torch.stack([sure.hidden, likely.hidden]))
    assert sure.token == int(logits[0].argmax()) and sure.chance == pytest.approx(float(logits[0].softmax(-1).max()), rel=1e-3)
    assert likely.chance == pytest.approx(float((logits[1] / 0.7).softmax(-1)[likely.token]), rel=1e-3) and sure.chance < 1
    assert float(sure.log_q.exp().max()) == 1.0


def test_a_draft_that_is_taken_back_is_read_anew():
    context = Context(request=1, tokens=list(range(40, 80)), num_prompt=30, room=4, max_depth=4)
    make = lambda pool: Attention(DECODER.config, pool, is_native=False)
    used, fresh = TwinRunner(DECODER, make), TwinRunner(DECODER, make)
    with torch.inference_mode():
        used.guess([context], [[1, 2, 3]])
        used.guess([context], [[1, 5]])
        later = replace(context, tokens=[*context.tokens, 1, 9, 9])
        assert used.guess([later], [[4]]) == fresh.guess([later], [[4]])


def test_models_that_cannot_guess_are_refused():
    with pytest.raises(BadField, match="opens no other model"):
        LocalProcess(
            DECODER, ByteTokenizer(), Sarathi(), Settings(speculation=Speculation(drafter=DraftModel(), acceptor=Coupled(), control=Fixed()))
        )

    class Other(ByteTokenizer):
        pieces = (b"a", b"")

    speculation = Speculation(drafter=DraftModel(), acceptor=Coupled(), control=Fixed())
    with pytest.raises(BadField, match="take one of its family"):
        LocalProcess(DECODER, ByteTokenizer(), Sarathi(), Settings(speculation=speculation, twins=lambda twin: (DECODER, Other(pieces=(b"a",)))))
    for bad in (lambda: DraftModel(num=0), lambda: LayerSkip(every=1), lambda: DraftModel(least=2)):
        with pytest.raises(BadField, match="must be at least"):
            bad()
