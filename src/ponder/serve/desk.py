"""Where requests wait, run and are told: the asyncio side of the engine's thread."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ponder.core.asks import Extension
from ponder.core.errors import BadField
from ponder.core.rng import hash_seed
from ponder.run.driver import Driver, Job
from ponder.run.events import Finished, Grown, Started, Told
from ponder.run.recipe import Recipe, Result
from ponder.serve.admission import FairLines
from ponder.serve.errors import Refusal, busy
from ponder.serve.menu import Order
from ponder.serve.metrics import Metrics
from ponder.serve.runs import Run, RunLog
from ponder.serve.stepper import Accepted, Broken, News, Refused, Stepper

LEAD = 0.02  # seconds before its deadline that a result is on its way


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of a server. Raises BadField."""

    max_jobs: int = 32  # choices that run at once; those with a deadline may take as many places again
    max_queue: int = 256  # choices that wait for a place; beyond: 429
    max_per_client: int | None = None  # requests of one client under way or waiting; beyond: 429
    max_body: int = 1 << 20  # bytes of a request; beyond: 413
    drain: float = 30.0  # seconds that what is under way has after SIGTERM

    def __post_init__(self) -> None:
        for name in ("max_jobs", "max_body"):
            if getattr(self, name) < 1:
                raise BadField(f"{name}={getattr(self, name)}: must be at least 1")
        if self.max_queue < 0 or self.drain < 0 or (self.max_per_client is not None and self.max_per_client < 1):
            raise BadField(
                f"max_queue={self.max_queue}, drain={self.drain}, max_per_client={self.max_per_client}: none may be negative, the last not 0"
            )


