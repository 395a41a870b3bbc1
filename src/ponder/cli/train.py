"""`ponder train-*`: the model writes, heads are fitted to what it wrote, and measured on what they have not seen."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from rich.table import Table

from ponder import catalogue
from ponder.accelerate.accept.coupled import Coupled
from ponder.accelerate.draft.bridge import save_bridge
from ponder.accelerate.draft.heads import save_heads
from ponder.accelerate.length.accept_head import save_accept_head
from ponder.cli import show
from ponder.cli.verbs import open_named, questions_of
from ponder.core.accelerations import Accelerations
from ponder.core.asks import GREEDY, Extend, Prefix, Prompt, Sampling, chat
from ponder.core.draft import Speculation
from ponder.core.errors import BadField
from ponder.core.probe import checkpoint_of
from ponder.core.rng import hash_seed
from ponder.engine.process import LocalProcess
from ponder.engine.runners import states_of
from ponder.run.store import SampleStore
from ponder.train.accept_head import AcceptRecipe, Recorder, best_threshold, fit_accept_head
from ponder.train.bridge import BridgeRecipe, Pairs, fit_bridge
from ponder.train.draft_heads import LEAST_PROMPTS, HeadsRecipe, fit_draft_heads, written
from ponder.train.fit import Recipe, States, fit_head, split_groups
from ponder.train.rollouts import Rollout, Rollouts, collect, states_at
from ponder.verify.heads import save_head
from ponder.verify.quality import Quality, quality

PLACES = {"steps": "last", "answers": "last", "prompts": "prompt"}  # what the head learns -> which state its verifier reads
MEASURED = 0.2  # share of the questions that only measure


@dataclass(frozen=True)
class Opened:
    """Which model, and how it runs."""

    model: str
    weights: str
    threads: int | None
    device: str = "cpu"  # where gradients are computed, if they are


def train_verifier(*, task: str, out: Path, kind: str, n: int, samples: int, model: Opened, fit: Recipe) -> int:
    """Trains, measures, saves and reports a head."""
    if kind not in PLACES:
        raise BadField(f"kind {kind!r}: must be one of {', '.join(PLACES)}")
    if n < 10:
        raise BadField(f"n={n}: must be at least 10 questions")
    questions, strategy = questions_of(catalogue.task(task), "dev", n), Rollouts(num=samples)
    process = open_named(model.model, model.weights, model.threads)
    out.parent.mkdir(parents=True, exist_ok=True)
    store, start = SampleStore(out.with_suffix(".sqlite")), time.perf_counter()
    with show.work_bar() as bar:
        line = bar.add_task("rollouts", total=n, note="")
        rollouts = list(collect(process, questions, strategy, store=store, seed=fit.seed, on_question=lambda: bar.update(line, advance=1)))
    store.close()
    rolled = time.perf_counter() - start
    (learned, measured) = split_groups([r.question for r in rollouts], (1 - MEASURED,), fit.seed)
    with show.waiting("fitting the head"):
        head = fit_head(states_at(rollouts, kind).of(learned), model_id=checkpoint_of(process.model_id), place=PLACES[kind], recipe=fit)
    seconds = time.perf_counter() - start
    kept = [r for r in rollouts if r.question in measured]
    found = {kind: measure(states_at(kept, kind), head.read)} | (
        {"answers": measure(states_at(kept, "answers"), head.read)} if kind == "steps" else {}
    )
    facts = {"task": task, "kind": kind, "samples": samples, "seconds": round(seconds, 1), "measured": {k: asdict(v) for k, v in found.items()}}
    save_head(replace(head, facts=head.facts | facts), out)
    show.out.print(
        quality_table({f"head, {k}": v for k, v in found.items()} | baseline(kept), title=f"{task} (dev), {model.model}: unseen questions")
    )
    show.say(f"{out}: {head.facts['num_states']} states of {head.facts['num_questions']} questions; rollouts {rolled:.0f} s, all {seconds:.0f} s")
    show.say(f"use it as verifier={out} in a strategy, as best_of_n:verifier={out}")
    return 0


def measure(states: States, read: object) -> Quality:
    """Of a head on labelled states; reading costs no tokens where the engine has the states."""
    start = time.perf_counter()
    values = [row[0] for row in read(states.hidden_ND).tolist()]  # type: ignore[operator]
    seconds = (time.perf_counter() - start) / len(values)
    return quality(values, states.labels, states.groups, is_probability=True, seconds=seconds)


def baseline(rollouts: list[Rollout]) -> dict[str, Quality]:
    """The free verifier that every other must beat: mean log-probability of finished answers."""
    values = [r.mean_log_p for r in rollouts]
    middle = sorted(values)[len(values) // 2]
    found = quality(values, [r.is_right for r in rollouts], [r.question for r in rollouts], is_probability=False, threshold=middle)
    return {"mean_log_p, answers": found}


def quality_table(found: dict[str, Quality], *, title: str) -> Table:
    """A row per verifier: AUROC, calibration error, Brier score, false- and true-positive rate, cost."""
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold", caption_justify="left", padding=(0, 1))
    table.add_column("verifier", overflow="fold", min_width=14)
    for name in ("n", "AUROC", "within", "ECE", "Brier", "false/true +", "tokens"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, q in found.items():
        cells = [_interval(q.auroc, q.auroc_interval), _interval(q.auroc_within, q.auroc_within_interval), _number(q.calibration_error)]
        cells += [_number(q.brier), f"{_number(q.false_positive_rate)} / {_number(q.true_positive_rate)}"]
        table.add_row(name, str(q.num), *cells, f"{q.tokens:.0f}")
    table.caption = (
        "[ ]: 95 % bootstrap over questions; within: AUROC among answers to one question, which selection needs\n"
        "false/true +: accepted among wrong / right ones, at 1/2 or the median; tokens: the verifier's own, per answer"
    )
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _interval(value: float | None, interval: tuple[float, float]) -> str:
    return "-" if value is None else f"{value:.2f} [{_short(interval[0])} {_short(interval[1])}]"


def _short(value: float) -> str:
    return f"{value:.2f}".removeprefix("0")


def train_heads(*, tasks: str, file: Path | None, out: Path, n: int, tokens: int, samples: int, model: Opened, fit: HeadsRecipe) -> int:
    """Has the model write, fits heads to what it wrote, saves and reports them."""
    prompts = prompts_of(tasks, file, n, tokens)
    process, start = open_named(model.model, model.weights, model.threads), time.perf_counter()
    if not isinstance(process, LocalProcess):
        raise BadField(f"model {model.model!r} runs elsewhere: heads need its output head; name a model that runs here")
    with show.work_bar() as bar:
        line = bar.add_task("writing", total=len(prompts) * samples, note="")
        texts = list(written(process, prompts, samples=samples, seed=fit.seed, on_text=lambda: bar.update(line, advance=1)))
    wrote = time.perf_counter() - start
    with show.waiting("fitting the heads"):
        heads = fit_draft_heads(texts, process.decoder.logits, model_id=checkpoint_of(process.model_id), recipe=fit)
    save_heads(replace(heads, facts=heads.facts | {"tasks": tasks or str(file), "samples": samples}), out)
    table = Table(title=f"{model.model}: tokens ahead, unseen prompts", title_justify="left", title_style="bold", header_style="bold", padding=(0, 1))
    for name in ("head", "right", "before training"):
        table.add_column(name, justify="right", no_wrap=True)
    for k, (found, before) in enumerate(zip(heads.facts["top1"], heads.facts["top1_untrained"]), 1):  # type: ignore[call-overload]
        table.add_row(str(k), f"{100 * found:.1f} %", f"{100 * before:.1f} %")
    show.out.print(table)
    facts = heads.facts
    show.say(f"{out}: {facts['num_tokens']} tokens, {len(heads.ids)} kinds scored; writing {wrote:.0f} s, fitting {facts['seconds']:.0f} s")
    show.say(f"use it as a drafter: {out}")
    return 0


def train_length(*, draft: str, tasks: str, file: Path | None, out: Path, n: int, tokens: int, model: Opened, fit: AcceptRecipe) -> int:
    """Has the model answer with that drafter, fits an acceptance head to what became of its guesses, saves and reports it."""
    prompts, recorder = prompts_of(tasks, file, n, tokens), Recorder(num=fit.num)
    speculation = Speculation(drafter=catalogue.speculation(draft).drafter, acceptor=Coupled(), control=recorder)
    process = open_named(model.model, model.weights, model.threads, accelerations=Accelerations(draft=speculation))
    for i, prompt in enumerate(prompts):
        sampling = GREEDY if i % 2 else Sampling(temperature=0.8)
        process.add(Extend(prefix=Prefix(prompt), seed=hash_seed(fit.seed, prompt.question), sampling=sampling))
    with show.work_bar() as bar:
        line, left = bar.add_task("answering", total=len(prompts), note=""), len(prompts)
        while left:
            done = len(process.step())
            left -= done
            bar.update(line, advance=done)
    with show.waiting("fitting the head"):
        head = fit_accept_head(recorder.judged, drafter=f"{draft} of {checkpoint_of(process.model_id)}", recipe=fit)
    round_seconds, draft_seconds = (sorted(cost)[len(recorder.costs) // 2] for cost in zip(*recorder.costs))
    best = best_threshold(recorder.judged, head, draft=draft_seconds / round_seconds)
    facts = head.facts | {"draft_cost": round(draft_seconds / round_seconds, 4), "stop_above": best, "tasks": tasks or str(file)}
    save_accept_head(replace(head, facts=facts), out)
    show.say(
        f"{out}: {facts['num_guesses']} guesses, {facts['accepted']:.1%} accepted; unseen: AUROC {facts['auroc']}, of the drafter's own probability "
        f"{facts['auroc_of_q']}; a guess costs {facts['draft_cost']} rounds"
    )
    show.say(f"use it as a length control: {draft}/coupled/{out}:stop_above={best}")
    return 0


def train_bridge(*, layer: int, tasks: str, file: Path | None, out: Path, n: int, tokens: int, model: Opened, fit: BridgeRecipe) -> int:
    """Has the model write, fits a bridge from its early to its late states of that, saves and reports it."""
    prompts, start = prompts_of(tasks, file, n, tokens), time.perf_counter()
    process = open_named(model.model, model.weights, model.threads)
    if not isinstance(process, LocalProcess) or not 0 < layer < process.decoder.config.num_layers:
        raise BadField(f"layer {layer} of {model.model!r}: needs a model that runs here and has layers behind that one")
    with show.work_bar() as bar:
        line = bar.add_task("writing and reading", total=len(prompts), note="")
        pairs = list(pairs_of(process, prompts, layer, seed=fit.seed, on_text=lambda: bar.update(line, advance=1)))
    with show.waiting("fitting the bridge"), torch.inference_mode():
        bridge = fit_bridge(pairs, process.decoder.logits, model_id=checkpoint_of(process.model_id), layer=layer, recipe=fit)
    save_bridge(replace(bridge, facts=bridge.facts | {"tasks": tasks or str(file)}), out)
    facts = bridge.facts
    show.say(
        f"{out}: {facts['num_states']} states, {time.perf_counter() - start:.0f} s; likeliest token as the whole model's, unseen prompts: "
        f"{facts['agreement']:.1%}, without the bridge {facts['agreement_untrained']:.1%}"
    )
    show.say(f"use it as a drafter: {out}")
    return 0


def pairs_of(process: LocalProcess, prompts: list[Prompt], layer: int, *, seed: int, on_text: Callable[[], None]) -> Iterator[Pairs]:
    """States that the tokens of greedy answers were drawn from, early and late."""
    by_question = {prompt.question: prompt for prompt in prompts}
    behind = frozenset(range(layer, process.decoder.config.num_layers))
    for text in written(process, list(by_question.values()), samples=1, seed=seed, on_text=on_text):
        prompt = by_question[text.prompt]
        ids = process.tokenizer.render(prompt.messages, prompt.prefill)
        with torch.inference_mode():
            early_TD = states_of(process.decoder, process.attention, [*ids, *text.tokens[:-1]], num_prompt=len(ids), skips=behind)
        yield Pairs(text.prompt, early_TD[len(ids) - 1 :].cpu(), text.states_TD)


def prompts_of(tasks: str, file: Path | None, n: int, tokens: int) -> list[Prompt]:
    """`n` dev questions of each task, and every line of the file that holds something; answers of up to `tokens` tokens. Raises BadField."""
    found = [q.prompt for name in filter(None, tasks.split(",")) for q in questions_of(catalogue.task(name.strip()), "dev", n)]
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise BadField(f"{file}: {error.strerror}; name a text file with a prompt on each line") from error
        found += [chat(text_of(line, file)) for line in map(str.strip, lines) if line]
    if len(found) < LEAST_PROMPTS:
        raise BadField(f"{len(found)} prompts: at least {LEAST_PROMPTS}; name more --task, a larger --n or a longer --prompts file")
    return [replace(prompt, max_tokens=tokens, form=None) for prompt in found]


def text_of(line: str, file: Path) -> str:
    """A line of a .jsonl file is a JSON text, which may have several lines; any other is a prompt as it stands. Raises BadField."""
    if file.suffix != ".jsonl":
        return line
    try:
        found = json.loads(line)
    except ValueError as error:
        raise BadField(f"{file}: {line[:40]!r} is no JSON ({error}); write one JSON text on each line") from error
    if not isinstance(found, str) or not found:
        raise BadField(f"{file}: {line[:40]!r} is no text; write one JSON text on each line")
    return found
