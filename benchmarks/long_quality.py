"""What long prompts lose under any acceleration, question by question: `python benchmarks/long_quality.py TASK [--model M] [--specs ...]`.

    --specs "cache=snapkv:0.1;cache=h2o:0.1;attend=vertical_slash;cache=/path/heads.safetensors:0.1,chunk=512"

TASK is recall, dense, squad, needle, coqa, code or qasper (lib/long_tasks). A spec is KIND=SPEC with a kind of core.accelerations (cache,
attend, ...), `plain` is always there. Each first question stands in the prompt; the second comes as the next turn and could not be foreseen.
One row per context, turn and spec goes to results/long_quality.jsonl as soon as it is known; what is there already is not computed again. Cache
policies that read prompts as they are share one reading of each context (lib/forks); anything else runs as the engine runs it
(`ponder.load`'s own door).

--part I/N: every Nth context from the Ith on, so that N processes share a task; --minutes M: no context is begun after that.
--timing writes, for each spec, CPU seconds to the first token and of each later one, and bytes of keys and values, for one context of that length.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from lib import long_tasks, rows
from lib.forks import TAIL, Fork, Forks
from lib.long_tasks import Context, Question
from recall_train import default_folder

import ponder
from ponder.catalogue import cache_policy, open_model
from ponder.core.accelerations import Accelerations
from ponder.core.asks import Extend, Prefix, Prompt, Sampling
from ponder.core.keeping import Policy
from ponder.engine.process import LocalProcess
from ponder.engine.settings import Settings

NAME = "long_quality"
POLICIES = ("streaming", "h2o", "snapkv", "tova", "pyramidkv", "adakv", "knorm")
SHARES = (0.05, 0.1, 0.2, 0.5)
DEFAULT = ";".join(f"cache={name}:{share}" for name in POLICIES for share in SHARES)


def messages(context: Context, first: Question, second: Question | None = None) -> tuple[tuple[str, str], ...]:
    """The conversation up to a question."""
    one = (("user", context.text + first.text),)
    return one if second is None else (*one, ("assistant", first.answer), ("user", second.text))


def shared_policy(spec: str) -> Policy | None:
    """The policy of a spec whose prompts are read as they are; None for anything else."""
    kind, _, rest = spec.partition("=")
    policy = cache_policy(rest) if kind == "cache" else None
    return None if policy is None or policy.chunk else policy


def opened(model: str, weights: str | None, spec: str, kv_bytes: int) -> LocalProcess:
    kind, _, rest = spec.partition("=")
    given = Accelerations() if spec == "plain" else Accelerations(**{kind: rest})
    path = Path(model) if Path(model).exists() else ponder.pull(model)
    return open_model(path, weights, threads=1, settings=Settings(kv_bytes=kv_bytes), accelerations=given)


class Rows:
    """What is known, and where the rest goes."""

    def __init__(self, facts: dict[str, object]) -> None:
        self.facts, self.path = facts, rows.RESULTS / f"{NAME}.jsonl"
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        self.known = {self.key(json.loads(line)) for line in lines}

    @staticmethod
    def key(row: dict[str, object]) -> tuple[object, ...]:
        return tuple(row.get(name) for name in ("task", "model", "context", "turn", "spec", "what"))

    def has(self, context: Context, turn: int, spec: str) -> bool:
        return self.key(self.facts | {"context": context.name, "turn": turn, "spec": spec, "what": "answer"}) in self.known

    def add(self, context: Context, turn: int, spec: str, tokens: int, first: bool, second: bool, nbytes: int) -> None:
        row = self.facts | {
            "what": "answer", "context": context.name, "turn": turn, "spec": spec, "tokens": tokens, "first": int(first), "second": int(second),
            "kv_bytes": nbytes,
        }  # fmt: skip
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, sort_keys=True) + "\n")


def answered(forks: Forks, fork: Fork, question: Question) -> bool:
    """Whether the fork answers right; it goes on with the answer that the conversation has."""
    tokenizer = forks.process.tokenizer
    given = tokenizer.encode(question.answer)
    if not question.most:
        return forks.says(fork, given)
    side = fork.fork()
    said = tokenizer.decode(forks.writes(side, question.most, tokenizer.eos_ids))
    side.release()
    forks.push(fork, given)
    return long_tasks.is_right(question, said)


def by_forks(process: LocalProcess, context: Context, specs: dict[str, Policy | None], known: Rows) -> None:
    """All turns of a context under all policies, the context read once."""
    tokenizer, forks = process.tokenizer, Forks(process, [p for p in specs.values() if p is not None])
    prompts = [tokenizer.render(messages(context, first)) for first, _ in context.turns]
    shared = min(long_tasks.common(prompts), *(len(p) for p in prompts)) if len(prompts) > 1 else len(prompts[0])
    pages, records = forks.read(prompts[0][:shared])
    for turn, ((first, second), prompt) in enumerate(zip(context.turns, prompts)):
        whole, mine = forks.ask(pages, records, prompt[shared - TAIL :])
        later = tokenizer.render(messages(context, first, second))
        answer = tokenizer.encode(first.answer)
        for spec, policy in specs.items():
            if known.has(context, turn, spec):
                continue
            fork = forks.under(policy, whole, mine)
            nbytes = forks.held_bytes(fork)
            one = answered(forks, fork, first)
            forks.push(fork, later[len(prompt) + len(answer) :])
            two = answered(forks, fork, second)
            known.add(context, turn, spec, len(prompt), one, two, nbytes)
            fork.release()
        whole.release()
    pages.release()


def asked(process: LocalProcess, prefix: Prefix, question: Question) -> bool:
    """Whether the engine's own greedy answer is right."""
    most = question.most or len(process.tokenizer.encode(question.answer))
    process.add(Extend(prefix=prefix, seed=0, sampling=Sampling(temperature=0), max_tokens=most))
    answers: list = []
    while process.jobs:
        answers += process.step()
    said = process.tokenizer.decode(list(answers[0][1].prefix.tokens[len(prefix.tokens) :]))
    return said.startswith(question.answer) if not question.most else long_tasks.is_right(question, said)


