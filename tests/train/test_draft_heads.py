"""Heads that guess ahead: they find what can be found, and nothing where there is nothing."""

import pytest
import torch

from ponder.core.asks import Prompt
from ponder.core.errors import BadField
from ponder.core.probe import checkpoint_of
from ponder.testing.toy import ToyProcess, toy_lm
from ponder.train.draft_heads import HeadsRecipe, Said, fit_draft_heads, frequent, lessons, written

DRAWS = torch.Generator().manual_seed(0)
VOCAB, DIM = 9, 24
STATES = torch.randn(VOCAB, DIM, generator=DRAWS)
HEAD = torch.randn(DIM, VOCAB, generator=DRAWS)
RECIPE = HeadsRecipe(num=2, num_ids=7, batch=64, rate=0.05, max_epochs=10, patience=10)


def texts(num, draw):
    """Each state belongs to the token that is drawn from it; draw(prompt, place) gives the tokens."""
    made = []
    for prompt in range(num):
        tokens = tuple(draw(prompt, place) for place in range(20))
        made.append(Said(f"p{prompt}", tokens, STATES[list(tokens)].bfloat16()))
    return made


def fit(found, recipe=RECIPE):
    return fit_draft_heads(found, lambda h: h.float() @ HEAD, model_id="toy", recipe=recipe)


def test_heads_learn_what_follows():
    """A cycle of seven tokens: each head must say the token one and two further on; before training none does."""
    heads = fit(texts(20, lambda prompt, place: (prompt + place) % 7))
    top1 = heads.facts["top1"]
    assert top1[0] >= 18 / 20 and top1[1] >= 17 / 20  # the last places of a text have nothing to guess
    assert max(heads.facts["top1_untrained"]) < 0.5
    said = heads.ids[heads.log_p(STATES[[3]], [3]).argmax(-1)[0]].tolist()
    assert said == [4, 5]


def test_heads_read_the_drawn_token():
    """States that say nothing: what was drawn alone tells what comes next."""
    blank = [Said(t.prompt, t.tokens, torch.ones(20, DIM).bfloat16()) for t in texts(20, lambda prompt, place: (prompt + place) % 7)]
    assert fit(blank).facts["top1"][0] >= 0.7  # by chance 1 in 7


def test_heads_find_nothing_in_noise():
    noise = torch.randint(0, 7, (30, 20), generator=DRAWS)
    heads = fit(texts(30, lambda prompt, place: int(noise[prompt, place])))
    assert max(heads.facts["top1"]) < 0.3


def test_lessons_point_ahead():
    said = Said("p", (5, 3, 5, 8), torch.zeros(4, 2))
    found = lessons([said, said], torch.tensor([5, 3]), 2)
    assert found.drawn_N.tolist() == [0, 1, 0, -1] * 2
    assert found.wanted_NK.tolist() == [[1, 0], [0, -1], [-1, -1], [-1, -1]] * 2 and found.num_tokens == 8


def test_frequent_tokens():
    assert frequent([(3, 3, 1), (2, 1, 3, 9)], 3).tolist() == [3, 1, 2]


def test_texts_are_the_models_own():
    """Greedy first; a state for every token; equal calls write equal texts."""
    prompts = [Prompt(messages=(("raw", f"q{i}"),), max_tokens=6) for i in range(3)]
    found, again = (list(written(ToyProcess(toy_lm("ab", seed=1)), prompts, samples=3)) for _ in range(2))
    assert sorted((s.prompt, s.tokens) for s in found) == sorted((s.prompt, s.tokens) for s in again)
    assert len(found) == 9 and all(len(s.states_TD) == len(s.tokens) for s in found)


def test_heads_of_a_process():
    """From a process to heads of its width and name."""
    process = ToyProcess(toy_lm("abc", seed=1))
    prompts = [Prompt(messages=(("raw", f"q{i}"),), max_tokens=6) for i in range(12)]
    said = list(written(process, prompts))
    width = said[0].states_TD.shape[1]
    head = torch.randn(width, 4, generator=DRAWS)
    heads = fit_draft_heads(said, lambda h: h.float() @ head, model_id=checkpoint_of(process.model_id), recipe=HeadsRecipe(num=1, max_epochs=2))
    assert heads.residual.shape == (1, width, 2 * width) and torch.equal(heads.rows, head.T.bfloat16()[heads.ids])


@pytest.mark.parametrize("change", [{"num": 0}, {"rate": 0}, {"decay": -1}, {"batch": 0}])
def test_bad_recipes_are_refused(change):
    with pytest.raises(BadField, match="at least 1"):
        HeadsRecipe(**change)


def test_few_prompts_are_refused():
    with pytest.raises(BadField, match="3 prompts"):
        fit(texts(3, lambda prompt, place: 1))
