"""The rules of the house that a machine can check: `python scripts/house.py` prints what breaks one and fails.

A rule is a function from a `House` (a source tree) to findings `(path, what to do instead)`; its docstring is the rule.
Exceptions are data, {rule: {path: reason}}, and strict: one that is no longer needed is itself a finding.
tests/test_house.py runs every rule on this tree, and on a small bad tree that it must find fault with.
"""

import ast
import re
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

EXCEPTIONS: dict[str, dict[str, str]] = {
    "parameters_are_few": {
        "src/ponder/cli/main.py": "typer reads the options of a command from the parameters of its function",
        "src/ponder/connect/model.py": "the door names every option of a command, so that a misspelt one is an error",
        "src/ponder/cli/search.py": "a verb takes every option of its command by name, so that a misspelt one is an error",
        "src/ponder/cli/studies.py": "a verb takes every option of its command by name, so that a misspelt one is an error",
        "src/ponder/native/paged_triton.py": "a Triton kernel is told every pointer, stride and constant by itself",
        "src/ponder/native/draw_triton.py": "a Triton kernel is told every pointer, stride and constant by itself",
        "src/ponder/native/rows_triton.py": "a Triton kernel is told every pointer, stride and constant by itself",
        "src/ponder/cli/verbs.py": "a verb takes every option of its command by name, so that a misspelt one is an error",
    },
}

PACKAGE = "src/ponder/"
SHARED = {  # technique folder -> files in it that are shared parts of the room, not techniques
    "infer": {"__init__", "ops", "compose", "program", "prompting", "tree", "picks", "conditional"},
    "infer/resample": {"__init__"},
    "infer/stop": {"__init__"},
    "verify": {
        "__init__", "answers", "measure", "coverage", "ceiling", "quality", "heads", "math_process", "math_worker", "sandbox", "sandbox_child",
        "equations", "shown",
    },
    "accelerate/cache": {"__init__", "retaining_heads"},
    "accelerate/attend": {"__init__", "chunks", "slashes"},
    "accelerate/prompt": {"__init__"},
    "accelerate/layers": {"__init__"},
    "accelerate/schedule": {"__init__"},
    "collaborate": {"__init__", "pair"},
    "accelerate/weights": {"__init__", "codes"},
    "accelerate/draft": {"__init__", "bridge", "chains", "followers", "growth", "heads", "hydra_heads", "products", "stretches"},
    "accelerate/accept": {"__init__"},
    "accelerate/length": {"__init__", "accept_head", "shares"},
}  # fmt: skip
CATALOGUE = {  # technique folder -> dicts of the catalogue that name its techniques
    "infer": ("STRATEGIES",),
    "infer/resample": ("RESAMPLERS",),
    "infer/stop": ("STOP_RULES",),
    "verify": ("VERIFIERS", "SCORERS", "TRAINED"),
    "accelerate/cache": ("CACHES", "CACHE_PARTS", "TRAINED_CACHES"),
    "accelerate/attend": ("ATTENTION_PLANS",),
    "accelerate/prompt": ("PROMPT_FILTERS", "LAYER_PLANS"),
    "accelerate/layers": ("TAILS", "PREDICTORS"),
    "accelerate/schedule": ("SCHEDULERS",),
    "collaborate": ("COLLABORATIONS", "BLENDS"),
    "accelerate/weights": ("WEIGHTS", "DEVICE_WEIGHTS"),
    "accelerate/draft": ("DRAFTERS", "TRAINED_DRAFTERS"),
    "accelerate/accept": ("ACCEPTORS",),
    "accelerate/length": ("LENGTHS", "TRAINED_LENGTHS"),
}
TECHNIQUE_PACKAGES = {"torch", "numpy", "math_verify", "reasoning_gym", "sympy"}  # third-party imports open to techniques
OPTIONAL = {"huggingface_hub", "reasoning_gym", "math_verify", "matplotlib", "transformers", "httpx", "ray"}  # may be imported inside a function
HEADINGS = ("Paper", "Equation", "Shapes", "Guarantee", "Cost", "Choose", "Differs")
HEADING = re.compile(rf"^\**({'|'.join(HEADINGS)})\**:?[ \n]+", re.MULTILINE)
GUARANTEES = {"exact", "unbiased", "biased", "approximate"}
BANNED_NAMES = {"utils", "util", "common", "base", "manager", "helpers", "helper", "misc"}
SMALL_ROOMS, SMALL_LINES = ("core", "engine", "run", "infer"), 12900  # without technique files
TEXT_FILES = {".py", ".md", ".toml", ".lock", ".jsonl", ".json", ".sh", ".yml", ".txt", ".typed", ""}
FOREIGN = re.compile(r"/(?:work|opt|root|farm|home)/|\.librar[y]/|pypi\.org|pythonhosted\.org")

