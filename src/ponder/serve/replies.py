"""Results in OpenAI's shapes, whole or as events of a stream, with ponder's own part beside them."""

import json
import math
from collections.abc import Callable, Mapping, Sequence

from ponder.core.asks import Candidate, TokenLogP
from ponder.core.budget import Cost
from ponder.run.recipe import Result
from ponder.serve.desk import Ticket, Visit

Pieces = Sequence[bytes]
LEAST = -9999.0  # what OpenAI writes for a log-probability that is no number of JSON
MAX_CANDIDATES = 64
DONE = b"data: [DONE]\n\n"


def line(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False).encode()


def event(value: object) -> bytes:
    """One server-sent event."""
    return b"data: " + line(value) + b"\n\n"


def finite(value: object) -> object:
    """`value` with null for numbers that JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): finite(v) for k, v in value.items()}
    return [finite(v) for v in value] if isinstance(value, list | tuple) else value


# ---- what it cost


def usage_of(tickets: Sequence[Ticket]) -> dict[str, object]:
    """Of all choices together. A prompt that several choices share was computed, and is counted, once."""
    results = [ticket.result for ticket in tickets if ticket.result is not None]
    cost = sum((r.cost for r in results), Cost())
    computed = sum((r.computed for r in results), Cost())
    prompts = {ticket.job.prompt: ticket.prompt_len for ticket in tickets}
    begun = [ticket for ticket in tickets if ticket.result is not None and ticket.result.cost.prompt_tokens]
    repeated = sum(ticket.prompt_len for ticket in begun) - sum(prompts[p] for p in {ticket.job.prompt for ticket in begun})
    prompt = cost.prompt_tokens - repeated
    own = {
        "generator_tokens": prompt + cost.generated_tokens,
        "verifier_tokens": cost.verifier_tokens,
        "reused_tokens": cost.reused_tokens + repeated,
        "wasted_tokens": cost.wasted_tokens,
        "computed_tokens": computed.prompt_tokens + computed.generated_tokens,
        "calls": cost.calls,
        "engine_seconds": round(cost.seconds, 6),
    }
    cached = max(0, min(prompt, prompt + cost.generated_tokens + cost.verifier_tokens - computed.prompt_tokens - computed.generated_tokens))
    return {
        "prompt_tokens": prompt,
        "completion_tokens": cost.generated_tokens,
        "total_tokens": prompt + cost.generated_tokens,
        "prompt_tokens_details": {"cached_tokens": cached},
        "ponder": own,
    }


# ---- one choice


Calls = list[dict[str, object]]


def said_by(ticket: Ticket, result: Result) -> tuple[str | None, Calls]:
    """(content, tool calls) of an answer."""
    tools = ticket.visit.order.tools
    return (result.text, []) if tools is None else tools.read(result.text, ticket.job.id)


def finish_of(result: Result, calls: Calls) -> str:
    """OpenAI's word for why the text ended."""
    selected = result.candidates[0].finish if result.candidates else "length"
    return "length" if selected in ("length", "budget") else "tool_calls" if calls else "stop"


def ponder_of(ticket: Ticket, result: Result) -> dict[str, object]:
    """Ponder's own part of a choice."""
    diagnostics = {k: v for k, v in result.diagnostics.items() if k != "logprobs"}
    found = {
        "run": ticket.job.id,
        "answer": result.answer,
        "confidence": result.confidence,
        "stop_reason": result.stop_reason,
        "diagnostics": diagnostics,
        "candidates": [_candidate(c) for c in result.candidates[:MAX_CANDIDATES]],
        "num_candidates": len(result.candidates),
    }
    return finite(found)  # type: ignore[return-value]


def _candidate(candidate: Candidate) -> dict[str, object]:
    verdicts = [{"value": v.value, "kind": v.kind, "detail": v.detail} for v in candidate.verdicts]
    told = {"text": candidate.text, "answer": candidate.answer, "finish": candidate.finish, "score": candidate.score, "log_p": candidate.log_p}
    return told | {"tokens": len(candidate.tokens), "verdicts": verdicts}


def head_of(visit: Visit, model: str) -> dict[str, object]:
    order = visit.order
    return {"model": model, "strategy": order.spec, "budget": str(order.budget), "seed": visit.seed, "runs": [t.job.id for t in visit.tickets]}


# ---- log-probabilities


def rows_of(result: Result) -> list[TokenLogP]:
    rows = result.diagnostics.get("logprobs", [])
    return [TokenLogP(token, log_p, tuple((other, x) for other, x in top)) for token, log_p, top in rows]  # type: ignore[attr-defined]


