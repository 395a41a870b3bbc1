"""DeviceProcess, whole: on the CPU from the same code against LocalProcess, transformers and itself; marked tests do the same on a card.

Equal work is equal up to rounding there (TOLERANCE in nats over a short answer), not bit for bit: sums depend on shapes.
"""

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from engine.tiny_models import END, VOCAB, ByteTokenizer, tiny
from models.tiny_families import hf_model, save_folder
from ponder.accelerate.schedule.sarathi import Sarathi
from ponder.accelerate.weights.dense import Bf16, Bf16Head
from ponder.accelerate.weights.dense_device import DenseDevice, DenseDeviceHead
from ponder.core.asks import GREEDY, Answer, Ask, Expand, Expansion, Extend, Extension, Prefix, Regex, Sampling, Score, Scores, chat
from ponder.engine import attend_device, device_process, graphs
from ponder.engine.device_process import DeviceProcess
from ponder.engine.graphs import bucket, power
from ponder.engine.process import LocalProcess, Settings
from ponder.models.checkpoint import open_checkpoint
from ponder.models.decoder import Decoder, load
from ponder.models.place import place
from ponder.testing.laws_process import LAWS
from ponder.testing.run import answer_turn

pytestmark = pytest.mark.filterwarnings("ignore")
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
TOLERANCE = 1e-3
SMALL = 180_000  # bytes of keys and values: too few for a crowd, in float32
PROMPT = chat("Say something.", max_tokens=12)
FAMILIES = ("llama3", "mistral", "mixtral", "qwen2", "qwen3", "qwen2moe", "gemma2", "gemma3", "phi3", "smollm3", "olmo2", "olmoe")


def decoder_on(device: str, checkpoint, dtype: torch.dtype = torch.float32) -> Decoder:
    where = torch.device(device)
    weights, head = DenseDevice(device=where, dtype=dtype), DenseDeviceHead(device=where, dtype=dtype)
    return place(load(checkpoint, weights, head, dtype), weights, where)


DECODER = decoder_on("cpu", tiny("qwen2")[0])


def process_on(device: str, kind: type[LocalProcess] = DeviceProcess, **settings) -> LocalProcess:
    decoder = DECODER if device == "cpu" else decoder_on(device, tiny("qwen2")[0])
    return kind(decoder, ByteTokenizer(), Sarathi(), Settings(**{"kv_bytes": 1 << 24, **settings}))


def answers(process: LocalProcess, asks: Sequence[Ask]) -> list[Answer]:
    return list(answer_turn(asks, process))


def extend(prefix: Prefix, seed: int = 0, max_tokens: int | None = None, temperature: float = 1.0) -> Extend:
    return Extend(prefix=prefix, seed=seed, max_tokens=max_tokens, sampling=Sampling(temperature=temperature), certainty=True)


def require_near(found: Sequence[Answer], wanted: Sequence[Answer], tolerance: float = TOLERANCE) -> None:
    """The same tokens, texts and ends; numbers within the tolerance."""
    for a, b in zip(found, wanted, strict=True):
        assert type(a) is type(b)
        if isinstance(a, Extension):
            assert (a.prefix.tokens, a.prefix.text, a.finish) == (b.prefix.tokens, b.prefix.text, b.finish)
            numbers = [(p.log_p, p.log_q, p.certainty) for p in (a.prefix, b.prefix)]
            assert numbers[0] == pytest.approx(numbers[1], abs=tolerance)
        elif isinstance(a, Expansion):
            assert [c.tokens for c in a.children] == [c.tokens for c in b.children]
            assert [c.log_p for c in a.children] == pytest.approx([c.log_p for c in b.children], abs=tolerance)
        else:
            assert a.log_p == pytest.approx(b.log_p, abs=tolerance)


def mixed_asks(seed: int, prefixes: Sequence[Prefix]) -> list[Ask]:
    rng = random.Random(seed)
    asks: list[Ask] = []
    for prefix in prefixes:
        asks.append(extend(prefix, rng.randrange(99), rng.choice([None, 1, 3, 9]), rng.choice([0.0, 0.7, 1.0])))
        asks.append(Score(prefix=prefix, options=("yes", "no way", "", "y" * 70)))
        asks.append(Expand(prefix=prefix, num=3))
    return asks


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("law", [law for law in LAWS if law.__name__ != "law_until"], ids=lambda law: law.__name__)
def test_laws(law, device: str):
    law(lambda: process_on(device), PROMPT, TOLERANCE)