Finding = tuple[str, str]
Rule = Callable[["House"], Iterator[Finding]]
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Source:
    """One Python file of the package."""

    path: str  # from the root of the repository
    text: str
    tree: ast.Module

    @property
    def module(self) -> str:
        """Path inside the package without suffix: "infer/beam", "catalogue/drafts"."""
        return self.path.removeprefix(PACKAGE).removesuffix(".py")

    @property
    def room(self) -> str:
        return self.module.split("/")[0]

    @property
    def is_technique(self) -> bool:
        folder, _, name = self.module.rpartition("/")
        return folder in SHARED and name not in SHARED[folder]

    @property
    def num_lines(self) -> int:
        return len(self.text.splitlines())

    @cached_property
    def functions(self) -> list[Function]:
        return [node for node in ast.walk(self.tree) if isinstance(node, Function)]

    @cached_property
    def imports(self) -> list[str]:
        """Dotted names of all imported modules, wherever they are imported; relative ones begin with a dot."""
        names = []
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ImportFrom):
                names.append("." * node.level + (node.module or ""))
            elif isinstance(node, ast.Import):
                names.extend(alias.name for alias in node.names)
        return names


class House:
    """A source tree with its import table."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @cached_property
    def sources(self) -> list[Source]:
        paths = sorted((self.root / PACKAGE).rglob("*.py"))
        texts = [(path.relative_to(self.root).as_posix(), path.read_text(encoding="utf-8")) for path in paths]
        return [Source(path, text, ast.parse(text)) for path, text in texts]

    @cached_property
    def table(self) -> dict[str, set[str]]:
        """room -> rooms it may import, read from the table under `| room | may import |` in ARCHITECTURE.md."""
        text = (self.root / "ARCHITECTURE.md").read_text(encoding="utf-8")
        rows = re.search(r"^\| room \| may import \|.*\n\|[-| :]+\|\n((?:\|.*\n)+)", text, re.MULTILINE)
        if rows is None:
            raise SystemExit("ARCHITECTURE.md has no table '| room | may import |'")
        cells = [[cell.strip(" `") for cell in row.strip("|").split("|")] for row in rows[1].splitlines()]
        rooms = {cell[0] for cell in cells}
        return {cell[0]: read_rooms(cell[1], rooms) - {cell[0]} for cell in cells}

    @cached_property
    def texts(self) -> dict[str, str]:
        """Every text file that belongs to the project."""
        folders = ("src", "tests", "scripts", "docs", "benchmarks", "examples", "stand-ins", ".ci")
        paths = [p for p in self.root.iterdir() if p.is_file()] + [p for f in folders for p in (self.root / f).rglob("*")]
        kept = sorted(p for p in paths if p.is_file() and p.suffix in TEXT_FILES and "__pycache__" not in p.parts)
        return {p.relative_to(self.root).as_posix(): p.read_text(encoding="utf-8", errors="replace") for p in kept}


def read_rooms(cell: str, rooms: set[str]) -> set[str]:
    """Reads 'nothing', 'everything', 'everything but a, b' or 'a, b'."""
    if cell.startswith("everything"):
        return rooms - set(re.findall(r"\w+", cell.partition(" but ")[2]))
    return set() if cell == "nothing" else {name.strip(" `") for name in cell.split(",")}


# ---- rooms and imports


def imports_follow_the_table(house: House) -> Iterator[Finding]:
    """A room imports only the rooms that the table in ARCHITECTURE.md allows it, by absolute name."""
    for source in house.sources:
        if source.room not in house.table:
            yield source.path, f"room {source.room!r} is not in the import table of ARCHITECTURE.md; add its row"
            continue
        allowed = house.table[source.room] | {source.room}
        for name in source.imports:
            other = name.split(".")[1] if name.startswith("ponder.") else "__init__" if name == "ponder" else None
            if name.startswith("."):
                yield source.path, f"imports {name!r}: write the absolute name"
            elif other is not None and other not in allowed:
                yield source.path, f"{source.room} imports {name}: it may import {', '.join(sorted(allowed - {source.room})) or 'nothing'}"


def table_lists_what_exists(house: House) -> Iterator[Finding]:
    """Every row of the import table is a room, and names rooms only."""
    rooms = {source.room for source in house.sources}
    for room in house.table.keys() - rooms:
        yield "ARCHITECTURE.md", f"row {room!r}: there is no such room; remove the row"
    for room, others in house.table.items():
        if unknown := others - house.table.keys():
            yield "ARCHITECTURE.md", f"row {room!r} allows {', '.join(sorted(unknown))}: no such room"


def techniques_stand_alone(house: House) -> Iterator[Finding]:
    """A technique imports core, native, the shared parts of its own folder, and listed packages: never another technique."""
    shared = {f"ponder.{folder}.{name}".replace("/", ".") for folder, names in SHARED.items() for name in names}
    for source in filter(lambda s: s.is_technique, house.sources):
        for name in source.imports:
            package = name.split(".")[0]
            is_own = name.startswith(("ponder.core", "ponder.native")) or (name in shared and name.split(".")[1] == source.room)
            if package == "ponder" and not is_own:
                yield source.path, f"imports {name}: a technique imports core, native and its room's shared parts; pass the object instead"
            elif package not in {"ponder", *TECHNIQUE_PACKAGES} and package not in sys.stdlib_module_names:
                yield source.path, f"imports {name}: not a package open to techniques"


def imports_stand_at_the_top(house: House) -> Iterator[Finding]:
    """No import inside a function but of an optional dependency, and no import by name outside the front door and cli."""
    for source in house.sources:
        if source.room not in ("__init__", "cli") and "importlib" in source.imports:
            yield source.path, "imports importlib: only the front door and cli, which must start fast, import by name"
        for node in (n for f in source.functions for n in ast.walk(f) if isinstance(n, ast.Import | ast.ImportFrom)):
            name = (node.module or "") if isinstance(node, ast.ImportFrom) else node.names[0].name
            if name.split(".")[0] not in OPTIONAL:
                yield source.path, f"line {node.lineno} imports {name!r} inside a function: move it to the top"


def no_type_checking(house: House) -> Iterator[Finding]:
    """No TYPE_CHECKING: it hides a cycle."""
    for source in house.sources:
        if any(isinstance(n, ast.Name | ast.Attribute | ast.alias) and "TYPE_CHECKING" in ast.dump(n) for n in ast.walk(source.tree)):
            yield source.path, "uses TYPE_CHECKING: import it, or move the type to core"


def modules_are_named_by_content(house: House) -> Iterator[Finding]:
    """No module or folder is called utils, common, base, manager or helpers."""
    for source in house.sources:
        for part in set(source.module.split("/")) & BANNED_NAMES:
            yield source.path, f"{part!r} says nothing: name it by its content"


# ---- techniques


def cards_are_complete(house: House) -> Iterator[Finding]:
    """A technique's module docstring is its card: an idea in one line, then the headings in order."""
    for source in filter(lambda s: s.is_technique, house.sources):
        doc = ast.get_docstring(source.tree) or ""
        if not doc.partition("\n")[0].endswith("."):
            yield source.path, "the card begins with the idea, one line that ends with a full stop"
        found = HEADING.findall(doc)
        wanted = [heading for heading in HEADINGS if heading != "Differs" or heading in found]
        if found != wanted:
            yield source.path, f"the card has {', '.join(found) or 'no headings'}: it needs, each at the start of a line, {', '.join(wanted)}"
        if re.search(r"^\**Differs\**:?\s*(?:-|[Nn]o\w*\W*)?$", doc, re.MULTILINE):
            yield source.path, "the card's Differs says nothing: leave the heading out"


