"""Laws of the Process role: the toy process and every real engine run through the same ones.

A law takes `make`, which returns a process with nothing under way (a warm cache is fine), and a prompt whose answers have
at least some tokens. `tolerance` is how far log-probabilities of equal work may differ: 0 for an engine whose rows do not
depend on each other.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from ponder.core.asks import FINAL, Answer, Ask, Expand, Expansion, Extend, Extension, Judge, Prefix, Prompt, Sampling, Score, Scores
from ponder.core.budget import Cost
from ponder.core.errors import PonderError, PromptTooLong
from ponder.core.roles import Process
from ponder.testing.exact import require
from ponder.testing.run import answer_turn

Make = Callable[[], Process]
Law = Callable[[Make, Prompt, float], None]
COLD = Sampling(temperature=0.0)


def extended(process: Process, asks: Sequence[Ask]) -> list[Extension]:
    answers = answer_turn(asks, process)
    require(all(isinstance(a, Extension) for a in answers), f"answers to Extend: {answers}")
    return [a for a in answers if isinstance(a, Extension)]


def plain(prompt: Prompt, *, seed: int = 0, max_tokens: int | None = None, sampling: Sampling | None = None) -> Extend:
    return Extend(prefix=Prefix(prompt), seed=seed, max_tokens=max_tokens, sampling=sampling or Sampling())


def require_equal(found: Prefix, wanted: Prefix, tolerance: float, what: str) -> None:
    same = (found.tokens, found.text, found.finish) == (wanted.tokens, wanted.text, wanted.finish)
    require(same, f"{what}: {found.tokens} {found.text!r} {found.finish}, wanted {wanted.tokens} {wanted.text!r} {wanted.finish}")
    worst = max(abs(found.log_p - wanted.log_p), abs(found.log_q - wanted.log_q), abs(found.certainty - wanted.certainty))
    require(worst <= tolerance, f"{what}: log-probabilities differ by {worst:.2e}")


def law_alone_or_in_a_crowd(make: Make, prompt: Prompt, tolerance: float) -> None:
    """Answers to equal asks are equal, whatever runs beside them and in whatever order they were added."""
    asks = [plain(prompt, seed=seed, sampling=Sampling(temperature=t)) for seed, t in ((0, 1.0), (1, 1.0), (2, 0.7), (3, 0.0))]
    together = extended(make(), asks)
    backwards = extended(make(), asks[::-1])[::-1]
    for ask, answer, other in zip(asks, together, backwards, strict=True):
        (alone,) = extended(make(), [ask])
        require_equal(answer.prefix, alone.prefix, tolerance, "beside others")
        require_equal(other.prefix, alone.prefix, tolerance, "added last first")


def law_in_pieces(make: Make, prompt: Prompt, tolerance: float) -> None:
    """Going on token by token with one seed gives what one long ask gives: a draw depends on (seed, position, distribution)."""
    for sampling in (Sampling(), COLD):
        process = make()
        (whole,) = extended(process, [plain(prompt, sampling=sampling)])
        prefix = Prefix(prompt)
        while not prefix.is_final:
            (piece,) = extended(process, [Extend(prefix=prefix, seed=0, max_tokens=1, sampling=sampling)])
            require(piece.finish == "limit" or piece.finish in FINAL, f"a piece ended with {piece.finish!r}")
            require(len(piece.prefix.tokens) == len(prefix.tokens) + 1, f"one token was asked for, got {piece.prefix.tokens}")
            prefix = piece.prefix
        require_equal(prefix, whole.prefix, tolerance, "in pieces")


def law_seeds_matter(make: Make, prompt: Prompt, tolerance: float) -> None:
    """Different seeds give different draws at temperature 1, equal ones at temperature 0."""
    hot = extended(make(), [plain(prompt, seed=seed) for seed in range(8)])
    cold = extended(make(), [plain(prompt, seed=seed, sampling=COLD) for seed in range(3)])
    require(len({a.prefix.tokens for a in hot}) > 1, "eight seeds gave one answer")
    require(len({a.prefix.tokens for a in cold}) == 1, "greedy answers depend on the seed")


def law_ends_well(make: Make, prompt: Prompt, tolerance: float) -> None:
    """A whole answer is final, within the prompt's max_tokens, and holds no stop string; finish says why it ended."""
    for limit in (1, 2, prompt.max_tokens):
        short = replace(prompt, max_tokens=limit)
        for answer in extended(make(), [plain(short, seed=seed) for seed in range(4)]):
            prefix = answer.prefix
            require(answer.finish == prefix.finish and prefix.finish in ("stop", "length"), f"finish {answer.finish!r}, {prefix.finish!r}")
            require(len(prefix.tokens) <= limit, f"{len(prefix.tokens)} tokens of {limit}")
            require(prefix.finish == "stop" or len(prefix.tokens) == limit, f"length after {len(prefix.tokens)} tokens of {limit}")
            require(not any(s in prefix.text for s in prompt.stop), f"{prefix.text!r} holds a stop string")


