"""Names and the objects they stand for. The only place where strings become techniques; one dict literal per role."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from ponder.accelerate.accept.bild import BigLittle
from ponder.accelerate.accept.coupled import Coupled
from ponder.accelerate.accept.greedy import GreedyMatch
from ponder.accelerate.accept.rejection import Rejection
from ponder.accelerate.accept.typical import Typical
from ponder.accelerate.attend.dual_chunk import DualChunk
from ponder.accelerate.attend.hyper import Hyper
from ponder.accelerate.attend.longgen import LongGen
from ponder.accelerate.attend.s2 import S2
from ponder.accelerate.attend.vertical_slash import VerticalSlash
from ponder.accelerate.cache.adakv import AdaKV
from ponder.accelerate.cache.after_prompt import AfterPrompt
from ponder.accelerate.cache.d2o_layers import D2OLayers
from ponder.accelerate.cache.d2o_merge import D2OMerge
from ponder.accelerate.cache.drop import Drop
from ponder.accelerate.cache.elastic_merge import ElasticMerge
from ponder.accelerate.cache.every import Every
from ponder.accelerate.cache.h2o import H2O
from ponder.accelerate.cache.knorm import Knorm
from ponder.accelerate.cache.over_budget import OverBudget
from ponder.accelerate.cache.pyramid import Pyramid
from ponder.accelerate.cache.snapkv import SnapKV
from ponder.accelerate.cache.streaming_llm import StreamingLLM
from ponder.accelerate.cache.tova import Tova
from ponder.accelerate.cache.uniform import Uniform
from ponder.accelerate.draft.copyspec import CopySpec
from ponder.accelerate.draft.draft_model import DraftModel
from ponder.accelerate.draft.first import First
from ponder.accelerate.draft.heads import load_heads
from ponder.accelerate.draft.layer_skip import LayerSkip
from ponder.accelerate.draft.medusa import Medusa
from ponder.accelerate.draft.ngram import Ngram
from ponder.accelerate.draft.token_recycling import TokenRecycling
from ponder.accelerate.draft.trie import Trie
from ponder.accelerate.length.expected import Expected
from ponder.accelerate.length.fixed import Fixed
from ponder.accelerate.length.threshold import Threshold
from ponder.accelerate.schedule.first_come import FirstCome
from ponder.accelerate.schedule.prefill_first import PrefillFirst
from ponder.accelerate.schedule.sarathi import Sarathi
from ponder.accelerate.weights.dense import Bf16, Bf16Head, Float32
from ponder.accelerate.weights.dense_device import DenseDevice, DenseDeviceHead
from ponder.accelerate.weights.int4 import Int4
from ponder.accelerate.weights.int8 import Int8, Int8Head
from ponder.accelerate.weights.int8_dynamic import Int8Dynamic
from ponder.accelerate.weights.mixed import Mixed
from ponder.accelerate.weights.native import Native, NativeHead
from ponder.accelerate.weights.native4 import Native4
from ponder.accelerate.weights.native8 import Native8
from ponder.collaborate.contrastive import Contrastive
from ponder.collaborate.nudging import Nudging
from ponder.collaborate.pair import Way
from ponder.collaborate.product import Product
from ponder.core.accelerations import PLAIN as PLAIN_RUN
from ponder.core.accelerations import Accelerations
from ponder.core.asks import AnswerReader, Sampling, WholeText
from ponder.core.attention_plan import AttentionPlan
from ponder.core.blend import Blend
from ponder.core.draft import Acceptor, Drafter, LengthControl, Speculation, Twin
from ponder.core.errors import BadField, UnknownName
from ponder.core.formats import Tokenizer, WeightFormat
from ponder.core.keeping import Policy
from ponder.core.roles import Resampler, StopRule, Strategy, Verifier
from ponder.core.schedule import Scheduler
from ponder.core.votes import by_path_probability, by_verdict, one_each
from ponder.engine.device import find_device
from ponder.engine.open import open_process, open_twin
from ponder.engine.pages import INT8, PLAIN, KVFormat
from ponder.engine.process import LocalProcess, Settings
from ponder.infer.ab_mcts import AbMcts, beta, gaussian, mixed
from ponder.infer.adaptive import Adaptive
from ponder.infer.astar import AStar, drop, progress
from ponder.infer.atom_of_thoughts import AtomOfThoughts
from ponder.infer.beam import Beam
from ponder.infer.best_first import BestFirst
from ponder.infer.best_of_n import BestOfN
from ponder.infer.compute_optimal import ComputeOptimal
from ponder.infer.constrained_smc import ConstrainedSMC
from ponder.infer.critique_and_fuse import CritiqueAndFuse
from ponder.infer.deepconf import DeepConf, bottom_groups, lowest_group, tail_group, whole_mean
from ponder.infer.diverse_beam import DiverseBeam
from ponder.infer.dser import Dser
from ponder.infer.dvts import Dvts
from ponder.infer.entropic_filter import EntropicFilter
from ponder.infer.greedy import Greedy
from ponder.infer.iad import Iad
from ponder.infer.mcts import Mcts, puct, uct
from ponder.infer.medprompt import Medprompt
from ponder.infer.minimum_risk import MinimumRisk, overlap, same_answer
from ponder.infer.ops import log_odds, log_prob
from ponder.infer.parallel_tempering import ParallelTempering
from ponder.infer.particle_filter import MeanProbability, ParticleFilter
from ponder.infer.particle_gibbs import ParticleGibbs
from ponder.infer.path_search import PathSearch
from ponder.infer.picks import argmax, drawn, vote
from ponder.infer.plangen import PlanGen
from ponder.infer.rebase import Rebase
from ponder.infer.resample.multinomial import multinomial
from ponder.infer.resample.residual import residual
from ponder.infer.resample.stratified import stratified
from ponder.infer.resample.systematic import systematic
from ponder.infer.rpc import Rpc
from ponder.infer.sample import Sample
from ponder.infer.self_consistency import SelfConsistency
from ponder.infer.self_evaluation import NoBetterRestart, SelfEvaluation
from ponder.infer.self_refine import SelfRefine
from ponder.infer.solve_detect_verify import SolveDetectVerify
from ponder.infer.step_beam import StepBeam
from ponder.infer.stop.beta_test import BetaTest
from ponder.infer.stop.settled import Settled
from ponder.infer.stop.unanimous_window import UnanimousWindow
from ponder.infer.thinksum import ThinkSum, mixture, product
from ponder.infer.tree import Steps
from ponder.infer.tree_of_thoughts import TreeOfThoughts, bfs, dfs
from ponder.infer.until_accepted import UntilAccepted
from ponder.infer.zero_order import ZeroOrder
from ponder.models.decoder import Decoder
from ponder.models.fetch import resolve
from ponder.remote.dialect import Dialect
from ponder.remote.llama_cpp import LlamaCpp
from ponder.remote.openai import OpenAI
from ponder.run.spec import FilesToo, Specs
from ponder.tasks.gsm8k import Gsm8k
from ponder.tasks.humaneval import HumanEval
from ponder.tasks.math500 import Math500
from ponder.tasks.mbpp import Mbpp
from ponder.tasks.reasoning_gym import PRESELECTED, open_reasoning_gym
from ponder.tasks.sciq import SciQ
from ponder.tasks.task import Task
from ponder.verify.answers import Choice, Code, Latex, Number, ShortText
from ponder.verify.arithmetic import Arithmetic
from ponder.verify.constant import Constant
from ponder.verify.exact import Exact
from ponder.verify.generated_tests import GeneratedTests
from ponder.verify.heads import load_head
from ponder.verify.math_equal import MathEqual
from ponder.verify.mean_log_p import MeanLogP
from ponder.verify.numeric import Numeric
from ponder.verify.p_ik import PIK
from ponder.verify.p_true import PTrue
from ponder.verify.pairwise import Pairwise
from ponder.verify.probe_head import ProbeHead
from ponder.verify.program_agreement import ProgramAgreement
from ponder.verify.public_tests import PublicTests
from ponder.verify.self_certainty import SelfCertainty
from ponder.verify.unit_tests import UnitTests
from ponder.verify.value_prompt import ValuePrompt
from ponder.verify.yes_no import YesNo

DEFAULT_MODEL = "smollm2-135m"

LINES = Steps(until=("\n",))  # a step is a line
WARM = Sampling(temperature=0.8)

STRATEGIES: dict[str, Strategy] = {
    "greedy": Greedy(),
    "sample": Sample(),
    "best_of_n": BestOfN(num=8, verifier=MeanProbability()),
    "self_consistency": SelfConsistency(num=8),
    "weighted_best_of_n": SelfConsistency(num=8, verifier=MeanProbability()),
    "adaptive": Adaptive(num=16, rule=BetaTest()),
    "compute_optimal": ComputeOptimal(arms=(Sample(num=12, sampling=WARM), Sample(num=4, sampling=WARM), None)),
    "rpc": Rpc(num=16),
    "deepconf": DeepConf(num=16),
    "self_refine": SelfRefine(),
    "dser": Dser(),
    "solve_detect_verify": SolveDetectVerify(),
    "self_evaluation": SelfEvaluation(),
    "minimum_risk": MinimumRisk(),
    "atom_of_thoughts": AtomOfThoughts(),
    "plangen": PlanGen(arms=(Sample(), BestOfN(num=4, verifier=MeanProbability()), Beam())),
    "critique_and_fuse": CritiqueAndFuse(),
    "thinksum": ThinkSum(),
    "iad": Iad(verifier=MeanProbability()),
    "until_accepted": UntilAccepted(verifier=MeanProbability(), accept_from=0.9),
    "medprompt": Medprompt(),
    "beam": Beam(),
    "diverse_beam": DiverseBeam(),
    "particle_filter": ParticleFilter(num=8, resampler=systematic, until=("\n",)),
    "step_beam": StepBeam(steps=LINES),
    "dvts": Dvts(steps=LINES),
    "rebase": Rebase(steps=LINES),
    "best_first": BestFirst(steps=LINES),
    "astar": AStar(steps=LINES),
    "mcts": Mcts(steps=LINES),
    "ab_mcts": AbMcts(steps=LINES),
    "tree_of_thoughts": TreeOfThoughts(steps=Steps(until=("\n",), max_steps=4, verifier=ValuePrompt())),
    "constrained_smc": ConstrainedSMC(num=8, resampler=systematic),
    "entropic_filter": EntropicFilter(num=8, resampler=systematic, verifier=MeanProbability(), until=("\n",)),
    "path_search": PathSearch(verifier=MeanProbability(), until=("\n",)),
    "zero_order": ZeroOrder(verifier=MeanProbability()),
    "parallel_tempering": ParallelTempering(verifier=MeanProbability(), until=("\n",)),
    "particle_gibbs": ParticleGibbs(verifier=MeanProbability(), until=("\n",)),
}

STOP_RULES: dict[str, StopRule] = {"beta_test": BetaTest(), "unanimous_window": UnanimousWindow(), "settled": Settled()}

RESAMPLERS: dict[str, Resampler] = {
    "multinomial": multinomial, "systematic": systematic, "stratified": stratified, "residual": residual,
}  # fmt: skip

READERS: dict[str, AnswerReader] = {
    "text": WholeText(),
    "number": Number(),
    "math": Latex(),
    "choice": Choice(),
    "short": ShortText(),
    "code": Code(),
}

VERIFIERS: dict[str, Verifier] = {  # those that need no reference: strategies may use them
    "mean_probability": MeanProbability(),
    "no_better_restart": NoBetterRestart(),
    "mean_log_p": MeanLogP(),
    "self_certainty": SelfCertainty(),
    "p_true": PTrue(),
    "value_prompt": ValuePrompt(),
    "yes_no": YesNo(),
    "pairwise": Pairwise(),
    "program_agreement": ProgramAgreement(),
    "arithmetic": Arithmetic(),
    "public_tests": PublicTests(),
    "generated_tests": GeneratedTests(),
    "constant": Constant(),
}

SCORERS = {  # those that know the reference: tasks use them, strategies never see them
    "exact": Exact,
    "numeric": Numeric,
    "math_equal": MathEqual,
    "unit_tests": UnitTests,
}

TRAINED = {  # those that hold a trained head, by which of a candidate's states it knows (`ponder train-verifier`)
    "last": ProbeHead,
    "prompt": PIK,
}

WEIGHTS: dict[str, WeightFormat] = {
    "native": Native(narrow=Int4(), wide=Bf16()),
    "native4": Native4(fallback=Int4()),
    "native8": Native8(fallback=Bf16()),
    "int4": Int4(),
    "int8": Int8(),
    "int8-dynamic": Int8Dynamic(),
    "mixed": Mixed(few=Int4(), many=Bf16()),
    "bf16": Bf16(),
    "fp32": Float32(),
}

HEADS: dict[str, WeightFormat] = {  # the output head's format beside each: logits in float32
    "native": NativeHead(fallback=Int8Head()),
    "native4": NativeHead(fallback=Int8Head()),
    "native8": NativeHead(fallback=Int8Head()),
    "int4": Int8Head(),
    "int8": Int8Head(),
    "int8-dynamic": Int8Head(),
    "mixed": Int8Head(),
    "bf16": Bf16Head(),
    "fp32": Float32(),
}

DEVICE_WEIGHTS = {  # on another device than the CPU: formats of matrices and head, which are told the device, and the type of activations
    "dense": (DenseDevice, DenseDeviceHead, torch.bfloat16),
    "fp16": (DenseDevice, DenseDeviceHead, torch.float16),
    "fp32": (DenseDevice, DenseDeviceHead, torch.float32),
}

SCHEDULERS: dict[str, Scheduler] = {
    "sarathi": Sarathi(), "first_come": FirstCome(), "prefill_first": PrefillFirst(),
}  # fmt: skip

DRAFTERS: dict[str, Drafter] = {
    "draft_model": DraftModel(weights="int4"), "layer_skip": LayerSkip(), "ngram": Ngram(), "copyspec": CopySpec(), "trie": Trie(),
    "token_recycling": TokenRecycling(), "copy_or_recycle": First(drafters=(CopySpec(), TokenRecycling())),
}  # fmt: skip

TRAINED_DRAFTERS = {"medusa": Medusa}  # those that hold trained heads (`ponder train-heads`)

ACCEPTORS: dict[str, Acceptor] = {
    "coupled": Coupled(), "greedy": GreedyMatch(), "rejection": Rejection(), "typical": Typical(), "bild": BigLittle(),
}  # fmt: skip

LENGTHS: dict[str, LengthControl] = {
    "expected": Expected(), "fixed": Fixed(), "threshold": Threshold(),
}  # fmt: skip

COLLABORATIONS: dict[str, Way] = {"nudging": Nudging()}  # ways in which two processes answer as one (collaborate/pair)

BLENDS: dict[str, Blend] = {"contrastive": Contrastive(), "product": Product()}  # ways in which two models draw as one (core/blend)

CACHES: dict[str, Policy] = {
    "snapkv": Policy(name="snapkv", scorer=SnapKV(), allocator=Uniform(), evictor=Drop(), trigger=AfterPrompt()),
    "pyramidkv": Policy(name="pyramidkv", scorer=SnapKV(), allocator=Pyramid(), evictor=Drop(), trigger=AfterPrompt()),
    "adakv": Policy(name="adakv", scorer=SnapKV(), allocator=AdaKV(), evictor=Drop(), trigger=AfterPrompt()),
    "streaming": Policy(name="streaming", scorer=StreamingLLM(), allocator=Uniform(), evictor=Drop(), trigger=OverBudget()),
    "h2o": Policy(name="h2o", scorer=H2O(), allocator=Uniform(), evictor=Drop(), trigger=OverBudget()),
    "tova": Policy(name="tova", scorer=Tova(), allocator=Uniform(), evictor=Drop(), trigger=OverBudget()),
    "d2o": Policy(name="d2o", scorer=H2O(), allocator=D2OLayers(), evictor=D2OMerge(), trigger=OverBudget()),
    "elastic": Policy(name="elastic", scorer=H2O(recent=0.1), allocator=Uniform(), evictor=ElasticMerge(), trigger=OverBudget()),
    "knorm": Policy(name="knorm", scorer=Knorm(), allocator=Uniform(), evictor=Drop(), trigger=AfterPrompt()),
}

CACHE_PARTS: dict[str, dict[str, object]] = {  # field of a cache policy -> what it may be set to
    "allocator": {"uniform": Uniform(), "pyramid": Pyramid(), "adakv": AdaKV(), "d2o": D2OLayers()},
    "evictor": {"drop": Drop(), "d2o": D2OMerge(), "elastic": ElasticMerge()},
    "trigger": {"after_prompt": AfterPrompt(), "every": Every(every=16), "over_budget": OverBudget()},
}

ATTENTION_PLANS: dict[str, AttentionPlan] = {
    "vertical_slash": VerticalSlash(), "hyper": Hyper(), "s2": S2(), "longgen": LongGen(), "dual_chunk": DualChunk(),
}  # fmt: skip

KV_FORMATS: dict[str, KVFormat] = {"plain": PLAIN, "int8": INT8}

DIALECTS: dict[str, Dialect] = {  # of servers, by the name that they give themselves; any other one is plain OpenAI
    "llamacpp": LlamaCpp(),
    "vllm": OpenAI(offers=frozenset({"steps", "log_p", "logprobs", "top_k", "min_p", "penalties"})),
    "sglang": OpenAI(offers=frozenset({"steps", "log_p", "logprobs", "top_k", "min_p", "penalties"})),
    "ponder": OpenAI(offers=frozenset({"log_p", "logprobs", "penalties"})),
    "openai": OpenAI(offers=frozenset({"log_p", "logprobs", "penalties"}), limit="max_completion_tokens"),
}

TASKS: dict[str, Task] = {
    "gsm8k": Gsm8k(),
    "math500": Math500(),
    "humaneval": HumanEval(),
    "mbpp": Mbpp(),
    "mbpp-one": Mbpp(num_visible=1, name="mbpp-one"),  # two of three tests held out
    "sciq": SciQ(),
    **PRESELECTED,
}


def open_verifier(path: Path) -> Verifier:
    """The verifier with the trained head in that file. Raises BadField, StoreError."""
    head = load_head(path)
    return TRAINED[head.place](head=head)  # type: ignore[no-any-return]


def open_drafter(path: Path) -> Drafter:
    """Medusa with the heads in that file. Raises BadField, StoreError."""
    return TRAINED_DRAFTERS["medusa"](heads=load_heads(path))


PARTS = {  # field of a strategy -> what it may be set to
    "verifier": FilesToo(VERIFIERS, ".safetensors", open_verifier),
    "resampler": RESAMPLERS,
    "rule": STOP_RULES,
    "potential": {"odds": log_odds, "prob": log_prob},
    "utility": {"same_answer": same_answer, "overlap": overlap},
    "combine": {"mixture": mixture, "product": product},
    "measure": {"lowest_group": lowest_group, "bottom_groups": bottom_groups, "tail_group": tail_group, "whole_mean": whole_mean},
    "pick": {"vote": vote, "argmax": argmax, "drawn": drawn},
    "cost": {"drop": drop, "progress": progress},
    "curiosity": {"puct": puct, "uct": uct},
    "choose": {"gaussian": gaussian, "beta": beta, "mixed": mixed},
    "order": {"bfs": bfs, "dfs": dfs},
    "weigh": {"count": one_each, "verdict": by_verdict, "path_probability": by_path_probability},
}

SPECS = Specs("strategy", STRATEGIES, PARTS)
DRAFT_SPECS = (
    Specs("drafter", FilesToo(DRAFTERS, ".safetensors", open_drafter), {}),
    Specs("acceptor", ACCEPTORS, {}),
    Specs("length control", LENGTHS, {}),
)


def strategy(spec: str) -> Strategy:
    """The strategy that NAME or NAME:field=value,... means. Raises UnknownName or BadField."""
    return SPECS.read(spec)  # type: ignore[return-value]


def speculation(spec: str) -> Speculation:
    """What DRAFTER, DRAFTER/ACCEPTOR or DRAFTER/ACCEPTOR/LENGTH means, each NAME or NAME:field=value,...; by default coupled and expected.
    Raises UnknownName or BadField."""
    file, suffix, rest = spec.rpartition(".safetensors")  # a file of trained heads, whose path may have slashes
    given = (rest if suffix else spec).split("/")
    given[0] = file + suffix + given[0]
    if len(given) > 3:
        raise BadField(
            f"draft {spec!r}: has {len(given)} parts; write DRAFTER, DRAFTER/ACCEPTOR or DRAFTER/ACCEPTOR/LENGTH, as in ngram/coupled/fixed:num=4"
        )
    found = [specs.read(text) for specs, text in zip(DRAFT_SPECS, [*given, *("", "coupled", "expected")[len(given) :]])]
    return Speculation(drafter=found[0], acceptor=found[1], control=found[2])  # type: ignore[arg-type]


def cache_policy(spec: str) -> Policy:
    """The cache policy that NAME, NAME:SHARE or NAME:keep=SHARE,field=value,... means. Raises UnknownName or BadField."""
    name, colon, rest = spec.partition(":")
    is_bare = bool(rest) and "=" not in rest.partition(",")[0]
    return Specs("cache policy", CACHES, CACHE_PARTS).read(f"{name}{colon}keep={rest}" if is_bare else spec)  # type: ignore[return-value]


def accelerated(settings: Settings, accelerations: Accelerations) -> Settings:
    """Settings with what the accelerations name. Raises UnknownName or BadField."""
    draft, cache, attend = accelerations.draft, accelerations.cache, accelerations.attend
    if draft is not None:
        settings = replace(settings, speculation=speculation(draft) if isinstance(draft, str) else draft)  # type: ignore[arg-type]
    if cache is not None:
        settings = replace(settings, cache=cache_policy(cache) if isinstance(cache, str) else cache)  # type: ignore[arg-type]
    if attend is not None:
        settings = replace(settings, attend=attention_plan(attend) if isinstance(attend, str) else attend)  # type: ignore[arg-type]
    return settings


def open_model(
    path: Path, weights: str | None = None, threads: int | None = None, *, scheduler: str = "sarathi", kv: str = "plain",
    settings: Settings | None = None, device: str = "cpu", accelerations: Accelerations = PLAIN_RUN,
) -> LocalProcess:  # fmt: skip
    """The model at `path` as a running process. Raises UnknownName for a format or scheduler, BadModelFile, Unsupported, BadField.

    weights: None for "native" on the CPU and "dense" on another device. settings: bounds of the process; `kv` overrides its KV format,
    accelerations what it says of them.
    """
    for kind, name, table in (("scheduler", scheduler, SCHEDULERS), ("KV format", kv, KV_FORMATS)):
        if name not in table:
            raise UnknownName(kind, name, table)  # type: ignore[arg-type]
    matrices, head, dtype = formats_of(weights_on(device, weights), device)
    settings = replace(accelerated(settings or Settings(), accelerations), kv_format=KV_FORMATS[kv], twins=partial(twin_of, path))
    return open_process(
        path, weights=matrices, head=head, dtype=dtype, threads=threads, scheduler=SCHEDULERS[scheduler], settings=settings, device=device,
    )  # fmt: skip


def twin_of(path: Path, twin: Twin) -> tuple[Decoder, Tokenizer]:
    """The model that guesses for the one at `path`. Raises UnknownName, BadModelFile, PonderError for one that is not in the cache."""
    matrices, head, dtype = formats_of(weights_on("cpu", twin.weights), "cpu")
    return open_twin(path if twin.model is None else resolve(twin.model), matrices, head, dtype)


def attention_plan(spec: str) -> AttentionPlan:
    """The attention plan that NAME or NAME:field=value,... means. Raises UnknownName or BadField."""
    return Specs("attention plan", ATTENTION_PLANS, {}).read(spec)  # type: ignore[return-value]


def weights_on(device: str, name: str | None) -> str:
    """The name of a weight format for `device`: `name`, or what is best there. Raises BadField for a device that is not here, UnknownName."""
    is_cpu = find_device(device).type == "cpu"
    table = WEIGHTS if is_cpu else DEVICE_WEIGHTS
    name = name or ("native" if is_cpu else "dense")
    if name not in table:
        raise UnknownName("weight format" if is_cpu else f"weight format on {device}", name, table)
    return name


def formats_of(weights: str, device: str) -> tuple[WeightFormat, WeightFormat, torch.dtype]:
    """Formats of matrices and head, and the type of activations, for a name that `weights_on` returned."""
    where = find_device(device)
    if where.type == "cpu":
        return WEIGHTS[weights], HEADS[weights], torch.float32 if weights == "fp32" else torch.bfloat16
    matrices, head, dtype = DEVICE_WEIGHTS[weights]
    return matrices(device=where, dtype=dtype), head(device=where, dtype=dtype), dtype


def task(name: str) -> Task:
    """A task of the table, NAME:field=value,... for one with other settings, or 'rg:DATASET' for any generator of reasoning-gym."""
    if name in TASKS:
        return TASKS[name]
    if name.startswith("rg:"):
        return open_reasoning_gym(name)
    if name.partition(":")[0] in TASKS:
        return Specs("task", TASKS, {}).read(name)  # type: ignore[return-value]
    raise UnknownName("task", name, [*TASKS, "rg:DATASET"])


@dataclass(frozen=True, kw_only=True)
class Demo:
    """What `ponder demo` runs: sized for about five minutes on two cores."""

    task: str
    num_questions: int
    strategies: tuple[str, ...]
    budget: str
    question: str
    ask_strategy: str
    reader: str
    model: str = DEFAULT_MODEL
    weights: str = "native"


DEMO = Demo(
    task="rg:short_sums",
    num_questions=150,
    strategies=("greedy", "best_of_n", "self_consistency", "particle_filter", "beam"),
    budget="2000 tokens",
    question="What is 7 + 5?",
    ask_strategy="self_consistency",
    reader="number",
)
