"""Role Process over an endpoint: asks become requests, all of them under way at once, their answers come as they come.

Answers to equal asks are as equal as the server makes them: the seed of each request depends on the ask alone, so nothing here
depends on the order in which answers come. A cancelled request's connection is closed; what it had generated is not told, so
its answer has no tokens, and in $ it is booked at the most that it may cost.
"""

from collections import deque
from dataclasses import replace

from ponder.core.asks import Answer, Ask, Extend, Judge, Prompt, spent_answer, unfit_answer
from ponder.core.budget import Cost
from ponder.core.errors import BadField, NotOffered, PromptTooLong
from ponder.core.needs import WORDS, needs_of
from ponder.core.roles import Progress
from ponder.remote.dialect import Dialect, Facts
from ponder.remote.endpoint import Endpoint
from ponder.remote.wire import Refused, Send, Wire

CONTEXT = 32_768  # where neither the server nor the endpoint's settings say
WAIT = 0.1  # seconds that a step waits for an answer, so that deadlines and Ctrl-C are seen
TOO_LONG = ("context", "too long", "maximum length")  # what servers say of a prompt that does not fit


class RemoteProcess:
    """See Process. `offers` says what asks it can answer (core.needs); `add` raises NotOffered for others."""

    def __init__(self, endpoint: Endpoint, dialect: Dialect, facts: Facts, wire: Wire) -> None:
        self.endpoint, self.dialect, self.wire = replace(endpoint, model=facts.model), dialect, wire
        self.model_id = endpoint.name or f"{facts.model}@{endpoint.url}"
        self.context_len = endpoint.context_len or facts.context_len or CONTEXT
        self.num_parameters = endpoint.num_parameters or facts.num_parameters
        own = dialect.offers if endpoint.offers is None else endpoint.offers
        extra = {"flops": self.num_parameters is not None, "usd": endpoint.price is not None}
        self.offers = own | {word for word, is_there in extra.items() if is_there}
        self.is_len_guessed = dialect.is_len_guessed  # whether prompt_len is no count
        self.asks: dict[int, tuple[Ask, int]] = {}  # unfinished: ask and the most tokens that it may generate
        self.ready: deque[tuple[int, Answer]] = deque()  # answered without a request
        self.failed: dict[int, tuple[Ask, BaseException]] = {}
        self.lens: dict[object, int] = {}
        self.num_added = 0

    def prompt_len(self, prompt: Prompt) -> int:
        """As the dialect counts it; asked once for each prompt."""
        key = prompt.messages, prompt.prefill
        if key not in self.lens:
            self.lens[key] = self.wire.call(lambda send: self.dialect.prompt_len(self.endpoint, prompt, send))
        return self.lens[key]

    def flops(self, num_tokens: int, context_len: int) -> float:
        """Two for each parameter and token; 0 where their number is unknown (then a budget in FLOPs is refused)."""
        return 2.0 * (self.num_parameters or 0.0) * num_tokens

    def usd(self, cost: Cost) -> float:
        """What those tokens cost; 0 without a price (then a budget in $ is refused)."""
        return self.endpoint.price.usd(cost) if self.endpoint.price else 0.0

    def add(self, ask: Ask, max_tokens: int | None = None) -> int:
        if isinstance(ask, Judge):
            raise BadField("a process answers no Judge: a verifier does")
        if missing := needs_of(ask) - self.offers:
            raise NotOffered(
                f"{self.model_id} cannot answer {type(ask).__name__}: it offers no {', no '.join(WORDS[word] for word in sorted(missing))}"
            )
        length = self.prompt_len(ask.prefix.prompt)
        if length >= self.context_len:
            raise PromptTooLong(f"prompt of {length} tokens: the endpoint's context holds {self.context_len}, answer included")
        self.num_added += 1
        ticket, most = self.num_added, self._most(ask, max_tokens)
        if most < 1:
            self.ready.append((ticket, unfit_answer(ask)))
            return ticket
        self.asks[ticket] = ask, most
        self.wire.start(ticket, lambda send: self._answer(ask, most, send))
        return ticket

    def step(self) -> list[tuple[int, Answer]]:
        """What was answered since the last step; waits a moment for something. Raises the error of a request only when all that
        is left has failed: what else was under way is handed out first."""
        answers = list(self.ready)
        self.ready.clear()
        for ticket, result in self.wire.wait(0.0 if answers else WAIT):
            ask, _ = self.asks.pop(ticket)
            if isinstance(result, BaseException):
                self.failed[ticket] = ask, result
            else:
                answers.append((ticket, result))
        if self.failed and not answers and not self.asks:
            raise next(iter(self.failed.values()))[1]
        return sorted(answers, key=lambda pair: pair[0])

    def progress(self) -> dict[int, Progress]:
        """Nothing is known of a request before it is answered."""
        return {ticket: Progress(0, 0, 0) for ticket in (*self.asks, *self.failed, *(ticket for ticket, _ in self.ready))}

    def cancel(self, ticket: int) -> Answer:
        for at, (other, answer) in enumerate(self.ready):
            if other == ticket:
                del self.ready[at]
                return answer
        if ticket in self.failed:
            return spent_answer(self.failed.pop(ticket)[0])
        if ticket not in self.asks:
            raise BadField(f"ticket {ticket} is not under way: it was never given, or is answered or cancelled; cancel open tickets only, once")
        ask, most = self.asks.pop(ticket)
        self.wire.cancel(ticket)
        bill = Cost(prompt_tokens=self.prompt_len(ask.prefix.prompt) + len(ask.prefix.tokens), generated_tokens=most)  # type: ignore[union-attr]
        return replace(spent_answer(ask), cost=Cost(calls=1, usd=self.usd(bill)))

    def close(self) -> None:
        """Cancels everything under way."""
        self.wire.close()

    async def _answer(self, ask: Ask, most: int, send: Send) -> Answer:
        try:
            answer = await self.dialect.answer(self.endpoint, ask, most, send)
        except Refused as refused:
            if refused.status == 400 and any(word in refused.said.lower() for word in TOO_LONG):
                return unfit_answer(ask)
            raise
        cost = answer.cost
        read = cost.prompt_tokens + cost.reused_tokens
        flops = self.flops(cost.prompt_tokens + cost.generated_tokens, read)
        return replace(answer, cost=replace(cost, usd=self.usd(cost), flops=flops))

    def _most(self, ask: Ask, cap: int | None) -> int:
        """Tokens that the ask may generate."""
        if not isinstance(ask, Extend):
            return 1
        rooms = (
            ask.prefix.prompt.max_tokens - len(ask.prefix.tokens), ask.max_tokens, cap,
            self.context_len - self.prompt_len(ask.prefix.prompt) - len(ask.prefix.tokens),
        )  # fmt: skip
        return min(room for room in rooms if room is not None)
