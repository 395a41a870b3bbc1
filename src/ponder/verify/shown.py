"""What the prompt of a coding question shows: the stub to be filled, and statements that test the program."""

import ast
import doctest
import functools
import re
import warnings
from collections.abc import Iterator

BLOCK = re.compile(r"```[a-zA-Z]*\n(.*?)```", re.DOTALL)
EQUALS = re.compile(r"\s*(?:=+>|-+>|➞|➡|⇒|=+|(?:should |must )?returns?|is)\s*:?\s*")
GOES_ON = re.compile(r"[\w\"'\[]|\s*[-+*/%=<>]")


@functools.lru_cache(maxsize=4096)
def shown_tests(question: str) -> tuple[str, tuple[str, ...]]:
    """(stub to be filled, statements that raise when a program is wrong), from the code blocks of a question."""
    stubs, tests = [], list[str]()
    for block in BLOCK.findall(question):
        tree = parsed(block)
        functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)] if tree else []
        if functions:
            stubs.append(block.rstrip())
            tests += examples(functions[-1].name, ast.get_docstring(functions[-1]) or "")
        elif tree and any(isinstance(node, ast.Assert) for node in tree.body):
            tests += [ast.unparse(node) for node in tree.body]
    return "\n".join(stubs), tuple(tests)


def parsed(code: str) -> ast.Module | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(code)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None


def examples(name: str, doc: str) -> Iterator[str]:
    """Assertions for the examples in the docstring of function `name`: those of doctest, else lines that name a value."""
    try:
        found = doctest.DocTestParser().get_examples(doc)
    except ValueError:  # doctest is strict about white space
        found = []
    for example in found:
        yield from example_test(example.source.strip(), example.want.strip())
    if not found:
        yield from (test for line in doc.splitlines() for test in lines_that_say(name, line))


def example_test(source: str, want: str) -> Iterator[str]:
    """What a doctest example says: a statement to run first, or an assertion; nothing where it shows no value."""
    tree = parsed(f"({source})")
    if tree is None:
        yield source
    elif not want and isinstance(tree.body[0], ast.Expr) and isinstance(tree.body[0].value, ast.Compare):
        yield f"assert {source}"
    elif (value := literal(want)) is not None:
        yield f"assert ({source}) == ({value})"


def lines_that_say(name: str, line: str) -> Iterator[str]:
    """`name(...) == value` for every call with constant arguments in the line that is followed by its value."""
    for start in (m.start() for m in re.finditer(rf"\b{re.escape(name)}\(", line)):
        ends = (m.end() for m in re.finditer(r"\)", line[start:]))
        end = next((start + e for e in ends if parsed(line[start : start + e]) is not None), None)
        says = EQUALS.match(line, end) if end is not None else None
        value = longest_literal(line[says.end() :]) if says else None
        if value is not None and literal(f"[{line[start + len(name) + 1 : end - 1]}]") is not None:  # type: ignore[operator]
            yield f"assert {line[start:end]} == ({value})"


def longest_literal(text: str) -> str | None:
    """The constant that `text` begins with; None where it goes on as a formula or in the middle of a word."""
    text = text.lstrip()
    starts = (text[:end].rstrip() for end in range(len(text), 0, -1))
    found = next(((value, text[len(start) :]) for start in starts if not start.endswith(",") and (value := literal(start)) is not None), None)
    if found is None or GOES_ON.match(found[1]):
        return None
    return found[0]


def literal(text: str) -> str | None:
    """`text` as Python would write it, without comments, where it is a constant; else None."""
    try:
        ast.literal_eval(text.strip())
        return ast.unparse(ast.parse(text.strip(), mode="eval"))
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        return None
