"""Two models that draw every token together: every blend by the laws, and as decoders in the engine."""

import math
from dataclasses import replace

import pytest
import torch

from engine.tiny_models import VOCAB, ByteTokenizer, StateCheckpoint, tiny
from ponder.accelerate.accept.coupled import Coupled
from ponder.accelerate.draft.draft_model import DraftModel
from ponder.accelerate.length.fixed import Fixed
from ponder.accelerate.schedule.sarathi import Sarathi
from ponder.accelerate.weights.dense import Bf16, Bf16Head, Float32
from ponder.catalogue import BLENDS
from ponder.collaborate.contrastive import Contrastive
from ponder.collaborate.product import Product
from ponder.core.asks import GREEDY, Choice, Expand, Extend, Prefix, Sampling, Score, chat
from ponder.core.draft import Speculation
from ponder.core.errors import BadField, Unsupported
from ponder.engine.process import LocalProcess, Settings
from ponder.models.decoder import Decoder, load
from ponder.models.joint import join
from ponder.testing.laws_blend import LAWS, law_unit
from ponder.testing.laws_process import LAWS as PROCESS_LAWS
from ponder.testing.run import answer_turn


def contrasted(weight, alpha):
    def defined(first, second):
        top = max(first)
        return [math.exp((1 + weight) * a - weight * b) if a >= top + math.log(max(alpha, 1e-300)) else 0.0 for a, b in zip(first, second)]

    return defined


def multiplied(weight):
    return lambda first, second: [math.exp(a) ** (1 - weight) * math.exp(b) ** weight for a, b in zip(first, second)]


BLENDED = [  # blend, its definition in plain numbers
    (Contrastive(), contrasted(0.5, 0.1)), (Contrastive(weight=3.0, alpha=0.6), contrasted(3.0, 0.6)), (Contrastive(alpha=0), contrasted(0.5, 0)),
    (Product(), multiplied(0.5)), (Product(weight=0.2), multiplied(0.2)), (Product(weight=1), multiplied(1.0)),
]  # fmt: skip
ALONE = [Contrastive(weight=0, alpha=0), Product(weight=0)]  # settings that leave the first model alone


def test_every_blend_is_here():
    assert {type(blend) for blend, _ in BLENDED} == {type(blend) for blend in ALONE} == {type(blend) for blend in BLENDS.values()}


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize(("blend", "defined"), BLENDED)
def test_laws(blend, defined, law):
    law(blend, defined)


@pytest.mark.parametrize("blend", ALONE)
def test_unit(blend):
    law_unit(blend)


@pytest.mark.parametrize("wrong", [lambda: Contrastive(weight=-1), lambda: Contrastive(alpha=1.5), lambda: Product(weight=2)])
def test_bad_settings_are_refused(wrong):
    with pytest.raises(BadField, match="must be in"):
        wrong()


# in the engine


def shaped(seed: int, *, is_exact: bool = False, **shape: int) -> Decoder:
    """A random model, its attention of another shape where one is given."""
    checkpoint, _ = tiny("llama", seed=seed)
    if shape:
        config = replace(checkpoint.config, **shape)
        draw = torch.Generator().manual_seed(seed)
        sizes = {"q_proj": config.num_heads, "k_proj": config.num_kv_heads, "v_proj": config.num_kv_heads}
        state = dict(checkpoint.state)
        for name in state:
            part = name.split(".")[-2]
            if part in sizes:
                state[name] = 0.15 * torch.randn(sizes[part] * config.head_dim, config.dim, generator=draw)
            elif part == "o_proj":
                state[name] = 0.15 * torch.randn(config.dim, config.num_heads * config.head_dim, generator=draw)
        checkpoint = StateCheckpoint(config, state)
    return load(checkpoint, Float32(), None, torch.float32) if is_exact else load(checkpoint, Bf16(), Bf16Head())


FIRST, SECOND = shaped(0), shaped(1)


def opened(decoder: Decoder, *, is_native: bool = True, speculation: Speculation | None = None) -> LocalProcess:
    settings = Settings(is_native=is_native, kv_bytes=1 << 24, speculation=speculation, twins=lambda twin: (SECOND, ByteTokenizer()))
    return LocalProcess(decoder, ByteTokenizer(), Sarathi(), settings)


def asks():
    prompt = chat("abcab", max_tokens=14)
    return [Extend(prefix=Prefix(prompt), seed=s, sampling=Sampling(temperature=t), certainty=True) for s, t in ((0, 1.0), (1, 0.7), (2, 0.0))]


