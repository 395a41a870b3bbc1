"""Heads: found signals, no leaks, calibration, files, verifiers that read them. Wrong ones must fail."""

from dataclasses import replace

import pytest
import torch

from ponder.catalogue import strategy
from ponder.cli.show import out
from ponder.cli.train import Opened, baseline, measure, quality_table, train_verifier
from ponder.core.asks import Prefix, Prompt, Read, Readings, Sampling, candidate, spent_answer
from ponder.core.errors import BadField, PonderError, StoreError, UnknownName
from ponder.core.probe import checkpoint_of
from ponder.infer.best_of_n import BestOfN
from ponder.infer.particle_filter import ParticleFilter
from ponder.infer.resample.systematic import systematic
from ponder.run.driver import ask
from ponder.run.question import Question
from ponder.testing import laws_probe, laws_verifier
from ponder.testing.toy import ToyProcess, toy_lm
from ponder.train.fit import Recipe, States, fit_head, platt, split_groups
from ponder.train.rollouts import Rollouts, collect, states_at
from ponder.verify.heads import load_head, save_head
from ponder.verify.measure import auroc, expected_calibration_error
from ponder.verify.p_ik import PIK
from ponder.verify.probe_head import ProbeHead

LM = toy_lm("ab", seed=1)
PROMPTS = [Prompt(messages=(("raw", f"q{i}"),), max_tokens=9) for i in range(160)]
MODEL = checkpoint_of(ToyProcess(LM).model_id)
LINEAR = Recipe(hidden=0, rate=0.03, max_epochs=40)


def more_a_than_b(text):
    return text.count("a") > text.count("b")


@pytest.fixture(scope="module")
def rollouts():
    questions = [Question(id=p.question, prompt=p, is_right=more_a_than_b) for p in PROMPTS]
    return list(collect(ToyProcess(LM), questions, Rollouts(num=4, until=("b",), sampling=Sampling())))


@pytest.fixture(scope="module")
def head(rollouts):
    return fit_head(states_at(rollouts, "answers"), model_id=MODEL, place="last", recipe=LINEAR)


def fit(hidden):
    def fitted(states, labels, groups):
        made = fit_head(States(states, tuple(labels), tuple(groups)), model_id=MODEL, place="last", recipe=replace(LINEAR, hidden=hidden))
        return lambda x: made.read(x)[:, 0].tolist()

    return fitted


def memory(states, labels, groups):
    """Wrong: says the label of the nearest state that it has seen, and has seen all."""
    return lambda x: [float(ALL_LABELS[int(torch.cdist(row[None], ALL_STATES).argmin())]) for row in x]


ALL_STATES, ALL_LABELS = torch.zeros(1, 1), [True]


@pytest.mark.parametrize("hidden", [0, 8])
def test_a_planted_signal_is_found_and_dealt_labels_are_not(rollouts, hidden):
    states = states_at(rollouts, "answers")
    args = {"states": states.hidden_ND, "labels": states.labels, "questions": states.groups}
    laws_verifier.law_finds_what_is_there(fit(hidden), auroc, **args)
    laws_verifier.law_finds_nothing_where_nothing_is(fit(hidden), auroc, **args)


