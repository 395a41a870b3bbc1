"""Laws of processes that answer Confer: asks whose answers read each other while they are written.

A law takes `make`, which returns a process with nothing under way, and a Confer of at least two asks, none of which is capped and
some of whose answers have at least six tokens. The process must mind what it reads.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from ponder.core.asks import Answer, Ask, Confer, Extension, Extensions
from ponder.core.budget import Cost
from ponder.core.roles import Process
from ponder.testing.exact import require
from ponder.testing.run import answer_turn

Make = Callable[[], Process]
NUM_FORCED = 6


def conferred(process: Process, asks: Sequence[Ask]) -> list[Extensions]:
    """The answers to those of the asks that are Confers."""
    return [told for told in answer_turn(asks, process) if isinstance(told, Extensions)]


def bare(told: Extensions) -> tuple[Extension, ...]:
    return tuple(replace(part, cost=Cost()) for part in told.extensions)


def law_one_is_plain(make: Make, group: Confer) -> None:
    """A Confer of one ask is that ask."""
    for part in group.asks:
        (alone,) = conferred(make(), [Confer(asks=(part,), layout=group.layout)])
        (plain,) = answer_turn([part], make())
        require(bare(alone) == (replace(plain, cost=Cost()),), f"alone in a group {alone.extensions[0].prefix}, by itself {plain}")


def law_alone_or_in_a_crowd(make: Make, group: Confer) -> None:
    """Answers to equal asks are equal, whatever runs beside them and in whatever order they were added."""
    other = replace(group, asks=tuple(replace(part, seed=part.seed + 1000) for part in group.asks[:2]), enough=None)
    crowd: list[Ask] = [*group.asks, other, *(replace(part, seed=part.seed + 77) for part in group.asks), group]
    alone = [bare(conferred(make(), [ask])[0]) for ask in (other, group)]
    for asks, wanted in ((crowd, alone), (crowd[::-1], alone[::-1])):
        found = [bare(told) for told in conferred(make(), asks)]
        require(found == wanted, f"beside others {found}, alone {wanted}")


def law_hears_in_time(make: Make, group: Confer) -> None:
    """Another's token k is in what is drawn from token k + 2 on, and in nothing before."""
    (free,) = conferred(make(), [replace(group, enough=None)])
    texts = [part.prefix.tokens[:NUM_FORCED] for part in free.extensions]
    require(max(map(len, texts)) == NUM_FORCED, f"answers {texts} are too short for this law")
    speaker = next(i for i, text in enumerate(texts) if len(text) == NUM_FORCED)

    def log_p(texts: Sequence[tuple[int, ...]]) -> list[list[float]]:
        asks = (replace(part, forced=text, max_tokens=len(text), logprobs=0) for part, text in zip(group.asks, texts))
        (told,) = conferred(make(), [replace(group, asks=tuple(asks), enough=None)])
        return [[token.log_p for token in part.logprobs] for part in told.extensions]

    for k in range(NUM_FORCED - 3):
        word = next(token for text in texts for token in text[:-1] if token != texts[speaker][k])
        before, after = log_p(texts), log_p([(*t[:k], word, *t[k + 1 :]) if i == speaker else t for i, t in enumerate(texts)])
        differ = [n for i, (x, y) in enumerate(zip(before, after)) if i != speaker for n, (a, b) in enumerate(zip(x, y)) if a != b]
        require(min(differ, default=-1) == k + 2, f"token {k} of answer {speaker} changed the draws {sorted(set(differ))} of others")


def law_enough(make: Make, group: Confer) -> None:
    """Once enough have ended, the others come back with as many tokens, as they would have gone on."""
    (whole,) = conferred(make(), [replace(group, enough=None)])
    require(all(part.prefix.is_final for part in whole.extensions), "some did not come to their end")
    lens = sorted(len(part.prefix.tokens) for part in whole.extensions)
    for enough in range(1, len(lens) + 1):
        (told,) = conferred(make(), [replace(group, enough=enough)])
        for part, end in zip(told.extensions, whole.extensions):
            num = min(len(end.prefix.tokens), lens[enough - 1])
            require(part.prefix.tokens == end.prefix.tokens[:num], f"enough={enough}: {part.prefix.tokens}, wanted {num} of {end.prefix.tokens}")
            is_over = num == len(end.prefix.tokens)
            require(part.finish == (end.finish if is_over else "limit"), f"enough={enough}: finish {part.finish} after {num} tokens")


def law_cap(make: Make, group: Confer) -> None:
    """A cap is shared evenly: nobody draws more, and who wanted to ends with "budget"."""
    process, each = make(), 2
    ticket = process.add(group, max_tokens=each * len(group.asks) + 1)
    told = _answer(process, ticket)
    for part in told.extensions:
        num = len(part.prefix.tokens)
        require(
            num <= each and (part.prefix.finish == "budget" or num < each or part.prefix.is_final), f"{num} tokens, {part.finish}, capped at {each}"
        )
    require(any(part.finish == "budget" for part in told.extensions), "nobody was cut off")


def law_cancel(make: Make, group: Confer) -> None:
    """Cancelled, all come back as far as they are, and nothing is left under way."""
    (whole,) = conferred(make(), [group])
    process = make()
    ticket = process.add(group)
    for _ in range(4):
        process.step()
    told = process.cancel(ticket)
    require(isinstance(told, Extensions) and not process.progress(), f"cancelled: {told}, still under way: {process.progress()}")
    assert isinstance(told, Extensions)
    for part, end in zip(told.extensions, whole.extensions):
        require(part.prefix.tokens == end.prefix.tokens[: len(part.prefix.tokens)], f"cancelled at {part.prefix.tokens} of {end.prefix.tokens}")
    require(any(part.finish == "budget" for part in told.extensions), "nobody was cut off")


def law_counts(make: Make, group: Confer) -> None:
    """It costs what it draws, and one call; parts have no cost of their own."""
    (told,) = conferred(make(), [group])
    num = sum(len(part.prefix.tokens) for part in told.extensions)
    require((told.cost.generated_tokens, told.cost.calls) == (num, 1), f"{num} tokens drawn, cost {told.cost}")
    require(all(part.cost == Cost() for part in told.extensions), "parts have costs of their own")


def _answer(process: Process, ticket: int) -> Extensions:
    done: dict[int, Answer] = {}
    while ticket not in done:
        done.update(process.step())
    told = done[ticket]
    assert isinstance(told, Extensions)
    return told


LAWS: tuple[Callable[[Make, Confer], None], ...] = (
    law_one_is_plain, law_alone_or_in_a_crowd, law_hears_in_time, law_enough, law_cap, law_cancel, law_counts,
)  # fmt: skip
