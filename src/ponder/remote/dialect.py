"""Role Dialect: how one kind of server is asked and read; and what all of them share.

A remote prefix is text. Its tokens are the server's own ids where it tells them; where it does not, each is a 63-bit number
made from the piece of text (or, without pieces, from the whole text and the token's place): equal in every run, meaningless
but for being equal or not, and exactly as many as `usage` counts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from ponder.core.asks import FINAL, Answer, Ask, Extend, Extension, Prompt, Sampling, TokenLogP
from ponder.core.budget import Cost
from ponder.core.rng import hash_seed
from ponder.remote.endpoint import Endpoint
from ponder.remote.wire import BadReply, Json, Send

HALF = "\ufffd"  # what is left of a character whose other tokens were not drawn


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a server says of its model; None where it does not."""

    model: str
    context_len: int | None = None
    num_parameters: float | None = None


class Dialect(Protocol):
    """Frozen settings; the methods are coroutines that run beside each other. Replies that are none raise BadReply."""

    @property
    def offers(self) -> frozenset[str]:
        """Words of core.needs."""
        ...

    @property
    def is_len_guessed(self) -> bool:
        """Whether prompt_len is a guess: then an answer's own count is booked."""
        ...

    async def facts(self, endpoint: Endpoint, send: Send) -> Facts: ...

    async def prompt_len(self, endpoint: Endpoint, prompt: Prompt, send: Send) -> int:
        """Tokens of the prompt as the model reads it: exact where the server counts for us, else a guess on the high side."""
        ...

    async def answer(self, endpoint: Endpoint, ask: Ask, most: int, send: Send) -> Answer:
        """The answer with its exact counts. most: tokens that an Extend may generate, at least 1. The ask needs what is offered."""
        ...


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """What one request generated. ended: "stop", "until" or "limit"; entries: log-probabilities by token, where they were told."""

    text: str
    tokens: tuple[int, ...]
    ended: str
    cost: Cost
    entries: tuple[TokenLogP, ...] = ()
    whole: str | None = None  # the completion's text from its beginning; None: the prefix's and this


def extension(ask: Extend, drawn: Drawn, most: int, *, can_go_on: bool = True) -> Extension:
    """The prefix grown by what was drawn, and how the ask ended; most: the tokens that it was allowed."""
    old, prompt = ask.prefix, ask.prefix.prompt
    tokens = (*old.tokens, *drawn.tokens)
    text = old.text + drawn.text if drawn.whole is None else drawn.whole
    ended, cut = drawn.ended, first_of(text, prompt.stop)
    if cut is not None:  # a stop string that began in the old text
        text, ended = text[:cut], "stop"
    finish = ended if ended != "limit" else _finish(ask, len(tokens), most, can_go_on)
    log_p = sum(entry.log_p for entry in drawn.entries)
    log_q = 0.0 if ask.sampling.temperature == 0 else log_p
    grown = replace(
        old, tokens=tokens, text=text, log_p=old.log_p + log_p, log_q=old.log_q + log_q, finish=finish if finish in FINAL else None
    )  # fmt: skip
    shown = () if ask.logprobs is None else tuple(replace(e, top=e.top[: ask.logprobs]) for e in drawn.entries)
    return Extension(grown, finish, drawn.cost, shown)


def _finish(ask: Extend, num_tokens: int, most: int, can_go_on: bool) -> str:
    """What the end of its allowance means for an ask."""
    if num_tokens >= ask.prefix.prompt.max_tokens:
        return "length"
    is_own = ask.max_tokens is not None and most >= ask.max_tokens
    return "limit" if is_own and can_go_on else "budget"


def first_of(text: str, strings: Sequence[str]) -> int | None:
    """Where the first of the strings begins in `text`."""
    return min((at for s in strings if (at := text.find(s)) >= 0), default=None)


def request_seed(ask: Extend) -> int:
    """31 bits for the server: another number for every place from which an ask with the same seed goes on."""
    return hash_seed("remote", ask.seed, len(ask.prefix.tokens)) % 2**31


def piece_id(piece: str) -> int:
    return hash_seed("piece", piece)


def unknown_ids(text: str, num: int, since: int = 0) -> tuple[int, ...]:
    """Numbers for tokens whose pieces are not told; `num` of them, from number `since` of that text."""
    return tuple(hash_seed("token of", text, since + i) for i in range(num))


def drawn_by(sampling: Sampling) -> Json:
    """The fields of a request that all servers name alike."""
    return {"temperature": sampling.temperature, "top_p": sampling.top_p}


def guessed_len(prompt: Prompt) -> int:
    """Tokens of a prompt, when nobody counts: at most three bytes each, and what a chat template adds. English has about four."""
    return sum(-(-len(text.encode()) // 3) + 8 for _, text in prompt.messages) + -(-len(prompt.prefill.encode()) // 3)


def count(reply: Json, name: str) -> int:
    """A count that a reply must have."""
    value: Any = reply.get(name)
    if not isinstance(value, int) or value < 0:
        raise BadReply(f"the reply has no count {name!r}, so that what it cost is unknown")
    return value
