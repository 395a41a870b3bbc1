"""Types of the front door. Written by `make docs` from `PUBLIC`. Do not edit."""

from ponder.catalogue.models import open_model as open_model
from ponder.catalogue.strategies import strategy as strategy
from ponder.connect.model import load as load
from ponder.core.asks import Candidate as Candidate
from ponder.core.asks import Expand as Expand
from ponder.core.asks import Extend as Extend
from ponder.core.asks import Judge as Judge
from ponder.core.asks import Outcome as Outcome
from ponder.core.asks import Prefix as Prefix
from ponder.core.asks import Prompt as Prompt
from ponder.core.asks import Sampling as Sampling
from ponder.core.asks import Score as Score
from ponder.core.asks import Turn as Turn
from ponder.core.asks import Verdict as Verdict
from ponder.core.asks import chat as chat
from ponder.core.budget import Budget as Budget
from ponder.core.budget import Cost as Cost
from ponder.core.budget import parse_budget as parse_budget
from ponder.core.errors import PonderError as PonderError
from ponder.core.guarantee import Guarantee as Guarantee
from ponder.core.particles import Batch as Batch
from ponder.core.particles import Particles as Particles
from ponder.core.rng import TorchRng as TorchRng
from ponder.models.fetch import pull as pull
from ponder.run.driver import Driver as Driver
from ponder.run.driver import Job as Job
from ponder.run.driver import ask as ask
from ponder.run.recipe import Recipe as Recipe

__version__: str
PUBLIC: dict[str, str]
__all__: list[str]
