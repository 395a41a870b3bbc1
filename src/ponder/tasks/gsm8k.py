"""GSM8K: grade-school word problems whose answer is a number.

Paper      Cobbe et al. 2021, "Training Verifiers to Solve Math Word Problems" (arXiv:2110.14168); data under the MIT licence.
Equation   right = 1[final number of the text = gold number], exact rational comparison.
Shapes     1,319 items (the test set of the paper), about half "dev" and half "test" here.
Guarantee  exact scorer.
Cost       answers take 60-320 tokens; the prompt about 120 tokens, 450 with four examples.
Choose     models from about 0.5B up. SmolLM2-135M gets a few per cent: use `arith` or `sciq` there.
Differs    no worked examples unless asked for: their terse style halves what Qwen2.5-Coder-0.5B gets right (docs/LOG.md). The four
           there are, are our own, since no training item is at hand; they are in the style of the paper's.
"""

import functools
from dataclasses import dataclass

from ponder.core.asks import Prompt
from ponder.tasks.data import read_docs
from ponder.tasks.task import Item, in_split, judged_right
from ponder.verify.answers import Number
from ponder.verify.numeric import Numeric

SYSTEM = "Solve the problem step by step. Keep it short. End with a line '#### ' followed by the answer as a number."
EXAMPLES = (
    (
        "A baker makes 6 trays of rolls with 12 rolls on each tray. She sells 50 rolls in the morning. How many rolls are left?",
        "The baker makes 6 * 12 = 72 rolls.\nAfter the morning 72 - 50 = 22 rolls are left.\n#### 22",
    ),
    (
        "Tickets cost $8 for adults and $5 for children. What do 2 adults and 3 children pay?",
        "The adults pay 2 * 8 = 16 dollars.\nThe children pay 3 * 5 = 15 dollars.\nTogether they pay 16 + 15 = 31 dollars.\n#### 31",
    ),
    (
        "Omar reads 15 pages a day on weekdays and twice as many on each day of the weekend. How many pages does he read in one week?",
        "On weekdays he reads 5 * 15 = 75 pages.\nOn a weekend day he reads 2 * 15 = 30 pages, so on the weekend 2 * 30 = 60 pages.\n"
        "In one week he reads 75 + 60 = 135 pages.\n#### 135",
    ),
    (
        "A tank holds 240 litres and is three quarters full. A pump takes out 20 litres a minute. After how many minutes is the tank empty?",
        "The tank holds 240 * 3 / 4 = 180 litres now.\nThe pump needs 180 / 20 = 9 minutes.\n#### 9",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Gsm8k:
    shots: int = 0  # worked examples before the question, 0 to 4
    max_tokens: int = 320  # most tokens of one answer
    name: str = "gsm8k"

    def items(self, split: str) -> tuple[Item, ...]:
        return in_split((Item(id=i, prompt=self.prompt(question), reference=gold) for i, question, gold in _rows()), split, self.name)

    def scorer(self, item: Item) -> Numeric:
        return Numeric(reference=item.reference)

    def score(self, item: Item, text: str) -> bool:
        return judged_right(self.scorer(item), item, text)

    def prompt(self, question: str) -> Prompt:
        turns = [turn for q, a in EXAMPLES[: self.shots] for turn in (("user", q), ("assistant", a))]
        messages = (("system", SYSTEM), *turns, ("user", question))
        return Prompt(messages=messages, max_tokens=self.max_tokens, answers=Number())


@functools.lru_cache(maxsize=1)
def _rows() -> tuple[tuple[str, str, str], ...]:
    docs = read_docs("gsm8k/gold_bpb_5shot")
    return tuple((str(d["id"]), str(d["question"]), str(d["short_answer"]).replace(",", "")) for d in docs)