def guarantees_agree(house: House) -> Iterator[Finding]:
    """The first word of the card's Guarantee is a guarantee, and the one that the code declares."""
    for source in filter(lambda s: s.is_technique, house.sources):
        match = re.search(r"^\**Guarantee\**:? +(\w+)", ast.get_docstring(source.tree) or "", re.MULTILINE)
        word = match[1] if match else ""
        if word not in GUARANTEES:
            yield source.path, f"the card's Guarantee begins with {word!r}: it must be one of {', '.join(sorted(GUARANTEES))}"
        for declared in declared_guarantees(source.tree) - {word}:
            yield source.path, f"the card's Guarantee says {word!r}, the attribute says {declared!r}"


def declared_guarantees(tree: ast.Module) -> set[str]:
    """Words of all `guarantee = Guarantee.WORD` in a file, whether of a class or of a function."""
    words = set()
    for node in ast.walk(tree):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        names = {t.id if isinstance(t, ast.Name) else t.attr if isinstance(t, ast.Attribute) else "" for t in targets}
        if "guarantee" in names and isinstance(node.value, ast.Attribute) and ast.unparse(node.value.value) == "Guarantee":
            words.add(node.value.attr.lower())
    return words


def techniques_are_small(house: House) -> Iterator[Finding]:
    """A technique file has at most 150 lines: beyond, it is two techniques, or a part of core is missing."""
    for source in filter(lambda s: s.is_technique and s.num_lines > 150, house.sources):
        yield source.path, f"{source.num_lines} lines: at most 150"


