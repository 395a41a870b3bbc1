"""Budget: what may be spent. Cost: what was spent. Counts are exact integers; seconds are measured."""

import re
from dataclasses import dataclass, fields, replace

from ponder.core.errors import BadField

UNITS = {
    "tokens": "tokens", "token": "tokens", "tok": "tokens",
    "seconds": "seconds", "second": "seconds", "sec": "seconds", "s": "seconds",
    "flops": "flops", "flop": "flops",
    "usd": "usd", "$": "usd", "dollars": "usd",
    "calls": "calls", "call": "calls",
}  # fmt: skip
SCALES = {"k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "p": 1e15}
PART = re.compile(
    r"(?P<dollar>\$?)\s*(?P<number>\d+\.?\d*(?:e\d+)?|\.\d+)\s*(?P<scale>[kmgtp]?)\s*(?P<unit>" + "|".join(map(re.escape, UNITS)) + r")?"
)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What was spent. Addable; the zero is `Cost()`."""

    prompt_tokens: int = 0  # prefix tokens the engine computed
    reused_tokens: int = 0  # prefix tokens found in the cache instead
    generated_tokens: int = 0  # sampled tokens, cancelled ones included
    verifier_tokens: int = 0  # tokens computed on behalf of a verifier, prompt and generated
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    wasted_tokens: int = 0  # generated, but in no candidate that was returned
    calls: int = 0  # asks answered by the process
    flops: float = 0.0
    usd: float = 0.0
    seconds: float = 0.0  # this job's share of the wall time of the steps it took part in
    cpu_seconds: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(**{name: getattr(self, name) + getattr(other, name) for name in COUNTS})

    @property
    def tokens(self) -> int:
        """Tokens computed: prompt + generated + verifier. Reused tokens are free; drafted are counted in flops."""
        return self.prompt_tokens + self.generated_tokens + self.verifier_tokens

    def as_verifier(self) -> "Cost":
        """The same cost, booked as a verifier's."""
        return replace(self, prompt_tokens=0, generated_tokens=0, verifier_tokens=self.tokens)


COUNTS = tuple(f.name for f in fields(Cost))


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What may be spent on one question; None means no limit. Raises BadField for a limit that is not positive.

    strict=True never overshoots: asks reserve the most they could spend before they start. Otherwise the
    overshoot is at most one step of the running asks.
    """

    tokens: int | None = None  # computed tokens: prompt + generated + verifier
    seconds: float | None = None  # wall clock
    flops: float | None = None
    usd: float | None = None
    calls: int | None = None
    strict: bool = False

    def __post_init__(self) -> None:
        for name in ("tokens", "seconds", "flops", "usd", "calls"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise BadField(f"budget {name}={value}: a limit must be a positive number; leave it out for no limit")

    def spent_by(self, cost: Cost) -> str | None:
        """Name of the first limit that `cost` has reached, or None."""
        for name in ("tokens", "seconds", "flops", "usd", "calls"):
            limit = getattr(self, name)
            if limit is not None and getattr(cost, name) >= limit:
                return name
        return None

    @property
    def nearest(self) -> str:
        """The limit to name when a budget holds no more, though none is quite reached."""
        return next((name for name in ("tokens", "usd", "flops") if getattr(self, name) is not None), "calls")

    def __str__(self) -> str:
        parts = [f"{getattr(self, n):g} {n}" if n != "tokens" else f"{self.tokens} tokens" for n in
                 ("tokens", "seconds", "flops", "usd", "calls") if getattr(self, n) is not None]  # fmt: skip
        return ", ".join(parts) or "no limit"


def parse_budget(text: str, *, strict: bool = False) -> Budget:
    """Reads '2000 tokens, 20 s' (also '5k tokens', '1.5 T flops', '0.02 usd'); raises BadField naming the bad part."""
    found: dict[str, float] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        match = PART.fullmatch(part.lower())
        if not match or not (match["dollar"] or match["unit"]):
            raise BadField(f"budget part {part!r}: expected NUMBER UNIT, where UNIT is tokens, s, flops, usd or calls, as in '2000 tokens, 20 s'")
        unit = UNITS[match["unit"] or "usd"]
        if unit in found:
            raise BadField(f"budget names {unit} twice in {text!r}; keep one")
        found[unit] = float(match["number"]) * SCALES.get(match["scale"], 1.0)
    whole = {name: int(value) if name in ("tokens", "calls") and value < float("inf") else value for name, value in found.items()}
    return Budget(**whole, strict=strict)  # type: ignore[arg-type]
