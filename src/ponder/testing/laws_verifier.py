"""Laws of verifiers that learn or ask. Each takes the functions that it checks, so that it can be tried on wrong ones:

fit        (states [N, D], labels, questions) -> score: states -> one value each
area       (values, labels) -> AUROC
split      questions, one per state -> index lists of the parts, the last of which is held out
calibrate  (logits, labels) -> map: logits -> probabilities
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ponder.core.asks import Candidate, Prompt, Score, Scores
from ponder.core.roles import Verifier
from ponder.testing.exact import require

ScoreStates = Callable[[Tensor], Sequence[float]]
Fit = Callable[[Tensor, Sequence[bool], Sequence[str]], ScoreStates]
Area = Callable[[Sequence[float], Sequence[bool]], float]
Split = Callable[[Sequence[str]], list[list[int]]]
Calibrate = Callable[[Tensor, Sequence[bool]], Callable[[Tensor], Tensor]]
Measure = Callable[[Sequence[float], Sequence[bool]], float]


def chance_width(labels: Sequence[bool]) -> float:
    """Four standard deviations of the AUROC of values that know nothing of these labels."""
    num_right = sum(labels)
    return 4 * math.sqrt((len(labels) + 1) / (12 * num_right * (len(labels) - num_right)))


def law_finds_what_is_there(fit: Fit, area: Area, *, states: Tensor, labels: Sequence[bool], questions: Sequence[str]) -> None:
    """Labels that the states show linearly are found: AUROC above 0.95 on questions that were not fitted."""
    names = sorted(set(questions))
    held = set(names[::3])
    old = [i for i, q in enumerate(questions) if q not in held]
    new = [i for i, q in enumerate(questions) if q in held]
    found = area(fit(states[old], [labels[i] for i in old], [questions[i] for i in old])(states[new]), [labels[i] for i in new])
    require(found > 0.95, f"AUROC {found:.3f} on {len(new)} unseen states whose labels are linear in them")


def law_finds_nothing_where_nothing_is(fit: Fit, area: Area, *, states: Tensor, labels: Sequence[bool], questions: Sequence[str]) -> None:
    """Labels dealt out anew, whole questions together, are not found: AUROC 1/2 within its chance on unseen questions."""
    draws = torch.Generator().manual_seed(1)
    names = sorted(set(questions))
    order = dict(zip(names, torch.randperm(len(names), generator=draws).tolist()))
    dealt = [labels[order[q] * len(labels) // len(names)] for q in questions]
    held = set(names[::2])
    old = [i for i, q in enumerate(questions) if q not in held]
    new = [i for i, q in enumerate(questions) if q in held]
    wanted = [dealt[i] for i in new]
    found = area(fit(states[old], [dealt[i] for i in old], [questions[i] for i in old])(states[new]), wanted)
    per_question = len(new) / len(held)  # states of one question share their label: fewer independent ones than states
    width = chance_width(wanted) * math.sqrt(per_question)
    require(abs(found - 0.5) <= width, f"AUROC {found:.3f} on unseen questions with labels dealt at random: more than 0.5 +- {width:.3f}")


def law_splits_by_question(split: Split, area: Area) -> None:
    """No question is in two parts. Shown by a memory: on states that carry their question and nothing else, the nearest known
    state tells an unseen question's random label no better than chance."""
    draws = torch.Generator().manual_seed(0)
    num, per_question = 160, 4
    marks = torch.randn(num, 16, generator=draws)
    truth = torch.rand(num, generator=draws) < 0.5
    questions = [f"q{i}" for i in range(num) for _ in range(per_question)]
    states = marks.repeat_interleave(per_question, 0) + 0.01 * torch.randn(num * per_question, 16, generator=draws)
    labels = truth.repeat_interleave(per_question).tolist()
    *known, held = split(questions)
    old = [i for part in known for i in part]
    require(sorted((*old, *held)) == list(range(len(questions))), "the parts do not hold every state once")
    nearest = torch.cdist(states[held], states[old]).argmin(1).tolist()
    wanted = [labels[i] for i in held]
    found = area([float(labels[old[i]]) for i in nearest], wanted)
    width = chance_width(wanted) * math.sqrt(per_question)
    require(abs(found - 0.5) <= width, f"a memory of questions reaches AUROC {found:.3f} on the held-out part: questions are in two parts")


