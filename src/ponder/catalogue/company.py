"""Ways in which two models write one answer, by name, and two models opened to do so."""

from dataclasses import replace
from pathlib import Path

from ponder.catalogue.models import open_model
from ponder.collaborate.contrastive import Contrastive
from ponder.collaborate.nudging import Nudging
from ponder.collaborate.pair import PairProcess, Way
from ponder.collaborate.product import Product
from ponder.core.accelerations import PLAIN, Accelerations, Partner
from ponder.core.blend import Blend, Company
from ponder.core.draft import Twin
from ponder.core.errors import BadField
from ponder.core.roles import Process
from ponder.engine.process import Settings
from ponder.models.fetch import resolve
from ponder.run.spec import Specs

COLLABORATIONS: dict[str, Way] = {"nudging": Nudging()}  # two processes that exchange text (collaborate/pair)

BLENDS: dict[str, Blend] = {"contrastive": Contrastive(), "product": Product()}  # two models of the same tokens that draw as one (core/blend)

WAY_SPECS = Specs("way", {**COLLABORATIONS, **BLENDS}, {})


def way(spec: str) -> Way | Blend:
    """How two models write together: what NAME or NAME:field=value,... means. Raises UnknownName or BadField."""
    return WAY_SPECS.read(spec)  # type: ignore[return-value]


def is_exchange(partner: Partner) -> bool:
    """Whether the two exchange text, so that each is a process of its own."""
    return partner.way.partition(":")[0] in COLLABORATIONS


def check_partner(accelerations: Accelerations) -> None:
    """Refuses an unknown way, and what does not go with one. Raises UnknownName or BadField."""
    partner = accelerations.partner
    if partner is None:
        return
    way(partner.way)
    others = [f"{name}={value}" for name, value in accelerations.given.items() if name != "partner"]
    if others and is_exchange(partner):
        raise BadField(f"{', '.join(others)} with --way {partner.way}: it asks for one token at a time, which has nothing to guess; leave it out")


def open_together(
    path: Path, weights: str | None = None, threads: int | None = None, *, settings: Settings | None = None, device: str = "cpu",
    accelerations: Accelerations = PLAIN,
) -> Process:  # fmt: skip
    """`open_model`, with the partner that the accelerations name. Raises PonderError as it does, and for a partner that is not in the
    cache; BadField for one with other tokens where both draw together."""
    check_partner(accelerations)
    partner, settings = accelerations.partner, settings or Settings()
    if partner is None:
        return open_model(path, weights, threads, settings=settings, device=device, accelerations=accelerations)
    other = resolve(partner.model)
    if is_exchange(partner):
        both = [open_model(one, weights, threads, settings=settings, device=device) for one in (path, other)]
        return PairProcess(both[0], both[1], way(partner.way))  # type: ignore[arg-type]
    company = Company(twin=Twin(model=str(other), weights=weights), blend=way(partner.way))  # type: ignore[arg-type]
    return open_model(path, weights, threads, settings=replace(settings, company=company), device=device, accelerations=accelerations)
