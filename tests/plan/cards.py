"""Machine cards made by hand."""

from ponder.plan.machine import AttentionRate, Curve, Factors, MachineCard, MatrixRate, SamplerRate, TextRate


def sheet() -> MachineCard:
    """A data sheet: nothing is known but two roofs."""
    return MachineCard(name="sheet", bandwidth=((1e6, 4e12),), peaks={"bfloat16": 1e15}, weight_nbytes={"bf16": 2.0})


def full_card(threads: int = 2) -> MachineCard:
    """A slow machine of which all is known. Matrices read 10 GB/s below 8 rows, and compute 100 GFLOP/s from there."""
    rows = (1.0, 8.0, 64.0)
    matrices = tuple(
        MatrixRate("bf16", out, into, 2.0 * out * into, Curve(rows, tuple(2 * out * into * max(1e-10, r / 1e11) for r in rows)))
        for out, into in ((64, 32), (256, 96))
    )
    return MachineCard(
        name="full", threads=threads, versions="by hand",
        bandwidth=((1e5, 9e10), (1e6, 8e10), (1e8, 1e10)), peaks={"float32": 5e10, "bfloat16": 1e11},
        op_seconds=1e-6, call_seconds=2e-6, region_seconds=1e-6, python=(Curve((1, 64), (1e-4, 1e-3)), Curve((1, 64), (2e-4, 2e-3))),
        matrices=matrices, attentions=(AttentionRate(3, 16, 1e-5, 1e-6, 2e-6, 1e-7),),
        samplers=(SamplerRate(272, 1.0, Curve((1, 64), (1e-4, 3e-3))),),
        texts=(TextRate(272, 1e6, 2e5, 3e6),), factors={"bf16 1x1": Factors(attention=1.1, elementwise=3.0, layer=1e-5)},
    )  # fmt: skip
