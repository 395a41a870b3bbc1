"""What each command does. Everything that can be wrong with the arguments is refused before a model is opened."""

import json
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

from rich.markup import escape
from rich.table import Table

from ponder import catalogue
from ponder.cli import show
from ponder.cli.forms import read_form
from ponder.cli.many import Opening, answering
from ponder.connect.elsewhere import check_settings, is_elsewhere, open_elsewhere
from ponder.core.accelerations import PLAIN, Accelerations
from ponder.core.asks import Prompt
from ponder.core.budget import Budget, parse_budget
from ponder.core.errors import BadField, PonderError, StoreError, UnknownName
from ponder.core.rng import hash_seed
from ponder.core.roles import Process, Strategy
from ponder.engine.process import Settings
from ponder.models import fetch
from ponder.plan.machine import card_path, read_card
from ponder.plan.measure import measure_machine
from ponder.plan.picture import draw_roofline, points_of, profile_points
from ponder.plan.predict import outline
from ponder.plan.profile import CHUNK, Cell, kept_card, open_card, open_profiler, predict_cell, read_config
from ponder.run.compare import Comparison, Named, Row, RunFolder, settings_of
from ponder.run.compare import compare as run_compare
from ponder.run.driver import Driver, Job
from ponder.run.plot import plot_quality
from ponder.run.question import Question
from ponder.run.recipe import Recipe, describe
from ponder.run.report import Summary, summarize
from ponder.tasks.task import Task

T = TypeVar("T")
INTERRUPTED = 130
MAX_SHOWN = 40  # characters of a text among a strategy's fields


def ask(
    *, question: str, model: str, strategy: str, budget: str, answer: str, form: str | None, max_tokens: int, weights: str | None, device: str,
    seed: int, strict: bool, threads: int | None, context: int | None, trace: Path | None, accelerations: Accelerations = PLAIN,
) -> int:  # fmt: skip
    """Answers one question and prints what came of it; 130 when interrupted."""
    check_settings(model, weights=weights, device=device, threads=threads, context=context, accelerations=accelerations)
    limits = parse_budget(budget, strict=strict)
    chosen = catalogue.strategy(strategy)
    reader, asked_form = _known("answer reader", answer, catalogue.READERS), None if form is None else read_form(form)
    prompt = Prompt(messages=(("user", _question(question)),), max_tokens=max_tokens, answers=reader, form=asked_form)
    process = open_named(model, catalogue.weights_on(device, weights), threads, device=device, context_len=context, accelerations=accelerations)
    job = Job(id="ask", prompt=prompt, recipe=Recipe(label=strategy, strategy=chosen, budget=limits), seed=hash_seed(seed, "ask"))
    with _interruptible() as should_stop:
        driver = Driver(process, should_stop=should_stop)
        with show.waiting(f"{strategy} is thinking"):
            results = [result for _, result in driver.run([job])]
    if not results:
        return INTERRUPTED
    (result,) = results
    if trace is not None:
        write_text(trace, "".join(line + "\n" for line in result.trace))
    if result.stop_reason == "failed":
        raise PonderError(str(result.diagnostics["error"]))
    show.show_answer(result, strategy=strategy, budget=str(limits))
    if accelerations.cache is not None:
        show.say(f"cache {accelerations.cache}: {process.kept}")  # type: ignore[attr-defined]
    if accelerations.attend is not None:
        show.say(f"attend {accelerations.attend}: {process.attention.met}")  # type: ignore[attr-defined]
    return INTERRUPTED if result.stop_reason == "interrupted" else 0


