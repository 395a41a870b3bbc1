"""What a process is made of, by name: formats of weights and keys, schedulers; dialects of servers elsewhere."""

import torch

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
from ponder.core.errors import UnknownName
from ponder.core.formats import WeightFormat
from ponder.core.schedule import Scheduler
from ponder.engine.device import find_device
from ponder.engine.pages import INT8, PLAIN, KVFormat
from ponder.remote.dialect import Dialect
from ponder.remote.llama_cpp import LlamaCpp
from ponder.remote.openai import OpenAI

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

KV_FORMATS: dict[str, KVFormat] = {"plain": PLAIN, "int8": INT8}

DIALECTS: dict[str, Dialect] = {  # of servers, by the name that they give themselves; any other one is plain OpenAI
    "llamacpp": LlamaCpp(),
    "vllm": OpenAI(offers=frozenset({"steps", "log_p", "logprobs", "top_k", "min_p", "penalties"})),
    "sglang": OpenAI(offers=frozenset({"steps", "log_p", "logprobs", "top_k", "min_p", "penalties"})),
    "ponder": OpenAI(offers=frozenset({"log_p", "logprobs", "penalties"})),
    "openai": OpenAI(offers=frozenset({"log_p", "logprobs", "penalties"}), limit="max_completion_tokens"),
}


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
