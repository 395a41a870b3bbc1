"""Branches of a token tree in the pages: what each reads is, bit for bit, what its path alone would have read."""

import pytest
import torch

from engine.test_attend import CONFIG, KERNELS, compute, make, rows_of, run
from ponder.core.formats import ModelConfig
from ponder.engine.attend import Attention, Span
from ponder.engine.pages import INT8, PLAIN, KVFormat, Sequence


def pages_of(sequence: Sequence, num: int) -> tuple[torch.Tensor, ...]:
    """Everything that is stored of the first `num` tokens, [L, num, K, ...]."""
    pool = sequence.pool
    slots = torch.stack([sequence.slots(layer, 0, num) for layer in range(pool.num_layers)])
    return tuple(table.flatten(0, 1)[slots] for table in (pool.keys, pool.values, pool.positions, *(pool.scales or ())))


def grown(attention: Attention, sequence: Sequence, context: int, *, has_copies: bool = True) -> dict[str, torch.Tensor]:
    """Three branches, at once: 3 tokens of sequence 1, and from its first on 2 of sequence 5 and 1 of sequence 6."""
    config = attention.config
    assert sequence.reserve(context + 3)
    twigs = [sequence.branch(), sequence.branch()]
    for twig, size in zip(twigs, (3, 2)):
        assert twig.reserve(context + size)
    first = tuple((twig, context, context + 1) for twig in twigs) if has_copies else ()
    spans = [
        Span(sequence, context, context + 3, 60, copies=first),
        Span(twigs[0], context + 1, context + 3, 60),
        Span(twigs[1], context + 1, context + 2, 60),
    ]
    rows = {
        id(span.sequence): tuple(x[span.start :] for x in rows_of(config, seed, span.stop, attention.pool.dtype))
        for span, seed in zip(spans, (1, 5, 6))
    }
    for layer in (0, 1):
        found = run(attention, spans, rows, layer)  # type: ignore[arg-type]
    assert sequence.reserve(context + 3)
    return {"trunk": found[id(sequence)], "long": found[id(twigs[0])], "short": found[id(twigs[1])]} | dict(zip(("a", "b"), twigs))  # type: ignore[return-value]


def path_alone(attention: Attention, context: int, seed: int, num: int) -> tuple[torch.Tensor, Sequence]:
    """The trunk's first context + 1 tokens, then those of `seed`, one by one, without branches."""
    sequence = Sequence(attention.pool)
    outs = []
    for at in range(context + num):
        if at == 0:
            assert sequence.reserve(context)
            rows = tuple(x[:context] for x in rows_of(attention.config, 1, context, attention.pool.dtype))
            for layer in (0, 1):
                run(attention, [Span(sequence, 0, context, 60)], {id(sequence): rows}, layer)  # type: ignore[dict-item]
        if at >= context:
            assert sequence.reserve(at + 1)
            rows = tuple(x[at:] for x in rows_of(attention.config, 1 if at == context else seed, at + 1, attention.pool.dtype))
            for layer in (0, 1):
                out = run(attention, [Span(sequence, at, at + 1, 60)], {id(sequence): rows}, layer)[id(sequence)]  # type: ignore[dict-item]
            outs.append(out)
    return torch.cat(outs), sequence


@pytest.mark.parametrize("is_native", KERNELS)
@pytest.mark.parametrize("kv", [PLAIN, INT8], ids=lambda x: x.name)
@pytest.mark.parametrize("context", [61, 63, 64, 79, 80])
def test_a_branch_reads_as_its_path_alone(is_native: bool, kv: KVFormat, context: int):
    attention = make(is_native, kv=kv)
    trunk = Sequence(attention.pool)
    compute(attention, trunk, 1, [context], 60)
    trunk.num_tokens = 0
    compute_both = rows_of(attention.config, 1, context)
    for layer in (0, 1):
        run(attention, [Span(trunk, 0, context, 60)], {id(trunk): compute_both}, layer)
    found = grown(attention, trunk, context)
    fresh = make(is_native, kv=kv)
    for name, sequence, seed, num in (("trunk", trunk, 1, 3), ("long", found["a"], 5, 3), ("short", found["b"], 6, 2)):
        wanted, alone = path_alone(fresh, context, seed, num)
        assert torch.equal(found[name], wanted[-len(found[name]) :]), name
        for mine, other in zip(pages_of(sequence, context + num), pages_of(alone, context + num)):  # type: ignore[arg-type]
            assert torch.equal(mine, other), name


def test_a_branch_without_its_copies_would_be_seen():
    attention, context = make(False), 70
    trunk = Sequence(attention.pool)
    compute(attention, trunk, 1, [context], 60)
    found = grown(attention, trunk, context, has_copies=False)
    wanted, _ = path_alone(make(False), context, 5, 3)
    assert not torch.equal(found["long"], wanted[1:])


def test_a_branch_gives_back_what_it_took():
    config: ModelConfig = CONFIG
    attention = make(False, config)
    trunk = Sequence(attention.pool)
    compute(attention, trunk, 1, [70], 60)
    assert trunk.reserve(100)
    used = attention.pool.num_used
    twig = trunk.branch()
    assert attention.pool.num_used == used and twig.reserve(75)
    assert attention.pool.num_used == used + attention.pool.heads and twig.table[0, 0, 4] != trunk.table[0, 0, 4]
    twig.release()
    assert attention.pool.num_used == used
    assert trunk.reserve(100) and attention.pool.num_used == used, "the trunk had to copy its own page"
