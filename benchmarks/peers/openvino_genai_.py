"""OpenVINO GenAI as a worker: its continuous-batching pipeline, straight from the GGUF file, stepped from here.

Its reader knows no Q5_0 blocks: such a file is first rewritten with those as Q8_0 (peers/widen.py), which holds the same values.
"""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import openvino as ov
import openvino_genai as genai

from peers.serve import Made


class Peer:
    is_widened = False

    def prepare(self, path: Path) -> Path:
        """The file itself, or a rewritten one beside the working folder; not timed."""
        done = subprocess.run([sys.executable, "-m", "peers.widen", str(path)], stdout=subprocess.PIPE, text=True, check=True)
        self.is_widened = Path(done.stdout.strip()) != path
        return Path(done.stdout.strip())

    def load(self, path: Path, threads: int, option: str) -> str:
        self.pipe = genai.ContinuousBatchingPipeline(str(path), genai.SchedulerConfig(), "CPU", {"INFERENCE_NUM_THREADS": threads})
        self.num_asked = 0
        return "continuous batching" + (", Q5_0 blocks rewritten as Q8_0 of the same values" if self.is_widened else ", the file's own blocks")

    def versions(self) -> dict[str, str]:
        return {"openvino-genai": genai.__version__, "openvino": ov.__version__}

    def ready(self, work: dict) -> None:
        pass

    def run(self, work: dict) -> Made:
        is_drawn = work["kind"] == "samples"
        configs = [self._config(num, work) for num in (work["new"][:1] if is_drawn else work["new"])]
        inputs = [ov.Tensor(np.array([p["ids"]], dtype=np.int64)) for p in work["prompts"]]
        at, times = work.get("at") or [0.0] * len(inputs), [[] for _ in inputs]
        handles, ids, num_done, start = [], [[] for _ in inputs], 0, time.perf_counter()
        while num_done < len(inputs):
            while len(handles) < len(inputs) and at[len(handles)] <= time.perf_counter() - start:
                index = len(handles)
                handles.append(self.pipe.add_request(self.num_asked, inputs[index], configs[index]))
                self.num_asked += 1
            if not self.pipe.has_non_finished_requests():
                time.sleep(max(0.0, at[len(handles)] - (time.perf_counter() - start)))
                continue
            self.pipe.step()
            now = time.perf_counter() - start
            num_done = 0
            for index, handle in enumerate(handles):
                while not is_drawn and handle.can_read():
                    new = [token for output in handle.read().values() for token in output.generated_ids]
                    ids[index] += new
                    times[index] += [now] * len(new)
                num_done += handle.get_status() != genai.GenerationStatus.RUNNING
        seconds = time.perf_counter() - start
        if is_drawn:
            ids = [list(output.generated_ids) for output in handles[0].read_all()]
            times = [[] for _ in ids]
        return Made(seconds, [len(row) for row in ids], times, ids)

    def _config(self, num_new: int, work: dict) -> genai.GenerationConfig:
        config = genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = num_new, True, work["kind"] in ("samples", "streams")
        if work["kind"] == "streams":
            config.temperature, config.rng_seed = work["temperature"], work["seed"]
        if work["kind"] == "samples":
            config.num_return_sequences, config.temperature, config.rng_seed = work["num"], 1.0, work["seed"]
        return config
