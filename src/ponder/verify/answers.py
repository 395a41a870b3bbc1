"""Answer readers: where the answer is in a text, and when two answers are the same.

    Number       the final number              "so it costs $1,200.50." -> "1200.5"
    Latex        the final formula             "\\boxed{\\frac12}" -> "\\frac12"; sameness by math-verify
    Choice       the chosen option's letter    "The answer is (B)." -> "B"
    ShortText    the final phrase              "Answer: the Nile" -> "Nile"; articles, case, punctuation ignored
    OneOf        the named option              "It is the heart." -> "the heart"
    Code         the program                   the first fenced block, or the whole text when it is Python
    WholeText    everything (core.asks)

All are frozen values that fit core.asks.AnswerReader. `read` never raises. `same` compares a key of each side, so it is an
equivalence by construction; Latex is the exception: reflexive and symmetric, but transitive only as far as math-verify is.
"""

import ast
import re
import warnings
from dataclasses import dataclass
from fractions import Fraction

from ponder.verify.math_process import equivalent

MAX_DIGITS = 300  # a longer number is read as no answer: comparing it would be slow
MAX_CHARS = 20_000  # only the end of a longer text is read
MARKER = re.compile(r"####|answer(?:\s+is|\s*:|\s*=)\**|\\boxed|\\fbox", re.IGNORECASE)
DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9,])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
SIGN = r"(?:(?<![0-9A-Za-z)\]}.])[-−])?"
NUMBER = re.compile(
    rf"(?P<sign>{SIGN})(?:[$€£]\s?)?"
    rf"(?:\\[dt]?frac\{{(?P<top>[0-9]+)\}}\{{(?P<bottom>[0-9]+)\}}"
    rf"|(?P<whole>{DIGITS})(?:[eE](?P<exp>[+-]?[0-9]{{1,2}})(?![0-9A-Za-z]))?(?:\s*/\s*(?P<over>[0-9]+)(?![0-9/]))?)"
)


def tail(text: str) -> str:
    """The last MAX_CHARS of a text: what readers look at."""
    return text[-MAX_CHARS:]


def value_of(text: str) -> Fraction | None:
    """The number that `text` is, or None when it is anything else."""
    match = NUMBER.fullmatch(text.strip())
    return _value(match) if match else None


def _value(match: re.Match[str]) -> Fraction | None:
    if len(match[0]) > MAX_DIGITS:
        return None
    if match["top"]:
        top, bottom = Fraction(match["top"]), Fraction(match["bottom"])
    else:
        top = Fraction(match["whole"].replace(",", "")) * Fraction(10) ** int(match["exp"] or 0)
        bottom = Fraction(match["over"] or 1)
    return None if bottom == 0 else (-1 if match["sign"] else 1) * top / bottom


