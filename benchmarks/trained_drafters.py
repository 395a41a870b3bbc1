"""One drafter under several length controls, or several drafters under one, beside plain decoding: rounds, guesses and CPU time of one thread.

`python benchmarks/trained_drafters.py --drafts "SPEC;SPEC" [--weights NAME] [--n 6] [--new 48] [--categories math,followup]`, each SPEC
DRAFTER/ACCEPTOR/LENGTH. Prompts are the first of each category (speculation.questions), of which nothing is trained on; settings take
turns on every prompt, greedily, one sequence at a time. Rows go to benchmarks/results/trained_drafters.jsonl.
"""

import argparse

from lib.rows import append
from speculation.ours import Ours, Tally
from speculation.questions import questions

import ponder
from ponder import catalogue
from ponder.core.asks import GREEDY, Prompt
from ponder.core.draft import Speculation


def prompts_of(categories: str, num: int, new: int) -> list[Prompt]:
    return [Prompt(messages=q.messages, max_tokens=new) for name in categories.split(",") for q in questions(name, num)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--drafts", required=True, help="settings, between semicolons")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--weights", default="native")
    parser.add_argument("--categories", default="math,followup")
    parser.add_argument("--n", type=int, default=6)
    parser.add_argument("--new", type=int, default=48)
    args = parser.parse_args()
    settings: dict[str, Speculation | None] = {"plain": None} | {spec: catalogue.speculation(spec) for spec in args.drafts.split(";")}
    ours = Ours(catalogue.open_model(ponder.pull(args.model), args.weights, threads=1))
    prompts = prompts_of(args.categories, args.n, args.new)
    tallies = {name: Tally() for name in settings}
    cpu, made = dict.fromkeys(settings, 0.0), dict.fromkeys(settings, 0)
    said: dict[str, list[tuple[int, ...]]] = {name: [] for name in settings}
    for prompt in prompts:
        for name, spec in settings.items():
            used = spec or Speculation(
                drafter=catalogue.DRAFTERS["ngram"], acceptor=catalogue.ACCEPTORS["coupled"], control=catalogue.LENGTHS["fixed"]
            )
            tally = ours.use(None if spec is None else used.drafter, used.acceptor, used.control)
            turn = ours.answer([prompt], GREEDY, tally)
            cpu[name] += turn.cpu
            made[name] += turn.num_after
            said[name] += turn.tokens
            total = tallies[name]
            total.rounds, total.drafted, total.accepted = total.rounds + tally.rounds, total.drafted + tally.drafted, total.accepted + tally.accepted
    for name, tally in tallies.items():
        row: dict[str, object] = {
            "model": args.model, "weights": args.weights, "setting": name, "categories": args.categories, "n": len(prompts), "new": args.new,
            "threads": 1, "tokens": made[name], "cpu_seconds": round(cpu[name], 3), "rounds": tally.rounds, "drafted": tally.drafted,
            "accepted": tally.accepted, "accepted_per_round": round(tally.accepted / max(1, tally.rounds), 3),
            "speed_up": round(made[name] / cpu[name] / (made["plain"] / cpu["plain"]), 3), "is_equal": said[name] == said["plain"],
        }  # fmt: skip
        append("trained_drafters", row)


if __name__ == "__main__":
    main()
