"""What a request's body may hold. Strict: a field is honoured or refused; types are not converted; null means left out."""

import json
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ponder.serve.errors import REASONS, bad, of_validation

MAX_CHOICES = 64
MAX_DEPTH = 60  # of nested JSON

Word = Annotated[str, Field(max_length=400)]
Stop = Annotated[str, Field(min_length=1, max_length=500)]
T = TypeVar("T", bound=BaseModel)


class Wire(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class TextPart(Wire):
    type: Literal["text"]
    text: str


FunctionName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


class CalledFunction(Wire):
    name: FunctionName
    arguments: str  # JSON


class ToolCall(Wire):
    id: Word
    type: Literal["function"]
    function: CalledFunction


class Message(Wire):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[TextPart], Field(min_length=1, max_length=1000)] | None
    refusal: None = None  # what OpenAI's clients echo of a reply
    audio: None = None
    tool_calls: Annotated[list[ToolCall], Field(min_length=1, max_length=128)] | None = None  # of an assistant
    tool_call_id: Word | None = None  # what a tool's message answers
    function_call: None = None
    annotations: Annotated[list[str], Field(max_length=0)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _calls_need_no_content(cls, found: object) -> object:
        is_call = isinstance(found, dict) and found.get("tool_calls") is not None and "content" not in found
        return {**found, "content": None} if is_call else found  # type: ignore[dict-item]

    @model_validator(mode="after")
    def _fits_its_role(self) -> "Message":
        if self.tool_calls is not None and self.role != "assistant":
            raise ValueError(f"tool_calls are an assistant's, not a {self.role}'s; leave them out")
        if (self.tool_call_id is not None) != (self.role == "tool"):
            raise ValueError("a message of role tool, and no other, has a tool_call_id")
        if self.content is None and self.tool_calls is None:
            raise ValueError("content is null: write a text")
        return self

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content or ())


class Function(Wire):
    name: FunctionName
    description: Annotated[str, Field(max_length=10_000)] | None = None
    parameters: dict[str, object] | None = None  # JSON schema of an object
    strict: bool | None = None


class Tool(Wire):
    type: Literal["function"]
    function: Function


class NamedFunction(Wire):
    name: FunctionName


class NamedTool(Wire):
    type: Literal["function"]
    function: NamedFunction


class StreamOptions(Wire):
    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class PlainFormat(Wire):
    type: Literal["text", "json_object"]


class NamedSchema(Wire):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    description: str | None = None
    schema_: Annotated[dict[str, object], Field(alias="schema")]
    strict: bool | None = None


class SchemaFormat(Wire):
    type: Literal["json_schema"]
    json_schema: NamedSchema


class Ponder(Wire):
    """Ponder's own part of a request."""

    strategy: Word | None = None  # NAME or NAME:field=value,...
    budget: Word | None = None  # as '2000 tokens, 5 s'; seconds count from the request's arrival
    answer: Word | None = None  # how to read the answer in a text: what makes two candidates the same
    stream: Literal["final", "live"] | None = None  # live: events of how the best answer so far grows and changes


class Generation(Wire):
    """What both kinds of request share."""

    model: Word
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: (
        Annotated[dict[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], Annotated[float, Field(ge=-100, le=100)]], Field(max_length=1000)] | None
    ) = None
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    max_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Annotated[str, Field(max_length=512)] | None = None
    ponder: Ponder | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class ChatRequest(Generation):
    messages: Annotated[list[Message], Field(min_length=1, max_length=2000)]
    max_completion_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: Annotated[PlainFormat | SchemaFormat, Field(discriminator="type")] | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    store: Literal[False] | None = None


class CompletionRequest(Generation):
    prompt: str | Annotated[list[str], Field(min_length=1, max_length=MAX_CHOICES)]
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: Literal[False] | None = None

    @property
    def prompts(self) -> list[str]:
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt


TokenIds = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1, max_length=1 << 17)]


class EmbeddingRequest(Wire):
    model: Word
    input: (
        str
        | TokenIds
        | Annotated[list[str], Field(min_length=1, max_length=MAX_CHOICES)]
        | Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_CHOICES)]
    )
    encoding_format: Literal["float", "base64"] | None = None
    user: Annotated[str, Field(max_length=512)] | None = None

    @property
    def texts(self) -> list[str | list[int]]:
        """Each a text or its tokens."""
        found: Any = self.input
        return [found] if isinstance(found, str) or isinstance(found[0], int) else found


def read(kind: type[T], body: bytes) -> T:
    """The request in a body. Raises Refusal (400) that names the field."""
    try:
        found = json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise bad(None, f"the body is no JSON: {str(error)[:200]}") from error
    if not isinstance(found, dict):
        raise bad(None, f"the body must be a JSON object, not a {type(found).__name__}")
    if _depth(found) > MAX_DEPTH:
        raise bad(None, f"the body is nested more than {MAX_DEPTH} deep")
    try:
        return kind.model_validate({k: v for k, v in found.items() if v is not None or k not in REASONS})
    except ValidationError as error:
        raise of_validation(error.errors(include_url=False, include_context=False)) from error


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is no number of JSON")


def _depth(value: object) -> int:
    """How deep lists and objects are nested."""
    depth, layer = 0, [value]
    while layer:
        depth += 1
        layer = [x for v in layer if isinstance(v, dict | list) for x in (v.values() if isinstance(v, dict) else v)]
    return depth