def chat_logprobs(rows: Sequence[TokenLogP], pieces: Pieces) -> dict[str, object]:
    return {"content": [_entry(r.token, r.log_p, pieces) | {"top_logprobs": [_entry(t, x, pieces) for t, x in r.top]} for r in rows], "refusal": None}


def _entry(token: int, log_p: float, pieces: Pieces) -> dict[str, object]:
    piece = pieces[token]
    return {"token": piece.decode(errors="replace"), "logprob": max(log_p, LEAST), "bytes": list(piece)}


def text_logprobs(rows: Sequence[TokenLogP], pieces: Pieces, start: int = 0) -> dict[str, object]:
    """In the shape of /v1/completions; start: characters before these rows."""
    texts = [pieces[r.token].decode(errors="replace") for r in rows]
    offsets = [start + sum(map(len, texts[:i])) for i in range(len(texts))]
    top = [{pieces[t].decode(errors="replace"): max(x, LEAST) for t, x in r.top} for r in rows]
    return {"tokens": texts, "token_logprobs": [max(r.log_p, LEAST) for r in rows], "top_logprobs": top, "text_offset": offsets}


# ---- the two kinds of request


class Shape:
    """What /v1/chat/completions and /v1/completions differ in."""

    def __init__(
        self, *, name: str, prefix: str, whole: str, chunk: str, first: Mapping[str, object] | None, logprobs: Callable[..., dict[str, object]]
    ) -> None:
        self.name, self.prefix, self.whole, self.chunk, self.first, self.logprobs = name, prefix, whole, chunk, first, logprobs
        self.is_chat = first is not None

    def choice(self, ticket: Ticket, pieces: Pieces | None) -> dict[str, object]:
        result = ticket.result
        assert result is not None
        content, calls = said_by(ticket, result)
        called = {"tool_calls": calls} if calls else {}
        body: dict[str, object] = (
            {"message": {"role": "assistant", "content": content, "refusal": None, **called}} if self.is_chat else {"text": content}
        )
        rows = rows_of(result) if pieces is not None and "logprobs" in result.diagnostics else None
        told = None if rows is None or pieces is None else self.logprobs(rows, pieces)
        return {"index": ticket.index, **body, "logprobs": told, "finish_reason": finish_of(result, calls), "ponder": ponder_of(ticket, result)}

    def reply(self, visit: Visit, model: str, pieces: Pieces | None) -> bytes:
        choices = [self.choice(ticket, pieces) for ticket in visit.tickets]
        head = {"id": visit.id, "object": self.whole, "created": visit.created, "model": model, "choices": choices}
        return line(head | {"usage": usage_of(visit.tickets), "system_fingerprint": None, "ponder": head_of(visit, model)})

    def delta(self, text: str) -> dict[str, object]:
        return {"delta": {"content": text}} if self.is_chat else {"text": text}


CHAT = Shape(
    name="chat", prefix="chatcmpl", whole="chat.completion", chunk="chat.completion.chunk", first={"role": "assistant", "content": ""},
    logprobs=chat_logprobs,
)  # fmt: skip
TEXT = Shape(name="text", prefix="cmpl", whole="text_completion", chunk="text_completion", first=None, logprobs=text_logprobs)