def _canonical(value: Fraction) -> str:
    """Decimal where it ends (0.5), else p/q."""
    twos = fives = 0
    rest = value.denominator
    while rest % 2 == 0:
        rest, twos = rest // 2, twos + 1
    while rest % 5 == 0:
        rest, fives = rest // 5, fives + 1
    places = max(twos, fives)
    if rest != 1:
        return f"{value.numerator}/{value.denominator}"
    digits = str(abs(value.numerator) * 10**places // value.denominator).rjust(places + 1, "0")
    sign = "-" if value < 0 else ""
    return sign + (f"{digits[:-places]}.{digits[-places:]}" if places else digits)


@dataclass(frozen=True, kw_only=True)
class Number:
    """Reads the final number: after the last '####', 'answer is' or \\boxed, else the last one in the text.

    Commas, currency and percent signs are dropped ("50 %" is 50). After a marker the first number counts, or the first
    after the last '=' of that line. Canonical form: a decimal where it ends, else p/q.
    """

    def read(self, text: str) -> str | None:
        text = tail(text)
        for marker in reversed(list(MARKER.finditer(text))):
            line = text[marker.end() :].lstrip().partition("\n")[0]
            value = _first(line[line.rfind("=") + 1 :]) or _first(line)
            if value is not None:
                return value
        numbers = [v for v in map(_value, NUMBER.finditer(text)) if v is not None]
        return _canonical(numbers[-1]) if numbers else None

    def same(self, a: str, b: str) -> bool:
        return self._key(a) == self._key(b)

    def _key(self, answer: str) -> Fraction | str:
        value = value_of(answer)
        return answer if value is None else value


def _first(text: str) -> str | None:
    values = (v for v in map(_value, NUMBER.finditer(text)) if v is not None)
    return next(map(_canonical, values), None)


@dataclass(frozen=True, kw_only=True)
class Latex:
    """Reads the last \\boxed{...}, else what follows 'answer is', else the last $...$, else the last number.

    Sameness: equal text but for spacing, or equal numbers, or equal by math-verify, asked in both directions inside a
    worker process with a time limit: no answer in time counts as different.
    """

    seconds: float = 5.0  # wall time for one comparison

    def read(self, text: str) -> str | None:
        text = tail(text)
        found = last_boxed(text) or _after_marker(text) or _last_formula(text)
        return (tidy_latex(found) if found else None) or Number().read(text)

    def same(self, a: str, b: str) -> bool:
        if tidy_latex(a) == tidy_latex(b):
            return True
        left, right = value_of(a), value_of(b)
        if left is not None and right is not None:
            return left == right
        return equivalent(*sorted((tidy_latex(a), tidy_latex(b))), seconds=self.seconds)


def last_boxed(text: str) -> str | None:
    """Content of the last \\boxed{...} or \\fbox{...} whose braces close, or None."""
    for start in reversed([m.end() for m in re.finditer(r"\\(?:boxed|fbox)\s*\{", text)]):
        depth = 1
        for at in range(start, len(text)):
            depth += (text[at] == "{") - (text[at] == "}")
            if depth == 0:
                return text[start:at].strip() or None
    return None


def tidy_latex(text: str) -> str:
    """Spacing, dollar signs, \\left, \\right and a closing full stop removed."""
    text = re.sub(r"\\(?:left|right|displaystyle|[,;!: ])(?![A-Za-z])", "", text.strip().strip("$*").rstrip("."))
    text = re.sub(r"\\[dt]frac(?![A-Za-z])", r"\\frac", text.replace("\\$", ""))
    return re.sub(r"(?<![A-Za-z])\s+|\s+(?![A-Za-z])", "", text).strip("$* ")


def _after_marker(text: str) -> str | None:
    markers = [m for m in MARKER.finditer(text) if not m[0].startswith("\\")]
    if not markers:
        return None
    line = text[markers[-1].end() :].strip().partition("\n")[0]
    formula = re.search(r"\$([^$]+)\$|\\\((.+?)\\\)", line)
    return (formula[1] or formula[2]) if formula else (line if len(line) <= 60 else None)


def _last_formula(text: str) -> str | None:
    found = re.findall(r"\$([^$]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", text, re.DOTALL)
    return next(filter(None, found[-1])) if found else None


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Reads the letter of the chosen option; the text of an option counts as its letter where `options` are given."""

    letters: str = "ABCD"
    options: tuple[str, ...] = ()  # texts of the options, in the order of the letters

    def read(self, text: str) -> str | None:
        text = tail(text).strip()
        letter = rf"[(\[*\s]*([{re.escape(self.letters)}])(?![A-Za-z'’])"
        marked = list(re.finditer(rf"(?i:answer|option|choice)(?:\s+(?i:is)|\s*:)?\s*:?{letter}", text))
        if marked:
            return marked[-1][1]
        start = re.match(rf"{letter}(?:[).:*\]]|\s*$|\s*\n)", text)
        return start[1] if start else self._by_text(text) or _last_of(rf"[(\[*]([{re.escape(self.letters)}])[)\]*]", text)

    def same(self, a: str, b: str) -> bool:
        return a.strip().upper() == b.strip().upper()

    def _by_text(self, text: str) -> str | None:
        key = phrase_key(text)
        inside = [x for x, option in zip(self.letters, self.options) if f" {phrase_key(option)} " in f" {key} "]
        return inside[0] if len(inside) == 1 else None


def _last_of(pattern: str, text: str) -> str | None:
    found = re.findall(pattern, text)
    return found[-1] if found else None


def phrase_key(text: str) -> str:
    """Lower case, without articles and punctuation, single spaces: SQuAD's normalisation."""
    words = re.sub(r"[^\w\s]", " ", text.casefold()).split()
    return " ".join(w for w in words if w not in ("a", "an", "the"))


@dataclass(frozen=True, kw_only=True)
class ShortText:
    """Reads a short phrase: after the last 'answer is' or '####', else the first line that is not empty."""

    max_words: int = 20  # a longer phrase is read as no answer

    def read(self, text: str) -> str | None:
        text = tail(text)
        marked = [text[m.end() :] for m in MARKER.finditer(text)]
        lines = ((marked[-1] if marked else text).strip(" :*\n") or text).strip().splitlines()
        phrase = lines[0].strip().strip("*\"'`. ") if lines else ""
        return phrase if phrase_key(phrase) and len(phrase.split()) <= self.max_words else None

    def same(self, a: str, b: str) -> bool:
        return phrase_key(a) == phrase_key(b)


@dataclass(frozen=True, kw_only=True)
class OneOf:
    """Reads which of `options` the text names: the phrase that ShortText reads is an option, or holds exactly one."""

    options: tuple[str, ...]

    def read(self, text: str) -> str | None:
        phrase = phrase_key(ShortText(max_words=60).read(text) or "")
        equal = [option for option in self.options if phrase_key(option) == phrase]
        held = [option for option in self.options if f" {phrase_key(option)} " in f" {phrase} "]
        return equal[0] if equal else held[0] if len(held) == 1 else None

    def same(self, a: str, b: str) -> bool:
        return phrase_key(a) == phrase_key(b)


@dataclass(frozen=True, kw_only=True)
class Code:
    """Reads the first fenced block (closed or cut off), else the whole text when it is Python or an indented function body.

    Two programs are the same when their syntax trees are, so comments and layout do not matter.
    """

    def read(self, text: str) -> str | None:
        block = re.search(r"```[A-Za-z0-9+]*[ \t]*\n(.*?)(?:\n?```|\Z)", text, re.DOTALL)
        code = block[1] if block else text.partition("```")[0]
        code = code.strip("\n").rstrip()
        is_python = syntax_key(code) != code or syntax_key(f"def body():\n{code}") != f"def body():\n{code}"
        return code if code.strip() and (block or is_python) else None

    def same(self, a: str, b: str) -> bool:
        return syntax_key(a) == syntax_key(b)


def syntax_key(code: str) -> str:
    """The syntax tree as text, or the code itself when it is not Python."""
    if len(code) > MAX_CHARS:
        return code
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return "ast " + ast.dump(ast.parse(code))
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return code
