"""Models that say several tokens a step: what they are cut from, the laws, wrong ones that the laws find, and that training tells."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ponder.core.errors import BadField
from ponder.models.segments import SegmentModel, SegmentShape, write
from ponder.testing.laws_segments import Segmented, law_one_token_a_step_is_plain_decoding, law_written_is_what_is_read
from ponder.train import segments
from ponder.train.segments import MarkedText, SegmentRecipe, fit_segments, nats_of, read_surely, segments_of, single_tokens

VOCAB = 12
SHAPES = {
    "smashed": SegmentShape(vocab=VOCAB, most=4, dim=32, heads=2, layers=2),
    "sentences": SegmentShape(vocab=VOCAB, most=5, has_end=True, dim=32, heads=2, layers=2),
}
PROMPT = torch.tensor([[1, 2, 3, 4, 5], [3, 3, 1, 0, 2]])


@pytest.fixture(autouse=True)
def one_thread():
    """Products this small are slower with two."""
    num = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num)


def greedy(logits: torch.Tensor) -> torch.Tensor:
    return logits.argmax(-1)


def random_model(shape: SegmentShape) -> SegmentModel:
    model = SegmentModel(shape).filled(torch.Generator().manual_seed(1)).eval()
    model.head.weight.data *= 3  # some of what it says is sure
    return model


def plain(model: SegmentModel, num: int):
    """Embedding, body and head alone, token by token, the keys of what was read kept."""
    tokens, log_p = [[] for _ in PROMPT], [[] for _ in PROMPT]
    with torch.inference_mode():
        states, past = model.states(model.words(PROMPT))
        for _ in range(num):
            logits = model.first(states[:, -1])
            token = logits.argmax(-1)
            for b, (t, p) in enumerate(zip(token.tolist(), logits.log_softmax(-1).gather(1, token[:, None])[:, 0].tolist())):
                tokens[b].append(t)
                log_p[b].append(p)
            states, past = model.states(model.words(token)[:, None], past)
    return tokens, log_p


def read(model: SegmentModel, tokens, lengths):
    """All segments of a row in one pass."""
    shape, found = model.shape, []
    with torch.inference_mode():
        for prompt, row, nums in zip(PROMPT.tolist(), tokens, lengths):
            cuts = np.cumsum([0, *nums])
            rows = [[t] for t in prompt] + [row[a:b] for a, b in itertools.pairwise(cuts)]
            padded = torch.tensor([[[*r, *[shape.pad] * (shape.most - len(r))] for r in rows]])
            states, _ = model.states(model.composed(padded))
            logits = model.said(states[0, len(prompt) - 1 : -1], padded[0, len(prompt) :]).log_softmax(-1)
            found.append([float(logits[i, j, r[j]]) for i, r in enumerate(rows[len(prompt) :]) for j in range(len(r))])
    return found


def seen(model: SegmentModel, *, shown: SegmentModel | None = None) -> Segmented:
    """shown: the model that plain decoding and reading at once go by, where it is another."""
    true = shown or model

    def said(num: int, sure: float):
        found = write(model, single_tokens(model.shape, PROMPT), num_steps=num, sure=sure, pick=greedy)
        return (found.tokens, found.log_p), found.lengths

    return Segmented(write=said, plain=lambda num: plain(true, num), read=lambda tokens, lengths: read(true, tokens, lengths))


def test_one_token_a_step_is_plain_decoding():
    law_one_token_a_step_is_plain_decoding(seen(random_model(SHAPES["smashed"])))


@pytest.mark.parametrize("kind", SHAPES)
def test_what_is_written_is_what_is_read(kind):
    law_written_is_what_is_read(seen(random_model(SHAPES[kind])), 0.3)


class ComposerSpeaks(SegmentModel):
    """Adds the composer's word to a segment of one token, too."""

    def composed(self, segments_BSM):
        tokens = segments_BSM.flatten(0, 1)
        x, _ = self.composer(self.words(tokens) + self.places, mask=(tokens < self.shape.end)[:, None, None, :])
        return super().composed(segments_BSM) + 0.01 * x[:, 0].view(*segments_BSM.shape[:2], -1)


class MicroSaysFirst(SegmentModel):
    """The first token of a step comes from the micro decoder."""

    def first(self, states_ND):
        return self.next_said(states_ND[:, None], 0, None)[0]


class ForgetsPlaces(SegmentModel):
    """Decoded one at a time, its tokens all stand at the first place."""

    def next_said(self, x_NSD, start, past):
        return super().next_said(x_NSD, 0, past)


class KeepsEveryToken(SegmentModel):
    """A step's input is its last token alone."""

    def composed(self, segments_BSM):
        last = (segments_BSM < self.shape.end).sum(-1, keepdim=True).clamp_min(1) - 1
        return self.words(segments_BSM.gather(-1, last)[..., 0])


def wrong(kind: type[SegmentModel], shape: SegmentShape) -> SegmentModel:
    model = kind(shape).eval()
    model.load_state_dict(random_model(shape).state_dict())
    return model


@pytest.mark.parametrize("kind", [ComposerSpeaks, MicroSaysFirst])
def test_the_law_of_one_token_finds_a_model_that_does_more(kind):
    shape = SHAPES["smashed"]
    with pytest.raises(AssertionError, match="plain decoding"):
        law_one_token_a_step_is_plain_decoding(seen(wrong(kind, shape), shown=random_model(shape)))


