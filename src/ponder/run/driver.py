"""The driver: every running strategy asks, the asks of all of them become one engine step, each is told its answers.

Online: `submit` jobs at any time, call `turn` again and again, and read what came of it (run.events). `run` does so for a list.

Deterministic where the process is: what a job asks, in which portions and under which caps depends on the job alone.
Portions ("waves"): a job's asks are started in order while their expected tokens fit into what its budget has left; the
next wave starts when the last is answered. An ask that meets its cap while others left tokens over is continued.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from ponder.core.asks import (
    Answer,
    Extend,
    Extension,
    Extensions,
    Judge,
    Judgement,
    Outcome,
    Prompt,
    Turn,
    spent_answer,
    unfit_answer,
)  # fmt: skip
from ponder.core.budget import Budget, Cost
from ponder.core.errors import BudgetTooSmall, PonderError, PromptTooLong, StoreError
from ponder.core.probe import Probe
from ponder.core.rng import TorchRng
from ponder.core.roles import Process, Strategy
from ponder.run.account import SAFETY, Account, Ledger, least_tokens, prompts_of
from ponder.run.codec import answer_json, ask_json, candidate_json, cost_json, dumps, prompt_json
from ponder.run.events import Event, Finished, Grown, Started, Told
from ponder.run.judging import Judging
from ponder.run.needs import check_offers
from ponder.run.recipe import Recipe, Result, describe, probes_of
from ponder.run.store import SampleStore
from ponder.run.work import Work, cap, cut_off, drawn, is_cut_off, probed, wasted


@dataclass(frozen=True, kw_only=True)
class Job:
    """One question under one recipe. seed decides every random number of it."""

    id: str
    prompt: Prompt
    recipe: Recipe
    seed: int
    deadline: float | None = None  # a moment of time.perf_counter: cut when the next step might end later (budget.seconds is a share)
    is_watched: bool = False  # tell how its best answer grows (Grown)


@dataclass
class Running:
    """A job between its first turn and its outcome."""

    job: Job
    account: Account
    asking: Iterator[Turn]
    turn: Turn = field(default_factory=lambda: Turn(()))
    num_turns: int = 0
    answers: list[Answer | None] = field(default_factory=list)
    parts: dict[int, list[Answer | None]] = field(default_factory=dict)  # of Judge slots that wait for the process
    waiting: deque[Work] = field(default_factory=deque)
    live: dict[int, Work] = field(default_factory=dict)  # ticket -> work
    extensions: list[tuple[tuple[int, ...], int]] = field(default_factory=list)  # (tokens after it, generated)
    lines: list[str] = field(default_factory=list)
    num_told: int = 0  # lines that events have told
    computed: Cost = field(default_factory=Cost)  # by the process, for it
    faults: Counter[str] = field(default_factory=Counter)  # of its verifiers, by kind (run.judging)
    probes: dict[str, Probe] = field(default_factory=dict)  # what the strategy's verifiers read: added to every Extend
    stop_reason: str = "done"
    outcome: Outcome | None = None


class Driver:
    """Runs jobs on one process. A verifier that takes longer than verifier_seconds for one batch has no opinion (run.judging)."""

    def __init__(
        self, process: Process, *, store: SampleStore | None = None, max_jobs: int = 16, verifier_seconds: float | None = 600.0,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:  # fmt: skip
        self.process, self.store, self.max_jobs, self.should_stop = process, store, max_jobs, should_stop
        self.ledger, self.judging = Ledger(), Judging(verifier_seconds)
        self.owners: dict[int, Running] = {}
        self.step_times: deque[float] = deque(maxlen=16)
        self.todo: deque[Job] = deque()  # submitted, not begun
        self.active: list[Running] = []
        self.is_dirty = False  # the store has answers that are not committed

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Result]]:
        """Yields (job, result) in the order of `jobs`, each as soon as it and all before it are finished.

        Raises BudgetTooSmall before any work when a job cannot pay its prompt and one token, PromptTooLong and NotOffered likewise.
        """
        for job in jobs:
            self.check(job)
        self.todo.extend(jobs)
        order, finished = deque(jobs), dict[str, Result]()
        try:
            while order:
                if self.should_stop():
                    finished |= {running.job.id: self._abandon(running, "interrupted") for running in self.active}
                    yield from ((job, finished[job.id]) for job in order if job.id in finished)  # those not begun are left out
                    return
                finished |= {event.job: event.result for event in self.turn() if isinstance(event, Finished)}
                while order and order[0].id in finished:
                    job = order.popleft()
                    yield job, finished.pop(job.id)
        finally:
            self.close()

    def submit(self, job: Job) -> None:
        """Queues a job, whose id no other job under way has. Raises as `run`, before any work."""
        self.check(job)
        self.todo.append(job)

    def cancel(self, job_id: str) -> Result | None:
        """Ends a job now, its work in the process freed: the best that its strategy has shown; None for one that was not begun."""
        self.todo = deque(job for job in self.todo if job.id != job_id)
        running = next((r for r in self.active if r.job.id == job_id), None)
        if running is None:
            return None
        self.active.remove(running)
        return self._abandon(running, "cancelled")

    def wind_up(self, job_id: str) -> None:
        """As if the budget of a job were spent: what is under way counts as far as it came, and the strategy comes to its own end."""
        for running in self.active:
            if running.job.id == job_id and running.stop_reason == "done":
                self._cut(running, "interrupted")

    def turn(self) -> list[Event]:
        """Starts waiting jobs, goes one step of the process and tells what it gave to the strategies. Returns what happened, in order.

        Without jobs there is nothing to do: []. Raises StoreError, and what the process raises.
        """
        last, judged = time.perf_counter(), self.ledger.verifier_seconds
        while self.todo and len(self.active) < self.max_jobs:
            self.active.append(self._start(self.todo.popleft()))
        self._fill(self.active)
        spent = self._step()
        self._fill(self.active)
        events = [event for running in self.active for event in self._events(running)]
        self.active = [running for running in self.active if running.outcome is None]
        seconds = time.perf_counter() - last
        self._share_overhead(self.active, seconds - spent - (self.ledger.verifier_seconds - judged))
        self.ledger.wall_seconds += seconds
        return events

    def close(self) -> None:
        """Drops all jobs and keeps in the store what was finished."""
        self.drop()
        self._commit()

    def drop(self) -> None:
        """Drops all jobs and their work."""
        for ticket in list(self.owners):
            self._drop(ticket)
        self.active, self.todo = [], deque()

    def _events(self, running: Running) -> Iterator[Event]:
        lines = tuple(running.lines[running.num_told :])
        if lines and running.num_told == 0:
            yield Started(running.job.id, lines[:1])
        if lines[running.num_told == 0 :]:
            yield Told(running.job.id, lines[running.num_told == 0 :], running.turn.best)
        running.num_told = len(running.lines)
        if running.outcome is not None:
            yield Finished(running.job.id, self._result(running))
        elif running.job.is_watched and (so_far := self._so_far(running)) is not None:
            yield Grown(running.job.id, so_far)

    def _so_far(self, running: Running) -> Extension | None:
        """How far the first live Extend has come that goes on from the best candidate; while there is none, the turn's first ask."""
        best = running.turn.best[0].tokens if running.turn.best else ()
        partial = getattr(self.process, "partial", None)
        if partial is None or (running.turn.best and running.turn.best[0].finish is not None):
            return None
        for ticket, work in running.live.items():
            ask = work.ask
            is_own = work.part is None and isinstance(ask, Extend) and ask.prefix.prompt == running.job.prompt
            if is_own and (ask.prefix.tokens[: len(best)] == best if running.turn.best else work.slot == 0):  # type: ignore[union-attr]
                return partial(ticket)  # type: ignore[no-any-return]  # an optional method of the role
        return None

    def check(self, job: Job) -> None:
        """Raises NotOffered, BudgetTooSmall or PromptTooLong for a job that could not go its first step."""
        check_offers(self.process, job.recipe, job.prompt)
        prompt_len = self.process.prompt_len(job.prompt)
        if prompt_len >= self.process.context_len:
            context = self.process.context_len
            raise PromptTooLong(f"the prompt of {job.id!r} has {prompt_len} tokens: the model's context holds {context}, answer included; shorten it")
        budget = job.recipe.budget
        account = Account(budget, self.process)
        if account.tokens_left() < prompt_len + 1:
            raise BudgetTooSmall(
                f"budget {budget} cannot pay one step: the prompt of {job.id!r} has {prompt_len} tokens and one token must be "
                f"generated; allow at least {prompt_len + 1} tokens"
            )

    def _start(self, job: Job) -> Running:
        rng = TorchRng(job.seed)
        running = Running(job, Account(job.recipe.budget, self.process), job.recipe.strategy.run(job.prompt, rng))
        running.probes = probes_of(job.recipe.strategy)
        head = {"job": job.id, "seed": job.seed, "model": self.process.model_id, "prompt": prompt_json(job.prompt)}
        running.lines.append(dumps(head | {"recipe": describe(job.recipe)}))
        return running

    def _advance(self, running: Running, answers: Sequence[Answer] | None) -> None:
        """Tells the strategy its answers and places what it asks next; sets the outcome when it returns."""
        try:
            running.turn = next(running.asking) if answers is None else running.asking.send(answers)  # type: ignore[attr-defined]
        except StopIteration as stop:
            running.outcome = stop.value
            return
        running.num_turns += 1
        running.answers = [None] * len(running.turn.asks)
        running.parts.clear()
        for slot, ask in enumerate(running.turn.asks):
            if isinstance(ask, Judge):
                self._place_judge(running, slot, ask)
            else:
                running.waiting.append(Work(slot, probed(ask, running.probes)))

    def _place_judge(self, running: Running, slot: int, ask: Judge) -> None:
        asks, fault = self.judging.asks(ask)
        if fault:
            running.faults[fault] += 1
            running.answers[slot] = spent_answer(ask)
            return
        running.parts[slot] = [None] * len(asks)
        running.waiting.extend(Work(slot, part_ask, part) for part, part_ask in enumerate(asks))
        if not asks:
            self._judge(running, slot)

    def _judge(self, running: Running, slot: int) -> None:
        ask = running.turn.asks[slot]
        assert isinstance(ask, Judge)
        parts = [part for part in running.parts.pop(slot) if part is not None]
        start, cpu = time.perf_counter(), time.process_time()
        verdicts, faults = self.judging.verdicts(ask, parts)
        running.faults.update(faults)
        seconds = time.perf_counter() - start
        self.ledger.verifier_seconds += seconds
        own = Cost(seconds=seconds, cpu_seconds=time.process_time() - cpu)
        running.account.cost += own
        running.answers[slot] = Judgement(verdicts, sum((p.cost for p in parts), own))

    def _fill(self, active: list[Running]) -> None:
        """Moves every job as far as it comes without the process, then starts its next wave. A job whose strategy or
        verifier raises a PonderError fails alone; only the store's errors stop all. Broken verifiers: run.judging."""
        for running in active:
            try:
                while running.outcome is None and not running.live:
                    if running.waiting:
                        self._start_wave(running)
                    elif running.num_turns == 0:
                        self._advance(running, None)
                    elif all(answer is not None for answer in running.answers):
                        self._tell(running)
            except StoreError:
                raise
            except PonderError as error:
                self._cut(running, "failed")
                running.outcome = Outcome(running.turn.best, diagnostics={"error": str(error)})
        self._commit()

    def _tell(self, running: Running) -> None:
        answers = [answer for answer in running.answers if answer is not None]
        for slot, (ask, answer) in enumerate(zip(running.turn.asks, answers, strict=True)):
            line = {"job": running.job.id, "turn": running.num_turns, "slot": slot, "ask": ask_json(ask), "answer": answer_json(answer)}
            running.lines.append(dumps(line))
        self._advance(running, answers)

    def _start_wave(self, running: Running) -> None:
        wave = self._next_wave(running)
        if not wave:
            while running.waiting:
                self._answer_spent(running, running.waiting.popleft())
            return
        for work in wave:
            stored = self.store.get(self.process.model_id, work.ask) if self.store is not None else None
            if stored is not None:
                self._stored(running, work, stored)
            else:
                self._add(running, work)

    def _add(self, running: Running, work: Work) -> None:
        try:
            ticket = self.process.add(work.ask)
        except PromptTooLong:  # a prompt that the strategy or a verifier made: the job's own was checked
            if work.part is not None:
                running.faults["too_long"] += 1
                self.judging.faults["too_long"] += 1
            self._fill_slot(running, work, unfit_answer(work.ask))
            return
        running.live[ticket] = work
        self.owners[ticket] = running

    def _next_wave(self, running: Running) -> list[Work]:
        """Takes from the waiting asks those that start now, capped so that together they cannot overspend; [] when spent."""
        account = running.account
        left, known = account.tokens_left(), set(account.known)
        if running.stop_reason == "done" and self._is_late(running):
            running.stop_reason = "seconds"
        if running.stop_reason != "done":
            return []
        wave: list[Work] = []
        expected = prompts = 0
        usd = 0.0
        while running.waiting and len(wave) < account.calls_left():
            work = running.waiting[0]
            price, need = account.prompt_price(work.ask, known), account.expected_len(work.ask)
            if prompts + expected + price + (need if wave else least_tokens(work.ask)) > left:
                break
            if not account.affords(work.ask, usd, is_first=not wave):
                break
            usd += account.most_usd(work.ask)
            work.price = price
            known.update(prompts_of(work.ask))
            wave.append(running.waiting.popleft())
            expected, prompts = expected + need, prompts + price
        if not wave:
            running.stop_reason = account.budget.spent_by(account.cost) or account.budget.nearest
            return []
        account.known = known
        cap(wave, left - prompts)
        return wave

    def _stored(self, running: Running, work: Work, answer: Answer) -> None:
        cost = running.account.book(work.ask, answer.cost, work.price)
        self.ledger.stored_answers += 1
        self.ledger.stored += cost
        self._finish(running, work, replace(answer, cost=cost))

    def _step(self) -> float:
        """One step of the process, its wall time shared among the asks by the tokens computed for each. Returns that time."""
        if not self.owners:
            return 0.0
        start = time.perf_counter()
        finished = dict(self.process.step())
        seconds = time.perf_counter() - start
        self.ledger.steps += 1
        self.ledger.engine_seconds += seconds
        self.step_times.append(seconds)
        computed = {t: p.prompt_tokens + p.generated_tokens for t, p in self.process.progress().items()}
        computed |= {t: a.cost.prompt_tokens + a.cost.generated_tokens for t, a in finished.items()}
        deltas = {t: max(0, n - self.owners[t].live[t].computed) for t, n in computed.items()}
        total = sum(deltas.values())
        for ticket, delta in deltas.items():
            running = self.owners[ticket]
            work = running.live[ticket]
            share = seconds * (delta / total if total else 1 / len(deltas))
            work.computed, work.seconds = computed[ticket], work.seconds + share
            running.account.live_seconds += share
        for ticket, answer in finished.items():
            self._answered(ticket, answer)
        for running in {id(r): r for r in self.owners.values()}.values():
            if self._is_late(running):
                self._cut(running, "seconds")
        return seconds

    def _is_late(self, running: Running) -> bool:
        step = max(self.step_times, default=0.0)
        deadline = running.job.deadline
        return running.account.is_late(step) or (deadline is not None and time.perf_counter() + SAFETY * step >= deadline)

    def _answered(self, ticket: int, answer: Answer) -> None:
        """Books an answer of the process, keeps it in the store and hands it on."""
        running = self.owners.pop(ticket)
        work = running.live.pop(ticket)
        running.account.live_seconds -= work.seconds
        cost = replace(running.account.book(work.ask, answer.cost, work.price), seconds=work.seconds)
        self.ledger.add(cost, answer.cost)
        running.computed += answer.cost
        answer = replace(answer, cost=cost)
        if self.store is not None and not is_cut_off(answer):
            self.store.put(self.process.model_id, work.ask, answer, job=running.job.id)
            self.is_dirty = True
        self._finish(running, work, answer)

    def _finish(self, running: Running, work: Work, answer: Answer) -> None:
        """Books the cost and either continues a capped Extend or fills the slot."""
        cost = answer.cost if work.part is None else answer.cost.as_verifier()
        running.account.cost += cost
        self.ledger.booked += cost
        answer = replace(answer, cost=cost)
        if isinstance(answer, Extension) and isinstance(work.ask, Extend):
            if work.done is not None:
                answer = replace(answer, cost=answer.cost + work.done.cost, logprobs=work.done.logprobs + answer.logprobs)
            if answer.finish == "limit" and work.capped:
                running.waiting.appendleft(self._continuation(running, work, answer))
                return
            if answer.finish != "budget":
                running.account.lengths.append(answer.cost.generated_tokens)
            running.extensions.append((answer.prefix.tokens, answer.cost.generated_tokens))
        elif isinstance(answer, Extensions):
            running.extensions += drawn(work.ask, answer)
            answer = cut_off(work, answer)
            if is_cut_off(answer) and running.stop_reason == "done":
                running.stop_reason = running.account.budget.nearest
        self._fill_slot(running, work, answer)

    def _continuation(self, running: Running, work: Work, answer: Extension) -> Work:
        original = running.turn.asks[work.slot]
        whole = original.max_tokens if isinstance(original, Extend) else None
        left = None if whole is None else whole - answer.cost.generated_tokens
        assert isinstance(work.ask, Extend)
        return Work(work.slot, replace(work.ask, prefix=answer.prefix, max_tokens=left), work.part, answer)

    def _fill_slot(self, running: Running, work: Work, answer: Answer) -> None:
        if work.part is None:
            running.answers[work.slot] = answer
            return
        parts = running.parts[work.slot]
        parts[work.part] = answer
        if all(part is not None for part in parts):
            self._judge(running, work.slot)

    def _answer_spent(self, running: Running, work: Work) -> None:
        """The free answer of a spent budget, or what there is of an ask that was begun."""
        answer = spent_answer(work.ask)
        if work.done is not None and isinstance(answer, Extension):
            answer = replace(answer, cost=work.done.cost, logprobs=work.done.logprobs)
            running.extensions.append((answer.prefix.tokens, answer.cost.generated_tokens))
        self._fill_slot(running, work, answer)

    def _cut(self, running: Running, reason: str) -> None:
        """Cancels all live work of a job; its partial answers count."""
        running.stop_reason = reason
        for ticket in list(running.live):
            self._answered(ticket, self.process.cancel(ticket))

    def _drop(self, ticket: int) -> None:
        running = self.owners.pop(ticket)
        running.live.pop(ticket)
        self.ledger.engine += self.process.cancel(ticket).cost

    def _abandon(self, running: Running, reason: str) -> Result:
        """The best so far of a job that was begun, whose work is cut."""
        self._cut(running, reason)
        running.outcome = running.outcome or Outcome(running.turn.best)
        return self._result(running)

    def _share_overhead(self, active: list[Running], seconds: float) -> None:
        for running in active:
            running.account.cost += Cost(seconds=max(0.0, seconds) / len(active))

    def _commit(self) -> None:
        if self.store is not None and self.is_dirty:
            self.store.commit()
            self.is_dirty = False

    def _result(self, running: Running) -> Result:
        assert running.outcome is not None
        outcome = running.outcome
        faults: dict[str, object] = {"verifier_faults": dict(running.faults)} if running.faults else {}
        diagnostics = outcome.diagnostics | faults
        cost = replace(running.account.cost, wasted_tokens=wasted(running.extensions, outcome.candidates))
        selected = outcome.candidates[0] if outcome.candidates else None
        end = {
            "job": running.job.id, "stop_reason": running.stop_reason, "cost": cost_json(cost), "confidence": outcome.confidence,
            "diagnostics": diagnostics, "candidates": [candidate_json(c) for c in outcome.candidates],
        }  # fmt: skip
        running.lines.append(dumps(end))
        return Result(
            answer=selected.answer if selected else None, candidates=outcome.candidates, confidence=outcome.confidence, cost=cost,
            stop_reason=running.stop_reason, diagnostics=diagnostics, trace=tuple(running.lines), computed=running.computed,
        )  # fmt: skip


def ask(process: Process, prompt: Prompt, strategy: Strategy, budget: Budget | None = None, *, seed: int = 0) -> Result:
    """One question, one strategy, one answer. Raises as Driver.run, and PonderError when the strategy fails."""
    recipe = Recipe(label=type(strategy).__name__, strategy=strategy, budget=budget or Budget())
    ((_, result),) = Driver(process).run([Job(id="ask", prompt=prompt, recipe=recipe, seed=seed)])
    if result.stop_reason == "failed":
        raise PonderError(str(result.diagnostics["error"]))
    return result