def catalogue_is_complete(house: House) -> Iterator[Finding]:
    """Every technique file is in a dict of the catalogue for its folder, and every row there comes from a technique file."""
    path = f"{PACKAGE}catalogue"
    trees = catalogue_of(house)
    if not trees:
        yield path, "missing: it names every technique"
        return
    techniques = {f"ponder.{s.module}".replace("/", "."): s for s in house.sources if s.is_technique}
    for folder, tables in CATALOGUE.items():
        rows = {(table, key): modules for table in tables for key, modules in rows_of(trees, table).items()}
        for module, technique in techniques.items():
            if technique.module.rpartition("/")[0] == folder and not any(module in modules for modules in rows.values()):
                yield path, f"{' or '.join(tables)} has no row for {module}"
        for (table, key), modules in rows.items():
            if not modules & techniques.keys():
                yield path, f"{table} has a row {key!r} that comes from no technique file"


def catalogue_of(house: House) -> list[ast.Module]:
    """The files of the catalogue."""
    return [s.tree for s in house.sources if s.room == "catalogue"]


def rows_of(trees: list[ast.Module], table: str) -> dict[str, set[str]]:
    """key -> modules that the names in its value were imported from, for a dict literal of the catalogue's files."""
    rows = {}
    for tree in trees:
        origin = {a.asname or a.name: n.module or "" for n in tree.body if isinstance(n, ast.ImportFrom) for a in n.names}
        rows |= {key: {origin[n.id] for n in ast.walk(value) if isinstance(n, ast.Name) and n.id in origin} for key, value in dict_items(tree, table)}
    return rows


def dict_items(tree: ast.Module, name: str) -> list[tuple[str, ast.expr]]:
    """Items of the dict literal that is assigned to `name` at module level; empty when there is none."""
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        if any(isinstance(t, ast.Name) and t.id == name for t in targets) and isinstance(node.value, ast.Dict):
            return [(ast.literal_eval(key), value) for key, value in zip(node.value.keys, node.value.values, strict=True)]
    return []


# ---- sizes


def function_lines(function: Function) -> int:
    """Lines from `def` to the end, without the docstring."""
    first = function.body[0]
    has_doc = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    return function.end_lineno - function.lineno + 1 - (first.end_lineno - first.lineno + 1 if has_doc else 0)