def by_engine(process: LocalProcess, context: Context, spec: str, known: Rows) -> None:
    """All turns of a context through the engine's door. The second turn is what comes after the first prompt, so keys that are gone stay gone."""
    tokenizer = process.tokenizer
    for turn, (first, second) in enumerate(context.turns):
        if known.has(context, turn, spec):
            continue
        prompt = Prompt(messages=messages(context, first), max_tokens=256)
        given = tokenizer.render(prompt.messages)
        later = tuple(tokenizer.render(messages(context, first, second))[len(given) :])
        one = asked(process, Prefix(prompt), first)
        two = asked(process, Prefix(prompt, tokens=later), second)
        known.add(context, turn, spec, len(given), one, two, 0)


def timing(model: str, weights: str | None, context: Context, specs: list[str], facts: dict[str, object], kv_bytes: int) -> None:
    """A row for each spec: CPU seconds of one thread."""
    for spec in ["plain", *specs]:
        process = opened(model, weights, spec, kv_bytes)
        prompt = Prompt(messages=messages(context, context.turns[0][0]), max_tokens=24)
        start = time.process_time()
        process.add(Extend(prefix=Prefix(prompt), seed=0, sampling=Sampling(temperature=0), forced=(5,) * 24, max_tokens=24))
        most = 0
        while not process.running or process.running[0][1].num_computed < process.running[0][1].num_prompt:
            process.step()
            most = max(most, process.pool.num_used * process.pool.page_nbytes)
        first, times = time.process_time() - start, []
        pages = process.running[0][1].pages
        held = int(pages.num_pages.sum()) * process.pool.page_nbytes
        for _ in range(16):
            start = time.process_time()
            process.step()
            times.append(time.process_time() - start)
        row = facts | {
            "what": "timing", "spec": spec, "tokens": process.running[0][1].num_prompt, "first_cpu_s": round(first, 3),
            "token_cpu_s": round(sorted(times)[len(times) // 4], 5), "kv_bytes": held, "most_kv_bytes": most,
        }  # fmt: skip
        rows.append(NAME, row)


def specs_of(text: str) -> Iterator[str]:
    return filter(None, map(str.strip, text.split(";")))


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=(*long_tasks.MADE, *long_tasks.REAL))
    parser.add_argument("--model", default=None, help="a folder or a name; recall: what recall_train wrote")
    parser.add_argument("--weights", default=None)
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--contexts", type=int, default=8)
    parser.add_argument("--specs", default=DEFAULT)
    parser.add_argument("--turns", type=int, default=0, help="most pairs of questions for each context; 0: all")
    parser.add_argument("--part", default="0/1")
    parser.add_argument("--minutes", type=float, default=600.0)
    parser.add_argument("--timing", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, is_made = args.model, args.task in long_tasks.MADE
    if model is None:
        model = str(default_folder()) if is_made else "qwen2.5-coder-0.5b"
    weights = args.weights or ("bf16" if is_made else None)
    kv_bytes, specs = 1 << 32, list(specs_of(args.specs))
    facts = {"task": f"{args.task}-{args.length}", "model": Path(model).name}
    known, process = Rows(facts), opened(model, weights, "plain", kv_bytes)
    shared: dict[str, Policy | None] = {"plain": None} | {s: p for s in specs if (p := shared_policy(s)) is not None}
    (part, num_parts), end = map(int, args.part.split("/")), time.time() + 60 * args.minutes
    made = list(long_tasks.contexts(args.task, process.tokenizer, args.length, args.contexts))[part::num_parts]
    made = [replace(context, turns=context.turns[: args.turns or None]) for context in made]
    if args.timing:
        timing(model, weights, made[0], specs, facts, kv_bytes)
        return
    for context in made:
        is_known = all(known.has(context, turn, spec) for turn in range(len(context.turns)) for spec in shared)
        if not is_known and time.time() < end:
            start = time.process_time()
            by_forks(process, context, shared, known)
            print(f"{context.name}: {time.process_time() - start:.0f} CPU s", flush=True)
    del process
    for spec in specs:
        if spec not in shared:
            own = opened(model, weights, spec, kv_bytes)
            for context in made:
                if time.time() < end:
                    by_engine(own, context, spec, known)


if __name__ == "__main__":
    main()
