"""Replicas on the machines of a Ray cluster, and problems handed to whichever is free.

Ray places the actors and says when one died; who gets which problem is decided here, since a problem can be given again. A lost
replica is replaced when there is room, machines that join are used, and a problem's result does not depend on where it ran: replicas
that compute otherwise than the first are refused.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from ponder.cluster.replica import Facts, Finished, Kept, Problem, Refused, Replica
from ponder.cluster.waiting import Key, Waiting
from ponder.core.asks import Prompt
from ponder.core.errors import BadField, PonderError
from ponder.core.roles import Process
from ponder.run.driver import Job

POLL = 0.1  # seconds after which somebody is asked whether to stop
GROW = 5.0  # seconds after which the cluster is looked at again
MAX_OPENINGS = 3  # replicas that may die while they open, before any was open


@dataclass(frozen=True, kw_only=True)
class Want:
    """How many replicas, and what each takes of its machine."""

    num: int | None = None  # None: as many as the cluster holds
    cpus: int | None = None  # None: those of the machine that has fewest
    gpus: int = 0
    max_jobs: int = 16  # problems that a replica works on at once
    patience: float = 180.0  # seconds without a replica before giving up

    def __post_init__(self) -> None:
        for name, value, least in (("replicas", self.num, 1), ("cpus", self.cpus, 1), ("gpus", self.gpus, 0), ("max_jobs", self.max_jobs, 1)):
            if value is not None and value < least:
                raise BadField(f"{name}={value}: must be at least {least}")


@dataclass
class Member:
    """One actor. `says` is what it will say next: its facts, then one message after the other."""

    actor: Any
    says: Any
    is_open: bool = False
    keys: list[Key] = field(default_factory=list)  # of problems under way there


class Pool:
    """Opened on a prompt by which replicas are compared. `close` ends all actors."""

    def __init__(self, opener: Callable[[], Process], want: Want | None = None) -> None:
        self.opener, self.want = opener, want or Want()
        self.cpus = self.want.cpus or smallest()
        self.members: list[Member] = []
        self.facts: Facts | None = None
        self.prompt: Prompt | None = None
        self.looked = self.served = 0.0  # when the cluster was looked at, when a replica was there
        self.num_failed = 0
        self.num_lost = 0

    @property
    def model_id(self) -> str:
        assert self.facts is not None
        return self.facts.model_id

    def open(self, prompt: Prompt) -> "Pool":
        """Starts the replicas and returns when the first is open. Raises PonderError when the cluster has no room for what is wanted."""
        self.prompt, self.served = prompt, time.monotonic()
        fit, wanted = self._fit(), self.want.num or 1
        if fit < wanted:
            size = f"{self.cpus} CPUs" + (f" and {self.want.gpus} GPUs" if self.want.gpus else "")
            raise PonderError(
                f"{wanted} replicas of {size}: the cluster's {describe_cluster()} hold {fit}; ask for fewer or smaller "
                "replicas (--replicas, --threads), or let more machines join with `ray start --address=HOST:PORT`"
            )
        while self.facts is None:
            self.wait()
        return self

    def wait(self) -> None:
        """A moment in which replicas may open, or be found lost, while nothing is under way."""
        for _ in self._turn(Waiting([])):
            raise AssertionError("a replica spoke before it was asked")

    def check(self, jobs: Sequence[Job]) -> None:
        """Raises PonderError when one of the jobs cannot be begun."""
        while True:
            member = next((m for m in self.members if m.is_open), None)
            if member is None:
                self.wait()
                continue
            try:
                found: Refused | None = ray.get(member.actor.check.remote(tuple(jobs)))
            except RayTaskError:
                raise
            except RayError as error:
                self._lost(member, Waiting([]), error)
                continue
            if found is not None:
                raise PonderError(found.line)
            return

    def run(
        self, keys: Sequence[Key], problem_of: Callable[[Key], Problem], *, should_stop: Callable[[], bool] = lambda: False
    ) -> Iterator[Kept | Finished]:
        """What replicas say while they answer all of `keys`; problem_of makes the problem when its turn has come. Replicas that are
        still at work when nobody listens any more are ended."""
        waiting = Waiting(list(keys))
        try:
            while waiting and not should_stop():
                for member in [m for m in self.members if m.is_open and not waiting.suspects.intersection(m.keys)]:
                    room = waiting.share(self.want.max_jobs, sum(m.is_open for m in self.members)) - len(member.keys)
                    if taken := waiting.take(room, is_idle=not member.keys):
                        member.keys += taken
                        member.actor.give.remote(tuple(problem_of(key) for key in taken))
                yield from self._turn(waiting)
        finally:
            for member in [m for m in self.members if m.keys]:
                self._end(member)

    def close(self) -> None:
        for member in list(self.members):
            self._end(member)

    def _end(self, member: Member) -> None:
        with suppress(RayError):
            ray.kill(member.actor)
        self.members.remove(member)
        self.looked = 0.0

    def _turn(self, waiting: Waiting) -> Iterator[Kept | Finished]:
        """Waits a moment for one of them to speak."""
        self._grow()
        speaking = [member.says for member in self.members]
        if not speaking:
            time.sleep(POLL)
        for said in ray.wait(speaking, num_returns=1, timeout=POLL)[0] if speaking else []:
            (member,) = (m for m in self.members if m.says is said)
            message = self._heard(member, waiting)
            if isinstance(message, Finished):
                key = (message.row.recipe, message.row.question)
                member.keys.remove(key)
                waiting.finished(key)
            if message is not None:
                yield message
        now = time.monotonic()
        self.served = now if any(m.is_open for m in self.members) else self.served
        if now - self.served > self.want.patience:
            raise PonderError(
                f"no replica for {self.want.patience:.0f} s: no machine of the cluster has {self.cpus} CPUs free ({describe(alive())} in all); free "
                "some or let machines join, then run again with --resume: finished samples are kept"
            )

    def _heard(self, member: Member, waiting: Waiting) -> Kept | Finished | None:
        """What `member` says next; None when it has opened or was lost."""
        try:
            if not member.is_open:
                self._opened(member, ray.get(member.says))
                return None
            message: Kept | Finished = ray.get(next(member.says))
            return message
        except RayTaskError:  # a mistake of ours: its traceback is shown
            raise
        except RayError as error:
            self._lost(member, waiting, error)
        return None

    def _opened(self, member: Member, facts: Facts | Refused) -> None:
        if isinstance(facts, Refused):
            raise PonderError(facts.line)
        self.facts = self.facts or facts
        if facts != self.facts:
            raise PonderError(
                f"{facts.place} computes otherwise than {self.facts.place}: {unlike(facts, self.facts)}; results would depend on where a question "
                "runs: use machines of one kind with the same ponder and model file, or weights that are the same on both (--weights bf16)"
            )
        member.is_open, member.says = True, member.actor.listen.options(num_returns="streaming").remote()

    def _lost(self, member: Member, waiting: Waiting, error: RayError) -> None:
        self._end(member)
        self.num_lost += 1
        if not member.is_open:
            self.num_failed += 1
            if self.facts is None and self.num_failed >= MAX_OPENINGS:
                lines = [line.strip() for line in str(error).splitlines() if line.strip()]
                why = next((line for line in reversed(lines) if "Error" in line), lines[0] if lines else type(error).__name__)
                raise PonderError(
                    f"{self.num_failed} replicas died while they opened the model: {why[:300]}; is the same ponder installed on every machine?"
                )
        waiting.lost(member.keys)

    def _grow(self) -> None:
        """Starts replicas that are wanted and not there. Ray lets them wait where there is no room yet."""
        now = time.monotonic()
        if now - self.looked < GROW:
            return
        self.looked = now
        for _ in range((self.want.num or self._fit()) - len(self.members)):
            resources = {"num_cpus": self.cpus, "num_gpus": self.want.gpus, "scheduling_strategy": "SPREAD"}
            actor: Any = ray.remote(Replica).options(**resources, max_concurrency=2).remote(self.opener, self.want.max_jobs)
            self.members.append(Member(actor, actor.open.remote(self.prompt)))

    def _fit(self) -> int:
        """How many replicas the machines that are alive hold."""
        held = 0
        for machine in alive():
            room = machine.get("CPU", 0) // self.cpus
            held += int(min(room, machine.get("GPU", 0) // self.want.gpus) if self.want.gpus else room)
        return held


def alive() -> list[dict[str, float]]:
    """Resources of each machine that is there."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def smallest() -> int:
    """CPUs of the machine that has fewest, those without any left out."""
    return min((int(machine["CPU"]) for machine in alive() if machine.get("CPU", 0) >= 1), default=1)


def describe_cluster() -> str:
    machines = alive()
    return f"{len(machines)} machine{'s' * (len(machines) != 1)} with {describe(machines)}"


def describe(machines: Sequence[dict[str, float]]) -> str:
    totals = {kind: sum(machine.get(kind, 0) for machine in machines) for kind in ("CPU", "GPU")}
    return " and ".join(f"{total:g} {kind}s" for kind, total in totals.items() if total or kind == "CPU")


def unlike(facts: Facts, others: Facts) -> str:
    """The first fact in which two differ."""
    for name in ("version", "model_id", "sample"):
        if getattr(facts, name) != getattr(others, name):
            return f"{name} {getattr(facts, name)!r} against {getattr(others, name)!r}"
    return "nothing"