def functions_are_short(house: House) -> Iterator[Finding]:
    """No function over 80 lines; over the package the median is below 10 and the 90th percentile at most 35."""
    lengths = sorted((function_lines(f), s.path, f.name) for s in house.sources for f in s.functions)
    for length, path, name in lengths:
        if length > 80:
            yield path, f"{name} has {length} lines: at most 80"
    if not lengths:
        return
    median, p90 = statistics.median(n for n, _, _ in lengths), lengths[int(0.9 * (len(lengths) - 1))][0]
    if median >= 10 or p90 > 35:
        yield PACKAGE, f"functions have median {median} and 90th percentile {p90} lines: below 10 and at most 35"


def files_are_short(house: House) -> Iterator[Finding]:
    """No file over 500 lines, tests and scripts included."""
    for path, text in house.texts.items():
        if path.endswith(".py") and (length := len(text.splitlines())) > 500:
            yield path, f"{length} lines: at most 500"


def house_is_small(house: House) -> Iterator[Finding]:
    """core, engine, run and infer without technique files have fewer than SMALL_LINES lines."""
    total = sum(s.num_lines for s in house.sources if s.room in SMALL_ROOMS and not s.is_technique)
    if total >= SMALL_LINES:
        yield PACKAGE, f"{', '.join(SMALL_ROOMS)} without techniques have {total} lines: fewer than {SMALL_LINES}"


def parameters_are_few(house: House) -> Iterator[Finding]:
    """At most 8 parameters, keyword-only beyond 4; self and cls do not count."""
    for source in house.sources:
        for function in source.functions:
            positional = [a.arg for a in (*function.args.posonlyargs, *function.args.args) if a.arg not in ("self", "cls")]
            if len(positional) > 4:
                yield source.path, f"{function.name} takes {len(positional)} positional parameters: keyword-only beyond 4"
            if len(positional) + len(function.args.kwonlyargs) > 8:
                yield source.path, f"{function.name} takes {len(positional) + len(function.args.kwonlyargs)} parameters: at most 8"


def kwargs_are_rare(house: House) -> Iterator[Finding]:
    """`**kwargs` in at most 2 % of functions, and in none outside cli."""
    users = [(s, f) for s in house.sources for f in s.functions if f.args.kwarg is not None]
    for source, function in users:
        if source.room != "cli":
            yield source.path, f"{function.name} takes **{function.args.kwarg.arg}: write the keywords out"
    total = sum(len(s.functions) for s in house.sources)
    if len(users) > 0.02 * total:
        yield PACKAGE, f"{len(users)} of {total} functions take **kwargs: at most 2 %"


# ---- habits


def errors_are_not_swallowed(house: House) -> Iterator[Finding]:
    """No `except Exception: pass` or `continue`, and no suppress(Exception): name the error or let it fall."""
    broad = {"", "Exception", "BaseException"}
    for source in house.sources:
        for node in ast.walk(source.tree):
            if isinstance(node, ast.ExceptHandler) and (ast.unparse(node.type) if node.type else "") in broad:
                if all(isinstance(s, ast.Pass | ast.Continue) or ast.unparse(s) == "..." for s in node.body):
                    yield source.path, f"line {node.lineno} swallows every error: name the one it expects"
            elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("suppress") and {ast.unparse(a) for a in node.args} & broad:
                yield source.path, f"line {node.lineno} suppresses every error: name the one it expects"


def nothing_is_unfinished(house: House) -> Iterator[Finding]:
    """No TODO, FIXME, XXX or NotImplementedError: finish it or delete it."""
    for source in house.sources:
        for mark in sorted(set(re.findall(r"\b(?:TODO|FIXME|XXX|NotImplementedError)\b", source.text))):
            yield source.path, f"holds {mark}: finish it, or delete it and note it in docs/LOG.md"


def library_does_not_print(house: House) -> Iterator[Finding]:
    """Only cli prints."""
    for source in house.sources:
        calls = [n for n in ast.walk(source.tree) if isinstance(n, ast.Call) and ast.unparse(n.func) == "print"]
        if calls and source.room != "cli":
            yield source.path, f"line {calls[0].lineno} prints: return it, or let cli print it"


