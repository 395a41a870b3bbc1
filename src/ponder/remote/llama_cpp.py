"""Dialect of llama.cpp's own server: its routes beside OpenAI's tell the template, token ids and what ended an answer.

So prefixes are forked by ids, not by text: a step goes on from exactly the tokens that were drawn, and greedy answers in steps
are the answer in one piece. The log-probability of a given token is that of a draw that a bias makes certain.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ponder.core.asks import Answer, Ask, Expand, Expansion, Extend, Prefix, Prompt, Sampling, Score, Scores, TokenLogP
from ponder.core.budget import Cost
from ponder.core.errors import EndpointError
from ponder.remote.dialect import Drawn, Facts, count, extension, request_seed
from ponder.remote.endpoint import Endpoint
from ponder.remote.openai import OpenAI
from ponder.remote.wire import BadReply, Json, Send

CERTAIN = 1000.0  # a bias that leaves no other token
SHAPES = ["temperature", "top_k", "top_p", "min_p"]  # in the order of core.asks.Sampling


@dataclass(frozen=True, kw_only=True)
class LlamaCpp:
    """Ids of prompts are kept per template and text, so that a prompt is tokenized once."""

    offers = frozenset({"steps", "log_p", "logprobs", "expand", "score", "top_k", "min_p"})

    is_len_guessed = False

    async def facts(self, endpoint: Endpoint, send: Send) -> Facts:
        return await OpenAI().facts(endpoint, send)

    async def prompt_len(self, endpoint: Endpoint, prompt: Prompt, send: Send) -> int:
        return len(await self._ids(endpoint, prompt, send))

    async def answer(self, endpoint: Endpoint, ask: Ask, most: int, send: Send) -> Answer:
        if isinstance(ask, Extend):
            return await self._extend(endpoint, ask, most, send)
        if isinstance(ask, Expand):
            return await self._expand(endpoint, ask, send)
        if isinstance(ask, Score):
            return await self._score(endpoint, ask, send)
        raise EndpointError(f"llama.cpp's server has no request for {type(ask).__name__}")

    async def _ids(self, endpoint: Endpoint, prompt: Prompt, send: Send) -> list[int]:
        """The prompt's tokens, through the model's own chat template."""
        role, text = prompt.messages[0]
        if role != "raw":
            messages = [{"role": role, "content": text} for role, text in prompt.messages]
            text = await send(f"{endpoint.root}/apply-template", {"messages": messages}, lambda reply: _text(reply, "prompt"))
        return await self._tokens(endpoint, text + prompt.prefill, send, is_start=True)

    async def _tokens(self, endpoint: Endpoint, text: str, send: Send, *, is_start: bool = False) -> list[int]:
        body = {"content": text, "add_special": is_start, "parse_special": is_start}
        return await send(f"{endpoint.root}/tokenize", body, lambda reply: _ints(reply, "tokens"))

    async def _extend(self, endpoint: Endpoint, ask: Extend, most: int, send: Send) -> Answer:
        ids = [*await self._ids(endpoint, ask.prefix.prompt, send), *ask.prefix.tokens]
        stops = list(dict.fromkeys((*ask.prefix.prompt.stop, *ask.until)))
        body = {"n_predict": most, "seed": request_seed(ask), "stop": stops, "n_probs": max(1, ask.logprobs or 0), **shaped(ask.sampling)}
        reply = await self._complete(endpoint, ids, body, send)
        told, cost = reply.entries, reply.cost
        for number in range(len(told), len(reply.tokens)):  # those of a stop string: the server does not tell theirs
            one = await self._forced(endpoint, [*ids, *reply.tokens[:number]], reply.tokens[number], send=send, num_top=ask.logprobs or 0)
            told, cost = (*told, one.entries[0]), cost + Cost(prompt_tokens=one.cost.prompt_tokens)
        whole, is_until = None, bool(reply.matched) and reply.matched in ask.until and reply.matched not in ask.prefix.prompt.stop
        if is_until or ask.prefix.tokens:
            whole = await self._text(endpoint, (*ask.prefix.tokens, *reply.tokens[: len(reply.tokens) - reply.is_eos]), send)
        ended = "until" if is_until else reply.ended
        return extension(ask, Drawn(text=reply.text, tokens=reply.tokens, ended=ended, cost=cost, entries=told, whole=whole), most)

    async def _forced(self, endpoint: Endpoint, ids: Sequence[int], token: int, *, send: Send, num_top: int = 0) -> "Reply":
        """One step that draws `token`; its log-probability is the model's own."""
        body = {"n_predict": 1, "n_probs": max(1, num_top), "logit_bias": [[token, CERTAIN]], **shaped(Sampling(temperature=0.0))}
        reply = await self._complete(endpoint, ids, body, send)
        if reply.tokens != (token,) or len(reply.entries) != 1:
            raise EndpointError(f"llama.cpp's server drew {reply.tokens} where a bias left token {token} alone: its log-probability is unknown")
        return reply

    async def _expand(self, endpoint: Endpoint, ask: Expand, send: Send) -> Expansion:
        ids = [*await self._ids(endpoint, ask.prefix.prompt, send), *ask.prefix.tokens]
        reply = await self._complete(endpoint, ids, {"n_predict": 1, "n_probs": ask.num, **shaped(Sampling(temperature=0.0))}, send)
        is_last = len(ask.prefix.tokens) + 1 >= ask.prefix.prompt.max_tokens
        children = []
        for token, log_p in reply.entries[0].top[: ask.num]:
            tokens = (*ask.prefix.tokens, token)
            finish = "stop" if token not in reply.pieces or not reply.pieces[token] else "length" if is_last else None
            text = ask.prefix.text if finish == "stop" else await self._text(endpoint, tokens, send)
            children.append(replace(ask.prefix, tokens=tokens, text=text, log_p=ask.prefix.log_p + log_p, log_q=ask.prefix.log_q, finish=finish))
        return Expansion(tuple(stopped(child) for child in children), replace(reply.cost, generated_tokens=0))

    async def _text(self, endpoint: Endpoint, tokens: Sequence[int], send: Send) -> str:
        return await send(f"{endpoint.root}/detokenize", {"tokens": list(tokens)}, lambda found: _text(found, "content"))

    async def _score(self, endpoint: Endpoint, ask: Score, send: Send) -> Scores:
        ids = [*await self._ids(endpoint, ask.prefix.prompt, send), *ask.prefix.tokens]
        distinct = list(dict.fromkeys(ask.options))
        found = dict(zip(distinct, await asyncio.gather(*(self._given(endpoint, ids, option, send) for option in distinct)), strict=True))
        cost = sum((cost for _, cost in found.values()), Cost())
        asked = len(ids) + sum(cost.generated_tokens for _, cost in found.values())  # the prefix once, every option's tokens
        cost = replace(cost, generated_tokens=0, reused_tokens=max(0, asked - cost.prompt_tokens), calls=1)
        return Scores(tuple(found[option][0] for option in ask.options), cost)

    async def _given(self, endpoint: Endpoint, ids: Sequence[int], option: str, send: Send) -> tuple[float, Cost]:
        """(log-probability of `option` after `ids`, what it cost; generated_tokens are the option's)."""
        tokens = await self._tokens(endpoint, option, send)
        steps = [await self._forced(endpoint, [*ids, *tokens[:i]], token, send=send) for i, token in enumerate(tokens)]
        return sum(step.entries[0].log_p for step in steps), sum((step.cost for step in steps), Cost())

    async def _complete(self, endpoint: Endpoint, ids: Sequence[int], body: Json, send: Send) -> "Reply":
        whole = {"prompt": list(ids), "return_tokens": True, "cache_prompt": True, "stream": False, **body}
        return await send(f"{endpoint.root}/completion", whole, read_reply, len(ids) + body["n_predict"])


