"""Equations that a text states, read and computed exactly: formulas of numbers around an equals sign, in plain text or LaTeX."""

import ast
import re
from collections.abc import Iterator, Sequence
from fractions import Fraction

MAX_POWER = 64
MINUS = "−"  # of a negative number; SPELLINGS leaves none in the text
SIGNS = ("+", "-", "*", "/", "^")
NUMBER = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
SPELLINGS = (  # in this order
    (re.compile(r"\\(?:text|mathrm|mathbf|textbf)\s*\{[^{}]*\}"), " "),
    (re.compile(r"\\(?:times|cdot|ast)|[×·⋅∗]"), "*"),
    (re.compile(r"\\div|÷"), "/"),
    (re.compile(r"\\approx|[≈]|\\(?:simeq|sim)"), "~"),
    (re.compile(r"\\(?:left|right|boxed|,|;|!|quad)|\\[()\[\]]|[{}$€£*](?=\*)|(?<=\*)\*"), " "),
    (re.compile(r"[$€£]|\*\*"), " "),
    (re.compile(r"[−–]"), "-"),
    (re.compile(r"(?<=\d)\s*\\?%\s*of\b"), "/100*"),
    (re.compile(r"[{}]"), " "),
)
BULLET = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s+")
TIMES = re.compile(r"\s*[\d(.]")  # what follows an x that means "times"
TOKEN = re.compile(rf"(?P<number>{NUMBER})|(?P<sign>[-+*/^()=~])|(?P<unit>[^\W\d_][\w'-]*)|(?P<percent>\\?%)|(?P<other>\S)")


def plain(text: str) -> str:
    """LaTeX and signs in the spelling that TOKEN reads."""
    while (shorter := FRACTION.sub(r"((\1)/(\2))", text)) != text:
        text = shorter
    for pattern, spelling in SPELLINGS:
        text = pattern.sub(spelling, text)
    return text


def equations(line: str) -> Iterator[bool]:
    """For every = between two sides that can be read, one of which is more than a number: whether it holds."""
    sides, is_rough = [list[str]()], [False]
    for kind, token in tokens(BULLET.sub("", line)):
        if token in "=~":
            sides.append([])
            is_rough.append(token == "~")
        else:
            sides[-1].append(token if kind in ("number", "sign") else f"<{kind}>")
    is_chain = False
    for left, right, rough in zip(sides, sides[1:], is_rough[1:], strict=False):
        a, b = ending(left), beginning(right)
        is_chain = bool(a and b) and (is_chain or len(a) + len(b) > 2)
        x, y = (value(a), value(b)) if is_chain else (None, None)
        if x is not None and y is not None:
            yield abs(x - y) <= (abs(x) / 20 if rough else max(unit_of(a), unit_of(b)))


def tokens(line: str) -> Iterator[tuple[str, str]]:
    """Kinds and texts. A unit (a word right behind a number, or a percent sign) is left out; any other word stays, and ends a side."""
    before = ""
    for match in TOKEN.finditer(line):
        kind = str(match.lastgroup)
        if kind == "unit" and before in ("number", "unit of"):
            if match[0] in "xX" and TIMES.match(line, match.end()):
                yield "sign", "*"
            before = "unit of"
            continue
        is_minus = match[0] == "-" and before in ("", "unit", "other", "=") and line[match.end() : match.end() + 1].isdigit()
        before = "=" if match[0] in "=~" else kind
        yield kind, MINUS if is_minus else match[0]


def ending(side: Sequence[str]) -> list[str]:
    """The longest formula that `side` ends with; [] where it goes on to the left with something that is not arithmetic."""
    i = next((i for i in range(len(side)) if is_formula(side[i:])), len(side))
    goes_on = 0 < i < len(side) and (side[i] in SIGNS or side[i - 1] in SIGNS or side[i - 1] == ")")
    return [] if goes_on else list(side[i:])


def beginning(side: Sequence[str]) -> list[str]:
    """The longest formula that `side` begins with; [] where it goes on with something that is not arithmetic."""
    i = next((i for i in range(len(side), 0, -1) if is_formula(side[:i])), 0)
    return [] if i < len(side) and side[i] in SIGNS else list(side[:i])


def is_formula(tokens_of_it: Sequence[str]) -> bool:
    """Whether they are one arithmetic expression of numbers (a sign alone before the first included)."""
    if any(t.startswith("<") for t in tokens_of_it):
        return False
    try:
        ast.parse(source(tokens_of_it), mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return False
    return True


def source(tokens_of_it: Sequence[str]) -> str:
    """As Python: number( would be a call, so it is a product."""
    text = " ".join(t.replace(",", "").lstrip("0") or "0" if t[0].isdigit() else t for t in tokens_of_it)
    return re.sub(r"(?<=[\d)])\s*(?=\()", "*", text).replace("^", "**").replace(MINUS, "-")


def value(formula: Sequence[str]) -> Fraction | None:
    """Exactly; None where it divides by zero or has a large or broken power."""
    try:
        return evaluated(ast.parse(source(formula), mode="eval").body)
    except (ZeroDivisionError, ValueError, RecursionError):
        return None


def evaluated(node: ast.AST) -> Fraction:
    match node:
        case ast.Constant(value=int() | float() as number):
            return Fraction(str(number))
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            return -evaluated(inner)
        case ast.UnaryOp(op=ast.UAdd(), operand=inner):
            return evaluated(inner)
        case ast.BinOp(left=left, op=op, right=right):
            return joined(op, evaluated(left), evaluated(right))
    raise ValueError("not arithmetic")


def joined(op: ast.operator, x: Fraction, y: Fraction) -> Fraction:
    match op:
        case ast.Add():
            return x + y
        case ast.Sub():
            return x - y
        case ast.Mult():
            return x * y
        case ast.Div():
            return x / y
        case ast.Pow() if y.denominator == 1 and abs(y) <= MAX_POWER and max(x.numerator.bit_length(), x.denominator.bit_length()) <= MAX_POWER:
            return x ** int(y)
    raise ValueError("not arithmetic")


def unit_of(formula: Sequence[str]) -> Fraction:
    """What a side may be off by: one in the last decimal where it is one number, else nothing."""
    written = formula[-1] if all(t not in "*/^()" for t in formula) and len(formula) <= 2 else ""
    return Fraction(1, 10 ** len(written.partition(".")[2])) if "." in written else Fraction(0)