def compare(
    *, task: str, strategies: str, n: int, budget: str, model: str, split: str, out: Path, resume: bool, weights: str | None, device: str,
    seed: int, strict: bool, threads: int | None, context: int | None, ray: str | None, replicas: int | None,
    accelerations: Accelerations = PLAIN,
) -> int:  # fmt: skip
    """Runs a comparison into `out` and prints the table; 130 when interrupted."""
    limits = parse_budget(budget, strict=strict)
    recipes = recipes_of(strategies, limits)
    if n < 1:
        raise BadField(f"n={n}: must be at least 1 question")
    opening = Opening(
        model=model, weights=weights, threads=threads, device=device, context=context, ray=ray, replicas=replicas, accelerations=accelerations
    )
    questions = questions_of(catalogue.task(task), split, n)
    where = opening.format + ("" if device == "cpu" else f" on {device}")
    title = f"{task} ({split}, n={len(questions)}), {model} {where}, at most {limits} a question"
    here = lambda: open_named(model, opening.format, threads, device=device, context_len=context, accelerations=accelerations)
    with answering(opening, here, questions[0].prompt) as (process, run):
        return run_comparison(process, recipes, questions, out=out, task=task, seed=seed, resume=resume, title=title, run=run)


def demo() -> int:
    """The comparison of `make demo` and one question. A second run finds everything in the store."""
    settings = catalogue.DEMO
    show.say(f"ponder demo: {settings.num_questions} questions of {settings.task}, {len(settings.strategies)} strategies, {settings.budget} each")
    _pulled(settings.model)
    questions = questions_of(catalogue.task(settings.task), "test", settings.num_questions)
    limits = parse_budget(settings.budget)
    recipes = [Recipe(label=s, strategy=catalogue.strategy(s), budget=limits) for s in settings.strategies]
    process = open_named(settings.model, settings.weights, None)
    out = Path("out") / f"demo-{hash_seed(process.model_id, str(describe(recipes)), settings.task, len(questions)):016x}"[:21]
    title = f"{settings.task} (test, n={len(questions)}), {settings.model} {settings.weights}, at most {limits} a question"
    code = run_comparison(process, recipes, questions, out=out, task=settings.task, seed=0, resume=True, title=title)
    if code == 0:
        show.say(f"$ ponder ask {settings.question!r} --strategy {settings.ask_strategy} --budget '{settings.budget}'")
        job = Job(id="ask", prompt=Prompt(messages=(("user", settings.question),), max_tokens=64, answers=catalogue.READERS[settings.reader]),
                  recipe=Recipe(label=settings.ask_strategy, strategy=catalogue.strategy(settings.ask_strategy), budget=limits), seed=0)  # fmt: skip
        ((_, result),) = Driver(process).run([job])
        show.show_answer(result, strategy=settings.ask_strategy, budget=str(limits))
    return code


def pull(*, name: str) -> int:
    path = _pulled(name)
    show.out.print(f"{name}: {path}")
    return 0


def models() -> int:
    """The catalogue of models, what of it is in the cache, and where that is."""
    here = {found.name: found for found in fetch.installed()}
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("model", "in the cache", "checksum", "what it is"):
        table.add_column(column)
    for name, source in fetch.MODELS.items():
        size = f"{here[name].nbytes / 1e6:.0f} MB" if name in here else "-"
        table.add_row(name, size, "sha256 known" if source.sha256 else "unverified", source.about)
    show.out.print(table)
    show.say(f"cache: {fetch.cache_dir()} (PONDER_CACHE moves it); any GGUF file or safetensors folder can be named by its path too")
    return 0


def tasks() -> int:
    for name, found in catalogue.TASKS.items():
        about = (sys.modules[type(found).__module__].__doc__ or "").splitlines()[0]
        show.out.print(f"{name:18} {about}")
    show.out.print("rg:DATASET         any generator of reasoning-gym, as rg:chain_sum")
    return 0


def strategies() -> int:
    for name, found in catalogue.STRATEGIES.items():
        settable = ", ".join(f"{k}={_named(v)}" for k, v in catalogue.SPECS.settable(found).items())
        show.out.print(f"[bold]{name}[/bold] ({found.guarantee})\n    {escape(settable) or 'no fields'}", soft_wrap=True)
    for field, table in catalogue.PARTS.items():
        show.out.print(f"[bold]{field}[/bold]: {', '.join(table)}", soft_wrap=True)
    return 0


