"""Laws of the AttentionPlan role. `meet(plan, rows, stops)` runs an attention on one layer of one sequence, in spans that end at `stops`,
and returns what each token read, float64 [N, H, E]; plan None is attention without a plan. Rows are not rotated yet: `meet` rotates
them to their places, by `rows.frequency`, and rounds as its kernel does.

A mutant of each is in tests/accelerate/test_attend_plans.py.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ponder.core.attention_plan import AttentionPlan
from ponder.testing.exact import require


@dataclass(frozen=True)
class Rows:
    """Queries, keys and values of one sequence in one layer of `num_layers`, float64, not rotated."""

    q_NHE: Tensor
    k_NKE: Tensor
    v_NKE: Tensor
    frequency: Tensor  # [E / 2] angle of one position
    layer: int = 0
    num_layers: int = 1

    def __len__(self) -> int:
        return len(self.q_NHE)


Meet = Callable[[AttentionPlan | None, Rows, Sequence[int]], Tensor]


@dataclass(frozen=True)
class Rule:
    """What a plan says in its card, key by key: which keys each query sees, and from how far."""

    seen_HNN: Tensor  # bool [H or 1, N, N]; keys behind the query's place are never seen, whatever it says
    distance_NN: Tensor | None = None  # None: the true one
    log_weight_HNN: Tensor | None = None  # of a key in the softmax; None: 0


def drawn_rows(generator: torch.Generator, num: int, *, num_heads: int, num_kv_heads: int, width: int, layer: int = 0, num_layers: int = 1) -> Rows:
    """Rows with some structure, so that attention is neither flat nor on one key. They hold in bfloat16 exactly."""
    rows = torch.randn(num, num_heads + 2 * num_kv_heads, width, generator=generator, dtype=torch.float64).bfloat16().double()
    frequency = 10000.0 ** -(torch.arange(width // 2, dtype=torch.float64) / (width // 2))
    cut = num_heads + num_kv_heads
    return Rows(rows[:, :num_heads], rows[:, num_heads:cut], rows[:, cut:], frequency, layer, num_layers)


def dense_reference(rows: Rows, rule: Rule) -> Tensor:
    """float64 [N, H, E]: softmax over every pair, each with its own rotation; slow and obvious."""
    num, num_heads, width = rows.q_NHE.shape
    at = torch.arange(num)
    distance = at[:, None] - at if rule.distance_NN is None else rule.distance_NN
    angle = distance[:, :, None] * rows.frequency  # [N, N, E / 2]
    cos, sin = angle.cos(), angle.sin()
    group = num_heads // rows.k_NKE.shape[1]
    out = torch.zeros_like(rows.q_NHE)
    for head in range(num_heads):
        (qa, qb), (ka, kb) = rows.q_NHE[:, head, None].chunk(2, -1), rows.k_NKE[None, :, head // group].chunk(2, -1)
        scores = ((qa * cos - qb * sin) * ka + (qb * cos + qa * sin) * kb).sum(-1) / math.sqrt(width)
        seen = rule.seen_HNN[head if len(rule.seen_HNN) > 1 else 0] & (at <= at[:, None])
        if rule.log_weight_HNN is not None:
            scores = scores + rule.log_weight_HNN[head]
        out[:, head] = scores.masked_fill(~seen, -math.inf).softmax(-1) @ rows.v_NKE[:, head // group]
    return out


def law_unit_is_plain(meet: Meet, unit: AttentionPlan, rows: Rows) -> None:
    """At the setting that does nothing, a plan is attention without a plan, bit for bit."""
    num = len(rows)
    require(torch.equal(meet(unit, rows, [num // 3, num]), meet(None, rows, [num])), f"{unit.name} at its unit setting changes what is read")


def law_is_its_rule(meet: Meet, plan: AttentionPlan, rows: Rows, rule: Rule, *, tolerance: float) -> None:
    """What every token reads is softmax over the keys that the plan's rule lets it see, from the distances that the rule states."""
    error = (meet(plan, rows, [len(rows)]) - dense_reference(rows, rule)).abs().max().item()
    require(error <= tolerance, f"{plan.name}: {error:.2e} from its rule, at most {tolerance}")


def law_cuts_do_not_matter(meet: Meet, plan: AttentionPlan, rows: Rows, stops: Sequence[int]) -> None:
    """A prompt in pieces, cut between the plan's segments, reads what it reads whole, bit for bit."""
    require(all(stop % plan.segment == 0 for stop in stops), f"stops {stops} are not between segments of {plan.segment}")
    whole, cut = meet(plan, rows, [len(rows)]), meet(plan, rows, [*stops, len(rows)])
    require(
        torch.equal(whole, cut), f"{plan.name}: cut at {stops}, tokens {(whole != cut).flatten(1).any(1).nonzero().flatten().tolist()[:5]} differ"
    )


def law_later_tokens_do_not_matter(meet: Meet, plan: AttentionPlan, rows: Rows, num: int) -> None:
    """The first `num` tokens read the same, bit for bit, whether others follow or not."""
    whole = meet(plan, rows, [len(rows)])[:num]
    alone = meet(plan, replace(rows, q_NHE=rows.q_NHE[:num], k_NKE=rows.k_NKE[:num], v_NKE=rows.v_NKE[:num]), [num])
    require(torch.equal(whole, alone), f"{plan.name}: tokens before {num} read otherwise when others follow")


MeetAnswer = Callable[[AttentionPlan | None, Rows, int, Sequence[int], bool], Tensor]


def law_answers_in_any_steps(meet: MeetAnswer, plan: AttentionPlan | None, rows: Rows, num_prompt: int) -> None:
    """An answer's tokens read the same, bit for bit, one by one, several at a time, and when what the plan remembers is lost wherever an
    answer may be taken up. `meet(plan, rows, num_prompt, stops, is_forgetful)` forgets between all stops."""
    segment = 1 if plan is None else plan.answer_segment
    num = len(rows)
    alone = meet(plan, rows, num_prompt, range(num_prompt, num + 1), False)
    cuts = list(range(num_prompt, num, segment))
    for name, stops, is_forgetful in (
        ("several at a time", [num_prompt, num_prompt + 1, num - 7, num], False), ("forgetful", [*cuts, num], True), ("at once", [num], False),
    ):  # fmt: skip
        found = meet(plan, rows, num_prompt, stops, is_forgetful)
        differ = (alone != found).flatten(1).any(1).nonzero().flatten().tolist()
        require(not differ, f"{getattr(plan, 'name', 'plain')}, {name}: tokens {differ[:5]} read otherwise than one by one")


def law_answer_is_its_rule(meet: MeetAnswer, plan: AttentionPlan, rows: Rows, seen_HNN: Tensor, *, num_prompt: int, tolerance: float) -> None:
    """What an answer's tokens read is softmax over the keys that the plan's rule, told apart from it, lets them see; prompts read all."""
    rule = Rule(seen_HNN | (torch.arange(len(rows)) < num_prompt)[:, None])
    found, wanted = meet(plan, rows, num_prompt, [num_prompt, len(rows)], False), dense_reference(rows, rule)
    error = (found - wanted).abs().max().item()
    require(error <= tolerance, f"{plan.name}: {error:.2e} from its rule, at most {tolerance}")