GLOBAL_RNG = re.compile(r"^(?:torch\.(?:manual_seed|seed|cuda\.manual_seed\w*)|(?:np|numpy)\.random\.\w+|random\.\w+)$")
DRAWS = re.compile(r"^torch\.(?:rand|randn|randint|randperm|multinomial|bernoulli|normal)$|\.(?:uniform_|normal_|exponential_|bernoulli_)$")
OWN_RNG = {"random.Random", "np.random.default_rng", "numpy.random.default_rng"}  # allowed with an explicit seed


def randomness_is_an_argument(house: House) -> Iterator[Finding]:
    """No global random state: draws name their generator, generators their seed."""
    for source in house.sources:
        for node in filter(lambda n: isinstance(n, ast.Call), ast.walk(source.tree)):
            name = ast.unparse(node.func)
            is_seeded = name in OWN_RNG and bool(node.args or node.keywords)
            is_global = GLOBAL_RNG.match(name) and not is_seeded
            if is_global or (DRAWS.search(name) and not any(k.arg == "generator" for k in node.keywords)):
                yield source.path, f"line {node.lineno} {name} draws from global state: take an `rng` argument"


def machines_are_not_named(house: House) -> Iterator[Finding]:
    """No file names a path of one machine or the host of a package index."""
    for path, text in house.texts.items():
        for number, line in enumerate(text.splitlines(), 1):
            if match := FOREIGN.search(line):
                yield path, f"line {number} names {match[0]!r}: leave it out, or take it from an argument"


def tests_do_not_return_early(house: House) -> Iterator[Finding]:
    """A test ends by its assertions: a `return` in one is a skip that looks like a pass."""
    for path, text in house.texts.items():
        if path.startswith("tests/") and path.endswith(".py"):
            tests = [n for n in ast.walk(ast.parse(text)) if isinstance(n, Function) and n.name.startswith("test_")]
            for test in tests:
                inner = {r for f in ast.walk(test) if isinstance(f, Function | ast.Lambda) and f is not test for r in ast.walk(f)}
                if any(isinstance(n, ast.Return) and n not in inner for n in ast.walk(test)):
                    yield path, f"{test.name} returns: mark it, or make the exception data"


def tests_have_stable_names(house: House) -> Iterator[Finding]:
    """No `ids=repr` or `ids=str`: an address in a test's name differs between workers. tests/conftest.py names settings."""
    for path, text in house.texts.items():
        if path.startswith("tests/") and path.endswith(".py"):
            calls = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Call)]
            if any(k.arg == "ids" and ast.unparse(k.value) in ("repr", "str") for call in calls for k in call.keywords):
                yield path, "names tests by ids=repr or ids=str: leave `ids` out, or give names"


RULES: dict[str, Rule] = {
    rule.__name__: rule
    for rule in (
        imports_follow_the_table, table_lists_what_exists, techniques_stand_alone, imports_stand_at_the_top, no_type_checking,
        modules_are_named_by_content, cards_are_complete, guarantees_agree, techniques_are_small, catalogue_is_complete,
        functions_are_short, files_are_short, house_is_small, parameters_are_few, kwargs_are_rare, errors_are_not_swallowed,
        nothing_is_unfinished, library_does_not_print, randomness_is_an_argument, machines_are_not_named, tests_do_not_return_early,
        tests_have_stable_names,
    )
}  # fmt: skip


def findings(house: House, rule: str, exceptions: dict[str, str]) -> list[str]:
    """What breaks `rule` in `house`, without the excepted paths; and every exception that nothing needs any more."""
    found = list(RULES[rule](house))
    stale = sorted(exceptions.keys() - {path for path, _ in found})
    return [f"{path}: {what}" for path, what in found if path not in exceptions] + [
        f"{path}: the exception to {rule} is no longer needed; remove it" for path in stale
    ]


def main() -> int:
    house = House(Path(__file__).resolve().parent.parent)
    lines = [f"{line}  [{rule}]" for rule in RULES for line in findings(house, rule, EXCEPTIONS.get(rule, {}))]
    print("\n".join(lines) or f"{len(RULES)} house rules hold over {len(house.sources)} files")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
