"""Tasks by name, and what `ponder demo` runs."""

from dataclasses import dataclass

from ponder.core.errors import UnknownName
from ponder.run.spec import Specs
from ponder.tasks.gsm8k import Gsm8k
from ponder.tasks.humaneval import HumanEval
from ponder.tasks.math500 import Math500
from ponder.tasks.mbpp import Mbpp
from ponder.tasks.reasoning_gym import PRESELECTED, open_reasoning_gym
from ponder.tasks.sciq import SciQ
from ponder.tasks.task import Task

DEFAULT_MODEL = "smollm2-135m"

TASKS: dict[str, Task] = {
    "gsm8k": Gsm8k(),
    "math500": Math500(),
    "humaneval": HumanEval(),
    "mbpp": Mbpp(),
    "mbpp-one": Mbpp(num_visible=1, name="mbpp-one"),  # two of three tests held out
    "sciq": SciQ(),
    **PRESELECTED,
}


def task(name: str) -> Task:
    """A task of the table, NAME:field=value,... for one with other settings, or 'rg:DATASET' for any generator of reasoning-gym."""
    if name in TASKS:
        return TASKS[name]
    if name.startswith("rg:"):
        return open_reasoning_gym(name)
    if name.partition(":")[0] in TASKS:
        return Specs("task", TASKS, {}).read(name)  # type: ignore[return-value]
    raise UnknownName("task", name, [*TASKS, "rg:DATASET"])


@dataclass(frozen=True, kw_only=True)
class Demo:
    """What `ponder demo` runs: sized for about five minutes on two cores."""

    task: str
    num_questions: int
    strategies: tuple[str, ...]
    budget: str
    question: str
    ask_strategy: str
    reader: str
    model: str = DEFAULT_MODEL
    weights: str = "native"


DEMO = Demo(
    task="rg:short_sums",
    num_questions=150,
    strategies=("greedy", "best_of_n", "self_consistency", "particle_filter", "beam"),
    budget="2000 tokens",
    question="What is 7 + 5?",
    ask_strategy="self_consistency",
    reader="number",
)