@pytest.mark.parametrize("is_native", [True, False])
@pytest.mark.parametrize("blend", ALONE)
def test_alone_in_company_is_alone(blend, is_native):
    """Tokens and log-probabilities of the first model, bit for bit, with another one computed beside it."""
    wanted = answer_turn(asks(), opened(FIRST, is_native=is_native))
    found = answer_turn(asks(), opened(join(FIRST, SECOND, blend), is_native=is_native))
    assert [a.prefix for a in found] == [a.prefix for a in wanted]
    assert all(a.cost.flops > b.cost.flops for a, b in zip(found, wanted))


def log_p_after(decoder: Decoder, tokens: tuple[int, ...]) -> list[float]:
    (answer,) = answer_turn([Expand(prefix=Prefix(chat("abcab", max_tokens=20), tokens=tokens), num=VOCAB)], opened(decoder, is_native=False))
    before = Prefix(chat("x")).log_p
    return [log_p for _, log_p in sorted((child.tokens[-1], child.log_p - before) for child in answer.children)]


@pytest.mark.parametrize("shape", [{}, {"head_dim": 32}, {"num_heads": 3, "num_kv_heads": 3}, {"num_heads": 4, "num_kv_heads": 1, "head_dim": 32}])
@pytest.mark.parametrize("turned", [False, True])
def test_next_tokens_are_those_of_both(shape, turned):
    """What two processes say apart, mixed by the definition, is what the joint one says; also where one has fewer or wider heads."""
    pair = [shaped(0, is_exact=True), shaped(1, is_exact=True, **shape)][:: -1 if turned else 1]
    for tokens in ((), (100, 98, 99), tuple(range(97, 107))):
        weights = multiplied(0.3)(*(log_p_after(decoder, tokens) for decoder in pair))
        wanted = torch.tensor(weights, dtype=torch.float64).log().log_softmax(-1)
        found = torch.tensor(log_p_after(join(*pair, Product(weight=0.3)), tokens), dtype=torch.float64)
        assert float((found - wanted).abs().max()) < 2e-4


@pytest.mark.parametrize("law", PROCESS_LAWS)
def test_a_pair_is_a_process(law):
    """Solo equality, prefixes, costs, stops, cancelling: as of any model."""
    law(lambda: opened(join(FIRST, SECOND, Contrastive(alpha=0))), chat("hello", max_tokens=12), 1e-9)


def test_what_is_ruled_out_never_comes():
    blend = Contrastive(alpha=0.9, weight=2.0)
    prompt = chat("abcab", max_tokens=24)
    for answer in answer_turn([Extend(prefix=Prefix(prompt), seed=s, logprobs=0) for s in range(8)], opened(join(FIRST, SECOND, blend))):
        for at, token in enumerate(answer.prefix.tokens[:6]):
            log_p = log_p_after(FIRST, answer.prefix.tokens[:at])
            assert log_p[token] >= max(log_p) + math.log(0.9) - 0.05
    (scores,) = answer_turn([Score(prefix=Prefix(prompt), options=tuple("abcdefgh"))], opened(join(FIRST, SECOND, blend)))
    assert -math.inf in scores.log_p


@pytest.mark.parametrize("blend", [Contrastive(), Product()])
def test_drafts_and_forms_go_with_company(blend):
    """Guesses of one of the two are accepted where both together draw the same, and change nothing; a form holds the answer."""
    joint = join(FIRST, SECOND, blend)
    speculation = Speculation(drafter=DraftModel(least=0.0, num=3), acceptor=Coupled(), control=Fixed(num=3))
    drafting = opened(joint, speculation=speculation)
    assert [a.prefix for a in answer_turn(asks(), drafting)] == [a.prefix for a in answer_turn(asks(), opened(joint))]
    assert drafting.totals.drafted_tokens > 10
    formed = replace(chat("abcab", max_tokens=9), form=Choice(("yes", "no")))
    (answer,) = answer_turn([Extend(prefix=Prefix(formed), seed=0, sampling=GREEDY)], opened(join(FIRST, SECOND, replace_alpha(blend))))
    assert answer.prefix.text in ("yes", "no")


def replace_alpha(blend):
    return replace(blend, alpha=0) if isinstance(blend, Contrastive) else blend


def test_models_of_other_kinds_are_refused():
    with pytest.raises(Unsupported, match="one type"):
        join(FIRST, shaped(1, is_exact=True), Product())