def profile(*, model: str, weights: str, batch: int, context: int, card: Path | None, refresh: bool, out: Path, threads: int | None) -> int:
    """Prints where time goes in decoding and in reading a prompt, and draws the roofline picture."""
    cells = [Cell("decode", batch, context), Cell("prefill", 1, context)]
    if Path(model).name == "config.json" or card is not None:
        _known("weight format", weights, catalogue.WEIGHTS)
        known = read_card(card) if card is not None else kept_card(card_path()) or measure_machine()
        config = read_config(Path(model) if Path(model).name == "config.json" else fetch.resolve(model))
        head = catalogue.HEADS[weights].name if any(rate.format == catalogue.HEADS[weights].name for rate in known.matrices) else weights
        seen = outline(config, known, weights, head)
        phases = [(cell, predict_cell(seen, cell, known, CHUNK), None) for cell in cells]
        points = [point for cell, prediction, _ in phases for point in points_of(cell.phase, prediction)]
    else:
        process = open_named(model, weights, threads)
        profiler = open_profiler(process, weights, catalogue.HEADS[weights].name)  # type: ignore[arg-type]
        for cell in cells:
            profiler.check(cell)
        known = open_card(profiler, is_fresh=refresh, tell=show.say)
        with show.waiting("running the engine with clocks"):
            profiles = [profiler.profile(cell, known) for cell in cells]
        phases, points, config = [(p.cell, p.prediction, p) for p in profiles], profile_points(profiles), profiler.outline.config
    title = f"{Path(model).name if '/' in model else model}, {weights}: {known.name}, {known.threads} thread{'s' * (known.threads != 1)}"
    show.out.print(show.profile_table(phases, title=title))
    for line in show.machine_lines(known, config.vocab_size):
        show.out.print(line)
    draw_roofline(points, known, out, title=title)
    show.say(f"{out}: the roofline picture")
    return 0


def recipes_of(strategies: str, limits: Budget) -> list[Recipe]:
    found: dict[str, Strategy] = catalogue.SPECS.read_many(strategies)  # type: ignore[assignment]
    return [Recipe(label=spec, strategy=strategy, budget=limits) for spec, strategy in found.items()]


def questions_of(task: Task, split: str, n: int) -> list[Question]:
    with show.waiting(f"reading {task.name}"):
        items = task.items(split)
    if n > len(items):
        raise BadField(f"n={n}: {task.name} has {len(items)} questions in its {split} split")
    return [Question(id=i.id, prompt=i.prompt, is_right=lambda text, i=i: task.score(i, text)) for i in items[:n]]  # type: ignore[misc]


def run_comparison(
    process: Named, recipes: Sequence[Recipe], questions: Sequence[Question], *, out: Path, task: str, seed: int, resume: bool, title: str,
    run: Callable[..., Comparison] = run_compare,
) -> int:  # fmt: skip
    """Runs, prints and writes a comparison; returns the exit code."""
    folder = RunFolder(out, settings_of(process, recipes, questions, task=task, seed=seed)).open(resume=resume)
    right: dict[str, list[bool]] = {r.label: [] for r in recipes}
    with _interruptible() as should_stop, show.work_bar() as bar:
        bars = {r.label: bar.add_task(r.label, total=len(questions), note="") for r in recipes}

        def on_row(row: Row) -> None:
            right[row.recipe].append(row.right)
            bar.update(bars[row.recipe], advance=1, note=f"{100 * sum(right[row.recipe]) / len(right[row.recipe]):.0f} % right")

        try:
            comparison = run(process, recipes, questions, folder=folder, seed=seed, should_stop=should_stop, on_row=on_row)
        finally:
            folder.close()
    if comparison.rows:
        report(comparison, out, title)
    if comparison.is_complete:
        return 0
    show.err.print(f"ponder: interrupted; run again with --resume to go on in {out}: nothing finished is lost", style="yellow")
    return INTERRUPTED


