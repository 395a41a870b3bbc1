"""Plans for answers, whose keys are looked up: Quest, Squeezed and Recycled against their cards computed once more in float64, token by
token; every law with a wrong plan that it must fail."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from accelerate.attend_meet import config_of, meet_together, open_attention, placed
from ponder.accelerate.attend.quest import Quest
from ponder.accelerate.attend.recycled import Recycled
from ponder.accelerate.attend.squeezed import Squeezed, k_means
from ponder.core.attention_plan import View
from ponder.core.errors import BadField
from ponder.engine.pages import Sequence as Pages
from ponder.engine.planned import Memories, PlannedAttention
from ponder.native.build import library
from ponder.testing.laws_attend import Rows, drawn_rows, law_answer_is_its_rule, law_answers_in_any_steps

needs_kernel = pytest.mark.skipif(library() is None, reason="no compiled kernel here")
KERNELS = [pytest.param(True, marks=needs_kernel), False]
TOLERANCE = {True: 0.05, False: 2e-5}
NUM_PROMPT = 140  # 8 full pages, and 12 keys more
PLANS = [
    Quest(keep=64, dense_layers=1),
    Squeezed(clusters=0.15, threshold=1.0),
    Squeezed(clusters=0.2, threshold=1.0, coarse=0.05, coarse_threshold=0.8),
    Recycled(keep=40, every=5),
]
UNITS = [Quest(keep=4096), Quest(dense_layers=6), Squeezed(threshold=0.0), Recycled(every=1), Recycled(keep=4096)]


def rows_of(num: int, seed: int = 0) -> Rows:
    return drawn_rows(torch.Generator().manual_seed(seed), num, num_heads=6, num_kv_heads=2, width=16, layer=2, num_layers=6)


def meet_with(is_native: bool):
    def meet(plan, rows: Rows, num_prompt: int, stops, is_forgetful: bool):
        attention = open_attention(plan, config_of(rows), is_native=is_native)
        if is_forgetful and isinstance(attention, PlannedAttention):
            make = attention.plan

            def forgetful(spans):
                attention.memories = Memories()
                return make(spans)

            attention.plan = forgetful  # type: ignore[method-assign]
        return meet_together(attention, [(rows, num_prompt)], [[stop] for stop in stops])[0]

    return meet


# the cards once more


def seen_by_quest(plan: Quest, q_NHE, k_NKE) -> torch.Tensor:
    num, num_heads, _ = q_NHE.shape
    seen = torch.zeros(num_heads, num, num, dtype=torch.bool)
    group = num_heads // k_NKE.shape[1]
    for head in range(k_NKE.shape[1]):
        pages = k_NKE[: num // 16 * 16, head].unflatten(0, (-1, 16))
        lo, hi = pages.min(1).values, pages.max(1).values
        mine = slice(head * group, (head + 1) * group)
        for t in range(NUM_PROMPT, num):
            q = q_NHE[t, mine, None]
            promised = torch.maximum(q * lo, q * hi).sum(-1).max(0).values[: t // 16].tolist()
            best = sorted(range(t // 16), key=lambda page: -promised[page])[: plan.keep // 16 - 1]
            for page in (*best, t // 16):
                seen[mine, t, page * 16 : page * 16 + 16] = True
    return seen


def seen_by_recycled(plan: Recycled, q_NHE, k_NKE) -> torch.Tensor:
    num, num_heads, width = q_NHE.shape
    seen = torch.zeros(num_heads, num, num, dtype=torch.bool)
    group = num_heads // k_NKE.shape[1]
    for t in range(NUM_PROMPT, num):
        full = t - (t - NUM_PROMPT) % plan.every
        seen[:, t, full + 1 : t + 1] = True
        for head in range(k_NKE.shape[1]):
            mine = slice(head * group, (head + 1) * group)
            mass = (q_NHE[full, mine] @ k_NKE[: full + 1, head].T / width**0.5).softmax(-1).sum(0)
            seen[mine, t, mass.topk(plan.keep).indices] = True
        if t == full:
            seen[:, t] = True
    return seen


def seen_by_squeezed(plan: Squeezed, q_NHE, k_NKE, dtype: torch.dtype) -> torch.Tensor:
    num, num_heads, width = q_NHE.shape
    cut = NUM_PROMPT // 16 * 16
    seen = torch.zeros(num_heads, num, num, dtype=torch.bool)
    seen[:, NUM_PROMPT:, cut:] = True
    group = num_heads // k_NKE.shape[1]
    for head in range(k_NKE.shape[1]):
        keys = k_NKE[:cut, head]
        labels = k_means(keys.float(), round(plan.clusters * cut), plan.rounds).tolist()
        members = {i: [j for j, label in enumerate(labels) if label == i] for i in set(labels)}
        means = {i: keys[some].mean(0) for i, some in members.items()}
        every = torch.stack([means.get(i, torch.zeros(width, dtype=keys.dtype)) for i in range(round(plan.clusters * cut))])
        means = {i: mean.to(dtype).double() for i, mean in means.items()}
        groups = k_means(every.float(), max(1, round(plan.coarse * cut)), plan.rounds).tolist()
        above = {}
        for g in {groups[i] for i in means}:
            inside = [j for i, some in members.items() if groups[i] == g for j in some]
            above[g] = keys[inside].mean(0).to(dtype).double(), len(inside)
        names, counts = list(means), torch.tensor([len(members[i]) for i in means])
        weights = (q_NHE @ torch.stack([means[i] for i in names]).T / width**0.5).exp()  # [N, H, groups]
        tops = list(above)
        over = (q_NHE @ torch.stack([above[g][0] for g in tops]).T / width**0.5).exp()
        sizes = torch.tensor([above[g][1] for g in tops])
        of = torch.tensor([tops.index(groups[i]) for i in names])
        for t in range(NUM_PROMPT, num):
            for h in range(head * group, (head + 1) * group):
                is_open = torch.ones(len(tops), dtype=torch.bool)
                if plan.coarse:
                    is_open = cut * over[t, h] / (sizes * over[t, h]).sum() >= plan.coarse_threshold
                looked = is_open[of]
                total = (counts * weights[t, h])[looked].sum() + (sizes * over[t, h])[~is_open].sum() * bool(plan.coarse)
                for i in ((cut * weights[t, h] / total >= plan.threshold) & looked).nonzero().flatten().tolist():
                    seen[head * group : (head + 1) * group, t, members[names[i]]] = True
    return seen


def seen_by(plan, rows: Rows, dtype: torch.dtype) -> torch.Tensor:
    q, k = (x.double() for x in placed(rows, dtype)[:2])
    if isinstance(plan, Squeezed):
        return seen_by_squeezed(plan, q, k, dtype)
    return (seen_by_quest if isinstance(plan, Quest) else seen_by_recycled)(plan, q, k)


@pytest.mark.parametrize("is_native", KERNELS)
@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: f"{plan.name}-{getattr(plan, 'coarse', '')}")
def test_a_plan_is_its_card(is_native: bool, plan):
    rows = rows_of(164)
    seen = seen_by(plan, rows, torch.bfloat16 if is_native else torch.float32)
    assert 0.05 < seen[:, NUM_PROMPT:].double().mean() < 0.9
    law_answer_is_its_rule(meet_with(is_native), plan, rows, seen, num_prompt=NUM_PROMPT, tolerance=TOLERANCE[is_native])


@needs_kernel
@pytest.mark.parametrize("unit", UNITS, ids=["quest-keep", "quest-dense", "squeezed-threshold", "recycled-every", "recycled-keep"])
def test_the_unit_setting_is_plain_attention(unit):
    rows = rows_of(170)
    stops = [*range(NUM_PROMPT, 160), 170]
    assert torch.equal(meet_with(True)(unit, rows, NUM_PROMPT, stops, False), meet_with(True)(None, rows, NUM_PROMPT, stops, False))


@pytest.mark.parametrize("is_native", KERNELS)
@pytest.mark.parametrize("plan", [*PLANS, Squeezed(threshold=1e-9)], ids=lambda plan: f"{plan.name}-{getattr(plan, 'coarse', '')}")
def test_answers_in_any_steps(is_native: bool, plan):
    if is_native:
        law_answers_in_any_steps(meet_with(is_native), plan, rows_of(180), NUM_PROMPT)
    else:  # PyTorch's products round by their shapes
        found = [meet_with(False)(plan, rows_of(164), NUM_PROMPT, stops, False) for stops in ([NUM_PROMPT, 164], range(NUM_PROMPT, 165))]
        assert (found[0] - found[1]).abs().max() < 1e-5


@needs_kernel
@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: f"{plan.name}-{getattr(plan, 'coarse', '')}")
def test_together_as_alone(plan):
    crowd = [(rows_of(180, 1), NUM_PROMPT), (rows_of(160, 2), 126), (rows_of(90, 3), 60)]
    stops = [[126, 126, 60], [140, 127, 61], [141, 128, 65], [147, 160, 80], [180, 160, 90]]
    together = meet_together(open_attention(plan, config_of(crowd[0][0]), is_native=True), crowd, stops)
    for i, one in enumerate(crowd):
        alone = meet_together(open_attention(plan, config_of(one[0]), is_native=True), [one], [[one[1]], [len(one[0])]])[0]
        assert torch.equal(together[i], alone), i


@needs_kernel
@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: f"{plan.name}-{getattr(plan, 'coarse', '')}")
def test_what_was_met_is_counted_and_within_the_budget(plan):
    rows = rows_of(164)
    attention = open_attention(plan, config_of(rows), is_native=True)
    counted: dict[tuple[int, int], int] = {}
    pieces_of = type(plan).pieces

    class Counting(type(plan)):
        def pieces(self, view: View):
            found = pieces_of(self, view)
            for piece in found if view.start >= NUM_PROMPT else []:
                rows_of_list = np.split(piece.rows, piece.row_ends[:-1])
                for some, keys in zip(rows_of_list, np.split(piece.keys, piece.key_ends[:-1]), strict=True):
                    for row in some:
                        place = view.start + row // view.num_heads
                        met = sum(min(16, place + 1 - 16 * page) for page in keys) if piece.are_pages else len(keys)
                        counted[place, row % view.num_heads] = counted.get((place, row % view.num_heads), 0) + int(met)
            return found

    attention.planned = Counting(**{name: value for name, value in vars(plan).items() if name in type(plan).__dataclass_fields__})
    meet_together(attention, [(rows, NUM_PROMPT)], [[NUM_PROMPT], *[[stop] for stop in range(NUM_PROMPT + 1, 165)]])
    assert (attention.met.keys, attention.met.of) == (sum(counted.values()), sum(6 * (place + 1) for place in range(NUM_PROMPT, 164)))
    assert isinstance(plan, Recycled) or attention.memories.nbytes > 0
    for (place, _), met in counted.items():
        if isinstance(plan, Quest):
            assert met == plan.keep - 15 + place % 16
        if isinstance(plan, Recycled):
            since = (place - NUM_PROMPT) % plan.every
            assert met == (plan.keep + since if since else place + 1)


@needs_kernel
def test_prompts_that_share_whole_pages_share_what_is_remembered_of_them():
    attention = open_attention(Squeezed(), config_of(rows_of(8)), is_native=True)
    sequence = Pages(attention.pool)
    assert sequence.reserve(NUM_PROMPT + 1)
    sequence.num_tokens = NUM_PROMPT
    fork = sequence.fork()
    mine, other = (attention.memories.of(x, NUM_PROMPT)[2] for x in (sequence, fork))
    assert mine.prompt is other.prompt
    assert mine.own is not other.own
    fork.release()
    sequence.release()
    again = Pages(attention.pool)
    assert again.reserve(NUM_PROMPT + 1)  # the very same pages, taken anew
    assert np.array_equal(again.table[0, 0, :8], np.arange(8) + again.table[0, 0, 0])
    assert attention.memories.of(again, NUM_PROMPT)[2].prompt is not mine.prompt


# what the laws must find fault with


class NextPage(Quest):
    """Meets the page behind each of the best ones."""

    def pages(self, view, place, panels):
        return [np.unique(np.minimum(some + 1, place // 16)) for some in super().pages(view, place, panels)]


class OwnPageForgotten(Quest):
    """Leaves its own page to chance: one more of the best others instead."""

    def pages(self, view, place, panels):
        return [some[:-1] for some in replace(Quest(keep=self.keep + 16, dense_layers=self.dense_layers)).pages(view, place, panels)]


class LateList(Recycled):
    """Its list is that of the token behind the full one."""

    def most_met(self, view, place):
        return super().most_met(view, min(place + 1, view.stop - 1))


class NoNewKeys(Recycled):
    """The recycled list without what came since."""

    def met_again(self, kept_KN, place, since):
        return super().met_again(kept_KN, place, since)[:, : self.keep]


class NextGroup(Squeezed):
    """Labels are off by one."""

    def clustered(self, keys_CKE):
        found = super().clustered(keys_CKE)
        return found | {"labels": found["labels"].roll(1, 1)}


class Hoarder(Quest):
    """Remembers the bounds of its last page before that is full."""

    def bounds(self, view: View):
        return super().bounds(replace(view, stop=view.stop + 16))


@pytest.mark.parametrize(
    "mutant",
    [NextPage(keep=64, dense_layers=1), OwnPageForgotten(keep=64, dense_layers=1), LateList(keep=40, every=5), NoNewKeys(keep=40, every=5),
     NextGroup(clusters=0.15, threshold=1.0)],
    ids=lambda plan: type(plan).__name__,
)  # fmt: skip
def test_a_wrong_list_is_found(mutant):
    rows = rows_of(164)
    with pytest.raises(AssertionError):
        law_answer_is_its_rule(
            meet_with(False), mutant, rows, seen_by(mutant, rows, torch.float32), num_prompt=NUM_PROMPT, tolerance=TOLERANCE[False]
        )


@needs_kernel
def test_what_is_remembered_wrongly_is_found():
    with pytest.raises(AssertionError):
        law_answers_in_any_steps(meet_with(True), Hoarder(keep=64, dense_layers=1), rows_of(200), NUM_PROMPT)


class AnySegment(Recycled):
    """Says that answers may be taken up anywhere."""

    answer_segment = 1


@needs_kernel
def test_a_list_that_cannot_be_found_again_is_found():
    with pytest.raises((AssertionError, KeyError)):
        law_answers_in_any_steps(meet_with(True), AnySegment(keep=40, every=5), rows_of(180), NUM_PROMPT)


@pytest.mark.parametrize(
    "bad",
    [lambda: Quest(keep=100), lambda: Quest(keep=0), lambda: Recycled(every=0), lambda: Recycled(keep=0), lambda: Squeezed(clusters=0),
     lambda: Squeezed(coarse=0.2), lambda: Squeezed(threshold=-1)],
)  # fmt: skip
def test_bad_settings_are_refused(bad):
    with pytest.raises(BadField):
        bad()
