"""Completions of lines of Python: when to say nothing, when to leave early, and what that saves beside full decoding.

`python benchmarks/code_completion.py [--model NAME or FILE] [--n 163] [--minutes 10] [--drafts "SPEC;SPEC"] [--thresholds 0.2,0.35,0.5]`

Data: HumanEval's reference solutions (one file of the task data, 55 kB); each is cut behind some of its lines, and the model goes on greedily for
a few lines. A head is fitted to its own states at the ends of lines (right: all lines so far are the reference's), on half of the
problems. The others are completed under every setting in turn, one at a time, so that every setting has met the same cuts when --minutes
are over: `full`; `stop T`, which says no more once the head gives less than T (infer/stop_wrong); each of --drafts, as
early_exit:layer=20/coupled/fixed:num=3 (leaves early to guess, changes no token) and early_exit:layer=20/trust:least=0.9/fixed:num=3 (says
what an early layer is sure of: approximate); and each of these with the middle threshold. --out keeps every completion: a run goes on.

Rows, one a setting, with 95 % intervals over problems (bootstrap), against `full` on the same cuts: acceptance (of what is shown, right in all
its lines), ROUGE-L beside the reference's lines of what is shown, tokens computed, and layers: `layers_a_token`, those behind the state
that each token came from (what the paper counts; all layers less this are skipped); `depth_a_token`, those that one text had to wait for
one after another, guesses that came to nothing and verifying passes included; `work_a_token`, layers times rows. CPU seconds, one thread.
"""

import argparse
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from lib.rows import append, shown

import ponder
from ponder import catalogue
from ponder.core.accelerations import Accelerations
from ponder.core.asks import GREEDY, Extend, Extension, Prefix, Prompt
from ponder.core.budget import Budget
from ponder.core.draft import Context, Guess
from ponder.core.probe import checkpoint_of
from ponder.core.rng import hash_seed
from ponder.core.roles import Process, Strategy
from ponder.engine.process import LocalProcess
from ponder.infer.stop_wrong import StopWrong
from ponder.run.driver import Driver, Job
from ponder.run.recipe import Recipe as RunRecipe
from ponder.tasks.data import read_docs
from ponder.testing.run import answer_turn
from ponder.train.fit import Recipe, States, fit_head
from ponder.train.rollouts import Whole
from ponder.verify.heads import Head
from ponder.verify.probe_head import ProbeHead

Record = dict[str, object]


@dataclass(frozen=True)
class Cut:
    """A place in a program: what stands before it, and the lines that follow."""

    name: str
    problem: str
    before: str
    indent: str  # at its end, of the first line that follows
    after: tuple[str, ...]

    def is_right(self, lines: Sequence[str]) -> bool:
        """Whether lines are the ones that follow, as many as there are."""
        return tuple(lines) == tuple(line.rstrip() for line in self.after[: len(lines)])


def cuts(num: int, num_cuts: int, num_lines: int) -> list[Cut]:
    """At most num_cuts of each problem, spread over its solution; an odd problem's cuts never meet an even one's. The first problem, solved, stands
    above every other as what else is in the file; the last space of the line's indentation is left to the model, whose tokens begin with one."""
    first, *docs = read_docs("codex_humaneval/gold_bpb_0shot")
    found, file = [], f"{first['prompt']}{first['canonical_solution']}\n\n"
    for doc in docs[:num]:
        head, lines = str(doc["prompt"]), [line for line in str(doc["canonical_solution"]).splitlines() if line.strip()]
        for at in sorted({round(i * (len(lines) - 1) / max(1, num_cuts - 1)) for i in range(num_cuts)}):
            indent = lines[at][: len(lines[at]) - len(lines[at].lstrip())][:-1]
            before = file + head + "".join(f"{line}\n" for line in lines[:at]) + indent
            found.append(Cut(f"{doc['task_id']} line {at}", str(doc["task_id"]), before, indent, tuple(lines[at : at + num_lines])))
    return found


def prompt_of(cut: Cut) -> Prompt:
    return Prompt(messages=(("raw", cut.before),), max_tokens=24 * len(cut.after))


def lines_of(text: str) -> list[str]:
    return [line.rstrip() for line in text.splitlines() if line.strip()]


