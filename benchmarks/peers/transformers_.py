"""transformers as a worker: generate for batches, its continuous batching for arrivals. GGUF weights are unpacked, as it does itself.

bfloat16 where the processor multiplies it, else float32. Samples of one prompt: its prefix cache, computed once and repeated.
"""

import time
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, DynamicCache, GenerationConfig, StoppingCriteria

from peers.serve import Made

PAGE = 32


class Clock(StoppingCriteria):
    """Notes when each step's tokens came; stops nothing."""

    def __init__(self, start: float) -> None:
        self.start, self.times = start, []

    def __call__(self, input_ids: torch.Tensor, scores: object, **options: object) -> torch.Tensor:
        self.times.append(time.perf_counter() - self.start)
        return torch.zeros(len(input_ids), dtype=torch.bool)


class Peer:
    manager = None

    def load(self, path: Path, threads: int, option: str) -> str:
        torch.set_num_threads(threads)
        cpu = Path("/proc/cpuinfo")
        flags = cpu.read_text() if cpu.exists() else ""
        dtype = torch.bfloat16 if "avx512_bf16" in flags or "amx_bf16" in flags else torch.float32
        self.model = AutoModelForCausalLM.from_pretrained(str(path.parent), gguf_file=path.name, dtype=dtype).eval()
        self.model.generation_config = GenerationConfig(pad_token_id=0)
        return f"{str(dtype).removeprefix('torch.')}, attention {self.model.config._attn_implementation}"

    def versions(self) -> dict[str, str]:
        return {"transformers": transformers.__version__, "torch": torch.__version__}

    def ready(self, work: dict) -> None:
        if work["kind"] != "arrivals":
            self._close()
        elif self.manager is None:
            lens = [len(p["ids"]) + num for p, num in zip(work["prompts"], work["new"], strict=True)]
            config = ContinuousBatchingConfig(
                page_size=PAGE, num_blocks=sum(-(-n // PAGE) + 1 for n in lens) * 2, max_batch_tokens=512, max_requests_per_batch=64
            )
            self.manager = self.model.init_continuous_batching(GenerationConfig(do_sample=False, eos_token_id=-1, max_new_tokens=64), config)
            self.manager.start()

    def _close(self) -> None:
        if self.manager is not None:
            self.manager.stop(block=True, timeout=10)
            self.manager.destroy()
            self.manager = None

    def run(self, work: dict) -> Made:
        if work["kind"] == "arrivals":
            return self._arrive(work)
        ids_BT = torch.tensor([p["ids"] for p in work["prompts"]])
        num = work["num"] if work["kind"] == "samples" else 1
        start = time.perf_counter()
        clock = Clock(start)
        with torch.inference_mode():
            cache = DynamicCache(config=self.model.config)
            if num > 1:
                self.model(ids_BT[:, :-1], past_key_values=cache, logits_to_keep=1)
                cache.batch_repeat_interleave(num)
                ids_BT = ids_BT.repeat(num, 1)
            torch.manual_seed(work["seed"])
            config = GenerationConfig(
                max_new_tokens=work["new"][0], do_sample=num > 1, temperature=1.0 if num > 1 else None, top_k=0 if num > 1 else None, pad_token_id=0
            )
            made = self.model.generate(
                ids_BT, attention_mask=torch.ones_like(ids_BT), past_key_values=cache, generation_config=config, stopping_criteria=[clock]
            )
        seconds = time.perf_counter() - start
        ids = made[:, ids_BT.shape[1] :].tolist()
        return Made(seconds, [len(row) for row in ids], [clock.times] * len(ids), ids)

    def _arrive(self, work: dict) -> Made:
        start = time.perf_counter()
        names: list[str] = []
        done: dict[str, object] = {}
        while len(done) < len(work["prompts"]):
            index, now = len(names), time.perf_counter() - start
            if index < len(work["at"]) and work["at"][index] <= now:
                ids, num = work["prompts"][index]["ids"], work["new"][index]
                names.append(self.manager.add_request(ids, max_new_tokens=num, record_timestamps=True, eos_token_id=-1))
                continue
            wait = max(0.001, work["at"][index] - now) if index < len(work["at"]) else 1.0
            result = self.manager.get_result(timeout=wait)
            if result is not None and result.is_finished():
                if result.error:
                    raise RuntimeError(result.error)
                done[result.request_id] = result
            elif not self.manager.is_running():
                raise RuntimeError("the continuous-batching thread ended")
        seconds = time.perf_counter() - start
        found = [done[name] for name in names]
        ids = [list(r.generated_tokens) for r in found]
        return Made(seconds, [len(row) for row in ids], [[t - start for t in r.timestamps] for r in found], ids)
