"""What policies would have to keep, layer by layer and head by head: `python benchmarks/cache_oracle.py [--model M] [--task squad|recall]`.

The true future is computed: a conversation with a second question, read in one pass (engine/watch). Of the attention that the second question
and its answer give to the context, how much falls on the keys that a policy keeps (mass), and how far what they then read is from what they
would have read, ||o - o'|| / ||o||? A policy sees the prompt with the first question (`after first`) or with the second one itself (`asked`), which
is what query-aware policies are meant for. `oracle` keeps what the future will give most attention. Rows in results/cache_oracle.jsonl: means over
contexts, by layer and head. Scorers and allocators only: keys that evictors merge are nobody's in particular.

--jobs N: so many contexts at a time, each in a process with one thread; --minutes M: contexts that are not through by then are left out.
"""

import argparse
import concurrent.futures
import itertools
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from lib import long_tasks, rows
from recall_train import default_folder
from torch import Tensor

import ponder
from ponder.catalogue import cache_policy, open_model
from ponder.core.asks import Extend, Prefix, Prompt, Sampling
from ponder.core.evidence import Needs, View, columns_of
from ponder.core.keeping import Policy, chosen
from ponder.engine.process import LocalProcess
from ponder.engine.watch import Seen, watch

SHARES = (0.05, 0.1, 0.2, 0.5)
POLICIES = "streaming;h2o;snapkv;tova;pyramidkv;adakv;speckv;d2o;elastic;knorm"
Messages = tuple[tuple[str, str], ...]
Found = tuple[str, str, float, Tensor, Tensor]  # when, policy, share, mass and output error [L, K]


def view_of(seen: Seen, policy: Policy, num: int, num_layers: int, ahead: Seen | None) -> View:
    """What the policy sees of the first `num` tokens. ahead: the same layer, of these and a likely continuation."""
    needs, keys = policy.scorer.needs, seen.k_TKE[:num].transpose(0, 1)
    positions = torch.arange(num).expand(len(keys), num)
    first = needs.first_column_row(num)
    columns = columns_of(seen.q_THE[first:num], keys, positions, first, window=seen.window, softcap=seen.softcap) if needs.has_columns else None
    if columns is not None and ahead is not None:
        later, places = ahead.k_TKE.transpose(0, 1), torch.arange(len(ahead.k_TKE)).expand(len(keys), -1)
        columns += columns_of(ahead.q_THE[num:], later, places, num, window=seen.window, softcap=seen.softcap)[:, :num]
    said = None
    if needs.reader is not None:
        said = needs.reader.read(seen.layer, seen.plain_q_THE[:num], seen.plain_k_TKE[:num], seen.v_TKE[:num]).T
    values = seen.v_TKE[:num].transpose(0, 1)
    return View(
        layer=seen.layer, num_layers=num_layers, num_tokens=num, positions=positions, read=lambda: (keys, values), columns=columns, readings=said
    )  # fmt: skip


