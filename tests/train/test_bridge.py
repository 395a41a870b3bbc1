"""Bridges: the least-squares map of their rank, early exit's drafts with and without, and files."""

import pytest
import torch

from engine.test_rounds import DECODER, told
from engine.test_runners import free_asks, opened, silent
from ponder.accelerate.draft.bridge import Bridge, load_bridge, save_bridge
from ponder.accelerate.draft.early_exit import EarlyExit
from ponder.accelerate.length.fixed import Fixed
from ponder.catalogue import speculation
from ponder.core.draft import Twin
from ponder.core.errors import BadField, StoreError
from ponder.engine.attend import Attention
from ponder.engine.pages import Pool
from ponder.engine.runners import states_of
from ponder.native.build import library
from ponder.testing.laws_draft import PLAIN_HOST
from ponder.train.bridge import BridgeRecipe, Pairs, fit_bridge, reduced_rank

NATIVE = library() is not None  # the compiled kernel, where there is one: it is faster
DRAWS = torch.Generator().manual_seed(0)
DIM = 12
HEAD = torch.randn(DIM, 30, generator=DRAWS)
SHIFT = torch.randn(DIM, 2, generator=DRAWS) @ torch.randn(2, DIM, generator=DRAWS)  # rank 2


def texts(late, num=20):
    made = []
    for i in range(num):
        early = torch.randn(30, DIM, generator=DRAWS)
        made.append(Pairs(f"p{i}", early, late(early)))
    return made


def logits(h_ND):
    return h_ND.float() @ HEAD


def test_a_bridge_finds_a_map_of_its_rank():
    """Late states that are a shift of rank 2 away are found at rank 2, not at rank 1."""
    made = texts(lambda x: x + x @ SHIFT + 0.5)
    found = [fit_bridge(made, logits, model_id="toy", layer=1, recipe=BridgeRecipe(rank=rank, ridge=1e-6)) for rank in (1, 2, 12)]
    right = [bridge.facts["agreement"] for bridge in found]
    assert right[0] < 0.95 and right[1] > 0.99 and right[2] > 0.99
    assert all(bridge.facts["agreement_untrained"] < 0.7 for bridge in found) and found[0].rank == 1


def test_a_bridge_finds_nothing_in_noise():
    found = fit_bridge(texts(lambda x: torch.randn(x.shape, generator=DRAWS)), logits, model_id="toy", layer=1)
    assert found.facts["agreement"] < 0.2


def test_low_rank_is_the_best_low_rank():
    """No direction of descent: turning either factor a little makes the squares no smaller."""
    x, noise = torch.randn(400, DIM, generator=DRAWS), 0.3 * torch.randn(400, DIM, generator=DRAWS)
    y = x @ torch.randn(DIM, DIM, generator=DRAWS) + noise
    down, up, bias = reduced_rank(x, y, 3, 1e-9)
    least = float((x @ down @ up + bias - y).square().sum())
    for _ in range(20):
        a, b = (w + 0.01 * torch.randn(w.shape, generator=DRAWS) for w in (down, up))
        assert float((x @ a @ b + bias - y).square().sum()) > least


def attention():
    config = DECODER.config
    return Attention(config, Pool((config.num_layers, config.num_kv_heads, config.head_dim), DECODER.dtype, 1 << 22), is_native=False)


def test_states_of_all_layers_are_what_tokens_are_drawn_from():
    tokens = list(range(40, 70))
    with torch.inference_mode():
        met = attention()
        whole = states_of(DECODER, met, tokens, num_prompt=10)
        early = states_of(DECODER, met, tokens, num_prompt=10, skips=frozenset({1, 2}))
        assert met.pool.num_used == 0 and whole.shape == early.shape == (30, 96) and not torch.equal(whole, early)
        assert torch.equal(states_of(DECODER, met, tokens[:20], num_prompt=10), whole[:20])
    with pytest.raises(BadField, match="more than there is room for"):
        states_of(DECODER, met, [1] * 100_000, num_prompt=1)


def bridge_of(scale: float) -> Bridge:
    down, up = (scale * torch.randn(shape, generator=DRAWS) for shape in ((96, 8), (8, 96)))
    return Bridge(model_id="tiny", layer=2, down=down, up=up, bias=torch.zeros(96), facts={})


def test_the_head_is_shown_what_the_bridge_makes_and_no_answer_changes():
    """Where the layer behind the exit adds nothing, a bridge that does nothing is always right, and one that turns states is not."""
    decoder, asks = silent(2), free_asks()[:4]
    wanted, wasted = told(opened(None, decoder, is_native=NATIVE), asks), []
    for bridge in (bridge_of(0.0), bridge_of(1.0)):
        process = opened(EarlyExit(bridge=bridge, least=0.0), decoder, control=Fixed(num=2), is_native=NATIVE)
        assert told(process, asks) == wanted
        wasted.append(process.totals.drafted_tokens - process.totals.accepted_tokens)
    assert wasted[0] <= 2 < wasted[1]


def test_the_exit_is_where_it_is_said_to_be():
    twins = []
    host = PLAIN_HOST.__class__(**{**vars(PLAIN_HOST), "runner": twins.append})
    bridge = Bridge(model_id="toy", layer=3, down=torch.zeros(4, 1), up=torch.zeros(1, 4), bias=torch.zeros(4), facts={})
    for drafter in (EarlyExit(), EarlyExit(layer=11), EarlyExit(bridge=bridge)):
        drafter.open(host)
    assert twins == [Twin(skips=tuple(range(8, 12))), Twin(skips=(11,)), Twin(skips=tuple(range(3, 12)), bridge=bridge)]
    for wrong in (EarlyExit(layer=12), EarlyExit(bridge=Bridge(model_id="t", layer=3, down=HEAD, up=HEAD.T, bias=torch.zeros(5), facts={}))):
        with pytest.raises(BadField, match=r"this model"):
            wrong.open(host)


def test_files(tmp_path):
    path = tmp_path / "bridge.safetensors"
    made = fit_bridge(texts(lambda x: x + x @ SHIFT), logits, model_id="toy", layer=5, recipe=BridgeRecipe(rank=2))
    save_bridge(made, path)
    drafter = speculation(f"{path}:num=3").drafter
    states = torch.randn(3, DIM, generator=DRAWS)
    assert isinstance(drafter, EarlyExit) and drafter.num == 3 and drafter.bridge is not None and drafter.bridge.layer == 5
    assert torch.equal(drafter.bridge(states), made(states)) and drafter.bridge.facts == made.facts
    with pytest.raises(BadField, match="width 12"):
        made(torch.zeros(1, 5))
    with pytest.raises(BadField, match="bridge for layer 5"):
        EarlyExit(layer=4, bridge=made)
    save_bridge(Bridge(model_id="t", layer=1, down=HEAD, up=HEAD.clone(), bias=torch.zeros(3), facts={}), path)
    with pytest.raises(BadField, match="damaged"):
        load_bridge(path)
    with pytest.raises(StoreError, match="train-bridge"):
        speculation(str(tmp_path / "none.safetensors"))


@pytest.mark.parametrize("change", [{"layer": 0}, {"num": 0}, {"least": 2}])
def test_bad_settings_are_refused(change):
    with pytest.raises(BadField, match="at least 1"):
        EarlyExit(**change)


def test_bad_recipes_and_few_prompts_are_refused():
    with pytest.raises(BadField, match="rank at least 1"):
        BridgeRecipe(rank=0)
    with pytest.raises(BadField, match="3 prompts"):
        fit_bridge(texts(lambda x: x, num=3), logits, model_id="toy", layer=1)
