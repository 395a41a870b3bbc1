"""Attention plans on a long prompt of source code: CPU seconds of the whole prefill against plain attention, and the attention mass recalled.

    OMP_NUM_THREADS=1 python benchmarks/attend.py prefill [MODEL] [--plan vertical_slash] [--tokens 16384]
    OMP_NUM_THREADS=1 python benchmarks/attend.py prefill smollm2-135m --plan dual_chunk_sparse --against dual_chunk:chunk=5120 --tokens 16384
    OMP_NUM_THREADS=1 python benchmarks/attend.py layer [MODEL] [--plan vertical_slash] [--tokens 32768] [--layers 2,8,13,18,22]

`prefill` runs the prompt through the engine as it is, once each way, in turn. Mass: over every query and head, the sum of the softmax
over the keys that the plan let it meet, exp(lse of those - lse of all), in a run of its own. `--against` names the plan that meets all, in place
of plain attention. `layer` takes queries, keys and values of
single layers from a prefill by vertical_slash:mass=0.97 (kept in --keep, so that it runs once) and reads them both ways, with nothing
else around: seconds of attention alone, estimates and sorts included; the output's error, relative, and the mass.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from lib.rows import append
from torch import Tensor

import ponder
from ponder.catalogue import attention_plan, open_model
from ponder.core.attention_plan import AttentionPlan, everything
from ponder.engine.attend import Attention, Span, StepPlan
from ponder.engine.pages import Pool
from ponder.engine.pages import Sequence as Pages
from ponder.engine.planned import Meeting, PlannedAttention, PlannedStep
from ponder.engine.process import LocalProcess, Settings
from ponder.models.fetch import resolve
from ponder.models.tokenizer import open_model as read_model

CHUNK = 1024


class Everything:
    """Plain attention by the same kernel."""

    name, segment, answer_segment, is_for_prompts, is_for_answers = "everything", 1, 1, True, False

    def __init__(self, guarantee: object) -> None:
        self.guarantee = guarantee

    def reach(self, context_len: int) -> int:
        return context_len

    def pieces(self, view):
        return [everything(view)]


class MassAttention(PlannedAttention):
    """Adds up the mass of every row, by layer."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.masses: dict[int, list[Tensor]] = {}
        self.whole: AttentionPlan = Everything(self.planned.guarantee)  # type: ignore[assignment]

    def plan(self, spans) -> StepPlan:
        step = super().plan(spans)
        if not isinstance(step, PlannedStep):
            return step
        inner_read = step._read
        whole = self.whole

        def read(layer, part, q_NHE):
            lses = []
            meet = step._meet

            def noted(meeting: Meeting, **settings) -> int:
                num = meet(meeting, **settings)
                lses.append(meeting.read[1])
                return num

            step._meet = noted  # type: ignore[method-assign]
            out = inner_read(layer, part, q_NHE)
            own, step.planned = lses[-1].clone(), whole
            lses.clear()
            inner_read(layer, part, q_NHE)
            step.planned, step._meet = self.planned, meet  # type: ignore[method-assign]
            self.masses.setdefault(layer, []).append((own - lses[-1]).exp())
            return out

        step._read = read  # type: ignore[method-assign]
        return step


def tokens_of(process: LocalProcess, num: int) -> list[int]:
    """The first `num` tokens of the package's own sources."""
    root = Path(ponder.__file__).parent
    text = "\n\n".join(path.read_text() for room in ("core", "infer", "run", "verify", "models") for path in sorted((root / room).rglob("*.py")))
    return process.tokenizer.encode(text[: 6 * num])[:num]


def open_with(model: str, plan: AttentionPlan | None, context_len: int | None = None) -> LocalProcess:
    settings = Settings(chunk=CHUNK, attend=plan, context_len=context_len)
    return open_model(resolve(model), settings=settings)


def prefill(process: LocalProcess, tokens: list[int]) -> float:
    """CPU seconds of the prompt's forward passes."""
    pages = Pages(process.pool)
    start = time.process_time()
    with torch.inference_mode():
        for at in range(0, len(tokens), CHUNK):
            stop = min(len(tokens), at + CHUNK)
            assert pages.reserve(stop)
            process._forward([Span(pages, at, stop, len(tokens))], tokens[at:stop])
            pages.num_tokens = stop
    seconds = time.process_time() - start
    pages.release()
    return seconds


def mass_of(process: LocalProcess, plan: AttentionPlan, tokens: list[int], whole: AttentionPlan | None = None) -> list[float]:
    """Mean mass by layer, of what `whole` meets; None: of all."""
    before, seen = process.attention, MassAttention(process.decoder.config, process.pool, plan)
    seen.whole = whole or seen.whole
    process.attention = seen
    prefill(process, tokens)
    process.attention = before
    return [torch.cat(rows).mean().item() for _, rows in sorted(seen.masses.items())]


