"""LocalProcess on tiny random models: the laws of its role, bit equality, exact counts, strings, ends."""

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from engine.tiny_models import END, VOCAB, ByteTokenizer, tiny, tiny_decoder, tiny_process
from ponder.core.asks import GREEDY, Answer, Ask, Expand, Expansion, Extend, Extension, Judge, Prefix, Sampling, Score, Scores, chat
from ponder.core.budget import Cost
from ponder.core.errors import BadField, PromptTooLong
from ponder.engine.process import LocalProcess
from ponder.testing.laws_process import LAWS
from ponder.testing.run import answer_turn

DECODER = tiny_decoder("qwen2")
SMALL = 110_000  # bytes of keys and values: too few for a crowd
PROMPT = chat("Say something.", max_tokens=24)


def answers(process: LocalProcess, asks: Sequence[Ask]) -> list[Answer]:
    return list(answer_turn(asks, process))


def extend(prefix: Prefix, seed: int = 0, max_tokens: int | None = None, until: tuple[str, ...] = (), temperature: float = 1.0) -> Extend:
    return Extend(prefix=prefix, seed=seed, max_tokens=max_tokens, until=until, sampling=Sampling(temperature=temperature), certainty=True)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_laws(law, family: str):
    decoder = tiny_decoder(family)
    law(lambda: tiny_process(decoder), PROMPT, 0.0)


def test_greedy_tokens_equal_transformers():
    decoder, (_, hf) = tiny_decoder("qwen2", is_exact=True), tiny("qwen2")
    process = tiny_process(decoder)
    prompts = [chat("ab" * n, max_tokens=20) for n in (1, 9, 40)]
    found = answers(process, [extend(Prefix(p), temperature=0.0) for p in prompts])
    for prompt, answer in zip(prompts, found):
        ids = process.tokenizer.render(prompt.messages)
        with torch.inference_mode():
            for token in answer.prefix.tokens:
                logits = hf(torch.tensor([ids])).logits[0, -1]
                assert logits[token] >= logits.max() - 1e-4
                ids.append(token)
    assert all(len(a.prefix.tokens) > 3 for a in found)


def mixed_asks(seed: int, prefixes: Sequence[Prefix]) -> list[Ask]:
    rng = random.Random(seed)
    asks: list[Ask] = []
    for prefix in prefixes:
        asks.append(extend(prefix, rng.randrange(99), rng.choice([None, 1, 3, 9]), temperature=rng.choice([0.0, 0.7, 1.0])))
        asks.append(Score(prefix=prefix, options=("yes", "no way", "", "y" * 70)))
        asks.append(Expand(prefix=prefix, num=3))
    return asks


def bare(answer: Answer) -> Answer:
    return replace(answer, cost=Cost())


@pytest.mark.parametrize(("max_rows", "kv_bytes", "chunk"), [(64, 1 << 24, 512), (3, 1 << 24, 33), (64, SMALL, 512), (5, SMALL, 7)])
def test_an_answer_is_the_same_whatever_runs_beside_it(max_rows: int, kv_bytes: int, chunk: int):
    """Bit for bit: alone in a fresh process, or in a crowd, after others, evicted, in other chunks."""
    prompts = [chat("x" * n, max_tokens=12) for n in (1, 15, 63, 130)]
    crowd = tiny_process(DECODER, max_rows=max_rows, kv_bytes=kv_bytes, chunk=chunk)
    prefixes = [Prefix(p) for p in prompts]
    for turn in range(2):
        asks = mixed_asks(turn, prefixes)
        found = answers(crowd, asks)
        alone = [answers(tiny_process(DECODER), [ask])[0] for ask in asks]
        assert [bare(a) for a in found] == [bare(a) for a in alone]
        grown = [a.prefix for a in found if isinstance(a, Extension)] + [c for a in found if isinstance(a, Expansion) for c in a.children]
        prefixes = [p for p in grown if not p.is_final][::4]
    assert crowd.nbytes <= kv_bytes
    assert (crowd.num_preempted > 0) == (kv_bytes == SMALL)
    assert not crowd.jobs
    assert not crowd.running
    assert not crowd.waiting