def law_calibration_helps(calibrate: Calibrate, error: Measure, area: Area) -> None:
    """Logits three times too sure and shifted: on unseen data the calibration error falls to a third at most, the order stays."""
    draws = torch.Generator().manual_seed(0)
    true = torch.randn(4000, generator=draws, dtype=torch.float64)
    labels = (torch.rand(4000, generator=draws, dtype=torch.float64) < torch.sigmoid(true)).tolist()
    logits = 3 * true + 1.5
    mapped = calibrate(logits[:2000], labels[:2000])(logits[2000:])
    before, after = (error(p.tolist(), labels[2000:]) for p in (torch.sigmoid(logits[2000:]), mapped))
    require(after <= before / 3, f"calibration error {after:.3f} after, {before:.3f} before")
    gap = abs(area(mapped.tolist(), labels[2000:]) - area(logits[2000:].tolist(), labels[2000:]))
    require(gap < 1e-9, f"calibration moved the AUROC by {gap:.1e}")


def law_order_is_nothing_to_a_judge(verifier: Verifier, prompt: Prompt, pair: tuple[Candidate, Candidate], lean: float) -> None:
    """A model that leans to the first option by `lean` nats, whatever it says: values swap with the candidates and sum to 1."""
    found = []
    for candidates in (pair, pair[::-1]):
        asks = verifier.asks(prompt, candidates)
        answers = [leaning(ask, pair, lean) for ask in asks if isinstance(ask, Score)]
        require(len(answers) == len(asks), f"asks {asks}: this law knows Score alone")
        found.append([v.value for v in verifier.judge(prompt, candidates, answers)])
    require(all(value is not None for values in found for value in values), f"no verdict: {found}")
    (first, second), (second_again, first_again) = found
    swapped = max(abs(first - first_again), abs(second - second_again))  # type: ignore[operator]
    require(swapped < 1e-12, f"{found[0]} in one order, {found[1]} in the other")
    require(abs(first + second - 1) < 1e-12, f"{first} + {second} is not 1")  # type: ignore[operator]
    require(first > second, f"{first} for what the model prefers, {second} for the other")  # type: ignore[operator]


def leaning(ask: Score, pair: tuple[Candidate, Candidate], lean: float) -> Scores:
    """One nat for the option that names pair[0], `lean` nats for whatever is named first."""
    text = ask.prefix.prompt.question
    is_first = text.find(pair[0].text) < text.find(pair[1].text)
    logits = torch.tensor([lean + float(is_first), float(not is_first)], dtype=torch.float64).log_softmax(0)
    return Scores(tuple(logits.tolist()))


def law_scoring_is_incremental(tokens: float, *, prompt_len: int, answer_len: float, num_steps: float) -> None:
    """tokens: of one branch's verdicts, one after each of num_steps >= 3 steps. At most 1.2 x (prompt + answer), as if it had been
    read once; whoever reads every prefix anew pays about that per step."""
    require(num_steps >= 3, f"{num_steps} steps: too few to tell")
    bound = 1.2 * (prompt_len + answer_len)
    require(0 < tokens <= bound, f"{tokens:.0f} verifier tokens per branch of {prompt_len} + {answer_len:.0f} tokens: more than {bound:.0f}")


Trial = Callable[[Sequence[str], Sequence[str]], Sequence[float | None]]  # (programs, tests) -> a value for each program


def law_tests_and_programs_agree(judged: Trial) -> None:
    """Right programs stand first, although no generated test can be trusted: neither one that a wrong program alone passes, nor a
    crowd of wrong programs that agree on nothing but failing, nor the loner that passes most tests."""
    right = ("def double(x):\n    return 2 * x", "def double(x):\n    return x + x")
    good = ("assert double(3) == 6", "assert double(0) == 0", "assert double(-1) == -2")
    square, crash, four = "def double(x):\n    return x * x", "def double(x):\n    return [][x]", "def double(x):\n    return 4"
    fond = tuple(f"assert double({x}) == 4" for x in (1, 3, 5, 7))  # of the program that says 4
    worlds = {
        "a wrong test": ((square, *right), (*good, "assert double(3) == 9")),
        "a failing crowd": ((crash, crash + " ", crash + "  ", *right), good),
        "tests of a misunderstanding": ((four, *right), (*good, *fond)),
    }
    for name, (programs, tests) in worlds.items():
        values = judged(programs, tests)
        require(None not in values, f"{name}: no verdict among {values}")
        goods = [v for p, v in zip(programs, values) if p in right and v is not None]
        others = [v for p, v in zip(programs, values) if p not in right and v is not None]
        require(min(goods) > max(others), f"{name}: right programs get {goods}, wrong ones {others}")
