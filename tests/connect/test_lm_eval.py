"""lm-evaluation-harness runs its tasks on ponder: its own evaluator, local task files, the toy process, where every number is known."""

import json
import math

import pytest

lm_eval = pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")  # the harness's own

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from ponder.connect.lm_eval import CHAT, Ponder  # noqa: E402
from ponder.connect.model import Model  # noqa: E402
from ponder.core.errors import BadField  # noqa: E402
from ponder.testing.toy import ToyProcess, toy_lm  # noqa: E402

GENERATE = """
task: toy_words
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["b"], max_gen_toks: 8}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
CHOOSE = """
task: toy_choice
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: ["a", "b"]
target_delimiter: ""
doc_to_target: "{{label}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


def ask(kind, *args):
    return Instance(request_type=kind, doc={}, arguments=args, idx=0)


def toy(**settings):
    return Ponder(Model(ToyProcess(toy_lm())), **settings)


def chance(text, last=None):
    """log-probability of `text` after the character `last`, by the table."""
    lm, total = toy_lm(), 0.0
    for char in text:
        total += lm.row(None if last is None else lm.alphabet.index(last))[lm.alphabet.index(char)]
        last = char
    return total


def test_likelihoods_are_the_table_s():
    pairs = [("ab", "a"), ("ab", "b"), ("a", "abba"), ("b", "ab"), ("a", "ba")]
    found = toy().loglikelihood([ask("loglikelihood", *pair) for pair in pairs])
    for (context, option), (value, is_greedy) in zip(pairs, found, strict=True):
        assert value == pytest.approx(chance(option, context[-1]), abs=1e-9)
        best, last = "", context[-1]
        while len(best) < len(option):
            row = toy_lm().row("ab".index(last))
            top = max(range(3), key=lambda v: row[v])
            if top == 2:
                break
            last = "ab"[top]
            best += last
        assert is_greedy == (best == option)
    assert {is_greedy for _, is_greedy in found} == {True, False}


def test_a_text_beyond_the_context_is_scored_whole():
    text = "abbaabab" * 30
    process = ToyProcess(toy_lm())
    process.context_len = 100
    (found,) = Ponder(Model(process)).loglikelihood_rolling([ask("loglikelihood_rolling", text)])
    assert found == pytest.approx(chance(text), abs=1e-9), "an order-1 model needs only the last character of what came before"
    assert math.isclose(toy().loglikelihood_rolling([ask("loglikelihood_rolling", text)])[0], found, abs_tol=1e-9)


def test_generation_honours_stops_and_refuses_the_rest():
    lm = toy()
    settings = {"until": ["b"], "max_gen_toks": 5, "do_sample": False, "temperature": 0.0}
    texts = lm.generate_until([ask("generate_until", "ab" * i, settings) for i in range(1, 4)])
    assert all("b" not in text and len(text) <= 5 for text in texts) and all(r.cost.generated_tokens <= 5 for r in lm.results)
    drawn = toy().generate_until([ask("generate_until", "a" * i, {"do_sample": True, "temperature": 1.5}) for i in range(1, 30)])
    assert len(set(drawn)) > 3
    with pytest.raises(BadField, match="num_beams: not honoured"):
        lm.generate_until([ask("generate_until", "ab", {"num_beams": 4})])


def test_strategies_answer_conversations():
    lm = toy(strategy="self_consistency:num=3", budget="200 tokens")
    chat = lm.apply_chat_template([{"role": "user", "content": "ab"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "a"}])
    assert chat.startswith(CHAT)
    lm.generate_until([ask("generate_until", chat, {"until": [], "max_gen_toks": 6})])
    assert len(lm.results[0].candidates) == 3


@pytest.mark.parametrize("task, data", [(GENERATE, [("ab", "a"), ("b", "aa")]), (CHOOSE, [("ab", 0), ("a", 1), ("b", 0)])])
def test_the_harness_runs_its_tasks(tmp_path, task, data, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    lines = [json.dumps({"question": q, "answer": str(a), "label": a if isinstance(a, int) else 0}) for q, a in data]
    (tmp_path / "data.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "task.yaml").write_text(task.replace("FILE", str(tmp_path / "data.jsonl")))
    name = task.split("task: ")[1].splitlines()[0]
    found = lm_eval.simple_evaluate(model=toy(), tasks=[name], task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False))
    assert found["n-samples"][name] == {"original": len(data), "effective": len(data)}
    if name == "toy_choice":
        best = [max((0, 1), key=lambda v, q=q: chance("ab"[v], q[-1])) for q, _ in data]
        assert found["results"][name]["acc,none"] == pytest.approx(sum(b == a for b, (_, a) in zip(best, data)) / len(data))
