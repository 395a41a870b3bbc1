"""What a strategy needs of a process: found by a rehearsal, so that it is refused before any work, with the reason.

The strategy runs once against a process that makes its answers up, and its asks and its verifiers' are read (core.needs); what
an ask does not show, a part declares in an attribute `needs`. A rehearsal may miss what only real answers lead to: then the
process refuses that ask, and the job fails with the same words.
"""

from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace

from ponder.core.asks import (
    Answer,
    Ask,
    Choice,
    Confer,
    Expand,
    Expansion,
    Extend,
    Extension,
    Extensions,
    Judge,
    Judgement,
    Prompt,
    Score,
    Scores,
    TokenLogP,
    Verdict,
    spent_answer,
)
from ponder.core.errors import NotOffered
from ponder.core.needs import MENDS, WORDS, needs_of
from ponder.core.rng import TorchRng, hash_seed
from ponder.core.roles import Process, Strategy, Verifier
from ponder.run.recipe import Recipe, probes_of

MAX_TURNS = 64  # of a rehearsal; then the budget is said to be spent
STEPS = 3  # steps of a made-up answer


def declared(value: object) -> frozenset[str]:
    """Needs that the parts of a strategy declare."""
    own = frozenset(getattr(value, "needs", ()))
    if is_dataclass(value) and not isinstance(value, type):
        return own.union(*(declared(getattr(value, f.name)) for f in fields(value)))
    return own.union(*map(declared, value)) if isinstance(value, tuple | list) else own


def rehearsed(strategy: Strategy, prompt: Prompt) -> frozenset[str]:
    """Needs of the asks that the strategy and its verifiers make, as far as made-up answers lead them."""
    found: set[str] = set()
    running = strategy.run(prompt, TorchRng(0))
    try:
        turn = next(running)
        for number in range(10 * MAX_TURNS):
            for ask in turn.asks:
                found |= needs_of(ask)
            is_spent = number >= MAX_TURNS
            turn = running.send([spent_answer(ask) if is_spent else _made_up(ask, found) for ask in turn.asks])
    except StopIteration:
        return frozenset(found)
    except Exception:  # made-up answers may be nonsense to it, and a part of it may be foreign code: what was seen is what there is
        return frozenset(found)
    return frozenset(found)


def needs_of_strategy(strategy: Strategy, prompt: Prompt) -> frozenset[str]:
    """Everything that it is known to need."""
    probes = {"probes"} if probes_of(strategy) else set()
    return declared(strategy) | rehearsed(strategy, prompt) | probes


def check_offers(process: Process, recipe: Recipe, prompt: Prompt) -> None:
    """Raises NotOffered when the process cannot answer what the recipe needs. One without `offers` answers everything, but has no price."""
    offers: frozenset[str] | None = getattr(process, "offers", None)
    limits = {name for name in ("usd", "flops") if getattr(recipe.budget, name) is not None}
    missing = limits & {"usd"} if offers is None else (needs_of_strategy(recipe.strategy, prompt) | limits) - offers
    if missing:
        wanted = ", ".join(WORDS[word] for word in sorted(missing))
        mend = MENDS.get(next(iter(missing)), "") if len(missing) == 1 else ""
        mend = mend or (
            f"{process.model_id} offers {', '.join(sorted(offers or ())) or 'whole answers alone'}: "
            "choose a strategy or verifier that needs no more, or an engine that offers it"
        )
        raise NotOffered(f"{recipe.label} needs {wanted}; {mend}")


def _made_up(ask: Ask, found: set[str]) -> Answer:
    """An answer of the right kind, whose text means nothing. Adds what a verifier's asks need to `found`."""
    if isinstance(ask, Extend):
        return _extension(ask)
    if isinstance(ask, Confer):
        return Extensions(tuple(map(_extension, ask.asks)))
    if isinstance(ask, Expand):
        children = (
            replace(ask.prefix, tokens=(*ask.prefix.tokens, i), text=f"{ask.prefix.text} {i}", log_p=ask.prefix.log_p - 1 - i) for i in range(ask.num)
        )
        return Expansion(tuple(replace(c, finish="stop") if len(c.tokens) >= STEPS else c for c in children))
    if isinstance(ask, Score):
        return Scores(tuple(-1.0 - hash_seed(ask.prefix.text, option) / 2**63 for option in ask.options))
    if isinstance(ask, Judge):
        return _judgement(ask, found)
    return spent_answer(ask)


def _extension(ask: Extend) -> Extension:
    old, form = ask.prefix, ask.prefix.prompt.form
    number = len(old.tokens) + 1  # a made-up step is a token, or two where a form ends it
    is_last = number >= STEPS or not (ask.until or ask.max_tokens)
    piece = f"{hash_seed(ask.seed) % 10} is answer {number}" + (ask.until[0] if ask.until and not is_last else "")
    text = form.options[0] if isinstance(form, Choice) else old.text + piece
    finish = "stop" if is_last or isinstance(form, Choice) else "until" if ask.until else "limit"
    grown = replace(
        old,
        tokens=(*old.tokens, number) if form is None else (*old.tokens, number, 0),
        text=text,
        log_p=old.log_p - 1.0,
        log_q=old.log_q - 1.0,
        certainty=1.0,
    )
    told = () if ask.logprobs is None else (TokenLogP(number, -1.0),)
    return Extension(replace(grown, finish="stop") if finish == "stop" else grown, finish, logprobs=told)


def _judgement(ask: Judge, found: set[str]) -> Judgement:
    verifier: Verifier = ask.verifier  # type: ignore[assignment]  # core.asks cannot name the role
    asked: Sequence[Ask] = verifier.asks(ask.prompt, ask.candidates)
    for part in asked:
        found |= needs_of(part)
    return Judgement(tuple(Verdict((1 + hash_seed(c.text) % 8) / 10, "probability") for c in ask.candidates))
