"""Answers that read each other while they are written, in the engine: by the distances of each one's view, whatever runs beside them."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from engine.test_runners import opened
from engine.tiny_models import tiny_decoder
from ponder.accelerate.draft.draft_model import DraftModel
from ponder.accelerate.schedule.sarathi import Sarathi
from ponder.core.asks import Answer, Confer, Extend, Extension, Extensions, Prefix, Prompt, Score
from ponder.core.beside import LAYOUTS, Writer, stretches
from ponder.core.budget import Cost
from ponder.core.errors import BadField, NotOffered, PromptTooLong
from ponder.engine.conferring_process import ConferringProcess
from ponder.engine.jobs import Track
from ponder.engine.pages import INT8
from ponder.engine.process import LocalProcess, Settings
from ponder.models.decoder import Decoder
from ponder.models.rotary import frequencies
from ponder.testing import laws_confer as laws
from ponder.testing.byte_tokenizer import ByteTokenizer
from ponder.testing.laws_attend import Rows, Rule, dense_reference
from ponder.testing.laws_probe import Whole
from ponder.testing.run import answer_turn

EXACT, FAST = tiny_decoder(is_exact=True), tiny_decoder("qwen2")
TOLERANCE = 2e-4  # float32 log-probabilities of a model whose logits are of the order of 1
COMMON = "What three of us write now:"  # not whole pages
SMALL = 110_000  # bytes of keys and values: too few for a crowd


def raw(text: str, max_tokens: int = 24) -> Prompt:
    return Prompt(messages=(("raw", text),), max_tokens=max_tokens)


def process(decoder: Decoder = FAST, *, max_rows: int = 64, kv_bytes: int = 1 << 24, chunk: int = 512, is_native: bool = True) -> ConferringProcess:
    return ConferringProcess(
        decoder,
        ByteTokenizer(),
        Sarathi(chunk=min(chunk, 64), least=min(chunk, 16)),
        Settings(max_rows=max_rows, kv_bytes=kv_bytes, chunk=chunk, is_native=is_native),
    )


def told(process: LocalProcess, ask: Confer) -> tuple[Extension, ...]:
    (answer,) = answer_turn([ask], process)
    assert isinstance(answer, Extensions)
    return answer.extensions


def group(seed: int = 0, num: int = 3, *, layout: str = "contiguous", enough: int | None = None, max_tokens: int = 20) -> Confer:
    names = ("", " I am Bob.", " I, Cy, say this.", " D:")
    asks = (Extend(prefix=Prefix(raw(COMMON + names[i], max_tokens)), seed=10 * seed + i, certainty=True) for i in range(num))
    return Confer(asks=tuple(asks), layout=layout, separator="e", enough=enough)


TEXTS = ("one e two e three", "four e five e si", "sev e eight nine te")


def forced(layout: str) -> Confer:
    asks = (replace(a, forced=tuple(t.encode()), logprobs=0, max_tokens=len(t)) for a, t in zip(group().asks, TEXTS))
    return Confer(asks=tuple(asks), layout=layout, separator="e")


def log_p_of(found: Sequence[Extension]) -> list[list[float]]:
    return [[t.log_p for t in extension.logprobs] for extension in found]


# what a token meets, told apart from how the engine finds it


def view(layout: str, rests: Sequence[Sequence[int]], texts: Sequence[str], me: int, time: int) -> list[tuple[int, int]]:
    """(writer, place in its text) in the order in which token `time` of `me` meets them: the paper's three layouts, letter by letter."""
    whole = [[(w, i) for i in range(len(rests[w]) + min(time + (w == me), len(texts[w])))] for w in range(len(texts))]
    if layout == "contiguous":
        return [x for w, mine in enumerate(whole) if w != me for x in mine] + whole[me]
    steps = []  # (when it was done, writer, its letters)
    left = []
    for w, mine in enumerate(whole):
        begin = 0
        for at, (_, place) in enumerate(mine):
            count = place + 1 - len(rests[w])
            is_over = count == len(texts[w])
            if count > 0 and (texts[w][count - 1] == "e" or is_over) and count <= time:
                steps.append((count, w, mine[begin : at + 1]))
                begin = at + 1
        left.append(mine[begin:])
    done = [x for _, _, mine in sorted(steps) for x in mine]
    others = [x for w, mine in enumerate(left) if w != me for x in mine] if layout == "combined" else []
    return done + others + left[me]


