"""A process with an attention plan: its answers do not depend on chunks, neighbours or what was cached; what it refuses."""

import pytest
import torch

from engine.tiny_models import ByteTokenizer, tiny_decoder
from ponder.accelerate.attend.dual_chunk import DualChunk
from ponder.accelerate.attend.dual_chunk_sparse import DualChunkSparse
from ponder.accelerate.attend.s2 import S2
from ponder.accelerate.attend.vertical_slash import VerticalSlash
from ponder.accelerate.schedule.sarathi import Sarathi
from ponder.catalogue import attention_plan
from ponder.core.asks import Answer, Ask, Extend, Prefix, Prompt, Sampling, Score
from ponder.core.errors import BadField, UnknownName
from ponder.engine.attend import Span
from ponder.engine.pages import Sequence as Pages
from ponder.engine.process import LocalProcess, Settings
from ponder.native.build import library
from ponder.testing.run import answer_turn

DECODER = tiny_decoder("qwen2")
PLANS = [
    S2(window=32, stride=3, num_dense=0),
    DualChunk(chunk=64, local=16),
    VerticalSlash(mass=0.5, window=16, segment=128, dense_below=128),
    DualChunkSparse(chunk=128, local=32, mass=0.5, window=16, segment=128, dense_below=128, check=64),
]
needs_kernel = pytest.mark.skipif(library() is None, reason="no compiled kernel here")


def open_process(plan, *, chunk: int = 512, kv_bytes: int = 1 << 24) -> LocalProcess:
    return LocalProcess(DECODER, ByteTokenizer(), Sarathi(), Settings(chunk=chunk, kv_bytes=kv_bytes, attend=plan))


def prompt_of(text: str) -> Prompt:
    return Prompt(messages=(("raw", text),), max_tokens=4)


def asks_of(num: int) -> list[Ask]:
    text = "".join(chr(97 + i * i * 7 % 23) for i in range(430))
    asks: list[Ask] = []
    for i in range(num):
        prefix = Prefix(prompt_of(text[: 430 - 37 * i]))  # each begins as the others do
        asks.append(Extend(prefix=prefix, seed=i, sampling=Sampling(temperature=0.9)))
    asks.append(Score(prefix=Prefix(prompt_of(text[:300])), options=("ab", "c")))
    return asks


def plain(answer: Answer) -> object:
    return answer.prefix.tokens if hasattr(answer, "prefix") else answer.log_p  # type: ignore[union-attr]


@needs_kernel
@pytest.mark.parametrize("plan", PLANS)
def test_answers_do_not_depend_on_chunks_neighbours_or_cache(plan):
    asks = asks_of(3)
    alone = [plain(answer_turn([ask], open_process(plan))[0]) for ask in asks]
    assert len(set(map(str, alone))) > 2
    for chunk in (64, 200):
        process = open_process(plan, chunk=chunk)
        for again in range(2):
            assert [plain(a) for a in answer_turn(asks[:: 1 if again else -1], process)][:: 1 if again else -1] == alone, (chunk, again)
    small = open_process(plan, chunk=64, kv_bytes=300_000)
    assert [plain(a) for a in answer_turn(asks, small)] == alone


@needs_kernel
@pytest.mark.parametrize("plan", PLANS)
def test_a_plan_that_says_it_changes_answers_does(plan):
    asks = asks_of(1)[1:]
    assert plain(answer_turn(asks, open_process(plan))[0]) != plain(answer_turn(asks, open_process(None))[0])


@needs_kernel
def test_cutting_inside_a_segment_would_be_seen():
    """Without the process's care for segments, the pattern of a prompt depends on its chunks: the test above has something to find."""
    plan, asks = PLANS[2], asks_of(1)[1:]
    process = open_process(plan, chunk=100)
    process.attention.segment = 1
    assert plain(answer_turn(asks, process)[0]) != plain(answer_turn(asks, open_process(plan))[0])


def test_unit_settings_change_no_answer():
    asks = asks_of(2)
    wanted = [plain(a) for a in answer_turn(asks, open_process(None))]
    for plan in (S2(stride=1), DualChunk(chunk=448, local=64), VerticalSlash(mass=1.0)):
        found = [plain(a) for a in answer_turn(asks, open_process(plan))]
        if library() is not None:
            assert found == wanted, plan


def test_what_a_process_is_called_says_its_plan():
    names = {open_process(plan).model_id for plan in (None, S2(), S2(stride=2), DualChunk())}
    assert len(names) == 4
    assert any("/attend-s2:" in name and "stride=2" in name for name in names)


def test_a_draft_tree_with_moved_positions_is_refused():
    attention = open_process(DualChunk(chunk=64, local=16)).attention
    sequence = Pages(attention.pool)
    assert sequence.reserve(4)
    with pytest.raises(BadField, match="token trees"):
        attention.plan([Span(sequence, 0, 2, 0, (-1, 0))])
    assert open_process(PLANS[2]).attention.plan([Span(sequence, 0, 2, 0, (-1, 0))]).has_trees


def test_plans_are_named_with_their_settings():
    assert attention_plan("vertical_slash:mass=0.9,window=128") == VerticalSlash(mass=0.9, window=128)
    with pytest.raises(UnknownName, match="vertical_slash"):
        attention_plan("vertical_slosh")
    with pytest.raises(UnknownName, match="mass"):
        attention_plan("vertical_slash:mas=1")


def test_heads_that_dropped_keys_meet_all_that_they_hold():
    process = open_process(S2(window=0, sinks=0, stride=6, num_dense=0))
    sequence = Pages(process.pool)
    assert sequence.reserve(101)
    rows = torch.randn(101, 10, 16, generator=torch.Generator().manual_seed(0)).to(DECODER.dtype)
    process.attention.plan([Span(sequence, 0, 100, 100)]).attend(0, rows[:100, :6], rows[:100, 6:8], rows[:100, 8:])
    sequence.num_tokens = 100
    assert sequence.keep(0, 0, torch.arange(50).numpy())
    q, k, v = rows[100:, :6], rows[100:, 6:8], rows[100:, 8:]
    spans = [Span(sequence, 100, 101, 101)]
    found = process.attention.plan(spans).attend(0, q, k, v)
    assert torch.equal(found, process.attention.plain(spans).attend(0, q, k, v))
