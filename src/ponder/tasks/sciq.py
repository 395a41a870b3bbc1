"""SciQ: school science questions with four options; the answer is the text of one option.

Paper      Welbl, Liu and Gardner 2017, "Crowdsourcing Multiple Choice Science Questions" (arXiv:1707.06209); data under CC BY-NC 3.0.
Equation   right = 1[the option that the text names = the correct option]
Shapes     1,000 items (the paper's validation set), about half "dev" and half "test" here
Guarantee  exact scorer
Cost       answers take 3 tokens, the prompt about 200 with four examples
Choose     short answers for models from about 0.5B up. SmolLM2-135M is near chance, and even chance covers much with 8 samples.
Differs    the paper's options are chosen by letter or scored; here they are written out, since small models cannot name letters.
"""

import functools
from dataclasses import dataclass

from ponder.core.asks import Prompt
from ponder.tasks.data import read_docs
from ponder.tasks.task import Item, digest, in_split, judged_right
from ponder.verify.answers import OneOf
from ponder.verify.exact import Exact

SYSTEM = "Answer with one of the options, word for word."
EXAMPLES = (  # question, options, answer
    ("What gas do plants take in from the air?", "oxygen, carbon dioxide, helium, steam", "carbon dioxide"),
    ("Which planet is closest to the sun?", "Mercury, Mars, Venus, Saturn", "Mercury"),
    ("What pulls objects toward the ground?", "friction, light, sound, gravity", "gravity"),
    ("Which organ pumps blood?", "the lungs, the liver, the heart, the skin", "the heart"),
)


@dataclass(frozen=True, kw_only=True)
class SciQ:
    max_tokens: int = 16  # most tokens of one answer
    name: str = "sciq"

    def items(self, split: str) -> tuple[Item, ...]:
        made = (Item(id=i, prompt=self.prompt(question, options), reference=gold) for i, question, options, gold in _rows())
        return in_split(made, split, self.name)

    def scorer(self, item: Item) -> Exact:
        return Exact(reference=item.reference)

    def score(self, item: Item, text: str) -> bool:
        return judged_right(self.scorer(item), item, text)

    def prompt(self, question: str, options: tuple[str, ...]) -> Prompt:
        turns = [turn for q, o, a in EXAMPLES for turn in (("user", f"{q}\nOptions: {o}"), ("assistant", a))]
        messages = (("system", SYSTEM), *turns, ("user", f"{question}\nOptions: {', '.join(options)}"))
        return Prompt(messages=messages, stop=("\n",), max_tokens=self.max_tokens, answers=OneOf(options=options))


@functools.lru_cache(maxsize=1)
def _rows() -> tuple[tuple[str, str, tuple[str, ...], str], ...]:
    docs = {str(d["index"]): d for d in read_docs("sciq/rc_0shot")}
    return tuple((i, str(d["question"]), shuffled(i, d), str(d["correct_answer"])) for i, d in docs.items())


def shuffled(index: str, doc: dict[str, object]) -> tuple[str, ...]:
    """The options in a fixed pseudo-random order: in the file the correct one is always the last."""
    options = [str(doc[name]) for name in ("correct_answer", "distractor1", "distractor2", "distractor3")]
    return tuple(sorted(options, key=lambda option: digest(f"{index}/{option}")))
