"""Asks and answers as JSON values, for the trace and the sample store. Floats survive exactly; equal values give equal JSON."""

import hashlib
import json
import math
from dataclasses import asdict, replace

from ponder.core.asks import (
    ABSTAIN,
    Answer,
    Ask,
    Candidate,
    Confer,
    Expand,
    Expansion,
    Extend,
    Extension,
    Extensions,
    Judge,
    Judgement,
    Prefix,
    Prompt,
    Read,
    Readings,
    Sampling,
    Score,
    Scores,
    TokenLogP,
    Verdict,
)
from ponder.core.budget import Cost
from ponder.core.errors import StoreError

Json = dict[str, object]
DEFAULT = Sampling()


def dumps(value: object) -> str:
    """One line, keys sorted: equal values give equal bytes. Raises ValueError on NaN."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def digest(value: object) -> str:
    """sha256 hex of the canonical JSON of `value`."""
    return hashlib.sha256(dumps(value).encode()).hexdigest()


def prompt_json(prompt: Prompt) -> Json:
    """What of a prompt decides the model's behaviour; the answer reader does not."""
    fields: Json = {"messages": prompt.messages, "prefill": prompt.prefill, "stop": prompt.stop, "max_tokens": prompt.max_tokens}
    return fields if prompt.form is None else fields | {"form": {"kind": type(prompt.form).__name__} | asdict(prompt.form)}


def sampling_json(sampling: Sampling) -> Json:
    """Fields that move logits only where they do: a sample kept before there were such fields is found again."""
    fields = asdict(sampling)
    for name in ("logit_bias", "presence_penalty", "frequency_penalty", "repetition_penalty"):
        if fields[name] == getattr(DEFAULT, name):
            del fields[name]
    return fields


def prefix_json(prefix: Prefix) -> Json:
    """Everything but the prompt; readings only where there are any."""
    fields: Json = {
        "tokens": prefix.tokens, "text": prefix.text, "log_p": prefix.log_p, "log_q": prefix.log_q,
        "certainty": prefix.certainty, "finish": prefix.finish,
    }  # fmt: skip
    return fields if not prefix.readings else fields | {"readings": prefix.readings}


def candidate_json(candidate: Candidate) -> Json:
    """Everything; readings only where there are any."""
    fields = asdict(candidate)
    if not candidate.readings:
        del fields["readings"]
    return fields


def ask_json(ask: Ask) -> Json:
    """The ask with its prompt as a digest; together with the model it decides the answer."""
    if isinstance(ask, Judge):
        answers = [c.answer for c in ask.candidates]
        return {"kind": "judge", "verifier": getattr(ask.verifier, "name", repr(ask.verifier)), "candidates": answers}
    if isinstance(ask, Confer):
        fields: Json = {"kind": "confer", "asks": [ask_json(part) for part in ask.asks], "layout": ask.layout, "separator": ask.separator}
        return fields if ask.enough is None else fields | {"enough": ask.enough}
    head: Json = {"prompt": digest(prompt_json(ask.prefix.prompt)), "tokens": ask.prefix.tokens}
    if isinstance(ask, Extend):
        fields = head | {
            "kind": "extend", "seed": ask.seed, "max_tokens": ask.max_tokens, "until": ask.until,
            "sampling": sampling_json(ask.sampling), "certainty": ask.certainty,
        }  # fmt: skip
        if ask.probes:
            fields["probes"] = [probe.name for probe in ask.probes]
        fields |= {} if ask.logprobs is None else {"logprobs": ask.logprobs}
        return fields | {name: value for name, value in (("drift", ask.drift), ("forced", ask.forced)) if value}
    if isinstance(ask, Expand):
        return head | {"kind": "expand", "num": ask.num}
    if isinstance(ask, Read):
        return head | {"kind": "read", "probe": ask.probe.name, "places": ask.places}
    return head | {"kind": "score", "options": ask.options}


def cost_json(cost: Cost) -> Json:
    """Counts that are the same in every run; zero fields left out, seconds left out."""
    fields = {k: v for k, v in asdict(cost).items() if v}
    for measured in ("seconds", "cpu_seconds"):
        fields.pop(measured, None)
    return fields


def finite(log_p: float) -> float | None:
    """A log-probability as JSON, which has no infinity: that of the impossible is null."""
    return None if log_p == -math.inf else log_p


def log_p_of(value: float | None) -> float:
    return -math.inf if value is None else value


def answer_json(answer: Answer) -> Json:
    if isinstance(answer, Extension):
        fields: Json = {"prefix": prefix_json(answer.prefix), "finish": answer.finish, "cost": cost_json(answer.cost)}
        return (
            fields
            if not answer.logprobs
            else fields | {"logprobs": [(t.token, finite(t.log_p), [(other, finite(x)) for other, x in t.top]) for t in answer.logprobs]}
        )
    if isinstance(answer, Expansion):
        return {"children": [prefix_json(c) for c in answer.children], "cost": cost_json(answer.cost)}
    if isinstance(answer, Scores):
        return {"log_p": [finite(x) for x in answer.log_p], "cost": cost_json(answer.cost)}
    if isinstance(answer, Extensions):
        return {"extensions": [answer_json(part) for part in answer.extensions], "cost": cost_json(answer.cost)}
    if isinstance(answer, Readings):
        return {"rows": answer.rows, "cost": cost_json(answer.cost)}
    return {"verdicts": [asdict(v) for v in answer.verdicts], "cost": cost_json(answer.cost)}


def answer_from_json(ask: Ask, value: Json) -> Answer:
    """The answer that `answer_json` wrote for `ask`. Raises StoreError when the value does not fit the ask."""
    try:
        cost = Cost(**value["cost"])  # type: ignore[arg-type]
        if isinstance(ask, Extend):
            return Extension(_prefix(ask.prefix, value["prefix"]), str(value["finish"]), cost, _logprobs(value.get("logprobs", [])))
        if isinstance(ask, Confer):
            parts = zip(ask.asks, value["extensions"], strict=True)  # type: ignore[call-overload]
            return Extensions(tuple(answer_from_json(part, told) for part, told in parts), cost)  # type: ignore[misc]
        if isinstance(ask, Expand):
            return Expansion(tuple(_prefix(ask.prefix, c) for c in value["children"]), cost)  # type: ignore[attr-defined]
        if isinstance(ask, Score):
            return Scores(tuple(map(log_p_of, value["log_p"])), cost)  # type: ignore[call-overload]
        if isinstance(ask, Read):
            return Readings(tuple(tuple(row) for row in value["rows"]), cost)  # type: ignore[attr-defined]
        verdicts = tuple(Verdict(**v) for v in value["verdicts"])  # type: ignore[attr-defined]
        return Judgement(tuple(ABSTAIN if v == ABSTAIN else v for v in verdicts), cost)
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(f"stored answer does not fit its ask ({error!r}); the sample store is damaged: move it away and run again") from error


def _prefix(parent: Prefix, value: object) -> Prefix:
    fields = dict(value)  # type: ignore[call-overload]
    fields["tokens"] = tuple(fields["tokens"])
    fields["readings"] = tuple((name, tuple(map(tuple, rows))) for name, rows in fields.get("readings", ()))
    return replace(parent, **fields)


def _logprobs(rows: object) -> tuple[TokenLogP, ...]:
    return tuple(TokenLogP(token, log_p_of(log_p), tuple((other, log_p_of(x)) for other, x in top)) for token, log_p, top in rows)  # type: ignore[attr-defined]
