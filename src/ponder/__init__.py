"""ponder gets the best answer that a given amount of compute can buy.

Names are imported when they are first used, so that `import ponder` costs nothing.
"""

import importlib

__version__ = "0.1.0"

PUBLIC = {  # name -> module that defines it
    "Batch": "ponder.core.particles",
    "Budget": "ponder.core.budget",
    "Candidate": "ponder.core.asks",
    "Cost": "ponder.core.budget",
    "Driver": "ponder.run.driver",
    "Expand": "ponder.core.asks",
    "Extend": "ponder.core.asks",
    "Guarantee": "ponder.core.guarantee",
    "Job": "ponder.run.driver",
    "Judge": "ponder.core.asks",
    "Outcome": "ponder.core.asks",
    "Particles": "ponder.core.particles",
    "PonderError": "ponder.core.errors",
    "Prefix": "ponder.core.asks",
    "Prompt": "ponder.core.asks",
    "Recipe": "ponder.run.recipe",
    "Sampling": "ponder.core.asks",
    "Score": "ponder.core.asks",
    "TorchRng": "ponder.core.rng",
    "Turn": "ponder.core.asks",
    "Verdict": "ponder.core.asks",
    "ask": "ponder.run.driver",
    "chat": "ponder.core.asks",
    "load": "ponder.connect.model",
    "open_model": "ponder.catalogue.models",
    "parse_budget": "ponder.core.budget",
    "pull": "ponder.models.fetch",
    "strategy": "ponder.catalogue.strategies",
}
__all__ = sorted(PUBLIC)


def __getattr__(name: str) -> object:
    if name not in PUBLIC:
        raise AttributeError(f"module 'ponder' has no name {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(PUBLIC[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