@dataclass(eq=False)
class Ticket:
    """One choice of a request, from its arrival to its result."""

    job: Job
    visit: "Visit"
    run: Run
    index: int
    is_urgent: bool  # its deadline is the client's own: it goes first
    prompt_len: int = 0
    so_far: Extension | None = None
    best: str | None = None  # text of the best candidate that the strategy has shown
    num_told: int = 0  # turns that were told
    result: Result | None = None
    error: Exception | None = None
    timer: asyncio.TimerHandle | None = None  # ends it when its deadline comes before its turn

    @property
    def client(self) -> str:
        return self.visit.client

    @property
    def deadline(self) -> float | None:
        return self.job.deadline if self.is_urgent else None

    @property
    def is_over(self) -> bool:
        return self.result is not None or self.error is not None

    def stop_timer(self) -> None:
        """A timer holds what it is for, all of a result, until it rings."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


@dataclass(eq=False)
class Visit:
    """A request under way. `wake` is set when there is news that `tell`, if there is one, has not passed on by itself."""

    id: str
    client: str
    order: Order
    seed: int
    created: int
    tickets: list[Ticket] = field(default_factory=list)
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    tell: Callable[[], bool] | None = None  # passes the news on at once; False where the request's own task has to

    num_over: int = 0
    error: Exception | None = None  # what to refuse the whole request for

    @property
    def is_over(self) -> bool:
        return self.num_over == len(self.tickets)

    @property
    def is_settled(self) -> bool:
        """Whether nothing more will come of it."""
        return self.error is not None or self.num_over == len(self.tickets)

    def hear(self) -> None:
        """There is news."""
        try:
            if self.tell is not None and self.tell():
                return
        except Exception:  # its own task will meet it, and answer for it: this call is on behalf of all requests
            self.tell = None
        self.wake.set()


class Desk:
    """Lets requests in, hands their jobs to the engine's thread, in turn, and tells them what came of it. Lives in one event loop."""

    def __init__(self, open: Callable[[], Driver], limits: Limits, metrics: Metrics) -> None:
        self.limits, self.metrics = limits, metrics
        self.stepper = Stepper(open, self._tell)
        self.lines: FairLines[Ticket] = FairLines()
        self.running: dict[str, Ticket] = {}
        self.visits: Counter[str] = Counter()  # by client
        self.runs = RunLog()
        self.loop: asyncio.AbstractEventLoop | None = None
        self.is_draining = False
        self.mean_seconds = 1.0  # of a job, for Retry-After

    async def start(self) -> None:
        """Opens the driver, once. Raises what that raises."""
        if self.loop is not None:
            return
        self.loop = asyncio.get_running_loop()
        driver = await self.loop.run_in_executor(None, self.stepper.start)
        driver.max_jobs = 2 * self.limits.max_jobs
        self.metrics.watch(self, driver)

    @property
    def driver(self) -> Driver:
        assert self.stepper.driver is not None
        return self.stepper.driver

    # requests come and go

    def enter(self, visit: Visit, arrived: float) -> None:
        """Lets a request in; its jobs begin when it is their turn. Raises Refusal (429, 503)."""
        order, limits = visit.order, self.limits
        num = len(order.prompts) * order.num
        if self.is_draining:
            raise busy("the server is shutting down", limits.drain, status=503, code="draining")
        if limits.max_per_client is not None and self.visits[visit.client] >= limits.max_per_client:
            raise busy(f"{limits.max_per_client} requests of this key are under way, the most it may have", self.wait_seconds)
        if len(self.lines) + num > limits.max_queue + max(0, limits.max_jobs - len(self.running)):
            raise busy(f"{len(self.lines)} wait already, the most that may is {limits.max_queue}", self.wait_seconds)
        self.visits[visit.client] += 1
        deadline = None if order.budget.seconds is None else arrived + order.budget.seconds - LEAD
        for index in range(num):
            ticket = self._ticket(visit, index, deadline)
            visit.tickets.append(ticket)
            self.lines.put(ticket)
            if deadline is not None and self.loop is not None:
                ticket.timer = self.loop.call_later(max(0.0, deadline - time.perf_counter()), self._expire, ticket)
        self._dispatch()

    def _ticket(self, visit: Visit, index: int, deadline: float | None) -> Ticket:
        order = visit.order
        prompt, seed = order.prompts[index // order.num], hash_seed(visit.seed, index % order.num)
        name = visit.id if index == 0 else f"{visit.id}-{index}"
        recipe = Recipe(label=order.spec, strategy=order.strategy, budget=order.budget)
        job = Job(id=name, prompt=prompt, recipe=recipe, seed=seed, deadline=deadline, is_watched=order.is_watched)
        run = Run(name, visit.client, order.spec, str(order.budget), prompt.question[:500], visit.seed, order.user)
        self.runs.put(run)
        return Ticket(job, visit, run, index, order.is_urgent)

    def leave(self, visit: Visit) -> None:
        """The request is answered, or its client has gone: what is left of its work ends."""
        self.visits[visit.client] -= 1
        if not self.visits[visit.client]:
            del self.visits[visit.client]
        for ticket in visit.tickets:
            if not ticket.is_over:
                self._end(ticket, error=Refusal(499, "the client has gone", code="gone"))
                if not self.lines.remove(ticket) and self.running.pop(ticket.job.id, None) is not None:
                    self.stepper.cancel(ticket.job.id)
        self._dispatch()

    @property
    def wait_seconds(self) -> float:
        return self.mean_seconds * (1 + len(self.lines)) / self.limits.max_jobs

    def _dispatch(self) -> None:
        while len(self.lines) and len(self.running) < self.limits.max_jobs:
            self._submit(self.lines.take())
        while len(self.running) < 2 * self.limits.max_jobs and (ticket := self.lines.take_urgent()) is not None:
            self._submit(ticket)

    def _submit(self, ticket: Ticket) -> None:
        ticket.stop_timer()
        self.running[ticket.job.id] = ticket
        self.stepper.submit(ticket.job)

    def _expire(self, ticket: Ticket) -> None:
        """The deadline has come before its turn."""
        if self.lines.remove(ticket):
            message = f"its {ticket.job.recipe.budget.seconds:g} seconds were over before it was its turn; come again or allow more"
            self._end(ticket, error=busy(message, self.wait_seconds, code="deadline"))

    def _end(self, ticket: Ticket, *, result: Result | None = None, error: Exception | None = None) -> None:
        ticket.result, ticket.error = result, error
        ticket.stop_timer()
        run, visit = ticket.run, ticket.visit
        visit.num_over, visit.error = visit.num_over + 1, visit.error or error
        run.seconds = time.time() - run.created
        if result is not None:
            run.state, run.stop_reason, run.answer, run.text = "done", result.stop_reason, result.answer, result.text
            run.confidence = result.confidence
            run.usage = {
                "tokens": result.cost.tokens,
                "generated_tokens": result.cost.generated_tokens,
                "verifier_tokens": result.cost.verifier_tokens,
            }
            self.mean_seconds += 0.1 * (run.seconds - self.mean_seconds)
            self.metrics.finished(result, run.seconds)
            run.add(result.trace[len(run.lines) :])
        else:
            run.state, run.stop_reason = "refused", str(error)
        run.wake()
        self.runs.trim()
        visit.wake.set()

    # the engine's thread tells

    def _tell(self, news: list[News]) -> None:
        """Called in the engine's thread."""
        if self.loop is not None and not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self._told, news)

    def _told(self, news: Sequence[News]) -> None:
        """One call a step, whatever the number of requests: what it takes, the engine's thread may have to wait for."""
        fresh: dict[int, Visit] = {}
        is_free = False
        for event in news:
            if isinstance(event, Broken):
                for name in event.jobs:
                    self._over(name, error=Refusal(500, f"the engine failed: {event.message}"))
                is_free = True
                continue
            ticket = self.running.get(event.job)
            if ticket is None:
                continue
            if isinstance(event, Finished | Refused):
                self._ended(event)
                is_free = True
            else:
                _note(ticket, event)
            fresh[id(ticket.visit)] = ticket.visit
        for visit in fresh.values():
            visit.hear()
        if is_free:
            self._dispatch()

    def _ended(self, event: Finished | Refused) -> None:
        order = self.running[event.job].visit.order
        if isinstance(event, Refused):
            self._over(event.job, error=refusal_of(str(event.error), order))
        elif event.result.stop_reason == "failed":
            self._over(event.job, error=refusal_of(str(event.result.diagnostics["error"]), order))
        else:
            self._over(event.job, result=event.result)

    def _over(self, name: str, *, result: Result | None = None, error: Exception | None = None) -> None:
        ticket = self.running.pop(name, None)
        if ticket is not None:
            self._end(ticket, result=result, error=error)

    # the end

    async def drain(self, seconds: float) -> None:
        """No new requests; those under way have so many seconds, then end with their best so far."""
        self.is_draining = True
        end = time.perf_counter() + seconds
        while self.visits and time.perf_counter() < end:
            await asyncio.sleep(0.02)
        for ticket in list(self.lines):
            self.lines.remove(ticket)
            self._end(ticket, error=busy("the server is shutting down", self.limits.drain, status=503, code="draining"))
        for name in list(self.running):
            self.stepper.wind_up(name)
        end = time.perf_counter() + 5.0
        while self.visits and time.perf_counter() < end:
            await asyncio.sleep(0.02)

    async def stop(self) -> None:
        if self.loop is not None:
            await self.loop.run_in_executor(None, self.stepper.stop)


def _note(ticket: Ticket, event: Accepted | Started | Told | Grown) -> None:
    if isinstance(event, Grown):
        ticket.so_far = event.so_far
    elif isinstance(event, Told):
        ticket.num_told += 1
        ticket.best = event.best[0].text if event.best else ticket.best
        ticket.run.add(event.lines)
    elif isinstance(event, Started):
        ticket.run.state = "running"
        ticket.run.add(event.lines)
    else:
        ticket.prompt_len = event.prompt_len


def refusal_of(message: str, order: Order) -> Refusal:
    """A job that its prompt, form or budget does not allow: the client's mistake."""
    form = "response_format" if order.tools is None else "tools"
    fields = {"budget": "ponder.budget", "logit_bias": "logit_bias", "form": form, "schema": form, "prompt": order.prompt_field}
    param = next((param for word, param in fields.items() if word in message), None)
    code = "context_length_exceeded" if "context holds" in message else None
    return Refusal(400, message[:2000], param=param, code=code)
