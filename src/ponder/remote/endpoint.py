"""Where a remote engine is, and how it may be used: read from a URL or from a TOML file."""

import os
import tomllib
from dataclasses import dataclass, fields, replace
from pathlib import Path
from urllib.parse import urlsplit

from ponder.core.errors import BadField, UnknownName
from ponder.core.needs import WORDS
from ponder.remote.prices import Price, read_prices

SCHEMES = ("http://", "https://")


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """One model of one server. Raises BadField for a value out of range."""

    url: str  # as far as its API's root: http://host:port/v1
    model: str = ""  # as the server names it; "": the only one that it lists
    kind: str = ""  # dialect of the server, a name of the catalogue; "": as the server says, else plain OpenAI
    name: str = ""  # stands for the weights in the sample store's keys; "": model and address
    key_env: str = "PONDER_API_KEY"  # environment variable that holds the API key; the key itself is never kept
    offers: frozenset[str] | None = None  # what it can do (core.needs); None: what the dialect knows of it
    context_len: int | None = None  # most tokens of prompt and answer; None: as the server says
    num_parameters: float | None = None  # for FLOPs; None: as the server says, else a budget in FLOPs is refused
    price: Price | None = None  # None: a budget in $ is refused
    concurrency: int = 16  # requests under way at once
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None  # prompt and answer at its longest
    timeout: float = 120.0  # seconds without a byte from the server
    tries: int = 6  # of one request, the first included
    wait: float = 0.5  # seconds before the second try, doubled for each later one

    def __post_init__(self) -> None:
        if not self.url.startswith(SCHEMES) or not urlsplit(self.url).hostname:
            raise BadField(f"endpoint url={self.url!r}: must be like http://host:port/v1")
        for limit in ("concurrency", "tries", "timeout", "requests_per_minute", "tokens_per_minute", "context_len", "num_parameters"):
            value = getattr(self, limit)
            if value is not None and not (isinstance(value, int | float) and value > 0):
                raise BadField(f"endpoint {limit}={value!r}: must be a positive number")
        if not self.wait >= 0:
            raise BadField(f"endpoint wait={self.wait}: must be at least 0 seconds")
        for word in self.offers or ():
            if word not in WORDS:
                raise UnknownName("offer of an endpoint", word, WORDS)

    @property
    def root(self) -> str:
        """The server's address without the API's version: where llama.cpp's own routes are."""
        return self.url.rstrip("/").removesuffix("/v1")

    @property
    def key(self) -> str | None:
        return os.environ.get(self.key_env) or None


def is_remote(name: str) -> bool:
    """Whether a model's name is that of an endpoint: a URL, or a TOML file."""
    return name.startswith(SCHEMES) or name.endswith(".toml")


def read_endpoint(name: str) -> Endpoint:
    """The endpoint that `http://host:port/v1#model` or a TOML file means. PONDER_PRICES names a price file for the former."""
    if name.endswith(".toml") and not name.startswith(SCHEMES):
        return _from_file(Path(name))
    url, _, model = name.partition("#")
    prices = os.environ.get("PONDER_PRICES")
    return Endpoint(url=url, model=model, price=_price(Path(prices), model) if prices else None)


FIELDS = frozenset({f.name for f in fields(Endpoint)} | {"prices"})  # of a file; prices: a price file, relative to it


def _from_file(path: Path) -> Endpoint:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadField(f"endpoint file {path}: {error}") from error
    for name in table:
        if name not in FIELDS:
            raise UnknownName(f"field of endpoint file {path}", name, FIELDS)
    prices = table.pop("prices", None)
    if isinstance(table.get("price"), dict):
        table["price"] = Price(**_numbers(path, table["price"]))
    if "offers" in table:
        table["offers"] = frozenset(table["offers"])
    if "url" not in table:
        raise BadField(f"endpoint file {path}: has no url, as in url = 'http://localhost:8000/v1'")
    found = Endpoint(**table)
    return found if prices is None else replace(found, price=_price(path.parent / prices, found.model))


def _numbers(path: Path, table: dict[str, object]) -> dict[str, float]:
    known = {f.name for f in fields(Price)}
    for name, value in table.items():
        if name not in known:
            raise UnknownName(f"field of the price in {path}", name, known)
        if not isinstance(value, int | float):
            raise BadField(f"{path}: price {name}={value!r} must be a number of $ per million tokens")
    return {name: float(value) for name, value in table.items()}  # type: ignore[arg-type]


def _price(path: Path, model: str) -> Price | None:
    return read_prices(path).get(model)