def report(comparison: Comparison, out: Path, title: str) -> list[Summary]:
    """Prints the table; writes summary.json and quality.png beside the rows."""
    summaries = summarize(comparison)
    show.out.print(show.comparison_table(summaries, title=title))
    for line in (*show.verdict_lines(summaries), *show.limit_lines(summaries)):
        show.out.print(line)
    failed = [row for row in comparison.rows if row.result.stop_reason == "failed"]
    for row in failed[:3]:
        show.err.print(f"{row.recipe} failed on question {row.question}: {row.result.diagnostics['error']}", style="red")
    if failed[3:]:
        show.err.print(f"and {len(failed) - 3} more failed; results.jsonl has them", style="red")
    write_text(out / "summary.json", json.dumps([asdict(s) | {"verdict": s.verdict} for s in summaries], indent=1) + "\n")
    plot_quality(summaries, out / "quality.png", title=title)
    ledgers = comparison.ledgers.values()
    engine = sum(ledger.engine_seconds for ledger in ledgers)
    own = sum(ledger.wall_seconds - ledger.engine_seconds - ledger.verifier_seconds for ledger in ledgers)
    steps = sum(ledger.steps for ledger in ledgers)
    show.say(f"{out}: results.jsonl, trace.jsonl, samples.sqlite, quality.png; engine {engine:.1f} s in {steps} steps, everything else {own:.1f} s")
    return summaries


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """The first Ctrl-C makes the given function return True; a second one interrupts at once."""
    stopped: list[int] = []

    def on_signal(number: int, frame: object) -> None:
        if stopped:
            raise KeyboardInterrupt
        stopped.append(number)
        show.say("stopping after this step; Ctrl-C again stops at once")

    before = signal.signal(signal.SIGINT, on_signal)
    try:
        yield lambda: bool(stopped)
    finally:
        signal.signal(signal.SIGINT, before)


def open_named(
    model: str, weights: str, threads: int | None, *, device: str = "cpu", context_len: int | None = None, accelerations: Accelerations = PLAIN
) -> Process:  # fmt: skip
    """A model by its name or path, as a running process."""
    if is_elsewhere(model):
        with show.waiting(f"opening {model}"):
            return open_elsewhere(model)
    catalogue.weights_on(device, weights)
    path = _pulled(model) if model == catalogue.DEFAULT_MODEL else fetch.resolve(model)
    with show.waiting(f"opening {model}"):
        return catalogue.open_together(path, weights, threads, device=device, settings=Settings(context_len=context_len), accelerations=accelerations)


def _pulled(name: str) -> Path:
    """Path of a catalogue model, fetched with a progress bar where it is not in the cache."""
    if any(name == found.name for found in fetch.installed()):
        return fetch.resolve(name)
    with show.download_bar(name) as bar:
        line = bar.add_task(name, total=None)
        return fetch.pull(name, progress=lambda done, total: bar.update(line, completed=done, total=total))


def _known(kind: str, name: str, table: dict[str, T]) -> T:
    if name not in table:
        raise UnknownName(kind, name, table)
    return table[name]


def _question(text: str) -> str:
    question = sys.stdin.read() if text == "-" else text
    if not question.strip():
        raise BadField("the question is empty; write it between quotes, or '-' to read standard input")
    return question.strip()


def write_text(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StoreError(f"{path}: {error}; free disk space or name another file") from error


def _named(value: object) -> object:
    """A part by its name, a long text by how it begins."""
    if isinstance(value, str) and (len(value) > MAX_SHOWN or "\n" in value):
        return f"{value[:MAX_SHOWN]!r}..."
    return getattr(value, "name", None) or getattr(value, "__name__", None) or value