def test_costs_add_up_to_the_loops_own():
    process, rng = tiny_process(DECODER, chunk=20, kv_bytes=SMALL), random.Random(4)
    prompts = [chat("x" * n, max_tokens=30) for n in (5, 40, 41, 90)]
    costs, tickets = [], []
    for round_number in range(60):
        for prompt in rng.sample(prompts, 2):
            ask = rng.choice(mixed_asks(round_number, [Prefix(prompt)]))
            tickets.append(process.add(ask))
        for _ in range(rng.randint(1, 6)):
            costs.extend(answer.cost for ticket, answer in process.step() if tickets.remove(ticket) is None)
        if tickets and rng.random() < 0.4:
            costs.append(process.cancel(tickets.pop(rng.randrange(len(tickets)))).cost)
    while process.jobs:
        costs.extend(answer.cost for _, answer in process.step())
    total = sum(costs, Cost())
    for name in ("prompt_tokens", "reused_tokens", "generated_tokens", "calls"):
        assert getattr(total, name) == getattr(process.totals, name), name
    assert total.flops == pytest.approx(process.totals.flops, rel=1e-12)
    process.drop_cache()
    assert process.pool.num_used == 0, "pages leak"


def test_a_shared_prompt_is_computed_once():
    process = tiny_process(DECODER)
    prompt = chat("x" * 200, max_tokens=5)
    found = answers(process, [extend(Prefix(prompt), seed) for seed in range(32)])
    length = process.prompt_len(prompt)
    assert [a.cost.prompt_tokens for a in found] == [length] + [0] * 31
    assert [a.cost.reused_tokens for a in found] == [0] + [length] * 31


def test_going_on_costs_no_prompt_token():
    """Token by token along one path, and a fork of it: generated tokens are paid once."""
    process, prefix, cost = tiny_process(DECODER), Prefix(PROMPT), Cost()
    while not prefix.is_final:
        (answer,) = answers(process, [extend(prefix, max_tokens=1, temperature=0.0)])
        prefix, cost = answer.prefix, cost + answer.cost
    assert cost.prompt_tokens == process.prompt_len(PROMPT)
    assert cost.generated_tokens == len(prefix.tokens)
    base = process.totals.prompt_tokens
    open_end = replace(prefix, tokens=prefix.tokens[:4], finish=None)
    answers(process, [extend(open_end, seed, max_tokens=2) for seed in range(4)])
    assert process.totals.prompt_tokens - base <= 1


def test_scores_share_their_prefix():
    process = tiny_process(DECODER)
    (scores,) = answers(process, [Score(prefix=Prefix(PROMPT), options=("abc", "abd", "abc", ""))])
    assert isinstance(scores, Scores)
    assert scores.log_p[0] == scores.log_p[2]
    assert scores.log_p[3] == 0.0
    assert scores.cost.prompt_tokens == process.prompt_len(PROMPT) + 2 + 2
    steps = 0.0
    prefix = Prefix(PROMPT)
    for byte in b"abc":
        (children,) = answers(process, [Expand(prefix=prefix, num=VOCAB)])
        prefix = next(c for c in children.children if c.tokens[-1] == byte)
    steps = prefix.log_p
    assert scores.log_p[0] == pytest.approx(steps, abs=1e-9)


def test_cancel_frees_and_returns_what_there_is():
    process = tiny_process(DECODER)
    (whole,) = answers(process, [extend(Prefix(PROMPT))])
    tickets = [
        process.add(extend(Prefix(PROMPT))),
        process.add(Score(prefix=Prefix(PROMPT), options=("ab",))),
        process.add(Expand(prefix=Prefix(PROMPT), num=2)),
    ]
    waiting = process.cancel(tickets[2])
    assert waiting == Expansion((), Cost(calls=1))
    for _ in range(4):
        process.step()
    progress = process.progress()[tickets[0]]
    assert (progress.prompt_tokens, progress.generated_tokens, progress.row_tokens) == (0, 4, 1)
    cut = process.cancel(tickets[0])
    assert (cut.finish, cut.prefix.finish, cut.prefix.tokens) == ("budget", "budget", whole.prefix.tokens[:4])
    assert not process.running
    with pytest.raises(BadField, match="not under way"):
        process.cancel(tickets[0])
    (again,) = answers(process, [extend(replace(cut.prefix, finish=None))])
    assert again.prefix == whole.prefix