@pytest.mark.parametrize("kind", [ForgetsPlaces, KeepsEveryToken])
def test_the_law_of_reading_finds_a_model_that_decodes_otherwise(kind):
    shape = SHAPES["smashed"]
    law_one_token_a_step_is_plain_decoding(seen(wrong(kind, shape), shown=random_model(shape)))  # both are right there
    with pytest.raises(AssertionError, match="off by"):
        law_written_is_what_is_read(seen(wrong(kind, shape), shown=random_model(shape)), 0.3)


def cycle(num: int) -> MarkedText:
    """A text that repeats with variations: a mark after every 4."""
    draws = np.random.default_rng(0)
    tokens = np.concatenate([np.array([a, a + 1, a + 2, a + 3]) for a in draws.integers(0, VOCAB - 3, num)])
    return MarkedText(tokens.astype(np.int64), np.arange(len(tokens)) % 4 == 3)


@pytest.mark.parametrize("kind", [*SHAPES, "plain"])
def test_segments_are_the_text(kind):
    shape = SHAPES.get(kind) or replace(SHAPES["smashed"], most=1)
    text, rng = cycle(50), np.random.default_rng(3)
    starts = np.array([0, 17, 139])
    for found, start in zip(segments_of(shape, text, starts, length=60, rng=rng), starts):
        rows = [[t for t in row if t < shape.end] for row in found.tolist()]
        assert [t for row in rows for t in row] == text.tokens[start : start + 60].tolist()
        given = [row for row in rows if row]
        assert rows[: len(given)] == given and max(map(len, given)) <= shape.most
        if shape.has_end:
            assert all(row[len(kept)] == shape.end for row, kept in zip(found.tolist(), rows) if 0 < len(kept) < shape.most)
            assert {len(row) for row in given[1:-1]} == {4}


def test_no_step_sees_what_comes():
    model = random_model(SHAPES["smashed"])
    found = segments_of(model.shape, cycle(50), np.array([3]), length=60, rng=np.random.default_rng(3))
    changed = found.clone()
    changed[0, -1, 0] = (changed[0, -1, 0] + 1) % VOCAB
    with torch.inference_mode():
        assert torch.equal(model.states(model.composed(found))[0][:, :-1], model.states(model.composed(changed))[0][:, :-1])
        earlier = found.clone()
        earlier[0, 0, 0] = (earlier[0, 0, 0] + 1) % VOCAB
        assert not torch.equal(model.states(model.composed(found))[0][:, -1], model.states(model.composed(earlier))[0][:, -1])


def test_reading_surely_is_plain_reading_where_nothing_is_sure_enough_and_all_at_once_where_everything_is():
    model = random_model(SHAPES["smashed"])
    tokens = torch.from_numpy(cycle(20).tokens[:60].reshape(2, 30)).long()
    nats, num, _, steps = read_surely(model, tokens, 2.0, 6)
    ones = replace(model.shape, most=1)
    with torch.inference_mode():
        states, _ = model.states(model.words(tokens))
        wanted = F.cross_entropy(model.first(states[:, 5:-1]).flatten(0, 1), tokens[:, 6:].flatten(), reduction="none").view(2, -1).sum(1)
        assert torch.equal(single_tokens(ones, tokens)[..., 0], tokens)
    assert num.tolist() == steps.tolist() == [24, 24] and torch.allclose(nats, wanted, atol=1e-3)
    assert read_surely(model, tokens, 0.0, 6)[3].tolist() == [6, 6]
    some = [float(read_surely(model, tokens, sure, 6)[3].sum()) for sure in (0.9, 0.5, 0.2)]
    assert 48 >= some[0] > some[2] >= 12 and some == sorted(some, reverse=True)


@pytest.mark.parametrize("kind", SHAPES)
def test_training_tells(kind):
    """Three of four tokens of this text follow from the one before: a trained model knows them, and is sure of it."""
    text, recipe = cycle(400), SegmentRecipe(batch=8, length=32, max_steps=50, rate=5e-3)
    model, facts = fit_segments(SHAPES[kind], text, recipe)
    unseen = segments_of(model.shape, text, np.array([5, 400, 900]), length=60, rng=np.random.default_rng(9))
    with torch.inference_mode():
        nats, num, right, _ = (float(x.sum()) for x in nats_of(model, unseen))
        before = [float(x.sum()) for x in nats_of(random_model(SHAPES[kind]), unseen)]
    assert facts["num_steps"] == 50 and nats / num < 1.3 < before[0] / before[1] and right > 0.5 * num
    if kind == "smashed":
        tokens = torch.from_numpy(text.tokens[:200].reshape(4, 50)).long()
        _, read_B, _, steps_B = read_surely(model, tokens, 0.7, 10)
        assert float(read_B.sum() / steps_B.sum()) > 1.3


def test_bad_input_is_named():
    with pytest.raises(BadField, match="multiple of twice"):
        SegmentShape(vocab=3, most=2, dim=6, heads=4)
    with pytest.raises(BadField, match="max_steps"):
        SegmentRecipe(max_steps=0)
    with pytest.raises(BadField, match="are needed"):
        fit_segments(SHAPES["smashed"], cycle(3), SegmentRecipe())
    assert segments.by_chance(np.zeros(7, bool), np.random.default_rng(0), 3)
