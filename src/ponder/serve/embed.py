"""POST /v1/embeddings: what the model's last hidden state says of a text, read by an ask like any other (core.probe), at length 1."""

import base64
import math
import secrets
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.types import Receive, Scope, Send
from torch import Tensor, float64

from ponder.core.asks import Outcome, Prefix, Prompt, Read, Readings, Turn
from ponder.core.guarantee import Guarantee
from ponder.core.probe import Probe
from ponder.core.rng import Rng
from ponder.core.roles import Asking
from ponder.run.recipe import Result
from ponder.serve.desk import Desk, Visit
from ponder.serve.errors import Refusal, bad
from ponder.serve.generate import JSON, gone_of, read_body
from ponder.serve.menu import Menu, Order
from ponder.serve.replies import line, usage_of
from ponder.serve.stream import Gone, is_gone, raise_error
from ponder.serve.wire import EmbeddingRequest, read


@dataclass(frozen=True)
class HiddenState:
    """Role Probe: the state itself."""

    name: str = "hidden_state"
    model_id: str | None = None

    def read(self, hidden_ND: Tensor) -> Tensor:
        return hidden_ND.to(float64)


@dataclass(frozen=True, kw_only=True)
class LastState:
    """Role Strategy: no answer, but the state after the prompt's last token (final norm included), among the diagnostics."""

    guarantee: Guarantee = Guarantee.EXACT
    probe: Probe = field(default_factory=HiddenState)

    def run(self, prompt: Prompt, rng: Rng) -> Asking:
        (answer,) = yield Turn((Read(prefix=Prefix(prompt), probe=self.probe, places=(0,)),))
        assert isinstance(answer, Readings)
        return Outcome((), diagnostics={"state": list(answer.rows[0])} if answer.rows else {})


class Embeddings:
    """An ASGI endpoint. tokenizer: of the process, where it has one that splits texts."""

    def __init__(self, desk: Desk, menu: Menu, *, who: Callable[[Request], str], tokenizer: Callable[[], object]) -> None:
        self.desk, self.menu, self.who, self.tokenizer = desk, menu, who, tokenizer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        arrived, request = time.perf_counter(), Request(scope)
        client = self.who(request)
        asked = read(EmbeddingRequest, await read_body(request, receive, self.desk.limits.max_body))
        if asked.model != self.menu.model:
            raise Refusal(404, f"model {asked.model[:100]!a} is not here: this server has {self.menu.model}", param="model", code="model_not_found")
        visit = Visit(f"embd-{secrets.token_hex(12)}", client, self._order(asked), 0, int(time.time()))
        self.desk.enter(visit, arrived)
        gone = gone_of(receive, visit)
        try:
            await self._reply(visit, asked, gone, send)
        finally:
            gone.cancel()
            self.desk.leave(visit)

    def _order(self, asked: EmbeddingRequest) -> Order:
        texts = [text if isinstance(text, str) else self._text(text) for text in asked.texts]
        if any(not text for text in texts):
            raise bad("input", "input: an empty text has no last token; leave it out")
        prompts = tuple(Prompt(messages=(("raw", text),), max_tokens=1) for text in texts)
        return Order(
            prompts=prompts, num=1, spec="embeddings", strategy=LastState(), budget=self.menu.most, is_urgent=False, seed=0, logprobs=None,
            is_plain=False, is_live=False, user=asked.user, prompt_field="input",
        )  # fmt: skip

    def _text(self, ids: Sequence[int]) -> str:
        """The text that is split into these tokens. Raises Refusal where none is."""
        tokenizer = self.tokenizer()
        encode, decode = getattr(tokenizer, "encode", None), getattr(tokenizer, "decode", None)
        known = range(len(getattr(tokenizer, "pieces", ())))
        text = decode(list(ids)) if decode is not None and all(i in known for i in ids) else None
        if text is None or encode is None or encode(text) != list(ids):
            raise bad("input", "input: these token ids are not those of a text in this model's vocabulary; send the text")
        return str(text)

    async def _reply(self, visit: Visit, asked: EmbeddingRequest, gone: Gone, send: Send) -> None:
        while not visit.is_settled:
            if await is_gone(visit, gone):
                return
        raise_error(visit)
        rows = [_unit(ticket.result) for ticket in visit.tickets]
        told = [{"object": "embedding", "index": i, "embedding": _written(row, asked.encoding_format)} for i, row in enumerate(rows)]
        usage = usage_of(visit.tickets)
        num = sum(ticket.prompt_len for ticket in visit.tickets)
        body = {
            "object": "list", "data": told, "model": asked.model,
            "usage": {"prompt_tokens": num, "total_tokens": num, "ponder": usage["ponder"]},
        }  # fmt: skip
        await send({"type": "http.response.start", "status": 200, "headers": [*JSON, (b"x-ponder-run", visit.id.encode())]})
        await send({"type": "http.response.body", "body": line(body)})


def _unit(result: Result | None) -> list[float]:
    """The state at length 1. Raises Refusal where the budget had nothing left for it."""
    state = None if result is None else result.diagnostics.get("state")
    if not isinstance(state, list):
        raise Refusal(503, "the budget of this server was spent before the text was read; come again or send less", headers={"Retry-After": "5"})
    length = math.sqrt(math.fsum(x * x for x in state)) or 1.0
    return [x / length for x in state]


def _written(row: list[float], encoding: str | None) -> list[float] | str:
    if encoding != "base64":
        return row
    return base64.b64encode(struct.pack(f"<{len(row)}f", *row)).decode()