def law_limits(make: Make, prompt: Prompt, tolerance: float) -> None:
    """max_tokens of an ask leaves the prefix open; a cap of `add` closes it with "budget"."""
    process = make()
    (open_end,) = extended(process, [plain(prompt, sampling=COLD, max_tokens=1)])
    require(open_end.finish == ("limit" if open_end.prefix.finish is None else open_end.prefix.finish), f"finish {open_end.finish!r}")
    ticket = process.add(plain(prompt, sampling=COLD), max_tokens=1)
    capped = finished(process, ticket)
    require(isinstance(capped, Extension) and len(capped.prefix.tokens) <= 1, f"capped at 1: {capped}")
    require(capped.prefix.tokens == open_end.prefix.tokens, "a cap changed the tokens")  # type: ignore[union-attr]
    if open_end.prefix.finish is None:
        require(capped.finish == capped.prefix.finish == "budget", f"finish {capped.finish!r} under a cap")  # type: ignore[union-attr]


def finished(process: Process, ticket: int) -> Answer:
    while True:
        for done, answer in process.step():
            if done == ticket:
                return answer


HALF = "\ufffd"  # what a half character looks like before its other half comes: no text to look for


def law_until(make: Make, prompt: Prompt, tolerance: float) -> None:
    """An `until` string ends the step, stays in the text, and the next step goes on as if nothing had been."""
    process = make()
    (whole,) = extended(process, [plain(prompt)])
    text = whole.prefix.text
    middle = (text[: max(1, len(text) // 2)].replace(HALF, "") or text.replace(HALF, ""))[-1:]
    require(bool(middle), "the answer to this prompt has no whole character: choose another")
    prefix, num_steps = Prefix(prompt), 0
    while not prefix.is_final:
        (step,) = extended(process, [Extend(prefix=prefix, seed=0, until=(middle,))])
        new = step.prefix.text[len(prefix.text) :]
        require(step.finish in FINAL or (step.finish == "until" and middle in new), f"step {new!r} until {middle!r} ended with {step.finish!r}")
        prefix, num_steps = step.prefix, num_steps + 1
    require(num_steps > 1, "no step ended at the separator")
    require_equal(prefix, whole.prefix, tolerance, "in steps")


def law_stop(make: Make, prompt: Prompt, tolerance: float) -> None:
    """A stop string ends the answer and is not in it; the text before it is unchanged."""
    (whole,) = extended(make(), [plain(prompt)])
    text = whole.prefix.text
    stop = text[len(text) // 2 :][:2]
    require(bool(stop), "the answer to this prompt is empty: choose another")
    (stopped,) = extended(make(), [plain(replace(prompt, stop=(stop,)))])
    require(stopped.prefix.finish == "stop", f"finish {stopped.prefix.finish!r} at stop string {stop!r}")
    require(stopped.prefix.text == text[: text.index(stop)], f"{stopped.prefix.text!r} from {text!r} with stop {stop!r}")


def law_expand(make: Make, prompt: Prompt, tolerance: float) -> None:
    """Children are one token longer, distinct, of falling probability that sums to at most 1; the first is the greedy one."""
    process = make()
    (answer,) = answer_turn([Expand(prefix=Prefix(prompt), num=3)], process)
    require(isinstance(answer, Expansion) and 0 < len(answer.children) <= 3, f"{answer}")
    children = answer.children  # type: ignore[union-attr]
    require(all(len(c.tokens) == 1 for c in children) and len({c.tokens for c in children}) == len(children), "children are not distinct tokens")
    require(list(children) == sorted(children, key=lambda c: -c.log_p) and children[0].log_p <= 0, "children are not in order")
    (first,) = extended(process, [plain(prompt, sampling=COLD, max_tokens=1)])
    require(first.prefix.tokens == children[0].tokens, f"greedy takes {first.prefix.tokens}, the first child is {children[0].tokens}")
    require(abs(first.prefix.log_p - children[0].log_p) <= tolerance, "Extend and Expand disagree about a token's probability")


def law_probabilities(make: Make, prompt: Prompt, tolerance: float) -> None:
    """log_q = log_p at temperature 1, log_q = 0 for greedy draws, log_p <= 0."""
    hot, cold = extended(make(), [plain(prompt), plain(prompt, sampling=COLD)])
    require(abs(hot.prefix.log_p - hot.prefix.log_q) <= max(tolerance, 1e-9), f"log_p {hot.prefix.log_p}, log_q {hot.prefix.log_q} at temperature 1")
    require(abs(cold.prefix.log_q) <= max(tolerance, 1e-9), f"log_q {cold.prefix.log_q} of a greedy answer")
    require(hot.prefix.log_p <= 0 and cold.prefix.log_p <= 0, "a log-probability above 0")


def law_scores(make: Make, prompt: Prompt, tolerance: float) -> None:
    """One finite or -inf value per option, at most 0, equal for equal options."""
    (open_end,) = extended(make(), [plain(prompt, max_tokens=1)])
    word = open_end.prefix.text or "a"
    (answer,) = answer_turn([Score(prefix=Prefix(prompt), options=(word, word * 2, word))], make())
    require(isinstance(answer, Scores) and len(answer.log_p) == 3, f"{answer}")
    require(all(x <= 0 for x in answer.log_p) and answer.log_p[0] == answer.log_p[2], f"scores {answer.log_p}")  # type: ignore[union-attr]


def law_cancel(make: Make, prompt: Prompt, tolerance: float) -> None:
    """`cancel` returns what there is, finish "budget", its cost booked; what runs beside it is not disturbed."""
    process = make()
    (whole, beside) = extended(make(), [plain(prompt, seed=0), plain(prompt, seed=1)])
    ticket, other = process.add(plain(prompt, seed=0)), process.add(plain(prompt, seed=1))
    told = dict(process.step())
    require(set(process.progress()) == {ticket, other} - set(told), f"progress of {set(process.progress())} after one step")
    if ticket not in told:
        cut = process.cancel(ticket)
        require(isinstance(cut, Extension) and cut.finish == cut.prefix.finish == "budget", f"cancelled: {cut}")
        made = cut.prefix.tokens  # type: ignore[union-attr]
        require(made == whole.prefix.tokens[: len(made)], "a cancelled answer is no beginning of the whole one")
        require(cut.cost.generated_tokens >= len(made), f"{cut.cost} for {len(made)} tokens")
        require(ticket not in process.progress(), "a cancelled ask is still under way")
    answer = told.get(other) or finished(process, other)
    require_equal(answer.prefix, beside.prefix, tolerance, "beside a cancelled ask")  # type: ignore[union-attr]


def law_partial(make: Make, prompt: Prompt, tolerance: float) -> None:
    """What is told of an answer under way stays: its tokens and its text begin the final ones, and its text never shrinks.

    Nothing is wanted of a process without `partial`.
    """
    (whole,) = extended(make(), [plain(prompt)])
    middle = whole.prefix.text[len(whole.prefix.text) // 2 :][:2]
    for asked in (prompt, replace(prompt, stop=(*prompt.stop, middle)) if middle else prompt):
        process = make()
        partial = getattr(process, "partial", None)
        ticket, shown = process.add(plain(asked)), [""]
        told = dict(process.step())
        while partial is not None and ticket not in told:
            so_far = partial(ticket)
            require(so_far.finish == "limit" and so_far.prefix.finish is None, f"an answer under way has finish {so_far.finish!r}")
            made = so_far.prefix.tokens
            require(made == whole.prefix.tokens[: len(made)], f"{made} is no beginning of {whole.prefix.tokens}")
            require(so_far.cost.generated_tokens == len(made), f"{so_far.cost} for {len(made)} tokens")
            require(so_far.prefix.text.startswith(shown[-1]), f"{so_far.prefix.text!r} after {shown[-1]!r} was shown")
            shown.append(so_far.prefix.text)
            told = dict(process.step())
        final = told.get(ticket) or finished(process, ticket)
        require(final.prefix.text.startswith(shown[-1]), f"{shown[-1]!r} was shown of {final.prefix.text!r}")  # type: ignore[union-attr]


def law_costs(make: Make, prompt: Prompt, tolerance: float) -> None:
    """generated = new tokens; prompt + reused = the prefix that was read; one call; work costs FLOPs."""
    process = make()
    (first,) = extended(process, [plain(prompt, max_tokens=2, sampling=COLD)])
    require_costs(first, Prefix(prompt), process)
    if not first.prefix.is_final:
        (second,) = extended(process, [Extend(prefix=first.prefix, seed=0)])
        require_costs(second, first.prefix, process)


def require_costs(answer: Extension, before: Prefix, process: Process) -> None:
    cost, num_new = answer.cost, len(answer.prefix.tokens) - len(before.tokens)
    require(cost.generated_tokens == num_new, f"{cost.generated_tokens} generated tokens for {num_new} new ones")
    read = process.prompt_len(before.prompt) + len(before.tokens)
    require(cost.prompt_tokens + cost.reused_tokens == read, f"{cost.prompt_tokens} computed + {cost.reused_tokens} reused of {read} prefix tokens")
    require(cost.prompt_tokens >= 0 and cost.reused_tokens >= 0 and cost.calls == 1 and cost.flops > 0, f"{cost}")
    require(cost.tokens == Cost(prompt_tokens=cost.prompt_tokens, generated_tokens=cost.generated_tokens).tokens, f"{cost}")


def law_options_share_their_prefix(make: Make, prompt: Prompt, tolerance: float) -> None:
    """However many options are scored, prompt + reused is their prefix once and the options: what they share is not paid again."""
    (open_end,) = extended(make(), [plain(prompt, max_tokens=2, sampling=COLD)])
    prefix = Prefix(prompt) if open_end.prefix.is_final else open_end.prefix
    words = ("a", "b", "c", "ab")
    one, many = (answer_turn([Score(prefix=prefix, options=words[:num])], make())[0].cost for num in (1, len(words)))
    read, most = make().prompt_len(prompt) + len(prefix.tokens), sum(len(w.encode()) for w in words)
    require(read <= one.prompt_tokens + one.reused_tokens <= read + 1, f"{one} for a prefix of {read} tokens and one option")
    asked = many.prompt_tokens + many.reused_tokens
    require(read <= asked <= read + most, f"{many} for a prefix of {read} tokens and options of {most} bytes")


def law_refusals(make: Make, prompt: Prompt, tolerance: float) -> None:
    """PromptTooLong before any work; a Judge ask is refused, with a line for the caller."""
    process = make()
    role, text = prompt.messages[-1]
    long = replace(prompt, messages=((role, text + " a" * (process.context_len + 1)),))
    for ask, error in ((plain(long), PromptTooLong), (Judge(verifier=None, prompt=prompt, candidates=()), PonderError)):
        try:
            process.add(ask)
        except error:
            require(not process.progress(), "a refused ask is under way")
            continue
        raise AssertionError(f"took {type(ask).__name__}: expected {error.__name__}")


LAWS: tuple[Law, ...] = (
    law_alone_or_in_a_crowd,
    law_in_pieces,
    law_seeds_matter,
    law_ends_well,
    law_limits,
    law_until,
    law_stop,
    law_expand,
    law_probabilities,
    law_scores,
    law_cancel,
    law_partial,
    law_costs,
    law_options_share_their_prefix,
    law_refusals,
)