@torch.inference_mode()
def dense(layout: str, decoder: Decoder = EXACT) -> list[list[float]]:
    """Log-probabilities of the forced texts, with all tokens in one flat pass in the order of time, each pair by its distance."""
    common = list(COMMON.encode())
    rests = [ByteTokenizer().render(a.prefix.prompt.messages)[len(common) :] for a in forced(layout).asks]
    names = [(-1, i) for i in range(len(common))] + [(w, i) for w in range(3) for i in range(len(rests[w]))]
    longest = max(map(len, TEXTS))
    names += [(w, len(rests[w]) + i) for i in range(longest) for w in range(3) if i < len(TEXTS[w])]
    at = {name: i for i, name in enumerate(names)}
    seen, distance = torch.zeros(len(names), len(names), dtype=torch.bool), torch.zeros(len(names), len(names), dtype=torch.int64)
    for (w, i), row in at.items():
        time = i - len(rests[w]) if w >= 0 else -1
        mine = [(-1, j) for j in range(len(common) if w >= 0 else i + 1)]
        mine += view(layout, rests, TEXTS, w, time) if time >= 0 else [(w, j) for j in range(i + 1)] if w >= 0 else []
        assert mine[-1] == (w, i)
        for place, name in enumerate(mine):
            seen[row, at[name]], distance[row, at[name]] = True, len(mine) - 1 - place
    frequency = frequencies(EXACT.config, "global")

    def attend(layer: int, q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor) -> Tensor:
        rows = Rows(q_THE.double(), k_TKE.double(), v_TKE.double(), frequency)
        window = decoder.config.window(layer)
        met = seen if window is None else seen & (distance < window)
        return dense_reference(rows, Rule(met[None], distance)).float().flatten(1)

    token = {(-1, i): t for i, t in enumerate(common)} | {(w, i): t for w in range(3) for i, t in enumerate([*rests[w], *TEXTS[w].encode()])}
    flat = torch.tensor([token[name] for name in names])
    log_p = decoder.logits(decoder.forward(flat, torch.zeros(len(flat), dtype=torch.int64), attend)).float().log_softmax(-1)
    before = lambda w, i: at[(w, len(rests[w]) + i - 1)] if len(rests[w]) + i else at[(-1, len(common) - 1)]
    return [[float(log_p[before(w, i), token[(w, len(rests[w]) + i)]]) for i in range(len(TEXTS[w]))] for w in range(3)]


def worst(found: list[list[float]], wanted: list[list[float]]) -> float:
    assert [len(x) for x in found] == [len(x) for x in wanted]
    return max(abs(a - b) for x, y in zip(found, wanted) for a, b in zip(x, y))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_token_reads_by_the_distances_of_its_view(layout: str):
    assert worst(log_p_of(told(process(EXACT), forced(layout))), dense(layout)) < TOLERANCE


def test_windows_go_by_the_distances_of_the_view():
    decoder = replace(EXACT, config=replace(EXACT.config, windows=(None, 20, None)))
    found = log_p_of(told(process(decoder), forced("combined")))
    assert worst(found, dense("combined", decoder)) < TOLERANCE
    assert worst(found, dense("combined")) > 50 * TOLERANCE


def test_layouts_are_not_the_same():
    found = [log_p_of(told(process(EXACT), forced(layout))) for layout in LAYOUTS]
    assert min(worst(found[i], found[j]) for i, j in ((0, 1), (0, 2), (1, 2))) > 50 * TOLERANCE


# where another's text was there first: a plain pass over the re-ordered sequence


def reordered(far: int = 0) -> float:
    """How far the log-probabilities of an answer behind another's text are from those of plain decoding behind both."""
    prompt, text = Prompt(messages=(("raw", "A question."),), max_tokens=20), tuple(b"so it is ab")
    first = Extend(prefix=Prefix(replace(prompt, prefill="One says this first. ")), seed=0, max_tokens=0)
    second = Extend(prefix=Prefix(prompt), seed=0, forced=text, max_tokens=len(text), logprobs=0)
    (plain,) = answer_turn([replace(second, prefix=Prefix(first.prefix.prompt))], process(EXACT))
    assert isinstance(plain, Extension)
    found = log_p_of(told(Turned(EXACT, far), Confer(asks=(first, second))))
    return worst([found[1][1:]], [log_p_of([plain])[0][1:]])


class Turned(ConferringProcess):
    """Turns queries some positions too far to what others wrote."""

    def __init__(self, decoder: Decoder, far: int = 0) -> None:
        super().__init__(decoder, ByteTokenizer(), Sarathi(), Settings(kv_bytes=1 << 24))
        self.far = far

    def _met(self, job, me, place):
        own = job.tracks[me].pages
        return tuple(s if s.sequence is own else replace(s, turn=s.turn + self.far) for s in super()._met(job, me, place))


def test_behind_anothers_text_it_is_a_plain_pass_over_the_reordered_sequence():
    assert reordered() < TOLERANCE


@pytest.mark.parametrize("far", [1, -1])
def test_a_query_turned_one_position_off_is_found(far: int):
    assert reordered(far) > 5 * TOLERANCE


# laws of the role


@pytest.mark.parametrize("law", laws.LAWS, ids=lambda law: law.__name__)
def test_law(law):
    law(lambda: process(chunk=20), group())