@pytest.mark.parametrize("device", DEVICES)
def test_it_answers_as_the_local_process(device: str):
    """The same asks, coupled by their seeds, two turns of which the second forks from the first."""
    prefixes = [Prefix(chat("x" * n, max_tokens=10)) for n in (1, 15, 130)]
    found, wanted = process_on(device), process_on("cpu", LocalProcess)
    for turn in range(2):
        asks = mixed_asks(turn, prefixes)
        there, here = answers(found, asks), answers(wanted, asks)
        require_near(there, here)
        grown = [a.prefix for a in here if isinstance(a, Extension)] + [c for a in here if isinstance(a, Expansion) for c in a.children]
        prefixes = [p for p in grown if not p.is_final][::4]
    assert found.totals.generated_tokens == wanted.totals.generated_tokens > 20


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("max_rows", "kv_bytes", "chunk"), [(3, 1 << 24, 33), (64, SMALL, 512), (5, SMALL, 19)])
def test_an_answer_is_the_same_whatever_runs_beside_it(device: str, max_rows: int, kv_bytes: int, chunk: int):
    """Up to rounding: in a crowd, preempted, evicted, in other chunks, on pages that others had."""
    crowd = process_on(device, max_rows=max_rows, kv_bytes=kv_bytes, chunk=chunk)
    asks = mixed_asks(0, [Prefix(chat("x" * n, max_tokens=8)) for n in (1, 40, 130)])
    require_near(answers(crowd, asks), answers(process_on("cpu", LocalProcess), asks))  # which are those of each ask alone
    assert (crowd.num_preempted > 0) == (kv_bytes == SMALL)
    crowd.drop_cache()
    assert crowd.pool.num_used == 0, "pages leak"


@pytest.mark.parametrize("device", DEVICES)
def test_a_shared_prompt_is_computed_once_and_cancelling_disturbs_nobody(device: str):
    process, prompt = process_on(device), chat("x" * 200, max_tokens=8)
    alone = [answers(process_on(device), [extend(Prefix(prompt), seed)])[0] for seed in range(5)]
    tickets = [process.add(extend(Prefix(prompt), seed)) for seed in range(5)]
    for _ in range(3):
        process.step()
    cut = process.cancel(tickets.pop(2))
    assert cut.prefix.tokens == alone[2].prefix.tokens[: len(cut.prefix.tokens)]  # type: ignore[union-attr]
    done: dict[int, Answer] = {}
    while process.jobs:
        done.update(process.step())
    require_near([done[ticket] for ticket in tickets], alone[:2] + alone[3:])
    assert sum(a.cost.prompt_tokens for a in done.values()) == process.prompt_len(prompt)


@pytest.mark.parametrize("device", DEVICES)
def test_wishes_of_the_host_and_of_the_device_in_one_step(device: str):
    """Truncations, biases, penalties, lists and forms go to the host's sampler: the same answers as the local process gives."""
    kinds = [
        Sampling(), Sampling(top_k=5), Sampling(temperature=0.6, top_p=0.8), GREEDY, Sampling(logit_bias=((65, 4.0),)),
        Sampling(presence_penalty=1.5), Sampling(min_p=0.2), Sampling(temperature=0.4),
    ]  # fmt: skip
    asks: list[Ask] = [Extend(prefix=Prefix(PROMPT), seed=i, sampling=kind, logprobs=2 if i % 3 == 0 else None) for i, kind in enumerate(kinds)]
    asks.append(extend(Prefix(replace(PROMPT, form=Regex(pattern="(yes|no)+"))), 5))
    require_near(answers(process_on(device), asks), answers(process_on("cpu", LocalProcess), asks))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_says_what_transformers_says(name: str, device: str, tmp_path):
    """Logits of prompts and of generated tokens, in float32 to 1e-4, by scores of whole continuations."""
    values = {"vocab_size": VOCAB, "eos_token_id": END, "bos_token_id": END + 1}
    hf, decoder = hf_model(name, **values), decoder_on(device, open_checkpoint(save_folder(name, tmp_path, **values)))
    process = DeviceProcess(decoder, ByteTokenizer(), Sarathi(), Settings(kv_bytes=1 << 24))
    seen: list[torch.Tensor] = []
    inner = process.draws._draw
    process.draws._draw = lambda hidden, ints: seen.append(decoder.logits(hidden).cpu()) or inner(hidden, ints)  # type: ignore[method-assign, func-returns-value]
    process.decode.recorder.is_recording = False
    for prompt in (chat("ab" * n, max_tokens=6) for n in (1, 20)):
        seen.clear()
        (answer,) = answers(process, [Extend(prefix=Prefix(prompt), seed=0, sampling=GREEDY)])
        ids = process.tokenizer.render(prompt.messages)
        with torch.inference_mode():
            logits = hf(torch.tensor([ids + list(answer.prefix.tokens)]), use_cache=False).logits[0, len(ids) - 1 : -1]
        assert (torch.cat(seen) - logits).abs().max() < 1e-4 * max(1.0, logits.abs().max().item())
        assert len(seen) == len(answer.prefix.tokens)


