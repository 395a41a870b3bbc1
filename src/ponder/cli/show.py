"""What people see: answers, tables and progress in a terminal; plain text when the output is no terminal."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TransferSpeedColumn
from rich.table import Table
from rich.text import Text

from ponder.core.asks import Candidate
from ponder.core.budget import Cost
from ponder.plan.machine import MachineCard
from ponder.plan.predict import Prediction
from ponder.plan.profile import Cell, Profile
from ponder.plan.roofline import GROUPS
from ponder.run.recipe import Result
from ponder.run.report import Summary

PLAIN_WIDTH = 120  # columns where the output is no terminal
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)
for console in (out, err):
    if not console.is_terminal:
        console.width = PLAIN_WIDTH


def say(line: str) -> None:
    """One line of what is going on, on stderr."""
    err.print(line, style="dim")


@contextmanager
def waiting(text: str) -> Iterator[None]:
    """A spinner on stderr while something happens; a plain line where that is no terminal."""
    if not err.is_terminal:
        say(text)
        yield
        return
    with Progress(SpinnerColumn(), TextColumn(text), TimeElapsedColumn(), console=err, transient=True):
        yield


@contextmanager
def download_bar(name: str) -> Iterator[Progress]:
    with Progress(TextColumn(f"fetching {name}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), console=err) as bar:
        yield bar


def work_bar() -> Progress:
    """A bar of finished questions."""
    columns = (TextColumn("{task.description:28}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.fields[note]}"))
    return Progress(*columns, console=err)


def show_answer(result: Result, *, strategy: str, budget: str) -> None:
    """The answer, how sure it is, what it cost and why it stopped."""
    text = result.text.strip() or "(no answer)"
    out.print(Panel(Text(text), title="answer", title_align="left", border_style="green" if result.stop_reason == "done" else "yellow"))
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column()
    read = result.answer
    if read is not None and read != " ".join(text.split()):
        table.add_row("read as", read)
    table.add_row("how sure", how_sure(result))
    table.add_row("cost", cost_line(result.cost))
    table.add_row("stopped", stop_line(result.stop_reason, budget))
    table.add_row("strategy", f"{strategy}: {len(result.candidates)} candidate{'s' * (len(result.candidates) != 1)}")
    out.print(table)
    rest = [c for c in result.candidates[1:] if c.answer != result.answer]
    if rest:
        out.print(Text("other answers: ", style="dim") + Text("; ".join(dict.fromkeys(_short(c) for c in rest[:8])), style="dim"))


def how_sure(result: Result) -> str:
    likely = f"mean token probability {_mean_p(result.candidates[0]):.0%}" if result.candidates else "no answer"
    if result.confidence is None:
        return f"no estimate by this strategy; {likely}"
    return f"{result.confidence:.0%} (the strategy's own, not calibrated); {likely}"


def cost_line(cost: Cost) -> str:
    parts = [f"{cost.tokens} tokens ({cost.prompt_tokens} prompt + {cost.generated_tokens} generated"]
    parts.append(f" + {cost.verifier_tokens} verifier)" if cost.verifier_tokens else ")")
    extra = [f"{cost.reused_tokens} reused free"] if cost.reused_tokens else []
    extra += [f"{cost.wasted_tokens} wasted"] if cost.wasted_tokens else []
    extra += [drafts_line(cost)] if cost.drafted_tokens else []
    return "".join(parts) + "".join(f", {e}" for e in extra) + f"; {cost.seconds:.1f} s; {cost.flops / 1e9:.0f} GFLOP"


def drafts_line(cost: Cost) -> str:
    """A round generates one token and those that it accepts."""
    rounds = max(1, cost.generated_tokens - cost.accepted_tokens)
    return f"{cost.accepted_tokens} of {cost.drafted_tokens} drafted accepted ({cost.accepted_tokens / rounds:.2f} a round)"


def stop_line(reason: str, budget: str) -> str:
    if reason == "done":
        return "finished within the budget"
    return "interrupted: best answer so far" if reason == "interrupted" else f"the budget's {reason} were spent ({budget}): best answer so far"


def comparison_table(summaries: Sequence[Summary], *, title: str) -> Table:
    """Accuracy with intervals, paired gain over the first row, tokens, seconds, oracle against selected."""
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold", caption_justify="left", padding=(0, 1))
    table.caption = "[ ]: 95 % bootstrap over questions; gain: paired with the first row; oracle: some candidate was right"
    table.add_column("strategy", overflow="fold")
    has_cut, has_auroc = any(s.cut for s in summaries), any(s.verifier_auroc is not None for s in summaries)
    names = ["right %", "gain", "oracle %", "tok/q", "tok/right", "s/q", *["cut %"] * has_cut, *["AUROC"] * has_auroc]
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for s in summaries:
        is_first = s is summaries[0]
        style = "" if is_first else {"better": "green", "worse": "red"}.get(s.verdict, "")
        gain = "" if is_first else f"{100 * s.gain:+.0f} {_pair(s.gain_low, s.gain_high)}"
        per_right = "-" if s.tokens_per_correct is None else f"{s.tokens_per_correct:.0f}"
        cells = [f"{100 * s.accuracy:.0f} {_pair(s.accuracy_low, s.accuracy_high)}", Text(gain, style=style), f"{100 * s.oracle:.0f}"]
        cells += [f"{s.tokens:.0f}", per_right, f"{s.seconds:.2f}", *[f"{100 * s.cut:.0f}"] * has_cut]
        auroc = "" if s.verifier_auroc is None else f"{s.verifier_auroc:.2f}"
        table.add_row(s.recipe, *cells, *[auroc] * has_auroc)
    return table


def verdict_lines(summaries: Sequence[Summary]) -> list[str]:
    """One sentence per strategy after the first: better, worse, or no difference shown."""
    base = summaries[0]
    return [
        f"{s.recipe}: {s.verdict} than {base.recipe}" if s.verdict != "no difference shown" else f"{s.recipe}: {s.verdict} against {base.recipe}"
        for s in summaries[1:]
    ]


def limit_lines(summaries: Sequence[Summary]) -> list[str]:
    """One sentence per strategy with a verifier: how often it is fooled, and the accuracy that no more samples can exceed."""
    return [
        f"{s.recipe}: accepting one answer in {s.limit.one_in}, its verifier takes {100 * s.limit.accepts_wrong:.0f} % of the wrong and "
        f"{100 * s.limit.accepts_right:.0f} % of the right ones: more samples end at {100 * s.limit.ceiling:.0f} % right"
        for s in summaries
        if s.limit is not None
    ]


Phase = tuple[Cell, Prediction, Profile | None]  # what was asked, predicted and, where it ran, measured


def profile_table(phases: Sequence[Phase], *, title: str) -> Table:
    """Milliseconds of every part of each phase: measured, predicted, at its roofline, and its share of the whole."""
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold", caption_justify="left", padding=(0, 1))
    table.add_column("ms")
    for cell, _, _ in phases:
        name = f"decode\n{cell.batch} x {cell.context}" if cell.phase == "decode" else f"read\n{cell.batch} x {cell.context}"
        for column in (name, "\npredicted", "\nroofline", "\nshare"):
            table.add_column(column, justify="right", no_wrap=True)
    groups = [group for group in GROUPS if any(group in prediction.by_group() for _, prediction, _ in phases)]
    for group in groups:
        table.add_row(group, *(text for phase in phases for text in _part_cells(phase, group)), end_section=group == groups[-1])
    cells = []
    for _, prediction, profile in phases:
        cells += ["-" if profile is None else _ms(profile.seconds), _ms(prediction.seconds), _ms(prediction.ideal)]
        cells += ["" if profile is None else f"{profile.error:+.0%}"]
    table.add_row("whole", *cells, style="bold")
    ratios = [(p.seconds if p is not None else prediction.seconds) / prediction.ideal for _, prediction, p in phases]
    table.add_row("whole / roofline", *(text for ratio in ratios for text in (f"{ratio:.2f}", "", "", "")))
    is_shared = any(profile is not None and profile.shared for _, _, profile in phases)
    table.caption = "roofline: idealized, as if each operator ran at its bound and nothing else were there; last of whole: predicted against measured"
    if is_shared:
        table.caption += "\n~: computed together in one call, whose measured time is shared out as predicted"
    return table


def _part_cells(phase: Phase, group: str) -> tuple[str, str, str, str]:
    _, prediction, profile = phase
    ideal, predicted = prediction.by_group().get(group, (0.0, 0.0))
    if profile is None:
        return "-", _ms(predicted), _ms(ideal), f"{predicted / prediction.seconds:.0%}"
    measured = profile.parts.get(group, 0.0)
    mark = "~" if group in profile.shared else ""
    return mark + _ms(measured), _ms(predicted), _ms(ideal), f"{measured / profile.seconds:.0%}"


def machine_lines(card: MachineCard, vocab: int) -> list[str]:
    """What the machine does by itself, and what serving costs beside the model."""
    roofs = ", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in card.peaks.items())
    lines = [f"machine: memory {card.stream / 1e9:.1f} GB/s, cache {card.bandwidth[0][1] / 1e9:.0f} GB/s; products, GFLOP/s: {roofs}"]
    if card.op_seconds:
        overheads = (("PyTorch operator", card.op_seconds), ("compiled call", card.call_seconds), ("parallel region", card.region_seconds))
        lines.append("overhead, us: " + ", ".join(f"{name} {1e6 * seconds:.2f}" for name, seconds in overheads))
    for rate in [rate for rate in card.samplers if rate.vocab == vocab]:
        curve = ", ".join(f"{rows:.0f}: {1e3 * s:.2f}" for rows, s in zip(rate.curve.x, rate.curve.seconds))
        lines.append(f"sampling{'' if rate.top_p == 1 else f', top_p {rate.top_p}'}, ms by rows: {curve}")
    if card.python:
        curve = ", ".join(f"{rows:.0f}: {1e3 * s:.2f}" for rows, s in zip(card.python[0].x, card.python[0].seconds))
        lines.append(f"step loop in Python, ms by sequences: {curve}")
    for text in [rate for rate in card.texts if rate.vocab == vocab]:
        lines.append(f"text: {text.characters / 1e6:.2f} million characters/s tokenized, {text.decoded / 1e6:.2f} million tokens/s turned into text")
    return lines


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3f}" if seconds < 1e-3 else f"{1e3 * seconds:.2f}" if seconds < 1 else f"{1e3 * seconds:,.0f}"


def _pair(low: float, high: float) -> str:
    return f"[{100 * low:.0f}, {100 * high:.0f}]"


def _short(candidate: Candidate) -> str:
    text = " ".join((candidate.answer or candidate.text).split())
    return text if len(text) <= 40 else text[:37] + "..."


def _mean_p(candidate: Candidate) -> float:
    return float(2.718281828459045**candidate.mean_log_p)