CROWDS = [  # layout, compiled kernel, max_rows, kv_bytes, chunk
    ("contiguous", True, 64, 1 << 24, 512), ("contiguous", True, 3, 1 << 24, 33), ("combined", True, 64, SMALL, 512),
    ("combined", False, 4, SMALL, 3), ("interleaved", True, 4, SMALL, 20),
]  # fmt: skip


@pytest.mark.parametrize(("layout", "is_native", "max_rows", "kv_bytes", "chunk"), CROWDS)
def test_answers_are_the_same_whatever_runs_beside_them(layout: str, is_native: bool, max_rows: int, kv_bytes: int, chunk: int):
    """Bit for bit: alone in a fresh process, or in a crowd, in other chunks, put back among the waiting."""
    groups = [group(1, layout=layout), group(2, num=2, layout=layout, enough=1)]
    crowd = process(max_rows=max_rows, kv_bytes=kv_bytes, chunk=chunk, is_native=is_native)
    others = [Extend(prefix=Prefix(raw(COMMON + "x" * n, 12)), seed=n) for n in (1, 15, 40, 63)]
    found = answer_turn([*others[:2], groups[0], *others[2:], groups[1]], crowd)
    alone = [answer_turn([ask], process(is_native=is_native))[0] for ask in (*others[:2], groups[0], *others[2:], groups[1])]
    assert [bare(x) for x in found] == [bare(x) for x in alone]
    assert (crowd.num_preempted > 0) == (kv_bytes == SMALL)
    assert not crowd.jobs and not crowd.groups and not crowd.running and not crowd.waiting
    crowd.drop_cache()
    assert crowd.pool.num_used == 0, "pages leak"


def bare(answer: Answer) -> Answer:
    if isinstance(answer, Extensions):
        return replace(answer, extensions=tuple(replace(x, cost=Cost()) for x in answer.extensions), cost=Cost())
    return replace(answer, cost=Cost())


def test_given_beginnings_are_read_again_as_they_were_written():
    """Going on from what a group wrote is going on with it, bit for bit."""
    whole = told(process(), group(max_tokens=18))
    half = told(process(), Confer(asks=tuple(replace(a, max_tokens=7) for a in group(max_tokens=18).asks), separator="e"))
    assert all(x.finish == "limit" for x in half)
    asks = tuple(replace(a, prefix=x.prefix) for a, x in zip(group(max_tokens=18).asks, half))
    again = told(process(chunk=9), Confer(asks=asks, separator="e"))
    assert [(x.prefix.tokens, x.prefix.log_p) for x in again] == [(x.prefix.tokens, pytest.approx(x.prefix.log_p, abs=1e-9)) for x in whole]


# pages


def test_pages_are_held_until_the_last_of_the_group_is_over():
    prompts = process()
    ask = group(num=2)
    short = replace(ask, asks=(replace(ask.asks[0], max_tokens=3), ask.asks[1]))
    ticket, job = prompts.add(short), None
    held: list[bool] = []
    while prompts.jobs:
        job = prompts.jobs[ticket]
        prompts.step()
        if ticket in prompts.jobs and job.members[0].finish is not None:
            held.append(job.tracks[0].pages is not None and job.tracks[0].num_computed >= len(job.tracks[0].key) - 1)
    assert len(held) > 5 and all(held)
    assert job is not None and all(track.pages is None for track in job.tracks)
    prompts.drop_cache()
    assert prompts.pool.num_used == 0


def test_a_cancelled_group_frees_all_at_once():
    crowd = process()
    ticket, other = crowd.add(group()), crowd.add(group(5, num=2))
    for _ in range(6):
        crowd.step()
    crowd.cancel(ticket)
    assert set(crowd.groups) == set(crowd.jobs[other].tracks)
    crowd.cancel(other)
    crowd.drop_cache()
    assert crowd.pool.num_used == 0 and not crowd.groups


def test_nothing_of_an_answer_goes_to_the_prefix_store():
    first = process()
    written = told(first, group())
    crowd = answer_turn(
        [Score(prefix=x.prefix if not x.prefix.is_final else replace(x.prefix, finish=None), options=("yes",)) for x in written], first
    )
    clean = answer_turn([Score(prefix=replace(x.prefix, finish=None), options=("yes",)) for x in written], process())
    assert [x.log_p for x in crowd] == [x.log_p for x in clean]


# mutants of the engine


def disturbed(*numbers: int) -> tuple[Extension, ...]:
    """What a group writes some of whose workers are put back on the way."""
    crowd = process(chunk=3)
    ticket, done = crowd.add(group()), dict[int, Answer]()
    job = crowd.jobs[ticket]
    while ticket not in done:
        if numbers and len(job.members[0].tokens) == 12:
            for number in numbers:
                crowd._preempt(job.tracks[number])
            numbers = ()
        done.update(crowd.step())
    return bare(done[ticket]).extensions


