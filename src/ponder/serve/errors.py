"""What a client is told when it is refused: OpenAI's error shape, which names the field."""

import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus

from pydantic_core import ErrorDetails
from starlette.requests import Request
from starlette.responses import Response

TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}
REASONS = {  # fields of OpenAI's that are not honoured here, and what to do instead
    "tools": "tools are called in chats, by /v1/chat/completions; leave them out",
    "tool_choice": "tools are called in chats, by /v1/chat/completions; leave it out",
    "parallel_tool_calls": "tools are called in chats, by /v1/chat/completions; leave it out",
    "functions": "use tools",
    "function_call": "use tool_choice",
    "modalities": "text is all that is offered here; leave it out",
    "audio": "text is all that is offered here; leave it out",
    "best_of": "use ponder.strategy, as in 'best_of_n:num=4'",
    "suffix": "models here continue a text and do not fill gaps; leave it out",
    "reasoning_effort": "use ponder.budget, as in '2000 tokens, 5 s'",
    "service_tier": "all requests are treated alike; leave it out",
    "metadata": "it would be kept nowhere; leave it out",
    "prediction": "it is not used; leave it out",
    "dimensions": "the states of this model have one length; leave it out",
}


class Refusal(Exception):
    """A response that is an error. param: the field to blame, as clients wrote it."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.headers = status, message, param, code, dict(headers or {})

    @property
    def body(self) -> dict[str, object]:
        kind = TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def response(self) -> Response:
        return Response(json.dumps(self.body), status_code=self.status, headers=self.headers, media_type="application/json")


def bad(param: str | None, message: str, code: str | None = None) -> Refusal:
    return Refusal(400, message, param=param, code=code)


def busy(message: str, seconds: float, *, status: int = 429, code: str = "busy") -> Refusal:
    """Come again after about so many seconds."""
    return Refusal(status, message, code=code, headers={"Retry-After": str(max(1, min(600, round(seconds + 0.5))))})


def of_validation(errors: Sequence[ErrorDetails]) -> Refusal:
    """The first thing that is wrong with a request's body; where a field takes several kinds, the kind that came nearest."""
    first = max(errors, key=lambda error: len(error["loc"])) if len({error["loc"][:1] for error in errors}) == 1 else errors[0]
    param = path_of(first["loc"])
    if first["type"] == "extra_forbidden":
        name = str(first["loc"][-1])
        return bad(param, f"{param}: {REASONS.get(name, 'no such field; leave it out')}", "unknown_parameter")
    return bad(param, f"{param or 'body'}: {first['msg']}, got {shown(first['input'])}")


def path_of(loc: Sequence[int | str]) -> str | None:
    """messages, 0, content -> messages[0].content; names of pydantic's own choices are left out."""
    path, before = "", ""
    for part in map(str, loc):
        if part.isdecimal():
            path += f"[{part}]"
        elif part.isidentifier() and part not in ("str", "int", "float", "bool") and before != "response_format":
            path += f".{part}" if path else part
        before = part
    return path or None


def shown(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


async def on_refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return error.response


async def on_status(request: Request, error: Exception) -> Response:
    """No such path, or another method."""
    status = getattr(error, "status_code", 500)
    message = f"{request.method} {request.url.path}: {HTTPStatus(status).phrase.lower()}"
    return Refusal(status, message, headers=getattr(error, "headers", None)).response


async def on_bug(request: Request, error: Exception) -> Response:
    return Refusal(500, f"the server failed: {type(error).__name__}; its log says more").response
