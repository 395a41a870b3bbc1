"""A model of transformers as a process: the laws of the role, and the tokens of its own generate."""

import pytest
import torch

from engine.tiny_models import END, ByteTokenizer, tiny
from ponder.backends.transformers_process import TransformersProcess
from ponder.core.asks import GREEDY, Extend, Prefix, chat
from ponder.core.errors import BadField
from ponder.testing.laws_process import LAWS
from ponder.testing.run import answer_turn

PROMPT = chat("tell me", max_tokens=16)
MODELS = {family: tiny(family)[1] for family in ("llama", "qwen2")}


def make() -> TransformersProcess:
    return TransformersProcess(MODELS["llama"], ByteTokenizer(), model_id="tiny")


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_law(law):
    law(make, PROMPT, 1e-3)  # a row beside others is rounded otherwise than alone


@pytest.mark.parametrize("family", MODELS)
def test_greedy_answers_are_generates_own(family):
    process = TransformersProcess(MODELS[family], ByteTokenizer(), model_id=family)
    prompts = [chat(text, max_tokens=12) for text in ("a", "what is it", "xyz" * 20)]
    answers = answer_turn([Extend(prefix=Prefix(p), seed=0, sampling=GREEDY) for p in prompts], process)
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = torch.tensor([process.tokenizer.render(prompt.messages)])
        made = MODELS[family].generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, eos_token_id=END, pad_token_id=END
        )
        assert answer.prefix.tokens == tuple(made[0, ids.shape[1] :].tolist())


def test_a_prompt_is_computed_once_while_it_is_kept():
    process = make()
    first, second = (answer_turn([Extend(prefix=Prefix(PROMPT), seed=seed, max_tokens=3)], process)[0].cost for seed in range(2))
    assert first.prompt_tokens == process.prompt_len(PROMPT) and second.prompt_tokens == 1


def test_more_than_one_model_can_be_told_apart_by_its_answers():
    """The comparison with generate can fail: another model's tokens are others."""
    ask = Extend(prefix=Prefix(PROMPT), seed=0, sampling=GREEDY)
    found = {
        answer_turn([ask], TransformersProcess(model, ByteTokenizer(), model_id=name))[0].prefix.tokens for name, model in MODELS.items()
    }  # fmt: skip
    assert len(found) == 2


def test_what_it_cannot_do_is_refused():
    with pytest.raises(BadField, match="final"):
        make().add(Extend(prefix=Prefix(PROMPT, finish="stop"), seed=0))