class Writer:
    """The events of a stream, of all choices of a request.

    Content of a plain strategy goes out as it grows; that of the others once it is settled. With ponder.stream="live" the best answer
    so far is told in `ponder` of chunks without content: {"revision": k, "append": text} while it grows, {"revision": k + 1, "text":
    the whole new text} when it is another one. So who puts the contents together always has the answer.
    """

    def __init__(self, shape: Shape, visit: Visit, model: str, pieces: Pieces | None, *, has_usage: bool) -> None:
        self.shape, self.visit, self.model, self.pieces, self.has_usage = shape, visit, model, pieces, has_usage
        self.head = {"id": visit.id, "object": shape.chunk, "created": visit.created, "model": model}
        self.sent = [0] * len(visit.tickets)  # characters
        self.num_rows = [0] * len(visit.tickets)  # log-probabilities
        self.shown = [""] * len(visit.tickets)  # live
        self.revision = [0] * len(visit.tickets)
        self.seen = [0] * len(visit.tickets)  # turns told
        self.is_over = [False] * len(visit.tickets)
        start, end = json.dumps(self.head)[:-1] + ', "choices": [{"index": ', f"}}]{', ' + json.dumps('usage') + ': null' if has_usage else ''}}}\n\n"
        self.fast = (
            f"data: {start}",
            ', "delta": {"content": ' if shape.is_chat else ', "text": ',
            "}" if shape.is_chat else "",
            f', "logprobs": null, "finish_reason": null{end}',
        )

    def opening(self) -> bytes:
        """What is sent before any text."""
        first = self.shape.first
        if first is None:
            return b": ponder\n\n"
        return b"".join(self._chunk([{"index": t.index, "delta": first, "logprobs": None, "finish_reason": None}]) for t in self.visit.tickets)

    def failure(self, error: Mapping[str, object]) -> bytes:
        """What ends a stream that cannot be finished."""
        return event(error) + DONE

    def news(self) -> bytes:
        """All that is new since it was last asked."""
        return b"".join(part for i, ticket in enumerate(self.visit.tickets) if not self.is_over[i] for part in self._of(i, ticket))

    def closing(self) -> bytes:
        usage = event(self.head | {"choices": [], "usage": usage_of(self.visit.tickets)}) if self.has_usage else b""
        return usage + DONE

    def _of(self, i: int, ticket: Ticket) -> list[bytes]:
        if ticket.result is not None:
            self.is_over[i] = True
            return self._ending(i, ticket, ticket.result)
        if self.visit.order.is_plain:
            return self._growth(i, ticket)
        return self._revision(i, ticket) if self.visit.order.is_live else []

    def _growth(self, i: int, ticket: Ticket) -> list[bytes]:
        if ticket.so_far is None:
            return []
        text, rows = ticket.so_far.prefix.text, ticket.so_far.logprobs
        told = self._rows(i, rows) if len(ticket.so_far.prefix.tokens) == len(rows) else None
        new, self.sent[i] = text[self.sent[i] :], max(self.sent[i], len(text))
        if told is None:
            return [self._content(ticket.index, new)] if new else []
        return [self._chunk([{"index": ticket.index, **self.shape.delta(new), "logprobs": told, "finish_reason": None}])]

    def _rows(self, i: int, rows: Sequence[TokenLogP]) -> dict[str, object] | None:
        """Those not sent yet; None where there are none."""
        new, start = rows[self.num_rows[i] :], self.num_rows[i]
        if not new or self.pieces is None:
            return None
        self.num_rows[i] = len(rows)
        before = sum(len(self.pieces[r.token].decode(errors="replace")) for r in rows[:start])
        return self.shape.logprobs(new, self.pieces) if self.shape.is_chat else self.shape.logprobs(new, self.pieces, before)

    def _revision(self, i: int, ticket: Ticket) -> list[bytes]:
        """Chunks without content about the best answer so far."""
        text = ticket.so_far.prefix.text if ticket.so_far is not None else ticket.best or ""
        if ticket.num_told != self.seen[i]:
            self.seen[i], ticket.so_far = ticket.num_told, None
            text = ticket.best if ticket.best is not None else text
        return self._shown(i, ticket.index, text)

    def _shown(self, i: int, index: int, text: str) -> list[bytes]:
        if text == self.shown[i]:
            return []
        is_longer = text.startswith(self.shown[i])
        self.revision[i] += not is_longer
        change: dict[str, object] = {"append": text[len(self.shown[i]) :]} if is_longer else {"text": text}
        self.shown[i] = text
        empty: dict[str, object] = {"delta": {}} if self.shape.is_chat else {"text": ""}
        told = {"index": index, **empty, "logprobs": None, "finish_reason": None, "ponder": {"revision": self.revision[i]} | change}
        return [self._chunk([told])]

    def _ending(self, i: int, ticket: Ticket, result: Result) -> list[bytes]:
        parts = self._shown(i, ticket.index, result.text) if self.visit.order.is_live else []
        content, calls = said_by(ticket, result)
        new = (content or "")[self.sent[i] :]
        if "logprobs" in result.diagnostics and (told := self._rows(i, rows_of(result))) is not None:
            parts.append(self._chunk([{"index": ticket.index, **self.shape.delta(new), "logprobs": told, "finish_reason": None}]))
        elif new:
            parts.append(self._content(ticket.index, new))
        if calls:
            numbered = [{"index": at, **call} for at, call in enumerate(calls)]
            parts.append(self._chunk([{"index": ticket.index, "delta": {"tool_calls": numbered}, "logprobs": None, "finish_reason": None}]))
        end: dict[str, object] = {"delta": {}} if self.shape.is_chat else {"text": ""}
        last = {"index": ticket.index, **end, "logprobs": None, "finish_reason": finish_of(result, calls), "ponder": ponder_of(ticket, result)}
        return [*parts, self._chunk([last], {"ponder": head_of(self.visit, self.model)})]

    def _content(self, index: int, text: str) -> bytes:
        start, middle, close, end = self.fast
        return f"{start}{index}{middle}{json.dumps(text)}{close}{end}".encode()

    def _chunk(self, choices: Sequence[Mapping[str, object]], more: Mapping[str, object] | None = None) -> bytes:
        return event({**self.head, "choices": choices, **({"usage": None} if self.has_usage else {}), **(more or {})})
