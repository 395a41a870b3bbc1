"""Opens an endpoint: asks the server who it is, and what its model can do, before any work."""

from collections.abc import Mapping
from dataclasses import replace

from ponder.core.errors import UnknownName
from ponder.remote.dialect import Dialect
from ponder.remote.endpoint import Endpoint
from ponder.remote.openai import OpenAI
from ponder.remote.process import RemoteProcess
from ponder.remote.wire import Json, Send, Wire


def open_remote(endpoint: Endpoint, dialects: Mapping[str, Dialect], *, transport: object = None) -> RemoteProcess:
    """The endpoint as a process. dialects: by the name that a server gives itself (`owned_by` of its models).

    Raises EndpointError when nobody answers there, BadField when it has several models and none is named, UnknownName for a
    kind or model that it does not have. transport: another way to the server, for tests.
    """
    if endpoint.kind and endpoint.kind not in dialects:
        raise UnknownName("kind of endpoint", endpoint.kind, dialects)
    wire = Wire(endpoint, transport)
    try:
        return wire.call(lambda send: _opened(endpoint, dialects, wire, send))
    except BaseException:
        wire.close()
        raise


async def _opened(endpoint: Endpoint, dialects: Mapping[str, Dialect], wire: Wire, send: Send) -> RemoteProcess:
    listed = await send(f"{endpoint.url}/models", None, _owners)
    if endpoint.model and listed and endpoint.model not in listed:
        raise UnknownName(f"model of {endpoint.url}", endpoint.model, listed)
    kind = endpoint.kind or next(iter(listed.values()), "")
    plain = OpenAI()
    dialect = dialects.get(kind, plain)
    facts = await dialect.facts(endpoint, send)
    if dialect is plain and endpoint.offers is None and await plain.tells_log_p(replace(endpoint, model=facts.model), send):
        dialect = OpenAI(offers=frozenset({"log_p"}))
    return RemoteProcess(endpoint, dialect, facts, wire)


def _owners(reply: Json) -> dict[str, str]:
    """Model -> what the server calls itself; empty where the list is of another form."""
    rows = reply.get("data")
    return {str(row.get("id")): str(row.get("owned_by", "")) for row in rows} if isinstance(rows, list) else {}