def test_ends():
    process = tiny_process(DECODER)
    (whole,) = answers(process, [extend(Prefix(PROMPT), temperature=0.0)])
    for ask, cap, finish in (
        (extend(Prefix(PROMPT), max_tokens=3), 3, "limit"),
        (extend(Prefix(PROMPT), max_tokens=3), 2, "budget"),
        (extend(Prefix(PROMPT)), 0, "budget"),
        (extend(Prefix(replace(PROMPT, max_tokens=2)), max_tokens=2), 2, "length"),
    ):
        ticket = process.add(ask, cap)
        done: dict[int, Answer] = {}
        while ticket not in done:
            done.update(process.step())
        assert done[ticket].finish == finish
    assert whole.finish in ("stop", "length")


def test_context_end_and_too_long_prompts():
    decoder = tiny_decoder("llama", context_len=64)
    process = tiny_process(decoder)
    prompt = chat("x" * 60, max_tokens=50)
    (answer,) = answers(process, [extend(Prefix(prompt), seed=3)])
    assert answer.finish in ("stop", "length")
    assert len(answer.prefix.tokens) <= 3
    for text in ("x" * 63, "x" * 500):
        with pytest.raises(PromptTooLong, match="context holds 64"):
            process.add(extend(Prefix(chat(text))))
    with pytest.raises(PromptTooLong):
        process.add(Score(prefix=Prefix(prompt), options=("way too long",)))
    assert not process.jobs


def test_bad_asks_are_refused():
    process = tiny_process(DECODER)
    for ask, word in (
        (Judge(verifier=None, prompt=PROMPT, candidates=()), "Judge"),
        (extend(Prefix(PROMPT, finish="stop")), "final"),
        (extend(Prefix(PROMPT, tokens=(VOCAB + 5,))), "another model"),
    ):
        with pytest.raises(BadField, match=word):
            process.add(ask)


def test_children_of_a_final_kind():
    process = tiny_process(DECODER)
    (expansion,) = answers(process, [Expand(prefix=Prefix(replace(PROMPT, stop=("a",))), num=VOCAB)])
    by_token = {c.tokens[-1]: c for c in expansion.children}
    assert by_token[END].finish == "stop"
    assert (by_token[ord("a")].finish, by_token[ord("a")].text) == ("stop", "")
    assert by_token[ord("b")].finish is None
    (last,) = answers(process, [Expand(prefix=Prefix(replace(PROMPT, max_tokens=1)), num=1)])
    assert last.children[0].finish in ("length", "stop")


def test_model_id_names_formats():
    assert DECODER.model_id == "tiny/bf16/bf16-head/bfloat16"
    assert GREEDY.temperature == 0


def test_an_empty_prompt_is_refused_before_it_meets_the_engine():
    """A tokenizer without a token that begins a text makes nothing of it; a step without tokens broke the engine and all beside it."""

    class Nothing(ByteTokenizer):
        def render(self, messages, prefill=""):
            return list("".join(text for _, text in messages).encode())

    process = tiny_process(DECODER)
    process.tokenizer = Nothing()
    empty = replace(PROMPT, messages=(("raw", ""),))
    for mistake in (lambda: process.prompt_len(empty), lambda: process.add(extend(Prefix(empty)))):
        with pytest.raises(BadField, match="the prompt is empty"):
            mistake()
    assert answers(process, [extend(Prefix(replace(PROMPT, messages=(("raw", "a"),))))])