@pytest.mark.parametrize("numbers", [(0,), (1,), (2, 0), (0, 1, 2)])
def test_workers_that_are_put_back_compute_again_what_they_lost(numbers: tuple[int, ...]):
    assert disturbed(*numbers) == disturbed()


def test_without_the_barrier_it_is_not_the_same(monkeypatch: pytest.MonkeyPatch):
    """A worker that goes on while another computes again what it lost meets keys that are not there."""
    wanted = disturbed()
    monkeypatch.setattr(ConferringProcess, "_stop", hasty)
    assert disturbed() == wanted
    assert disturbed(1) != wanted


def hasty(self: ConferringProcess, track: Track) -> int:
    """Waits only until the others have read their prompts."""
    job, _ = self.groups.get(track, (None, 0))
    are_there = job is None or all(other.num_computed >= other.num_prompt for other in job.tracks)
    return len(track.key) if track.num_computed >= track.num_prompt and are_there else max(track.num_computed, track.num_prompt)


@pytest.mark.parametrize("by", [1, -1])
def test_time_one_off_is_found(by: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ponder.engine.conferring_process.stretches", lambda layout, writers, me, time: off_by(layout, writers, me, time, by))
    assert worst(log_p_of(told(process(EXACT), forced("contiguous"))), dense("contiguous")) > 5 * TOLERANCE


def off_by(layout: str, writers: Sequence[Writer], me: int, time: int, by: int) -> list[tuple[int, int, int]]:
    """Others' tokens a step early or late, as far as they are computed."""
    found = stretches(layout, writers, me, time)
    return [(o, a, max(a + 1, min(b + by, writers[o].num_rest + writers[o].num - 1)) if o != me else b) for o, a, b in found]


# what it cannot do


def test_what_cannot_be_asked():
    with pytest.raises(BadField, match="computes 2 sequences at once"):
        process(max_rows=2).add(group())
    with pytest.raises(BadField, match="kv_bytes allows"):
        process(kv_bytes=60_000).add(group())
    with pytest.raises(PromptTooLong, match="leave room"):
        process().add(
            Confer(
                asks=tuple(Extend(prefix=Prefix(raw("x" * 300 + str(i))), seed=i) for i in range(2))
                + tuple(Extend(prefix=Prefix(raw(str(i) * 200)), seed=i) for i in range(2))
            )
        )
    with pytest.raises(NotOffered, match="Confer"):
        LocalProcess(FAST, ByteTokenizer(), Sarathi(), Settings(kv_bytes=1 << 24)).add(group())
    with pytest.raises(BadField, match="layout"):
        Confer(asks=group().asks, layout="round")


def test_a_long_group_ends_with_the_context():
    """What a token meets is never longer than the model's context."""
    short = tiny_decoder("qwen2", context_len=96)
    found = told(process(short), group(max_tokens=90))
    common = len(COMMON)
    rests = [len(ByteTokenizer().render(a.prefix.prompt.messages)) - common for a in group().asks]
    most = (96 - common - sum(rests)) // 3
    assert max(len(x.prefix.tokens) for x in found) == most
    assert {x.finish for x in found if len(x.prefix.tokens) == most} <= {"length", "stop"}


def test_a_group_beside_guesses_is_the_same():
    """Answers of a group are not guessed ahead; those beside it are, and nobody's change."""
    others = [Extend(prefix=Prefix(raw(COMMON + "x" * n, 12)), seed=n) for n in (1, 40)]
    crowd = opened(DraftModel(least=0.0, num=3), FAST, is_native=True)
    found = answer_turn([others[0], group(1), others[1], group(2, enough=1)], crowd)
    alone = [answer_turn([ask], process())[0] for ask in (others[0], group(1), others[1], group(2, enough=1))]
    assert [bare(x) for x in found] == [bare(x) for x in alone]
    assert found[0].cost.drafted_tokens > 0 and found[1].cost.drafted_tokens == 0


def test_keys_in_eight_bits_and_probes():
    settings = Settings(kv_bytes=1 << 24, kv_format=INT8)
    asks = [*group(5).asks, group(1)]
    alone, crowd = (ConferringProcess(FAST, ByteTokenizer(), Sarathi(), settings) for _ in range(2))
    assert bare(answer_turn(asks[-1:], alone)[0]) == bare(answer_turn(asks, crowd)[-1])
    seen = told(process(), replace(group(1), asks=tuple(replace(a, probes=(Whole(),)) for a in group(1).asks)))
    assert [replace(x, prefix=replace(x.prefix, readings=())) for x in seen] == list(told(process(), group(1)))
    assert all(len(dict(x.prefix.readings)["whole"]) == len(x.prefix.tokens) > 0 for x in seen)