@dataclass(frozen=True, kw_only=True)
class Reply(Drawn):
    """matched: the stop string that ended it; is_eos: the last token is the model's end.

    pieces: text of the tokens that were listed, by id; empty for a control token.
    """

    matched: str
    is_eos: bool
    pieces: dict[int, str]


def read_reply(reply: Json) -> Reply:
    """A reply of /completion. Raises BadReply."""
    ended = {"eos": "stop", "word": "stop", "limit": "limit"}.get(str(reply.get("stop_type")))
    timings = reply.get("timings")
    if ended is None or not isinstance(timings, dict):
        raise BadReply(f"a completion ended with {reply.get('stop_type')!r}, or has no timings")
    tokens = tuple(_ints(reply, "tokens"))
    cost = Cost(prompt_tokens=count(timings, "prompt_n"), reused_tokens=count(timings, "cache_n"), generated_tokens=len(tokens), calls=1)
    rows = reply.get("completion_probabilities") or []
    try:
        entries = tuple(TokenLogP(e["id"], float(e["logprob"]), tuple((t["id"], float(t["logprob"])) for t in e["top_logprobs"])) for e in rows)
        pieces = {t["id"]: t["token"] for e in rows for t in (*e["top_logprobs"], e)}
    except (KeyError, TypeError, ValueError) as error:
        raise BadReply(f"a completion's log-probabilities are malformed ({error!r})") from error
    return Reply(
        text=_text(reply, "content"), tokens=tokens, ended=ended, cost=cost, entries=entries, pieces=pieces,
        matched=str(reply.get("stopping_word", "")), is_eos=reply["stop_type"] == "eos",
    )  # fmt: skip


def stopped(child: Prefix) -> Prefix:
    """`child`, ended where its last token completes a stop string."""
    ends = [at for s in child.prompt.stop if (at := child.text.find(s)) >= 0]
    return replace(child, text=child.text[: min(ends)], finish="stop") if ends else child


def shaped(sampling: Sampling) -> Json:
    """How tokens are drawn: ponder's own order, nothing that the server adds by itself."""
    return {
        "temperature": sampling.temperature, "top_k": sampling.top_k or 0, "top_p": sampling.top_p, "min_p": sampling.min_p,
        "samplers": SHAPES, "repeat_penalty": 1.0,
    }  # fmt: skip


def _text(reply: Json, name: str) -> str:
    value: Any = reply.get(name)
    if not isinstance(value, str):
        raise BadReply(f"the reply has no text {name!r}")
    return value


def _ints(reply: Json, name: str) -> list[int]:
    value: Any = reply.get(name)
    if not isinstance(value, list) or not all(isinstance(x, int) for x in value):
        raise BadReply(f"the reply has no list of numbers {name!r}")
    return value
