"""Inspect runs its tasks on ponder, and ponder's strategies run over a model of Inspect's: in-memory samples, the toy process, no network."""

import pytest

inspect_ai = pytest.importorskip("inspect_ai", reason="Inspect is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")  # Inspect's own

from inspect_ai import Task  # noqa: E402
from inspect_ai import eval as evaluate  # noqa: E402
from inspect_ai.dataset import Sample  # noqa: E402
from inspect_ai.model import GenerateConfig, ModelOutput, ModelUsage, get_model  # noqa: E402
from inspect_ai.scorer import includes, match  # noqa: E402
from inspect_ai.solver import generate  # noqa: E402

from ponder.connect.inspect import think  # noqa: E402
from ponder.connect.model import Model  # noqa: E402
from ponder.testing.toy import ToyProcess, toy_lm  # noqa: E402

SAMPLES = [Sample(input="ab" * (1 + i), target="a") for i in range(6)]


def ran(tmp_path, model, solver, samples=SAMPLES, scorer=None, **settings):
    (log,) = evaluate(
        Task(dataset=samples, solver=solver, scorer=scorer or includes()), model=model, log_dir=str(tmp_path), display="none", **settings
    )
    return log


def toy(strategy, **settings):
    return get_model(f"ponder/toy@{strategy}", opened=Model(ToyProcess(toy_lm())), memoize=False, **settings)


def test_a_strategy_is_a_model(tmp_path):
    log = ran(tmp_path, toy("self_consistency:num=3", budget="200 tokens"), generate(max_tokens=12))
    assert log.status == "success", log.error
    for sample in log.samples:
        facts = sample.output.metadata["ponder"]
        assert facts["candidates"] == 3 and facts["stop_reason"] == "done" and 0 < facts["confidence"] <= 1
        assert sample.output.usage.output_tokens == facts["cost"]["generated_tokens"] > 0
        assert set(sample.output.completion) <= {"a", "b"}
    again = ran(tmp_path, toy("self_consistency:num=3", budget="200 tokens"), generate(max_tokens=12))
    assert [s.output.completion for s in again.samples] == [s.output.completion for s in log.samples]


@pytest.mark.parametrize(
    "config, says",
    [
        (GenerateConfig(num_choices=3), "num_choices: not honoured"),
        (GenerateConfig(temperature=0.5), "temperature: strategy beam draws in its own way"),
    ],
)
def test_a_setting_that_is_not_honoured_fails(tmp_path, config, says):
    log = ran(tmp_path, toy("beam"), generate(), samples=SAMPLES[:1], **config.model_dump(exclude_none=True))
    assert log.status == "error" and says in str(log.error.message)


def test_stops_and_sampling_are_honoured(tmp_path):
    log = ran(tmp_path, toy("greedy"), generate(stop_seqs=["b"], max_tokens=9, temperature=1.0, seed=3))
    assert log.status == "success" and all("b" not in s.output.completion for s in log.samples)
    assert len({s.output.completion for s in log.samples}) > 1


def scripted(texts):
    """A model of Inspect's that says these in turn."""
    outputs = [ModelOutput.from_content("mockllm/model", text) for text in texts]
    for output in outputs:
        output.usage = ModelUsage(input_tokens=7, output_tokens=4, total_tokens=11)  # or Inspect fetches a tokenizer to count
    return get_model("mockllm/model", custom_outputs=outputs, memoize=False)


def test_a_strategy_over_a_model_of_inspect_s_votes(tmp_path):
    samples = [Sample(input="What is 7 + 5?", target="12")]
    solver = think(strategy="self_consistency:num=5", answer="number")
    log = ran(tmp_path, scripted(["It is 12.", "It is 13.", "12", "I say 12", "11"]), solver, samples=samples, scorer=match(numeric=True))
    assert log.status == "success", log.error
    (sample,) = log.samples
    assert sample.output.metadata["ponder"]["answer"] == "12" and sample.output.metadata["ponder"]["confidence"] == pytest.approx(0.6)
    assert sample.scores["match"].value == "C" and sample.output.metadata["ponder"]["cost"]["generated_tokens"] == 20


@pytest.mark.parametrize("strategy, says", [("beam", "asks for Expand"), ("particle_filter", "goes on from half an answer")])
def test_what_a_foreign_model_cannot_do_is_refused_with_a_reason(tmp_path, strategy, says):
    log = ran(tmp_path, scripted(["a\n"] * 40), think(strategy=strategy), samples=SAMPLES[:1])
    assert log.status == "error" and says in str(log.error.message)
