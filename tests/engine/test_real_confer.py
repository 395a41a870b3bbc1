"""SmolLM2's workers: the same alone and in a crowd, bit for bit, on the kernel that answers use; and what one writes is read by the other."""

from dataclasses import replace
from pathlib import Path

from ponder.catalogue import open_model, strategy
from ponder.core.asks import Confer, Extend, Extensions, Prefix, Prompt, Sampling, chat
from ponder.core.budget import Budget
from ponder.engine.settings import Settings
from ponder.run.driver import ask
from ponder.testing.run import answer_turn

TOGETHER = chat("Two of you find out the code of the safe, side by side.", max_tokens=40)
TEXTS = ("I have it, the code of the safe is 7351.\n\n", "I look at the safe and at its door first.\n\nThe code of the safe is 7351")


def of(name: str, seed: int) -> Extend:
    return Extend(prefix=Prefix(replace(TOGETHER, prefill=f"I am {name}. ")), seed=seed, sampling=Sampling(temperature=0.8))


def test_workers_are_the_same_alone_and_in_a_crowd(smollm2_path: Path):
    group = Confer(asks=(of("Ann", 1), of("Ben", 2)), layout="combined")
    others = [replace(of("Ann", seed), max_tokens=8) for seed in range(3)]
    process = open_model(smollm2_path)
    (alone,) = answer_turn([group], process)
    _, crowded, *_ = answer_turn([others[0], group, *others[1:]], open_model(smollm2_path, settings=Settings(chunk=24)))
    assert isinstance(alone, Extensions) and isinstance(crowded, Extensions)
    assert [(x.prefix, x.finish) for x in alone.extensions] == [(x.prefix, x.finish) for x in crowded.extensions]
    result = ask(process, Prompt(messages=(("user", "Name a color."),), max_tokens=12), strategy("hogwild"), Budget(tokens=600), seed=1)
    assert result.candidates[0].text and result.cost.generated_tokens == sum(len(c.tokens) for c in result.candidates)


def test_a_worker_reads_what_another_writes(smollm2_path: Path):
    process = open_model(smollm2_path)
    texts = [tuple(process.tokenizer.encode(text)) for text in TEXTS]
    parts = tuple(replace(of(n, 0), forced=text, max_tokens=len(text), logprobs=0) for n, text in zip(("Ann", "Ben"), texts))

    def log_p(asks: tuple[Extend, ...]) -> float:
        (told,) = answer_turn([Confer(asks=asks, layout="contiguous")], process)
        assert isinstance(told, Extensions)
        return sum(token.log_p for token in told.extensions[-1].logprobs[-4:])  # of the four digits

    assert log_p(parts) > log_p(parts[1:]) + 2
