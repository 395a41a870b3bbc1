"""A process whose replies are written by a function of the prompt, so that what a strategy makes of any reply is known."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch

from ponder.core.asks import Answer, Ask, Choice, Extend, Extension, Prompt, Score, Scores
from ponder.core.budget import Cost
from ponder.core.errors import BadField, PromptTooLong
from ponder.core.rng import Rng, hash_seed
from ponder.core.roles import Progress
from ponder.core.weights import inverse_cdf
from ponder.testing.toy import rendered

Reply = Callable[[str], str | Mapping[str, float]]  # prompt text -> the reply, or the chance of each reply


@dataclass
class ScriptedProcess:
    """Role Process. Every answer is whole at once; tokens are UTF-8 bytes, log_p the log of the reply's chance.

    With `rng` a reply is drawn from it once per (seed, prompt) and remembered; without, it is a function of the two.
    A form with a single option is replied as it is. `score` says the log-probability of an option after a prompt.
    """

    reply: Reply
    rng: Rng | None = None
    score: Callable[[str, str], float] = lambda prompt, option: math.log(0.5)
    context_len: int = 1_000_000
    model_id: str = "scripted"

    def __post_init__(self) -> None:
        self.waiting: dict[int, Answer] = {}
        self.num_added = 0
        self.drawn: dict[tuple[int, str], str] = {}
        self.asked: list[Prompt] = []  # prompts in the order of asking

    def prompt_len(self, prompt: Prompt) -> int:
        return 1 + len(rendered(prompt))

    def flops(self, num_tokens: int, context_len: int) -> float:
        return float(num_tokens)

    def add(self, ask: Ask, max_tokens: int | None = None) -> int:
        if not isinstance(ask, Extend | Score):
            raise BadField(f"a scripted process answers Extend and Score, not {type(ask).__name__}")
        if self.prompt_len(ask.prefix.prompt) >= self.context_len:
            raise PromptTooLong(f"prompt of {self.prompt_len(ask.prefix.prompt)} characters: the context holds {self.context_len}")
        self.asked.append(ask.prefix.prompt)
        self.num_added += 1
        self.waiting[self.num_added] = self._extension(ask) if isinstance(ask, Extend) else self._scores(ask)
        return self.num_added

    def step(self) -> list[tuple[int, Answer]]:
        done, self.waiting = list(self.waiting.items()), {}
        return done

    def progress(self) -> dict[int, Progress]:
        return {}

    def cancel(self, ticket: int) -> Answer:
        return self.waiting.pop(ticket)

    def _extension(self, ask: Extend) -> Extension:
        prompt = rendered(ask.prefix.prompt)
        form = ask.prefix.prompt.form
        said = form.options[0] if isinstance(form, Choice) and len(form.options) == 1 else self.reply(prompt)
        chances = {said: 1.0} if isinstance(said, str) else said
        text = self._draw(ask.seed, prompt, chances)
        new = text[len(ask.prefix.text) :]
        until = min((at + len(s) for s in ask.until if (at := new.find(s)) >= 0), default=None)
        limit = None if ask.max_tokens is None or ask.max_tokens >= len(new) else ask.max_tokens
        grown = ask.prefix.text + new[: min(until or len(new), limit or len(new))]
        is_whole = grown == text
        prefix = replace(ask.prefix, text=grown, tokens=tuple(grown.encode()), log_p=math.log(chances[text]), log_q=math.log(chances[text]))
        finish = "stop" if is_whole else "until" if until is not None and len(grown) == len(ask.prefix.text) + until else "limit"
        cost = Cost(calls=1, prompt_tokens=len(prompt), generated_tokens=len(grown) - len(ask.prefix.text))
        return Extension(replace(prefix, finish="stop") if is_whole else prefix, finish, cost)

    def _draw(self, seed: int, prompt: str, chances: Mapping[str, float]) -> str:
        if (seed, prompt) not in self.drawn:
            p = torch.tensor(list(chances.values()), dtype=torch.float64)
            probe = torch.tensor([hash_seed("scripted", seed, prompt) / 2**63], dtype=torch.float64)
            at = self.rng.categorical(p.log()[None])[0] if self.rng else inverse_cdf(p, probe)[0]
            self.drawn[seed, prompt] = list(chances)[int(at)]
        return self.drawn[seed, prompt]

    def _scores(self, ask: Score) -> Scores:
        prompt = rendered(ask.prefix.prompt) + ask.prefix.text
        return Scores(tuple(self.score(prompt, option) for option in ask.options), Cost(calls=1, prompt_tokens=len(prompt)))
