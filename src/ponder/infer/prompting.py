"""Prompts made of earlier texts: templates, quotations that nothing inside can end, and the prompts that ask with them.

A template is a plain string with {places}. The question stands in it as it is; everything that a model wrote is quoted.
"""

import math
import re
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace

from ponder.core.asks import Answer, Candidate, Extend, Prefix, Prompt, Sampling, Turn, WholeText, candidate
from ponder.core.errors import BadField
from ponder.core.rng import Rng
from ponder.core.votes import is_whole

PLACE = re.compile(r"\{(\w+)\}")
CONTROL = re.compile(r"<(?=[|｜<]|/?\w[\w.-]*>)|\[(?=/?[A-Z_]{2,}\])|(?<=[|｜])(?=>)")  # where names of control tokens begin or end
GAP = "\n[...]\n"


def check_template(owner: str, template: str, places: Sequence[str]) -> None:
    """Raises BadField unless `template` has each of those {places} and no other."""
    found = set(PLACE.findall(template))
    if found != set(places):
        wanted = ", ".join(f"{{{p}}}" for p in places)
        raise BadField(f"{owner} template {template!r} has {', '.join(sorted(found)) or 'no places'}: it must have {wanted} and no other")


def filled(template: str, parts: Mapping[str, str]) -> str:
    """`template` with each {place} replaced by its part; what stands in a part is not looked at again."""
    return PLACE.sub(lambda match: parts[match[1]], template)


def quoted(text: str, max_chars: int) -> str:
    """`text` as a fenced block whose fence is longer than any run of backticks in it, so that nothing inside can close it.

    Names of control tokens ("<|im_end|>", "[INST]") get a space, because a process reads them wherever they stand. The middle
    of a text of more than `max_chars` characters is left out.
    """
    shown = clipped(spaced(text), max_chars)
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", shown)), default=0))
    return f"{fence}\n{shown}\n{fence}"


def spaced(text: str) -> str:
    return CONTROL.sub(lambda match: f"{match[0]} ", text)


def clipped(text: str, max_chars: int) -> str:
    """Beginning and end of `text`, at most max_chars characters of it."""
    if len(text) <= max_chars:
        return text
    tail = max_chars - max_chars // 2
    return text[: max_chars // 2] + GAP + text[len(text) - tail :]


def listed(texts: Sequence[str], max_chars: int, title: str = "Answer") -> str:
    """Quotations with numbered titles, which share `max_chars` characters evenly."""
    return "\n\n".join(f"{title} {i}:\n{quoted(text, max(1, max_chars // len(texts)))}" for i, text in enumerate(texts, 1))


def again(prompt: Prompt, text: str) -> Prompt:
    """The same task (reader, form, stops, length) asked with `text` as its last message."""
    return replace(prompt, messages=(*prompt.messages[:-1], (prompt.messages[-1][0], text)))


def aside(prompt: Prompt, text: str, max_tokens: int, prefill: str = "") -> Prompt:
    """A question beside the task, answered in free text of at most `max_tokens` tokens."""
    return replace(again(prompt, text), prefill=prefill, stop=(), max_tokens=max_tokens, answers=WholeText(), form=None)


def replies(
    prompts: Sequence[Prompt], sampling: Sampling, rng: Rng, *, best: tuple[Candidate, ...] = ()
) -> Generator[Turn, Sequence[Answer], tuple[Candidate, ...]]:
    """A whole answer to each prompt, all in one turn, which shows `best`. Answer i comes from rng.seed(i)."""
    asks = (Extend(prefix=Prefix(p), seed=rng.seed(i), sampling=sampling, certainty=True) for i, p in enumerate(prompts))
    answers = yield Turn(tuple(asks), best)
    return tuple(candidate(answer.prefix) for answer in answers)


def chance_of_first(log_p: Sequence[float]) -> float:
    """Probability of the first option among all, from their log-probabilities; 0 without any, or where none is possible."""
    top = max(log_p, default=-math.inf)
    return math.exp(log_p[0] - top) / math.fsum(math.exp(x - top) for x in log_p) if top > -math.inf else 0.0


def replaces(new: Candidate, old: Candidate) -> bool:
    """Whether `new` may take the place of `old`: it is whole, and has an answer if the old one has."""
    return is_whole(new) and bool(new.text) and (new.answer is not None or old.answer is None)
