"""Dialect of OpenAI's API, as vLLM, SGLang, ponder and hosted services speak it: one completion request for each Extend.

Forks are made of text: going on from a prefix sends its text again, as the last, unfinished message of the assistant, and the
server's prefix cache saves what it can (usage.prompt_tokens_details.cached_tokens). A raw prompt goes to /completions.
Where a text is split into other tokens than it was drawn in, going on is not what one long answer would have been.
"""

from dataclasses import dataclass
from typing import Any, Literal

from ponder.core.asks import Answer, Ask, Extend, Prompt, TokenLogP
from ponder.core.budget import Cost
from ponder.core.errors import BadField, EndpointError
from ponder.remote.dialect import HALF, Drawn, Facts, count, drawn_by, extension, guessed_len, piece_id, request_seed, unknown_ids
from ponder.remote.endpoint import Endpoint
from ponder.remote.wire import BadReply, Json, Refused, Send

OWN = ("meta", "ponder")  # where llama.cpp and ponder describe a model
STOPS = ("stop_reason", "matched_stop")  # where vLLM and SGLang say which string ended an answer


@dataclass(frozen=True, kw_only=True)
class OpenAI:
    """offers: words of core.needs that every server of this kind can do. A plain one is asked once whether it tells log_p."""

    offers: frozenset[str] = frozenset()
    go_on: Literal["flag", "message"] = (
        "flag"  # an unfinished message of the assistant: marked by vLLM's two fields, or just there; then the reply may begin with it
    )

    limit: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"  # the field of a chat's longest answer

    is_len_guessed = True

    async def facts(self, endpoint: Endpoint, send: Send) -> Facts:
        listed = await send(f"{endpoint.url}/models", None, _models)
        names = [str(row.get("id")) for row in listed]
        if not endpoint.model and len(names) != 1:
            raise BadField(f"endpoint {endpoint.url} has {len(names)} models: name one of them, as in {endpoint.url}#{next(iter(names), 'MODEL')}")
        row = next((row for row in listed if row.get("id") == (endpoint.model or names[0])), {})
        own: Json = next((row[name] for name in OWN if isinstance(row.get(name), dict)), {})
        context = row.get("max_model_len") or own.get("n_ctx") or own.get("context")
        return Facts(model=endpoint.model or names[0], context_len=context, num_parameters=own.get("n_params"))

    async def tells_log_p(self, endpoint: Endpoint, send: Send) -> bool:
        """Asks for one token and its log-probability."""
        body = {"model": endpoint.model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1, "logprobs": True}
        try:
            return bool(await send(f"{endpoint.url}/chat/completions", body, lambda reply: _entries(_choice(reply)), 8))
        except Refused:
            return False

    async def prompt_len(self, endpoint: Endpoint, prompt: Prompt, send: Send) -> int:
        return guessed_len(prompt)

    async def answer(self, endpoint: Endpoint, ask: Ask, most: int, send: Send) -> Answer:
        if not isinstance(ask, Extend):
            raise EndpointError(f"the API of OpenAI has no request for {type(ask).__name__}")
        path, body = self._body(endpoint, ask, most)
        begun = ask.prefix.prompt.prefill + ask.prefix.text if self.go_on == "message" else ""
        drawn = await send(f"{endpoint.url}/{path}", body, lambda reply: read_drawn(reply, ask, begun), guessed_len(ask.prefix.prompt) + most)
        return extension(ask, drawn, most, can_go_on="steps" in self._offers(endpoint))

    def _offers(self, endpoint: Endpoint) -> frozenset[str]:
        return self.offers if endpoint.offers is None else endpoint.offers

    def _body(self, endpoint: Endpoint, ask: Extend, most: int) -> tuple[str, Json]:
        prompt, drawn = ask.prefix.prompt, ask.sampling
        begun = prompt.prefill + ask.prefix.text
        is_raw = prompt.messages[0][0] == "raw"
        body: Json = {
            "model": endpoint.model,
            "max_tokens" if is_raw else self.limit: most,
            "seed": request_seed(ask),
            "stream": False,
            **drawn_by(drawn),
        }
        body |= {"top_k": drawn.top_k} if drawn.top_k is not None else {}
        body |= {"min_p": drawn.min_p} if drawn.min_p > 0 else {}
        if drawn.has_penalties:
            body |= {"presence_penalty": drawn.presence_penalty, "frequency_penalty": drawn.frequency_penalty}
        if prompt.stop or ask.until:
            body["stop"] = list(dict.fromkeys((*prompt.stop, *ask.until)))
        if "log_p" in self._offers(endpoint):
            top = ask.logprobs or 0
            body |= {"logprobs": max(1, top)} if is_raw else {"logprobs": True} | ({"top_logprobs": top} if top else {})
        if is_raw:
            return "completions", body | {"prompt": prompt.messages[0][1] + begun}
        messages = [{"role": role, "content": text} for role, text in prompt.messages]
        if begun:
            messages.append({"role": "assistant", "content": begun})
            body |= {"continue_final_message": True, "add_generation_prompt": False} if self.go_on == "flag" else {}
        return "chat/completions", body | {"messages": messages}


