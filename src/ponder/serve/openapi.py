"""The OpenAPI document, written from the models that requests are read by."""

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from ponder.serve.wire import ChatRequest, CompletionRequest, EmbeddingRequest

ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
GETS = {  # path -> (what it tells, type of its response, statuses beside 200)
    "/health": ("Whether it is well, or shutting down.", "application/json", (503,)),
    "/metrics": ("For Prometheus.", "text/plain", ()),
    "/v1/models": ("The model, alone and with every strategy.", "application/json", (401, 403)),
    "/v1/models/{name}": ("One of them.", "application/json", (401, 403, 404)),
    "/ponder/strategies": ("Strategies with their fields, defaults and guarantees.", "application/json", (401, 403)),
    "/ponder/ledger": ("What was spent since the server started.", "application/json", (401, 403)),
    "/ponder/runs": ("The runs of late.", "application/json", (401, 403)),
    "/ponder/runs/{id}": ("One run with its trace.", "application/json", (401, 403, 404)),
    "/ponder/runs/{id}/events": ("Its trace lines as they come.", "text/event-stream", (401, 403, 404)),
}
POSTS: dict[str, tuple[str, type[BaseModel]]] = {
    "/v1/chat/completions": ("Answers a conversation.", ChatRequest),
    "/v1/completions": ("Goes on from a text.", CompletionRequest),
    "/v1/embeddings": ("Tells the model's last hidden state of a text.", EmbeddingRequest),
}
REFUSALS = (400, 401, 403, 404, 408, 413, 429, 503)


def openapi() -> dict[str, object]:
    models = [(model, "validation") for _, model in POSTS.values()]
    _, schema = models_json_schema(models, ref_template="#/components/schemas/{model}")  # type: ignore[arg-type]
    paths: dict[str, object] = {path: {"get": _get(path, *told)} for path, told in GETS.items()}
    paths |= {path: {"post": _post(about, model.__name__)} for path, (about, model) in POSTS.items()}
    return {
        "openapi": "3.1.0",
        "info": {"title": "ponder", "version": "1", "description": "OpenAI-compatible; `ponder` holds what goes beyond."},
        "paths": paths,
        "components": {
            "schemas": schema.get("$defs", {}) | {"Error": ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _get(path: str, about: str, media: str, refusals: tuple[int, ...]) -> dict[str, object]:
    names = [part.strip("{}") for part in path.split("/") if part.startswith("{")]
    parameters = [{"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}} for name in names]
    told = {"200": {"description": about, "content": {media: {}}}}
    return {"summary": about, "parameters": parameters, "responses": told | {str(s): _refusal(s) for s in refusals}}


def _post(about: str, model: str) -> dict[str, object]:
    told = {"200": {"description": "The reply, or with stream=true its events.", "content": {"application/json": {}, "text/event-stream": {}}}}
    body = {"required": True, "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{model}"}}}}
    return {"summary": about, "requestBody": body, "responses": told | {str(s): _refusal(s) for s in REFUSALS}}


def _refusal(status: int) -> dict[str, object]:
    return {"description": f"Refused ({status}).", "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}}