def test_bf16_on_the_device_is_near_bf16_on_the_cpu():
    checkpoint, _ = tiny("qwen2")
    local = LocalProcess(load(checkpoint, Bf16(), Bf16Head()), ByteTokenizer(), Sarathi(), Settings(kv_bytes=1 << 24))
    device = DeviceProcess(decoder_on("cpu", checkpoint, torch.bfloat16), ByteTokenizer(), Sarathi(), Settings(kv_bytes=1 << 24))
    ask = Score(prefix=Prefix(PROMPT), options=("one way", "or another", "z"))
    (a,), (b,) = answers(local, [ask]), answers(device, [ask])
    assert isinstance(a, Scores)
    assert b.log_p == pytest.approx(a.log_p, rel=0.02)  # type: ignore[union-attr]


# ---- shapes


def test_buckets_hold_what_they_are_for():
    assert [bucket(n) for n in (1, 2, 3, 4, 5, 9, 17, 33, 49, 64, 65, 97, 129)] == [1, 2, 4, 4, 8, 16, 32, 48, 64, 64, 96, 128, 160]
    assert all(bucket(n) >= n and bucket(bucket(n)) == bucket(n) for n in range(1, 300))
    assert [power(n, 16) for n in (1, 16, 17, 100)] == [16, 16, 32, 128]


