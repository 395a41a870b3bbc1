"""A loop of transformers' generate as a worker: `python generate_loop.py MODEL.gguf THREADS`, then a JSON line
{"ids", "num", "temperature", "max_tokens", "seed", "is_batched", "eos"} gives one {"seconds", "tokens", "ids"}.

float32, as it advises itself for weights that stay packed as the file has them.
is_batched: all samples of a problem in one call (num_return_sequences).
"""

import json
import sys
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, GenerationConfig


def opened(path: Path, threads: int) -> AutoModelForCausalLM:
    torch.set_num_threads(threads)
    return AutoModelForCausalLM.from_pretrained(str(path.parent), gguf_file=path.name, dtype=torch.float32).eval()


def run(model: AutoModelForCausalLM, order: dict) -> dict:
    ids = torch.tensor([order["ids"]])
    num = order["num"]
    config = GenerationConfig(
        max_new_tokens=order["max_tokens"], do_sample=True, temperature=order["temperature"], top_k=0, top_p=1.0,
        num_return_sequences=num if order["is_batched"] else 1, pad_token_id=order["eos"][0], eos_token_id=order["eos"],
    )  # fmt: skip
    torch.manual_seed(order["seed"])
    rows: list[list[int]] = []
    start = time.perf_counter()
    with torch.inference_mode():
        for _ in range(1 if order["is_batched"] else num):
            made = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
            rows += made[:, ids.shape[1] :].tolist()
    seconds = time.perf_counter() - start
    ends = set(order["eos"])
    kept = [row[: next((i + 1 for i, token in enumerate(row) if token in ends), len(row))] for row in rows]
    return {"seconds": seconds, "tokens": sum(map(len, kept)), "ids": kept}


def main() -> None:
    model = opened(Path(sys.argv[1]), int(sys.argv[2]))
    model.generation_config = GenerationConfig(pad_token_id=0)
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(run(model, json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
