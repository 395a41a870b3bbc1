"""Completions of lines of Python: when to say nothing, and what the first layers would have said.

`python benchmarks/code_completion.py [--model NAME] [--n 80] [--lines 3] [--cuts 3] [--draft early_exit:layer=20]`

Data: HumanEval's reference solutions; each is cut behind some of its lines, and the model goes on greedily for a few lines. A head is
fitted to its own states at the ends of lines (right: all lines so far are the reference's), on half of the problems, and the others
are completed anew under `stop_wrong` with it. Reported, by threshold: share of cuts at which something is shown, of what is shown right
in all its lines (acceptance), ROUGE-L beside the reference's lines, tokens computed beside full decoding's, and CPU seconds. Early exit
is the drafter of --draft: it changes no token; `drafted` and `taken` say how many tokens its layers guessed, and how many were right.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from lib.rows import append

import ponder
from ponder import catalogue
from ponder.core.accelerations import Accelerations
from ponder.core.asks import GREEDY, Extend, Extension, Prefix, Prompt
from ponder.core.budget import Budget
from ponder.core.probe import checkpoint_of
from ponder.core.rng import hash_seed
from ponder.core.roles import Process, Strategy
from ponder.infer.stop_wrong import StopWrong
from ponder.run.driver import Driver, Job
from ponder.run.recipe import Recipe as RunRecipe
from ponder.tasks.data import read_docs
from ponder.testing.run import answer_turn
from ponder.train.fit import Recipe, States, fit_head
from ponder.train.rollouts import Whole
from ponder.verify.probe_head import ProbeHead


@dataclass(frozen=True)
class Cut:
    """A place in a program: what stands before it, and the lines that follow."""

    problem: str
    before: str
    after: tuple[str, ...]


def cuts(num: int, num_cuts: int, num_lines: int) -> list[Cut]:
    """At most num_cuts of each problem, spread over its solution; an odd problem's cuts never meet an even one's."""
    found = []
    for doc in read_docs("codex_humaneval/gold_bpb_0shot")[:num]:
        head, lines = str(doc["prompt"]), [line for line in str(doc["canonical_solution"]).splitlines() if line.strip()]
        for at in sorted({round(i * (len(lines) - 1) / max(1, num_cuts - 1)) for i in range(num_cuts)}):
            before = head + "".join(f"{line}\n" for line in lines[:at])
            found.append(Cut(str(doc["task_id"]), before, tuple(lines[at : at + num_lines])))
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
            if answer.prefix.is_final or len(lines_of(answer.prefix.text)) >= len(some[i].after):
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
            said = lines_of(text)
            if text.rstrip(" \t").endswith("\n") and len(said) > num_read:
                num_read = len(said)
                rows.append(states[n - 1])
                labels.append(tuple(said) == tuple(line.rstrip() for line in cut.after[: len(said)]))
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


def measured(process: Process, strategy: Strategy, some: Sequence[Cut]) -> dict[str, float]:
    """Of one strategy; the prompts' keys are computed before, so that what is counted is completion."""
    answer_turn([Extend(prefix=Prefix(prompt_of(cut)), seed=0, max_tokens=1, sampling=GREEDY) for cut in some], process)
    before, start = process.totals, time.process_time()  # type: ignore[attr-defined]
    recipe = RunRecipe(label="completion", strategy=strategy, budget=Budget())
    jobs = [Job(id=str(i), prompt=prompt_of(cut), recipe=recipe, seed=0) for i, cut in enumerate(some)]
    found = {job.id: result.candidates[0].text for job, result in Driver(process).run(jobs)}
    texts = [found[job.id] for job in jobs]
    seconds = time.process_time() - start
    spent = process.totals  # type: ignore[attr-defined]
    kept = [(lines_of(text)[: len(cut.after)], cut) for text, cut in zip(texts, some)]
    shown = [(lines, cut) for lines, cut in kept if lines]
    right = sum(tuple(lines) == tuple(line.rstrip() for line in cut.after[: len(lines)]) for lines, cut in shown)
    return {
        "shown": len(shown) / len(some), "accepted": right / max(1, len(shown)), "right_lines": sum(len(lines) for lines, cut in shown) / len(some),
        "rouge_l": sum(rouge_l("\n".join(lines), "\n".join(cut.after)) for lines, cut in shown) / max(1, len(shown)),
        "tokens": spent.generated_tokens - before.generated_tokens, "cpu_seconds": round(seconds, 2),
        "drafted": spent.drafted_tokens - before.drafted_tokens, "taken": spent.accepted_tokens - before.accepted_tokens,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--n", type=int, default=80)
    parser.add_argument("--lines", type=int, default=3)
    parser.add_argument("--cuts", type=int, default=3)
    parser.add_argument("--thresholds", default="0.2,0.35,0.5")
    parser.add_argument("--draft", help="a drafter to complete with, as early_exit:layer=20")
    args = parser.parse_args()
    everything, path = cuts(args.n, args.cuts, args.lines), ponder.pull(args.model)
    learned = [cut for cut in everything if hash_seed("half", cut.problem) % 2]
    unseen = [cut for cut in everything if not hash_seed("half", cut.problem) % 2]
    process = catalogue.open_model(path, threads=1)
    states = labelled(process, learned)
    head = fit_head(states, model_id=checkpoint_of(process.model_id), place="last", recipe=Recipe(hidden=0))
    same = {"model": args.model, "n": args.n, "lines": args.lines, "num_cuts": len(unseen), "threads": 1, "states": len(states.labels)}
    same |= {"right_states": round(sum(states.labels) / len(states.labels), 3)}
    always = StopWrong(verifier=ProbeHead(head=head), stop_below=0.0, max_step=24, num_steps=args.lines)
    append("code_completion", same | {"setting": "full"} | measured(process, always, unseen))
    for stop_below in map(float, args.thresholds.split(",")):
        strategy = StopWrong(verifier=ProbeHead(head=head), stop_below=stop_below, max_step=24, num_steps=args.lines)
        append("code_completion", same | {"setting": "stop_wrong", "stop_below": stop_below} | measured(process, strategy, unseen))
    if args.draft:
        drafting = catalogue.open_model(path, threads=1, accelerations=Accelerations(draft=args.draft))
        append("code_completion", same | {"setting": args.draft} | measured(drafting, always, unseen))


if __name__ == "__main__":
    main()
