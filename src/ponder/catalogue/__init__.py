"""Names and the objects they stand for. The only place where strings become techniques; one dict literal per role, roles by file."""

from ponder.catalogue.company import BLENDS, COLLABORATIONS, WAY_SPECS, check_partner, open_together, way
from ponder.catalogue.drafts import ACCEPTORS, DRAFT_SPECS, DRAFTERS, LENGTHS, TRAINED_DRAFTERS, TRAINED_LENGTHS, open_drafter, speculation
from ponder.catalogue.engines import DEVICE_WEIGHTS, DIALECTS, HEADS, KV_FORMATS, SCHEDULERS, WEIGHTS, formats_of, weights_on
from ponder.catalogue.keys import ATTENTION_PLANS, CACHE_PARTS, CACHES, TRAINED_CACHES, attention_plan, cache_policy
from ponder.catalogue.models import accelerated, open_model, twin_of
from ponder.catalogue.prompts import LAYER_PLANS, PREDICTORS, PROMPT_FILTERS, TAILS, layer_plan, predictor_kind, prompt_filter, tail_kind
from ponder.catalogue.strategies import PARTS, RESAMPLERS, SPECS, STOP_RULES, STRATEGIES, strategy
from ponder.catalogue.tasks import DEFAULT_MODEL, DEMO, TASKS, Demo, task
from ponder.catalogue.verifiers import READERS, SCORERS, TRAINED, VERIFIERS, open_verifier

__all__ = [
    "ACCEPTORS", "ATTENTION_PLANS", "BLENDS", "CACHES", "CACHE_PARTS", "COLLABORATIONS", "DEFAULT_MODEL", "DEMO", "DEVICE_WEIGHTS",
    "DIALECTS", "DRAFTERS", "DRAFT_SPECS", "HEADS", "KV_FORMATS", "LAYER_PLANS", "LENGTHS", "PARTS", "PREDICTORS", "PROMPT_FILTERS", "READERS",
    "RESAMPLERS", "SCHEDULERS", "SCORERS", "SPECS", "STOP_RULES", "STRATEGIES", "TAILS", "TASKS", "TRAINED", "TRAINED_CACHES",
    "TRAINED_DRAFTERS", "TRAINED_LENGTHS", "VERIFIERS", "WAY_SPECS", "WEIGHTS", "Demo", "accelerated", "attention_plan", "cache_policy",
    "check_partner", "formats_of", "layer_plan", "open_drafter", "open_model", "open_together", "open_verifier", "predictor_kind", "prompt_filter",
    "speculation",    "strategy", "tail_kind", "task", "twin_of", "way", "weights_on",
]  # fmt: skip
