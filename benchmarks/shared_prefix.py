"""Many answers to one long prompt: attention that meets the shared prefix once (Hydragen) against reading it for each.

    python benchmarks/shared_prefix.py [MODEL] [--sequences 16] [--context 4096] [--tokens 24] [--rounds 5]

The same engine, the same pages (a fork shares them either way), steps of the two kinds in turn; medians. Beside them the same
step by PyTorch's kernel, which gathers each sequence's keys: what sharing is worth without the compiled kernel.
"""

import argparse
import statistics
import time

import torch
from lib.rows import append

from ponder.accelerate.schedule.sarathi import Sarathi
from ponder.catalogue import open_model
from ponder.core.asks import Extend, Prefix, Sampling, chat
from ponder.engine.attend import Attention, StepPlan
from ponder.engine.process import LocalProcess, Settings
from ponder.models.fetch import resolve


class Timed(Attention):
    """Attention that adds up the seconds of its calls."""

    seconds = 0.0

    def plan(self, spans) -> StepPlan:
        plan = super().plan(spans)
        inner = plan.attend

        def attend(*args):
            start = time.perf_counter()
            out = inner(*args)
            self.seconds += time.perf_counter() - start
            return out

        plan.attend = attend  # type: ignore[method-assign]
        return plan


def start(process: LocalProcess, num_sequences: int, num_prompt: int, num_tokens: int) -> None:
    prompt = chat("word " * num_prompt, max_tokens=100_000)
    num_over = process.prompt_len(prompt) - num_prompt
    prompt = chat("word " * (num_prompt - num_over), max_tokens=100_000)
    sampling = Sampling(logit_bias=tuple((token, -100.0) for token in process.tokenizer.eos_ids))  # nobody stops early
    for seed in range(num_sequences):
        process.add(Extend(prefix=Prefix(prompt), seed=seed, max_tokens=num_tokens, sampling=sampling))
    while len(process.running) < num_sequences or any(track.num_computed < track.num_given for _, track in process.running):
        process.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    for name, default in (("sequences", 16), ("context", 4096), ("tokens", 24), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--weights", default="native")
    args = parser.parse_args()
    first = open_model(resolve(args.model), args.weights)
    kinds = {"shared": Settings(is_shared=True), "each": Settings(is_shared=False), "each, PyTorch": Settings(is_native=False)}
    num_tokens = (args.tokens + 2) * args.rounds + 8
    processes = {}
    for name, settings in kinds.items():
        process = LocalProcess(first.decoder, first.tokenizer, Sarathi(), settings)
        process.attention = Timed(process.decoder.config, process.pool, is_native=settings.is_native, is_shared=settings.is_shared)
        start(process, args.sequences, args.context, num_tokens)
        processes[name] = process
    steps: dict[str, list[float]] = {name: [] for name in kinds}
    attention: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(args.rounds):
        for name, process in processes.items():
            process.step()
            for _ in range(args.tokens):
                process.attention.seconds = 0.0  # type: ignore[attr-defined]
                begin = time.perf_counter()
                process.step()
                steps[name].append(time.perf_counter() - begin)
                attention[name].append(process.attention.seconds)  # type: ignore[attr-defined]
    for name in kinds:
        step, attend = statistics.median(steps[name]), statistics.median(attention[name])
        row = {
            "model": args.model, "weights": args.weights, "kind": name, "sequences": args.sequences, "context": args.context,
            "step_ms": round(step * 1e3, 3), "attention_ms": round(attend * 1e3, 3), "n": len(steps[name]), "threads": torch.get_num_threads(),
            "step_ratio": round(step / statistics.median(steps["shared"]), 3),
            "attention_ratio": round(attend / statistics.median(attention["shared"]), 3),
        }  # fmt: skip
        append("shared_prefix", row)


if __name__ == "__main__":
    main()