def touched(process: DeviceProcess, num: int, *, nobody: int | None = None) -> set[int]:
    """Pages whose keys, values or positions a padded step of `num` sequences changes, without those that it should write and nobody's."""
    pool, tables = process.pool, process.attention.tables
    prompts = [chat(chr(97 + i) * (3 + 2 * i), max_tokens=30) for i in range(num)]  # that share no prefix: all begin at once
    for i, prompt in enumerate(prompts):
        process.add(extend(Prefix(prompt), 7 + i))
    for _ in range(4):
        process.step()
    assert len(process.running) == num
    if nobody is not None:
        tables.pages[-1] = nobody
    generator = torch.Generator().manual_seed(0)
    everything = (pool.keys, pool.values, pool.positions)
    free = torch.from_numpy(pool.refs == 0)
    for table in everything[:2]:
        table[:-1][free] = torch.randn(int(free.sum()), *table.shape[1:], generator=generator)
    before = [table.clone() for table in everything]
    places = {t.pages.number: (t.pages, t.num_computed) for _, t in process.running}
    process.step()
    written = {int(page) for sequence, at in places.values() for place in (at, at + 1) for page in sequence.table[:, :, place // 16].ravel()}
    changed = torch.stack([(a != b).flatten(1).any(1) for a, b in zip(before, everything)]).any(0)
    for ticket in process.progress():
        process.cancel(ticket)
    return set(changed.nonzero()[:, 0].tolist()) - written - {pool.nobody}


def looking(is_ahead: bool, device: str = "cpu", kv_bytes: int = 1 << 24) -> tuple[DeviceProcess, list[Answer]]:
    """Asks that come one after the other, end at different times, share prefixes and want different things of the sampler; some are cancelled."""
    process = process_on(device, kv_bytes=kv_bytes)
    assert isinstance(process, DeviceProcess)
    process.looks_ahead = is_ahead
    rng, found = random.Random(5), {}
    prompts = [chat("abc" * n, max_tokens=6 + 3 * n) for n in range(1, 7)]
    for number in range(24):
        sampling = Sampling(top_k=5) if number % 6 == 5 else Sampling(temperature=rng.choice([0.0, 1.0]))
        ticket = process.add(Extend(prefix=Prefix(rng.choice(prompts)), seed=number, sampling=sampling))
        if number % 8 == 7:
            found[ticket] = process.cancel(ticket)
        for _ in range(rng.randrange(5)):
            found |= dict(process.step())
    while process.jobs:
        found |= dict(process.step())
    return process, [found[ticket] for ticket in sorted(found)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kv_bytes", [1 << 24, SMALL])
def test_what_is_computed_ahead_changes_no_answer(kv_bytes: int, device: str):
    process, found = looking(True, device, kv_bytes)
    require_near(found, looking(False, device, kv_bytes)[1])
    assert process.num_ahead > process.num_met > 0.6 * process.num_ahead, "rows were met, and some were nobody's"
    assert process.ahead is None or not process.ahead.of([])


def test_the_law_of_looking_ahead_has_teeth(monkeypatch: pytest.MonkeyPatch):
    """Wrong: rows found by their place alone."""
    asks = [extend(Prefix(PROMPT), seed) for seed in range(4)]
    right = answers(process_on("cpu"), asks)
    monkeypatch.setattr(device_process, "name_of", lambda span: (0, 0, span.start))
    with pytest.raises(AssertionError):
        require_near(answers(process_on("cpu"), asks), right)


@pytest.mark.parametrize("num", [1, 3, 5, 7])
def test_padded_rows_touch_nobodys_pages(num: int):
    process = process_on("cpu")
    assert isinstance(process, DeviceProcess)
    assert touched(process, num) == set()
    assert {name[0] for name in process.decode.shapes} >= {bucket(num)}


def test_the_law_of_padded_rows_has_teeth():
    """Wrong: rows that fill up a step write to page 900."""
    process = process_on("cpu")
    assert isinstance(process, DeviceProcess)
    assert process.pool.num_pages > 900
    assert touched(process, 3, nobody=900) == {900}


def test_padding_changes_no_answer(monkeypatch: pytest.MonkeyPatch):
    """Steps of the very number of sequences, and of the next bucket, twice as large or three times."""
    asks = [extend(Prefix(chat("ab" * n, max_tokens=10)), n) for n in range(1, 6)]
    found = []
    for size in (lambda n: n, graphs.bucket, lambda n: 2 * n, lambda n: 3 * n + 1):
        monkeypatch.setattr(graphs, "bucket", size)
        found.append(answers(process_on("cpu"), asks))
    for other in found[1:]:
        require_near(other, found[0], 1e-4)


def test_tables_grow_and_rows_change_hands():
    """More sequences than rows in turn, and one that outgrows the tables."""
    process = process_on("cpu", max_rows=2)
    assert isinstance(process, DeviceProcess)
    asks = [extend(Prefix(chat("ab" * n, max_tokens=6)), n) for n in (1, 5, 9, 13)]
    long = extend(Prefix(chat("x" * 290, max_tokens=8)), 3)
    require_near(answers(process, [*asks, long]), [answers(process_on("cpu"), [ask])[0] for ask in [*asks, long]])
    assert process.attention.tables.resized == 1
    assert process.attention.tables.pages.shape[3] > attend_device.MIN_PAGES


@pytest.mark.gpu
def test_steps_are_recorded_and_replayed_on_a_card():
    """Replayed steps answer as plain ones do."""
    recorded, plain = process_on("cuda"), process_on("cuda")
    assert isinstance(recorded, DeviceProcess)
    assert isinstance(plain, DeviceProcess)
    plain.decode.recorder.is_recording = False
    asks = [extend(Prefix(chat("ab" * n, max_tokens=20)), n, temperature=t) for n, t in ((1, 1.0), (7, 0.0), (40, 0.5))]
    require_near(answers(recorded, asks), answers(plain, asks))
    assert any(shape.recording.graph is not None for shape in recorded.decode.shapes.values())
    assert any(shape.recording.graph is not None for shape in recorded.draws.shapes.values())
    assert all(shape.recording.graph is None for shape in plain.decode.shapes.values())


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_on_a_card(dtype: torch.dtype):
    checkpoint, _ = tiny("qwen2")
    process = DeviceProcess(decoder_on("cuda", checkpoint, dtype), ByteTokenizer(), Sarathi(), Settings(kv_bytes=1 << 24))
    ask = Score(prefix=Prefix(PROMPT), options=("one way", "or another"))
    (found,), (wanted,) = answers(process, [ask]), answers(process_on("cpu"), [ask])
    assert found.log_p == pytest.approx(wanted.log_p, rel=0.05)  # type: ignore[union-attr]
    assert all(len(a.prefix.tokens) > 0 for a in answers(process, [extend(Prefix(PROMPT), s) for s in range(5)]))  # type: ignore[union-attr]