def test_a_constant_finds_nothing_and_a_leak_too_much(rollouts, monkeypatch):
    states = states_at(rollouts, "answers")
    args = {"states": states.hidden_ND, "labels": states.labels, "questions": states.groups}
    with pytest.raises(AssertionError, match="linear"):
        laws_verifier.law_finds_what_is_there(lambda *_: lambda x: [0.5] * len(x), auroc, **args)
    names = sorted(set(states.groups))
    order = dict(zip(names, torch.randperm(len(names), generator=torch.Generator().manual_seed(1)).tolist()))
    monkeypatch.setitem(globals(), "ALL_STATES", states.hidden_ND)
    monkeypatch.setitem(globals(), "ALL_LABELS", [states.labels[order[q] * len(states.labels) // len(names)] for q in states.groups])
    with pytest.raises(AssertionError, match="dealt at random"):
        laws_verifier.law_finds_nothing_where_nothing_is(memory, auroc, **args)


def by_question(groups):
    return [[i for i, g in enumerate(groups) if g in part] for part in split_groups(groups, (0.7, 0.15), 0)]


def by_step(groups):
    """Wrong: deals single states."""
    order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(0)).tolist()
    return [order[: len(order) // 2], order[len(order) // 2 :]]


def test_splits_are_by_question():
    laws_verifier.law_splits_by_question(by_question, auroc)
    with pytest.raises(AssertionError, match="in two parts"):
        laws_verifier.law_splits_by_question(by_step, auroc)


def test_calibration_helps_on_unseen_data():
    def calibrate(logits, labels):
        slope, offset = platt(logits, labels)
        return lambda x: torch.sigmoid(slope * x + offset)

    laws_verifier.law_calibration_helps(calibrate, expected_calibration_error, auroc)
    with pytest.raises(AssertionError, match="calibration error"):
        laws_verifier.law_calibration_helps(lambda *_: torch.sigmoid, expected_calibration_error, auroc)
    with pytest.raises(AssertionError, match="AUROC"):
        laws_verifier.law_calibration_helps(lambda *_: lambda x: torch.full_like(x, 0.5), lambda *_: 0.0, auroc)


def test_platt_with_labels_of_one_kind_stays_finite():
    slope, offset = platt(torch.linspace(-2, 2, 20).double(), [True] * 20)
    assert bool(torch.isfinite(slope)) and bool(torch.isfinite(offset)) and float(slope) > 0


def test_a_head_is_a_probe(head):
    states = torch.randn(70, len(head.mean), generator=torch.Generator().manual_seed(0))
    laws_probe.law_rows_stand_alone(head, states)
    wide = fit_head_of_noise(hidden=24)
    laws_probe.law_rows_stand_alone(wide, torch.randn(70, 64, generator=torch.Generator().manual_seed(0)).bfloat16())
    for law in laws_probe.LAWS:
        law(lambda: ToyProcess(LM), PROMPTS[0], head)


def fit_head_of_noise(hidden):
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(400, 64, generator=draws)
    return fit_head(
        States(x, tuple((x[:, 0] > 0).tolist()), tuple(f"q{i // 4}" for i in range(400))),
        model_id=MODEL,
        place="last",
        recipe=Recipe(hidden=hidden, max_epochs=3),
    )


def test_saved_and_loaded_it_is_the_same_head(head, tmp_path):
    save_head(head, tmp_path / "h.safetensors")
    again = load_head(tmp_path / "h.safetensors")
    assert again == head and again.facts == head.facts and again.name == head.name
    assert replace(head, bias=head.bias + 1).name != head.name


def test_damaged_and_foreign_files_are_refused(head, tmp_path):
    path = tmp_path / "h.safetensors"
    with pytest.raises(StoreError):
        load_head(path)
    path.write_bytes(b"no tensors")
    with pytest.raises(BadField, match="no safetensors"):
        load_head(path)
    save_head(replace(head, slope=-head.slope), path)
    with pytest.raises(BadField, match="slope"):
        load_head(path)
    save_head(replace(head, w_skip=head.w_skip[:-1]), path)
    with pytest.raises(BadField, match="w_skip"):
        load_head(path)
    torch_file = {"x": torch.zeros(2)}
    import safetensors.torch

    safetensors.torch.save_file(torch_file, path)
    with pytest.raises(BadField, match="holds no head"):
        load_head(path)


def test_a_head_of_another_model_or_place_is_refused(head):
    foreign = replace(head, model_id="another model")
    with pytest.raises(PonderError, match="another model"):
        ask(ToyProcess(LM), PROMPTS[0], BestOfN(num=2, verifier=ProbeHead(head=foreign)))
    with pytest.raises(BadField, match="width"):
        head.read(torch.zeros(1, 3))
    with pytest.raises(BadField, match="p_ik"):
        ProbeHead(head=replace(head, place="prompt"))
    with pytest.raises(BadField, match="probe_head"):
        PIK(head=head)


STRATEGIES = {
    "best_of_n": lambda v: BestOfN(num=6, verifier=v),
    "particle_filter": lambda v: ParticleFilter(num=6, resampler=systematic, verifier=v, until=("b",)),
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_reading_is_free_under_the_driver_and_judges_what_it_was_trained_on(name, head):
    for prompt in PROMPTS[:4]:
        result = ask(ToyProcess(LM), prompt, STRATEGIES[name](ProbeHead(head=head)), seed=3)
        assert result.cost.verifier_tokens == 0
        judged = [(c.verdicts[0].value, more_a_than_b(c.text)) for c in result.candidates if c.verdicts and c.finish == "stop"]
        right, wrong = [v for v, ok in judged if ok], [v for v, ok in judged if not ok]
        assert not right or not wrong or min(right) > max(wrong)


def test_readings_that_are_missing_are_asked_for_and_counted(head):
    result = ask(ToyProcess(LM), PROMPTS[0], Rollouts(num=3, until=("b",)))
    verifier, bare = ProbeHead(head=head), tuple(replace(c, readings=()) for c in result.candidates)
    asks = verifier.asks(PROMPTS[0], bare)
    assert all(isinstance(a, Read) for a in asks) and len(asks) == len({c.tokens for c in bare})
    judged = ask(ToyProcess(LM), PROMPTS[0], BestOfN(num=3, verifier=Forgetful(head=head)))
    free = ask(ToyProcess(LM), PROMPTS[0], BestOfN(num=3, verifier=verifier))
    assert [c.verdicts for c in judged.candidates] == [c.verdicts for c in free.candidates]
    different = {c.tokens for c in free.candidates}
    assert judged.cost.verifier_tokens == sum(map(len, different)) and free.cost.verifier_tokens == 0
    assert [v.value for v in verifier.judge(PROMPTS[0], bare, tuple(map(spent_answer, asks)))] == [None] * len(bare)


class Forgetful(ProbeHead):
    """Names no probes, so that nothing is read while answers are made."""

    probes = ()


def test_over_mean_and_min(head):
    rows = ((0.2,), (0.6,), (0.4,))
    c = replace(candidate(Prefix(PROMPTS[0], tokens=(0, 1, 2), text="aba")), readings=((head.name, rows),))
    values = {over: ProbeHead(head=head, over=over).judge(PROMPTS[0], (c,), ())[0].value for over in ("last", "mean", "min")}
    assert values == {"last": 0.4, "mean": pytest.approx(0.4), "min": 0.2}


def test_p_ik_judges_the_question_for_free_or_for_one_token(rollouts):
    head = fit_head(states_at(rollouts, "prompts"), model_id=MODEL, place="prompt", recipe=LINEAR)
    verifier = PIK(head=head)
    result = ask(ToyProcess(LM), PROMPTS[0], BestOfN(num=3, verifier=verifier))
    (value,) = {c.verdicts[0].value for c in result.candidates}
    assert result.cost.verifier_tokens == 0 and 0 < value < 1
    bare = tuple(replace(c, readings=()) for c in result.candidates)
    (read,) = verifier.asks(PROMPTS[0], bare)
    assert read.places == (0,) and verifier.judge(PROMPTS[0], bare, (Readings(((value,),)),))[0].value == value
    assert verifier.judge(PROMPTS[0], bare, (spent_answer(read),))[0].value is None


def test_rollouts_of_a_step_are_those_of_the_whole(rollouts):
    """Places: after the prompt, then the state that each step's last token was drawn from."""
    r = rollouts[0]
    assert len(r.states_ND) >= 2 and r.states_ND.shape[1] == len(LM.hidden(Prefix(PROMPTS[0]), 0))
    assert torch.equal(r.states_ND[0], LM.hidden(Prefix(PROMPTS[0]), 0))
    with pytest.raises(BadField, match="must be steps"):
        states_at(rollouts, "tokens")


def test_too_few_states_are_refused():
    states = States(torch.zeros(20, 3), (True,) * 20, tuple(f"q{i}" for i in range(20)))
    with pytest.raises(BadField, match="more questions"):
        fit_head(states, model_id=MODEL, place="last")
    with pytest.raises(BadField, match="as many"):
        States(torch.zeros(2, 3), (True,), ("q", "r"))
    with pytest.raises(BadField, match="at least"):
        Recipe(patience=0)


def test_train_verifier_refuses_before_any_work(tmp_path):
    with pytest.raises(BadField, match="steps, answers, prompts"):
        train_verifier(task="rg:short_sums", out=tmp_path / "h", kind="all", n=50, samples=2, model=Opened("m", "native", None), fit=Recipe())
    with pytest.raises(BadField, match="at least 10"):
        train_verifier(task="rg:short_sums", out=tmp_path / "h", kind="steps", n=5, samples=2, model=Opened("m", "native", None), fit=Recipe())
    assert not list(tmp_path.iterdir())


def test_a_head_is_named_by_its_file_in_a_strategy(head, tmp_path):
    path = tmp_path / "h.safetensors"
    save_head(head, path)
    found = strategy(f"best_of_n:num=3,verifier={path}")
    assert found.verifier == ProbeHead(head=head)
    assert ask(ToyProcess(LM), PROMPTS[0], found).cost.verifier_tokens == 0
    with pytest.raises(StoreError):
        strategy(f"best_of_n:verifier={tmp_path / 'none.safetensors'}")
    with pytest.raises(UnknownName, match="verifier"):
        strategy("best_of_n:verifier=none")


def test_the_table_says_what_was_measured(rollouts, head):
    with out.capture() as shown:
        out.print(quality_table({"head": measure(states_at(rollouts, "answers"), head.read)} | baseline(rollouts), title="toy"))
    text = shown.get()
    assert "within" in text and "mean_log_p" in text and "head" in text