class Future:
    """One conversation: attention of the rows that ask [start, stop), and what policies make of the tokens of its first messages."""

    def __init__(self, process: LocalProcess, tokens: list[int], start: int, messages: Messages) -> None:
        self.process, self.layers, self.messages = process, list[Seen](), messages
        self.start, self.stop, self.num = start, len(tokens), len(process.tokenizer.render(messages))
        watch(process.decoder, torch.tensor(tokens), self.layers.append)
        self.weights = [layer.scores(start, self.stop).softmax(-1) for layer in self.layers]  # [K, G, R, T]
        self.views: dict[Needs, list[View]] = {}

    @cached_property
    def truths(self) -> list[Tensor]:
        """[K, G, R, E]: what the rows read, by layer."""
        return [w @ layer.v_TKE[: self.stop].transpose(0, 1)[:, None].float() for layer, w in zip(self.layers, self.weights)]

    def ahead(self, num: int) -> list[Seen]:
        """The prompt with `num` tokens as the model would go on, by layer."""
        prompt = Prompt(messages=self.messages, max_tokens=num)
        self.process.add(Extend(prefix=Prefix(prompt), seed=0, sampling=Sampling(temperature=0), max_tokens=num))
        answers: list = []
        while self.process.jobs:
            answers += self.process.step()
        found: list[Seen] = []
        said = [*answers[0][1].prefix.tokens]
        if len(said) < num:
            said.append(min(self.process.tokenizer.eos_ids))
        watch(self.process.decoder, torch.tensor([*self.process.tokenizer.render(self.messages), *said]), found.append)
        return found

    def scores(self, policy: Policy | None, budget: int) -> Tensor:
        """[L, K, num]; None: by the true future."""
        if policy is None:
            return torch.stack([w[..., : self.num].sum((1, 2)) for w in self.weights]).double()
        needs = policy.scorer.needs
        if needs not in self.views:
            ahead = self.ahead(needs.num_ahead) if needs.num_ahead else [None] * len(self.layers)
            self.views[needs] = [view_of(layer, policy, self.num, len(self.layers), more) for layer, more in zip(self.layers, ahead)]
        return torch.stack([policy.scorer.score(view, budget).double() for view in self.views[needs]])

    def judged(self, scores: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Mass and output error [L, K] of keeping `counts` keys of the first ones that are scored."""
        mass, error = torch.zeros(counts.shape), torch.zeros(counts.shape)
        for at, (layer, whole, truth) in enumerate(zip(self.layers, self.weights, self.truths)):
            values = layer.v_TKE[: self.stop].transpose(0, 1).float()
            for head, weights in enumerate(whole):
                kept = torch.cat([chosen(scores[at, head], int(counts[at, head])), torch.arange(self.num, self.stop)])
                part = weights[..., kept]
                mass[at, head] = part[..., : -(self.stop - self.num)].sum() / weights[..., : self.num].sum()
                got = part / part.sum(-1, keepdim=True) @ values[head, kept]
                error[at, head] = ((truth[head] - got).norm(dim=-1) / truth[head].norm(dim=-1)).mean()
        return mass, error


@dataclass(frozen=True)
class Wanted:
    """What is measured, on which contexts."""

    task: str
    model: str
    length: int
    policies: tuple[str, ...]

    def opened(self) -> LocalProcess:
        path = Path(self.model) if Path(self.model).exists() else ponder.pull(self.model)
        return open_model(path, "bf16" if self.task == "recall" else None, threads=1)


@torch.inference_mode()
def measured(wanted: Wanted, number: int) -> list[Found]:
    """Of context `number`."""
    torch.set_num_threads(1)
    process = wanted.opened()
    tokenizer = process.tokenizer
    context = next(itertools.islice(long_tasks.contexts(wanted.task, tokenizer, wanted.length, number + 1, num_turns=1), number, None))
    first, second = context.turns[0]
    one: Messages = (("user", context.text + first.text),)
    whole = tokenizer.render((*one, ("assistant", first.answer), ("user", second.text))) + tokenizer.encode(second.answer)
    asked: Messages = (("user", context.text + second.text),)
    alone = tokenizer.render(asked)
    futures = {
        "after first": Future(process, whole, len(tokenizer.render(one)) + len(tokenizer.encode(first.answer)), one),
        "asked": Future(process, alone + tokenizer.encode(second.answer), len(alone), asked),
    }
    policies: dict[str, Policy | None] = {"oracle": None} | {name: cache_policy(name) for name in wanted.policies}
    return [
        (when, name, share, *kept(future, policy, share))
        for when, future in futures.items() for name, policy in policies.items() for share in SHARES
    ]  # fmt: skip


def kept(future: Future, policy: Policy | None, share: float) -> tuple[Tensor, Tensor]:
    """Mass and output error of a policy."""
    budget = max(1, int(share * future.num))
    scores = future.scores(policy, budget)
    held = torch.full(scores.shape[:2], future.num)
    return future.judged(scores, torch.full_like(held, budget) if policy is None else policy.allocator.allot(scores, held, budget))


def all_of(wanted: Wanted, num: int, jobs: int, minutes: float) -> Iterator[list[Found]]:
    """What was found of each context, as it comes."""
    if jobs == 1:
        end = time.time() + 60 * minutes
        for number in range(num):
            if time.time() < end:
                yield measured(wanted, number)
        return
    with concurrent.futures.ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        todo = [pool.submit(measured, wanted, number) for number in range(num)]
        try:
            for done in concurrent.futures.as_completed(todo, timeout=60 * minutes):
                yield done.result()
        except TimeoutError:
            print("time is over", flush=True)
            for process in pool._processes.values():  # what is running would go on to its end
                process.terminate()
            pool.shutdown(wait=False, cancel_futures=True)


def write(wanted: Wanted, model: str, num: int, found: Sequence[Found]) -> None:
    by_name: dict[tuple[str, str, float], list[tuple[Tensor, Tensor]]] = {}
    for when, name, share, *pair in found:
        by_name.setdefault((when, name, share), []).append((pair[0], pair[1]))
    for (when, name, share), pairs in by_name.items():
        mass, error = (torch.stack(x).mean(0) for x in zip(*pairs))
        rows.append("cache_oracle", {
            "task": wanted.task, "model": model, "when": when, "policy": Path(name).stem, "share": share,
            "n": num, "length": wanted.length, "mass": round(float(mass.mean()), 4), "error": round(float(error.mean()), 4),
            "mass_by_layer": [round(float(x), 3) for x in mass.mean(1)], "error_by_layer": [round(float(x), 3) for x in error.mean(1)],
            "mass_by_head": [[round(float(x), 2) for x in layer] for layer in mass],
        })  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=("recall", "squad"), default="squad")
    parser.add_argument("--model", default=None)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--contexts", type=int, default=8)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=600.0)
    parser.add_argument("--policies", default=POLICIES, help="names, or files of trained heads, separated by ;")
    args = parser.parse_args()
    model = args.model or (str(default_folder()) if args.task == "recall" else "smollm2-135m")
    wanted = Wanted(args.task, model, args.length, tuple(args.policies.split(";")))
    start, all_found, num = time.time(), list[Found](), 0
    for found in all_of(wanted, args.contexts, args.jobs, args.minutes):
        all_found += found
        num += 1
        print(f"{num} contexts after {time.time() - start:.0f} s", flush=True)
    write(wanted, Path(model).stem if Path(model).exists() else model, num, all_found)


if __name__ == "__main__":
    main()
