"""A model that is unsure is told the next word by another, smaller one, which was taught how to answer.

Paper      Fei, Razeghi, Singh 2024, "Nudging: Inference-time Alignment of LLMs via Guided Decoding" (arXiv:2410.09300)
Equation   next = the base model's token where max_x p_base(x | text) >= least; else the guide's next word, up to a white space
Shapes     a prompt -> one answer; the models exchange text alone, so that their tokens may differ
Guarantee  biased: the answer is neither model's own
Cost       one forward pass of the base model for every token and every nudge, and of the guide for every token of a nudge and one more;
           what the one has said the other must read once.
Choose     a large model without instruction tuning beside a small one with it. least=0 is the base model alone, above 1 the guide alone.
Differs    the paper asks the guide for 16 tokens and keeps a word; here it is asked token by token, and stops after its word.
"""

import math
import re
from collections.abc import Generator
from dataclasses import dataclass, replace

from ponder.collaborate.pair import Talk, Wish, Written
from ponder.core.asks import Extend, Extension, Prefix
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee
from ponder.core.rng import hash_seed

WORD = re.compile(r"\s*\S+(?=\s)")


@dataclass(frozen=True, kw_only=True)
class Nudging:
    least: float = 0.3  # probability of its likeliest token below which the base model counts as unsure

    guarantee = Guarantee.BIASED

    def __post_init__(self) -> None:
        if not self.least >= 0:
            raise BadField(f"nudging least={self.least}: must be at least 0, which never nudges")

    def write(self, ask: Extend, most: int) -> Talk:
        text = Text(ask, Prefix(ask.prefix.prompt), most)
        while text.finish is None:
            is_unsure = yield from self._base(text)
            if is_unsure and text.finish is None:
                yield from self._nudge(text)
        return Written(replace(text.whole, finish=None if text.finish == "limit" else text.finish), text.finish, text.num_base, text.num_guide)

    def _base(self, text: "Text") -> Generator[Wish, Extension, bool]:
        """Tokens of the base model until it is unsure or the answer ends; whether it is unsure."""
        prefix = text.opened()
        while text.finish is None:
            said = yield Wish("base", replace(text.asked(prefix), logprobs=1), text.whole)
            if said.logprobs and math.exp(said.logprobs[0].top[0][1]) < self.least:
                return True
            text.num_base += len(said.prefix.tokens) - len(prefix.tokens)
            text.take(prefix, said)
            prefix = said.prefix
        return False

    def _nudge(self, text: "Text") -> Generator[Wish, Extension, None]:
        """The guide's next word, or its end."""
        start, before = text.opened(), text.whole
        prefix, num = start, 0
        while True:
            said = yield Wish("guide", text.asked(prefix), before)
            found = WORD.match(said.prefix.text)
            if found:  # the token after the word is not kept
                said = replace(said, prefix=replace(prefix, text=found[0], finish=None), finish="limit")
            if found or said.prefix.is_final or num + 1 >= text.most - len(before.tokens):
                break
            prefix, num = said.prefix, num + 1
        text.num_guide += len(said.prefix.tokens)
        text.take(start, said)


@dataclass
class Text:
    """What both have written. finish: None while it goes on."""

    ask: Extend
    whole: Prefix
    most: int
    num_base: int = 0
    num_guide: int = 0
    num_asked: int = 0
    finish: str | None = None

    def opened(self) -> Prefix:
        """All of it in the mouth of whoever goes on."""
        prompt = self.ask.prefix.prompt
        return Prefix(replace(prompt, prefill=prompt.prefill + self.whole.text, max_tokens=max(1, prompt.max_tokens - len(self.whole.tokens))))

    def asked(self, prefix: Prefix) -> Extend:
        """One more token. Each ask has a seed of its own: places are counted anew behind a prefill."""
        self.num_asked += 1
        return Extend(prefix=prefix, seed=hash_seed(self.ask.seed, self.num_asked), max_tokens=1, sampling=self.ask.sampling)

    def take(self, before: Prefix, said: Extension) -> None:
        """Adds what `said` has more than `before`, and sees whether it ends the answer."""
        old, new, grown = self.whole, said.prefix, self.whole.text + said.prefix.text[len(before.text) :]
        cut = min((at for at in (grown.find(s) for s in self.ask.prefix.prompt.stop) if at >= 0), default=None)
        self.whole = replace(
            old, text=grown[:cut], tokens=old.tokens + new.tokens[len(before.tokens) :],
            log_p=old.log_p + new.log_p - before.log_p, log_q=old.log_q + new.log_q - before.log_q,
        )  # fmt: skip
        is_full = len(self.whole.tokens) >= self.most
        is_whole = self.most >= self.ask.prefix.prompt.max_tokens
        self.finish = "stop" if cut is not None else new.finish or ("length" if is_full and is_whole else "limit" if is_full else None)