def grown(process: Process, some: Sequence[Cut]) -> list[Extension]:
    """The completion of each cut by greedy decoding, as many lines as the reference has, with the state of every token."""
    prefixes = [Prefix(prompt_of(cut)) for cut in some]
    probe, last = Whole(), {}
    live = list(range(len(some)))
    while live:
        asks = [Extend(prefix=prefixes[i], seed=0, until=("\n",), max_tokens=24, sampling=GREEDY, probes=(probe,)) for i in live]
        for i, answer in zip(list(live), answer_turn(asks, process), strict=True):
            assert isinstance(answer, Extension)
            prefixes[i], last[i] = answer.prefix, answer
            if answer.prefix.is_final or len(lines_of(some[i].indent + answer.prefix.text)) >= len(some[i].after):
                live.remove(i)
    return [last[i] for i in range(len(some))]


def labelled(process: Process, some: Sequence[Cut]) -> States:
    """Whether all lines so far are right, at the end of every line."""
    rows, labels, groups = [], [], []
    tokenizer = process.tokenizer  # type: ignore[attr-defined]
    for cut, answer in zip(some, grown(process, some)):
        states = dict(answer.prefix.readings)["state"]
        num_read = 0
        for n in range(1, len(answer.prefix.tokens) + 1):
            text = tokenizer.decode(list(answer.prefix.tokens[:n]))
            said = lines_of(cut.indent + text)
            if text.rstrip(" \t").endswith("\n") and len(said) > num_read:
                num_read = len(said)
                rows.append(states[n - 1])
                labels.append(cut.is_right(said))
                groups.append(cut.problem)
    return States(torch.tensor(rows, dtype=torch.float32), tuple(labels), tuple(groups))


def rouge_l(found: str, wanted: str) -> float:
    """F1 of the longest common subsequence of words and signs."""
    a, b = found.split(), wanted.split()
    row = [0] * (len(b) + 1)
    for x in a:
        before = 0
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], before + 1 if x == y else max(row[j], row[j - 1])
    return 2 * row[-1] / (len(a) + len(b)) if row[-1] else 0.0


@dataclass
class Counted:
    """A drafter's runner, with its passes and rows counted."""

    inner: object
    passes: int = 0
    rows: int = 0

    def guess(self, contexts: Sequence[Context], drafts: Sequence[Sequence[int]], *, with_log_q: bool = False) -> list[Guess | None]:
        self.passes, self.rows = self.passes + 1, self.rows + len(contexts)
        return self.inner.guess(contexts, drafts, with_log_q=with_log_q)  # type: ignore[attr-defined, no-any-return]

    def forget(self, request: int) -> None:
        self.inner.forget(request)  # type: ignore[attr-defined]


@dataclass
class Setting:
    """A process under a strategy. runner: what guesses, where something does."""

    name: str
    process: LocalProcess
    strategy: Strategy
    runner: Counted | None

    def completed(self, cut: Cut) -> Record:
        """One completion, whose prompt was read before the clock starts."""
        process, prompt = self.process, prompt_of(cut)
        answer_turn([Extend(prefix=Prefix(prompt), seed=0, max_tokens=1, sampling=GREEDY)], process)
        before, steps, passes, start = process.totals, process.num_steps, self.passes, time.process_time()
        job = Job(id="0", prompt=prompt, recipe=RunRecipe(label="completion", strategy=self.strategy, budget=Budget()), seed=0)
        ((_, result),) = Driver(process).run([job])
        seconds, spent = time.process_time() - start, process.totals
        text = result.candidates[0].text
        lines = lines_of(cut.indent + text)[: len(cut.after)] if text.strip() else []
        steps, passes = process.num_steps - steps, self.passes - passes
        tokens, drafted, taken = (getattr(spent, f"{n}_tokens") - getattr(before, f"{n}_tokens") for n in ("generated", "drafted", "accepted"))
        num_layers, exit_layers = process.decoder.config.num_layers, self.exit_layers
        return {
            "setting": self.name, "cut": cut.name, "problem": cut.problem, "lines": len(lines),
            "is_right": bool(lines) and cut.is_right(lines),
            "rouge_l": rouge_l("\n".join(lines), "\n".join(cut.after)), "tokens": tokens, "drafted": drafted, "taken": taken,
            "passes": steps, "draft_passes": passes, "behind": tokens * num_layers - taken * (num_layers - exit_layers),
            "depth": steps * num_layers + passes * exit_layers, "work": (steps + drafted) * num_layers + passes * exit_layers,
            "cpu_seconds": round(seconds, 4),
        }  # fmt: skip

    @property
    def passes(self) -> int:
        return 0 if self.runner is None else self.runner.passes

    @property
    def exit_layers(self) -> int:
        """Layers of a pass that guesses."""
        return 0 if self.runner is None else self.process.decoder.config.num_layers - len(getattr(self.runner.inner, "skips", ()))


