"""transformers as a worker that guesses ahead by prompt lookup (assisted generation), or decodes plainly: a work's variant says which.

"plain", or "lookup:NUM" with the number of tokens that prompt_lookup_num_tokens allows. Answers end where the model ends them.
"""

import time

import torch
from transformers import DynamicCache, GenerationConfig
from transformers.generation.streamers import BaseStreamer

from peers import transformers_
from peers.serve import Made


class Heard(BaseStreamer):
    """Notes when tokens came; the first call is the prompt."""

    def __init__(self, start: float) -> None:
        self.start, self.times, self.is_begun = start, [], False

    def put(self, value: torch.Tensor) -> None:
        if self.is_begun:
            self.times += [time.perf_counter() - self.start] * value.numel()
        self.is_begun = True

    def end(self) -> None:
        pass


class Peer(transformers_.Peer):
    def ready(self, work: dict) -> None:
        if len(work["prompts"]) > 1 and work["variant"] != "plain":
            raise ValueError("assisted generation takes one sequence at a time")

    def run(self, work: dict) -> Made:
        ids_BT = torch.tensor([work["prompts"][0]["ids"]])
        name, _, num = work["variant"].partition(":")
        start = time.perf_counter()
        heard = Heard(start)
        config = GenerationConfig(
            max_new_tokens=work["new"][0], do_sample=False, pad_token_id=0, eos_token_id=work["eos"],
            prompt_lookup_num_tokens=int(num) if name == "lookup" else None,
        )  # fmt: skip
        with torch.inference_mode():
            made = self.model.generate(
                ids_BT, attention_mask=torch.ones_like(ids_BT), past_key_values=DynamicCache(config=self.model.config), generation_config=config,
                streamer=heard,
            )  # fmt: skip
        seconds = time.perf_counter() - start
        ids = made[:, ids_BT.shape[1] :].tolist()
        return Made(seconds, [len(row) for row in ids], [heard.times], ids)