def run_prefill(args: argparse.Namespace) -> None:
    plan = attention_plan(args.plan)
    whole = None if args.against is None else attention_plan(args.against)
    process = open_with(args.model, plan, None if whole is None else args.tokens)
    tokens = tokens_of(process, args.tokens)
    planned = process.attention
    plain = open_plain(process) if whole is None else PlannedAttention(process.decoder.config, process.pool, whole)
    seconds: dict[str, list[float]] = {"plain": [], "plan": []}
    prefill(process, tokens[:CHUNK])
    for _ in range(args.rounds):
        for name, attention in (("plain", plain), ("plan", planned)):
            process.attention = attention
            seconds[name].append(prefill(process, tokens))
    process.attention = planned
    masses = mass_of(process, plan, tokens, whole)
    plain_s, plan_s = (statistics.median(seconds[name]) for name in ("plain", "plan"))
    append("attend", {
        "what": "prefill", "model": args.model, "plan": args.plan, "tokens": len(tokens), "rounds": args.rounds, "plain_cpu_s": round(plain_s, 2),
        "plan_cpu_s": round(plan_s, 2), "times_faster": round(plain_s / plan_s, 2), "mass_mean": round(statistics.mean(masses), 4),
        "mass_by_layer": [round(m, 4) for m in masses], **({} if args.against is None else {"against": args.against}),
    })  # fmt: skip


def open_plain(process: LocalProcess) -> Attention:
    return Attention(process.decoder.config, process.pool)


def tensors_of(model: str, num: int, layers: list[int], keep: Path) -> dict[int, tuple[Tensor, Tensor, Tensor]]:
    """Rotated q, k and v of layers, from a file where it is there."""
    if keep.exists():
        return torch.load(keep)
    process = open_with(model, attention_plan("vertical_slash:mass=0.97"))
    found: dict[int, list[tuple[Tensor, ...]]] = {layer: [] for layer in layers}
    make = process.attention.plan

    def plan(spans) -> StepPlan:
        step = make(spans)
        attend = step.attend

        def noted(layer, *qkv):
            if layer in found:
                found[layer].append(tuple(x.clone() for x in qkv))
            return attend(layer, *qkv)

        step.attend = noted  # type: ignore[method-assign]
        return step

    process.attention.plan = plan  # type: ignore[method-assign]
    prefill(process, tokens_of(process, num))
    kept = {layer: tuple(torch.cat(x) for x in zip(*parts, strict=True)) for layer, parts in found.items()}
    torch.save(kept, keep)
    return kept  # type: ignore[return-value]


def read_layer(attention: Attention, layer: int, qkv: tuple[Tensor, Tensor, Tensor]) -> tuple[float, Tensor]:
    """CPU seconds, and what every token read."""
    num, seconds, outs = len(qkv[0]), 0.0, []
    pages = Pages(attention.pool)
    for at in range(0, num, CHUNK):
        assert pages.reserve(at + CHUNK)
        step = attention.plan([Span(pages, at, at + CHUNK, num)])
        rows = [x[at : at + CHUNK] for x in qkv]
        start = time.process_time()
        outs.append(step.attend(layer, *rows))
        seconds += time.process_time() - start
        pages.num_tokens = at + CHUNK
    pages.release()
    return seconds, torch.cat(outs)


def run_layer(args: argparse.Namespace) -> None:
    layers = [int(x) for x in args.layers.split(",")]
    config = read_model(resolve(args.model))[0].config
    for layer, qkv in tensors_of(args.model, args.tokens, layers, args.keep).items():
        if layer not in layers:
            continue
        qkv = tuple(x[: args.tokens] for x in qkv)
        pool = Pool((config.num_layers, config.num_kv_heads, config.head_dim), torch.bfloat16, 1 << 31)
        plain = Attention(config, pool)
        whole, wanted = min((read_layer(plain, layer, qkv) for _ in range(args.rounds)), key=lambda found: found[0])
        for spec in args.plan.split("+"):
            plan = attention_plan(spec)
            own, found = min((read_layer(PlannedAttention(config, pool, plan), layer, qkv) for _ in range(args.rounds)), key=lambda x: x[0])
            massing = MassAttention(config, pool, plan)
            if plan.name != "hyper":  # its lse is an estimate
                read_layer(massing, layer, qkv)
            mass = torch.cat(massing.masses[layer]).mean().item() if massing.masses else None
            append("attend", {
                "what": "layer", "model": args.model, "plan": spec, "tokens": args.tokens, "layer": layer, "plain_cpu_s": round(whole, 3),
                "plan_cpu_s": round(own, 3), "times_faster": round(whole / own, 2), "mass": None if mass is None else round(mass, 4),
                "error": round(((found.float() - wanted.float()).norm() / wanted.float().norm()).item(), 4),
            })  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("prefill", "layer"))
    parser.add_argument("model", nargs="?", default="qwen2.5-coder-0.5b")
    parser.add_argument("--plan", default="vertical_slash")
    parser.add_argument("--against", help="the plan that meets all keys; default: none")
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--layers", default="2,8,13,18,22")
    parser.add_argument("--keep", type=Path, default=Path("out/attend_qkv.pt"))
    args = parser.parse_args()
    {"prefill": run_prefill, "layer": run_layer}[args.what](args)


if __name__ == "__main__":
    main()