def read_drawn(reply: Json, ask: Extend, begun: str) -> Drawn:
    """What a completion's reply says. begun: what the reply may repeat of the message that was sent."""
    choice = _choice(reply)
    message = choice.get("message")
    text = message.get("content") if isinstance(message, dict) else choice.get("text")
    text = "" if text is None and isinstance(message, dict) else text
    if not isinstance(text, str):
        raise BadReply("the reply has no text")
    if begun and isinstance(message, dict) and text.startswith(begun):
        text = text[len(begun) :]
    cost = read_cost(reply)
    ended, separator = _ended(choice, ask)
    pieces = _entries(choice)
    entries = tuple(entry for entry, _ in pieces)
    known = tuple(entry.token for entry in entries)[: cost.generated_tokens]
    if ended == "limit":
        text = text.rstrip(HALF)
    tokens = (*known, *unknown_ids(text, cost.generated_tokens - len(known), len(known)))
    return Drawn(text=text + separator, tokens=tokens, ended=ended, cost=cost, entries=entries[: cost.generated_tokens])


def read_cost(reply: Json) -> Cost:
    """Exact counts from `usage`. Raises BadReply without it: a cost is never guessed."""
    usage = reply.get("usage")
    if not isinstance(usage, dict):
        raise BadReply("the reply has no usage, so that what it cost is unknown")
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") or 0 if isinstance(details, dict) else 0
    prompt = count(usage, "prompt_tokens")
    return Cost(prompt_tokens=max(0, prompt - cached), reused_tokens=min(prompt, cached), generated_tokens=count(usage, "completion_tokens"), calls=1)


def _ended(choice: Json, ask: Extend) -> tuple[str, str]:
    """("stop", "until" or "limit", the separator that it ended with)."""
    reason = choice.get("finish_reason")
    if reason == "length":
        return "limit", ""
    if reason != "stop":
        raise BadReply(f"the answer ended with {reason!r}, which is no end of a text")
    matched = next((choice[name] for name in STOPS if isinstance(choice.get(name), str)), None)
    if ask.until and not any(name in choice for name in STOPS):
        raise BadReply("the reply does not say whether a separator or the model ended it; take 'steps' out of the endpoint's offers")
    return ("until", matched) if matched is not None and matched in ask.until and matched not in ask.prefix.prompt.stop else ("stop", "")


def _entries(choice: Json) -> list[tuple[TokenLogP, str]]:
    """(log-probabilities, piece of text) of each token that the reply tells them of, in either API's form."""
    told = choice.get("logprobs")
    if not isinstance(told, dict):
        return []
    try:
        if isinstance(told.get("content"), list):
            return [(TokenLogP(_id(e), float(e["logprob"]), _top(e.get("top_logprobs") or ())), str(e["token"])) for e in told["content"]]
        tops = told.get("top_logprobs") or [None] * len(told["tokens"])
        rows = zip(told["tokens"], told["token_logprobs"], tops, strict=True)
        return [(TokenLogP(piece_id(t), float(x), tuple((piece_id(o), float(y)) for o, y in (top or {}).items())), t) for t, x, top in rows]
    except (KeyError, TypeError, ValueError) as error:
        raise BadReply(f"the reply's log-probabilities are malformed ({error!r})") from error


def _top(entries: Any) -> tuple[tuple[int, float], ...]:
    return tuple((_id(entry), float(entry["logprob"])) for entry in entries)


def _id(entry: Json) -> int:
    """The server's id, else a number for the piece."""
    found = entry.get("id")
    return found if isinstance(found, int) else piece_id(str(entry["token"]))


def _choice(reply: Json) -> Json:
    choices = reply.get("choices")
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise BadReply("the reply has not one choice")
    return choices[0]


def _models(reply: Json) -> list[Json]:
    rows = reply.get("data")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise BadReply("the list of models is malformed")
    return rows
