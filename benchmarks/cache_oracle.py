"""What policies would have to keep, layer by layer and head by head: `python benchmarks/cache_oracle.py [--model M] [--task squad|recall]`.

The true future is computed: a conversation with a second question, read in one pass (engine/watch). Of the attention that the second question
and its answer give to the context, how much falls on the keys that a policy keeps (mass), and how far what they then read is from what they
would have read, ||o - o'|| / ||o||? A policy sees the prompt with the first question (`after first`) or with the second one itself (`asked`), which
is what query-aware policies are meant for. `oracle` keeps what the future will give most attention. Rows in results/cache_oracle.jsonl: means over
contexts, by layer and head. Scorers and allocators only: keys that evictors merge are nobody's in particular.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from lib import long_tasks, rows
from recall_train import default_folder
from torch import Tensor

import ponder
from ponder.catalogue import cache_policy, open_model
from ponder.core.evidence import Needs, View, columns_of
from ponder.core.keeping import Policy, chosen
from ponder.engine.process import LocalProcess
from ponder.engine.watch import Seen, watch

SHARES = (0.05, 0.1, 0.2, 0.5)
POLICIES = "streaming;h2o;snapkv;tova;pyramidkv;adakv;knorm"


def view_of(seen: Seen, policy: Policy, num: int, num_layers: int) -> View:
    """What the policy sees of the first `num` tokens."""
    needs, keys = policy.scorer.needs, seen.k_TKE[:num].transpose(0, 1)
    positions = torch.arange(num).expand(len(keys), num)
    first = needs.first_column_row(num)
    columns = columns_of(seen.q_THE[first:num], keys, positions, first, window=seen.window, softcap=seen.softcap) if needs.has_columns else None
    said = None
    if needs.reader is not None:
        said = needs.reader.read(seen.layer, seen.plain_q_THE[:num], seen.plain_k_TKE[:num], seen.v_TKE[:num]).T
    values = seen.v_TKE[:num].transpose(0, 1)
    return View(
        layer=seen.layer, num_layers=num_layers, num_tokens=num, positions=positions, read=lambda: (keys, values), columns=columns, readings=said
    )  # fmt: skip


class Future:
    """One conversation: attention of the rows that ask [start, stop), and what policies make of the tokens before them."""

    def __init__(self, process: LocalProcess, tokens: list[int], start: int) -> None:
        self.layers: list[Seen] = []
        self.start, self.stop = start, len(tokens)
        watch(process.decoder, torch.tensor(tokens), self.layers.append)
        self.weights = [layer.scores(start, self.stop).softmax(-1) for layer in self.layers]  # [K, G, R, T]
        self.views: dict[Needs, list[View]] = {}

    def scores(self, policy: Policy | None, num: int, budget: int) -> Tensor:
        """[L, K, num]; None: by the true future."""
        if policy is None:
            return torch.stack([w[..., :num].sum((1, 2)) for w in self.weights]).double()
        needs = policy.scorer.needs
        if needs not in self.views:
            self.views[needs] = [view_of(layer, policy, num, len(self.layers)) for layer in self.layers]
        return torch.stack([policy.scorer.score(view, budget).double() for view in self.views[needs]])

    def judged(self, scores: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Mass and output error [L, K] of keeping `counts` keys of the first ones that are scored."""
        num = scores.shape[2]
        mass, error = torch.zeros(counts.shape), torch.zeros(counts.shape)
        for at, (layer, whole) in enumerate(zip(self.layers, self.weights)):
            values = layer.v_TKE[: self.stop].transpose(0, 1)[:, None].float()
            kept = torch.ones(whole.shape[0], self.stop, dtype=torch.bool)
            for head in range(len(kept)):
                kept[head, :num] = False
                kept[head, chosen(scores[at, head], int(counts[at, head]))] = True
            part = whole * kept[:, None, None]
            mass[at] = (part[..., :num].sum((1, 2, 3)) / whole[..., :num].sum((1, 2, 3))).float()
            truth, got = whole @ values, part / part.sum(-1, keepdim=True) @ values
            error[at] = ((truth - got).norm(dim=-1) / truth.norm(dim=-1)).mean((1, 2))
        return mass, error


def measured(future: Future, num: int, policies: dict[str, Policy | None], add: Callable[[str, float, Tensor, Tensor], None]) -> None:
    for name, policy in policies.items():
        for share in SHARES:
            budget = max(1, int(share * num))
            scores = future.scores(policy, num, budget)
            held = torch.full(scores.shape[:2], num)
            counts = torch.full_like(held, budget) if policy is None else policy.allocator.allot(scores, held, budget)
            add(name, share, *future.judged(scores, counts))


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=("recall", "squad"), default="squad")
    parser.add_argument("--model", default=None)
    parser.add_argument("--length", type=int, default=768)
    parser.add_argument("--contexts", type=int, default=6)
    parser.add_argument("--policies", default=POLICIES, help="names, or files of trained heads, separated by ;")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = args.model or (str(default_folder()) if args.task == "recall" else "smollm2-135m")
    path = Path(model) if Path(model).exists() else ponder.pull(model)
    process = open_model(path, "bf16" if args.task == "recall" else None, threads=1)
    policies: dict[str, Policy | None] = {"oracle": None} | {name: cache_policy(name) for name in args.policies.split(";")}
    found: dict[tuple[str, str, float], list[tuple[Tensor, Tensor]]] = {}
    tokenizer, num_pairs = process.tokenizer, 0
    for context in long_tasks.contexts(args.task, tokenizer, args.length, args.contexts):
        first, second = context.turns[0]
        one = (("user", context.text + first.text),)
        prompt = tokenizer.render(one)
        whole = tokenizer.render((*one, ("assistant", first.answer), ("user", second.text))) + tokenizer.encode(second.answer)
        alone = tokenizer.render((("user", context.text + second.text),))
        futures = {
            "after first": (Future(process, whole, len(prompt) + len(tokenizer.encode(first.answer))), len(prompt)),
            "asked": (Future(process, alone + tokenizer.encode(second.answer), len(alone)), len(alone)),
        }
        num_pairs += 1
        for when, (future, num) in futures.items():
            measured(future, num, policies, lambda name, share, *x, when=when: found.setdefault((when, name, share), []).append(x))
    for (when, name, share), pairs in found.items():
        mass, error = (torch.stack(x).mean(0) for x in zip(*pairs))
        rows.append("cache_oracle", {
            "task": args.task, "model": path.name if args.task == "recall" else model, "when": when, "policy": Path(name).stem, "share": share,
            "n": num_pairs, "length": args.length, "mass": round(float(mass.mean()), 4), "error": round(float(error.mean()), 4),
            "mass_by_layer": [round(float(x), 3) for x in mass.mean(1)], "error_by_layer": [round(float(x), 3) for x in error.mean(1)],
            "mass_by_head": [[round(float(x), 2) for x in layer] for layer in mass],
        })  # fmt: skip


if __name__ == "__main__":
    main()