def settings_of(args: argparse.Namespace, path: Path, process: LocalProcess, head: Head) -> list[Setting]:
    def stopping(stop_below: float) -> StopWrong:
        return StopWrong(verifier=ProbeHead(head=head), stop_below=stop_below, max_step=24, num_steps=args.lines)

    thresholds = [float(text) for text in args.thresholds.split(",")]
    found = [Setting("full", process, stopping(0.0), None)]
    found += [Setting(f"stop {threshold}", process, stopping(threshold), None) for threshold in thresholds]
    middle = sorted(thresholds)[len(thresholds) // 2]
    for spec in filter(None, args.drafts.split(";")):
        drafting = catalogue.open_model(path, args.weights, threads=1, accelerations=Accelerations(draft=spec))
        runner = Counted(drafting.rounds.drafting.runner)
        drafting.rounds.drafting = replace(drafting.rounds.drafting, runner=runner)
        name = spec.removeprefix(f"{Path.cwd()}/")
        found += [Setting(name, drafting, stopping(0.0), runner), Setting(f"{name} + stop {middle}", drafting, stopping(middle), runner)]
    return found


def kept_records(folder: Path, name: str) -> list[Record]:
    """Of all parts, also of runs that were cut short."""
    return [json.loads(line) for path in sorted(folder.glob(f"{name}*.jsonl")) for line in path.read_text(encoding="utf-8").splitlines()]


def ratio(records: Sequence[Record], above: Callable[[Record], float], below: Callable[[Record], float]) -> tuple[float, float, float]:
    """(sum of above over sum of below, and its 95 % interval), problems resampled."""
    problems = sorted({str(record["problem"]) for record in records})
    sums = np.array([[sum(f(r) for r in records if r["problem"] == problem) for f in (above, below)] for problem in problems])
    draws = np.random.default_rng(0).integers(0, len(problems), (1000, len(problems)))
    above_D, below_D = sums[draws].sum(1).T
    low, high = np.quantile(above_D[below_D > 0] / below_D[below_D > 0], [0.025, 0.975]) if (below_D > 0).any() else (0.0, 0.0)
    total = sums.sum(0)
    return round(float(total[0] / total[1]) if total[1] else 0.0, 4), round(float(low), 4), round(float(high), 4)


def summary(records: Sequence[Record], full: Sequence[Record]) -> Record:
    """Of one setting, beside full decoding of the same cuts."""
    of = {str(record["cut"]): record for record in full}
    with_full = [record | {f"full_{name}": of[str(record["cut"])][name] for name in ("tokens", "depth", "work", "cpu_seconds")} for record in records]

    def number(name: str) -> Callable[[Record], float]:
        return lambda record: float(record[name])  # type: ignore[arg-type]

    is_shown = lambda record: float(record["lines"] > 0)
    rouge = lambda record: number("rouge_l")(record) * is_shown(record)
    figures = {
        "shown": ratio(records, is_shown, lambda _: 1.0), "acceptance": ratio(records, number("is_right"), is_shown),
        "rouge_l": ratio(records, rouge, is_shown),
        "tokens_beside_full": ratio(with_full, number("tokens"), number("full_tokens")),
        "layers_a_token": ratio(records, number("behind"), number("tokens")),
        "depth_a_token": ratio(records, number("depth"), number("tokens")), "work_a_token": ratio(records, number("work"), number("tokens")),
        "depth_beside_full": ratio(with_full, number("depth"), number("full_depth")),
        "cpu_beside_full": ratio(with_full, number("cpu_seconds"), number("full_cpu_seconds")),
    }  # fmt: skip
    totals = {name: sum(int(record[name]) for record in records) for name in ("tokens", "drafted", "taken", "passes", "draft_passes", "lines")}  # type: ignore[call-overload]
    return {"num_cuts": len(records), "num_problems": len({record["problem"] for record in records})} | totals | figures


def learned_head(args: argparse.Namespace, process: LocalProcess, some: Sequence[Cut], path: Path) -> tuple[Head, Record]:
    """Fitted to the states of some cuts, which are kept."""
    if not path.exists():
        states = labelled(process, some)
        fresh = path.with_suffix(f".{os.getpid()}")  # other parts may be at the same
        torch.save({"states": states.hidden_ND, "labels": list(states.labels), "groups": list(states.groups)}, fresh)
        fresh.replace(path)
    kept = torch.load(path)
    states = States(kept["states"], tuple(kept["labels"]), tuple(kept["groups"]))
    head = fit_head(states, model_id=checkpoint_of(process.model_id), place="last", recipe=Recipe(hidden=0))
    return head, {"states": len(states.labels), "right_states": round(sum(states.labels) / len(states.labels), 3)}


def table(rows: Sequence[Record]) -> Iterator[str]:
    """As markdown."""
    yield "| setting | shown | acceptance | ROUGE-L | tokens x full | layers a token | depth | work | depth x full | CPU x full |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for row in rows:
        names = ("shown", "acceptance", "rouge_l", "tokens_beside_full", "layers_a_token", "depth_a_token", "work_a_token", "depth_beside_full")
        names = (*names, "cpu_beside_full")
        yield f"| {row['setting']} | " + " | ".join("{:.3g} [{:.3g}, {:.3g}]".format(*row[name]) for name in names) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--weights", default="native")
    parser.add_argument("--n", type=int, default=163, help="problems, at most 163; half of them teach the head")
    parser.add_argument("--lines", type=int, default=3)
    parser.add_argument("--cuts", type=int, default=3)
    parser.add_argument("--thresholds", default="0.2,0.35,0.5")
    parser.add_argument("--drafts", default="", help="drafters to complete with, between semicolons")
    parser.add_argument("--minutes", type=float, default=10.0, help="of completing; rows are written of what was done by then")
    parser.add_argument("--part", default="0/1", help="I/K: every K-th cut from the I-th; parts write no rows, a run of --minutes 0 without one does")
    parser.add_argument("--out", type=Path, default=Path("out/completion"))
    args = parser.parse_args()
    given = Path(args.model)
    path = given if given.exists() else ponder.pull(args.model)
    name = hashlib.sha256(repr((path.name, args.weights, args.n, args.lines, args.cuts, args.thresholds, args.drafts)).encode()).hexdigest()[:12]
    args.out.mkdir(parents=True, exist_ok=True)
    everything = cuts(args.n, args.cuts, args.lines)
    learned = [cut for cut in everything if hash_seed("half", cut.problem) % 2]
    unseen = sorted((cut for cut in everything if not hash_seed("half", cut.problem) % 2), key=lambda cut: hash_seed("order", cut.name))
    process = catalogue.open_model(path, args.weights, threads=1)
    head, facts = learned_head(args, process, learned, args.out / f"{name}.pt")
    settings, records, (part, of_parts) = settings_of(args, path, process, head), kept_records(args.out, name), map(int, args.part.split("/"))
    done, until = {(record["cut"], record["setting"]) for record in records}, time.monotonic() + 60 * args.minutes
    with (args.out / f"{name}-{part}-{of_parts}.jsonl").open("a", encoding="utf-8") as file:
        for cut in unseen[part::of_parts]:
            if time.monotonic() > until:
                break
            for setting in settings:
                if (cut.name, setting.name) not in done:
                    records.append(setting.completed(cut))
                    file.write(json.dumps(records[-1]) + "\n")
                    file.flush()
    if of_parts > 1:
        return
    whole = {cut for cut in {r["cut"] for r in records} if sum(r["cut"] == cut for r in records) == len(settings)}
    of = {setting.name: [r for r in records if r["setting"] == setting.name and r["cut"] in whole] for setting in settings}
    same = {
        "model": shown(args.model),
        "weights": args.weights,
        "n": args.n,
        "lines_asked": args.lines,
        "cuts_asked": len(unseen),
        "threads": 1,
    } | facts
    rows = [same | {"setting": setting, "layers": process.decoder.config.num_layers} | summary(found, of["full"]) for setting, found in of.items()]
    for row in rows:
        append("code_completion", row)
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
