"""What becomes of dropped keys: worked by hand, and against plain dropping at equal bytes."""

import math

import pytest
import torch
from torch import Tensor

from ponder.accelerate.cache.d2o_layers import D2OLayers
from ponder.accelerate.cache.d2o_merge import D2OMerge
from ponder.accelerate.cache.drop import Drop
from ponder.accelerate.cache.elastic_merge import ElasticMerge, nearest
from ponder.core.evidence import View
from ponder.core.keeping import PROTECTED


def view_of(keys: Tensor, values: Tensor | None = None) -> View:
    values = keys if values is None else values
    num_heads, num, _ = keys.shape
    positions = torch.arange(num).expand(num_heads, num)
    return View(layer=0, num_layers=1, num_tokens=num, positions=positions, read=lambda: (keys, values))


def test_d2o_by_hand():
    """Eight keys in the plane. 1 and 3 stay; 0 points where 1 points, 2 and 4 nearly where 3 does; 5, 6 and 7 point elsewhere."""
    angles = torch.tensor([0.0, 0.0, 1.6, 1.5, 1.4, 3.5, 4.0, 5.0])
    keys = torch.stack([angles.cos(), angles.sin()], 1)[None] * torch.tensor([2.0, 1, 1, 3, 1, 1, 1, 1])[:, None]
    ((merged, values),) = D2OMerge().evict(view_of(keys), [torch.tensor([1, 3])])
    near = math.exp(math.cos(0.1))
    wanted = [
        (math.e * keys[0, 1] + math.e * keys[0, 0]) / (2 * math.e),
        (math.e * keys[0, 3] + near * (keys[0, 2] + keys[0, 4])) / (math.e + 2 * near),
    ]
    assert torch.allclose(merged, torch.stack(wanted), atol=1e-5)
    assert torch.equal(merged, values)


def test_elastic_by_hand():
    keys = torch.arange(8.0)[None, :, None].expand(1, 8, 2).contiguous()
    ((merged, _),) = ElasticMerge().evict(view_of(keys), [torch.tensor([1, 4, 7])])
    assert merged[:, 0].tolist() == [1.0, 4.0, 6.5]  # 0 1 2, 3 4 5, 6 7
    assert nearest(torch.arange(8), torch.tensor([2, 4])).tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


@pytest.mark.parametrize("evictor", [D2OMerge(), ElasticMerge()])
def test_what_loses_nothing_is_unchanged_and_kept_keys_without_company_are_too(evictor):
    torch.manual_seed(0)
    keys, values = torch.randn(2, 30, 8).bfloat16(), torch.randn(2, 30, 8).bfloat16()
    for found, head in zip(evictor.evict(view_of(keys, values), [torch.arange(30)] * 2), range(2)):
        assert torch.equal(found[0], keys[head])
        assert torch.equal(found[1], values[head])
    assert Drop().evict(view_of(keys), [torch.arange(3)] * 2) is None


def test_d2o_reads_closer_to_the_whole_than_dropping():
    """Keys in tight clusters: a dropped key's twin stays. At equal bytes the merged output is nearer to attention over all keys."""
    torch.manual_seed(1)
    centres, values = torch.randn(20, 16) * 2, torch.randn(200, 16)
    keys = centres[torch.arange(200) % 20] + 0.05 * torch.randn(200, 16)
    kept = torch.arange(20)
    ((merged, merged_values),) = D2OMerge().evict(view_of(keys[None], values[None]), [kept])
    queries = torch.randn(50, 16)

    def out(k: Tensor, v: Tensor) -> Tensor:
        return (queries @ k.T / 4).softmax(-1) @ v

    whole = out(keys, values)
    assert (out(merged, merged_values) - whole).norm() < 0.7 * (out(keys[kept], values[kept]) - whole).norm()


def test_layers_that_spread_their_attention_keep_more():
    even, uneven = torch.full((2, 100), 1.0).double(), torch.full((2, 100), 0.1).double()
    uneven[:, 3] = 90.0
    for scores in (even, uneven):
        scores[:, 90:] = PROTECTED + 5
    counts = D2OLayers().allot(torch.stack([even, uneven]), torch.full((2, 2), 100), 40)
    assert counts.sum() == 160
    assert (counts[0] > 40).all()
    assert (counts[1] >= 12).all()
