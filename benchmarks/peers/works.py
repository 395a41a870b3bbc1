"""What is measured, how large, and what we want to reach: plain data, one row each.

A work is greedy, of fixed length, and ignores the end of an answer, so that every engine makes the same number of tokens.
"""

from dataclasses import dataclass, replace

OURS = "ponder"
LLAMA, OPENVINO, TRANSFORMERS = "llama.cpp", "openvino", "transformers"
PEERS = (LLAMA, OPENVINO, TRANSFORMERS)
SCHEDULERS = ("sarathi", "first_come", "prefill_first")
ROUNDS = 3
MODELS = {"smollm2-135m": 0.5, "qwen2.5-coder-0.5b": 0.25}  # catalogue name -> share of the full sizes that fits the usual run
SPANS = {"smollm2-135m": 5.2, "qwen2.5-coder-0.5b": 5.6}  # minutes of the usual run
LEAST_NEW = 16


@dataclass(frozen=True)
class Work:
    """kind: "start" loads and gives one short answer; "prompts" are distinct; "samples" are drawn from one prompt; "arrivals" come in
    as a Poisson process. figure: what the verdict is about; variants: settings of ours that are measured apart (first: the default)."""

    name: str
    kind: str
    title: str
    num: int  # sequences
    prompt_len: int  # tokens; for arrivals the longest
    num_new: int  # tokens each; for arrivals the most
    figure: str = "tokens_per_s"
    is_ours: bool = False  # no peer has it
    is_quick: bool = True  # part of the short run
    rounds: int = ROUNDS
    weight: int = 10  # share of the run's time that it may take, roughly its seconds
    variants: tuple[str, ...] = ("",)


WORKS = (
    Work("start", "start", "load a file, answer once", 1, 128, 8, figure="peak_mb", weight=45),
    Work("decode 1", "prompts", "1 sequence", 1, 128, 128, figure="decode_tokens_per_s", weight=25),
    Work("decode 16", "prompts", "16 sequences", 16, 64, 64, figure="decode_tokens_per_s", weight=60),
    Work("prefill 1k", "prompts", "prompt of 1,024 tokens", 1, 1024, 1, figure="prompt_tokens_per_s", weight=25),
    Work("samples 32", "samples", "32 samples on a shared prefix of 1,024", 32, 1024, 64, weight=75),
    Work("arrivals", "arrivals", "requests that arrive at random (Poisson)", 32, 384, 48, weight=85, variants=SCHEDULERS),
    Work("decode 64", "prompts", "64 sequences", 64, 64, 64, figure="decode_tokens_per_s", is_quick=False, weight=50),
    Work("decode 4", "prompts", "4 sequences", 4, 64, 64, figure="decode_tokens_per_s", is_quick=False, weight=25),
    Work("prefill 128", "prompts", "prompt of 128 tokens", 1, 128, 1, figure="prompt_tokens_per_s", weight=10),
    Work(
        "shared 4k",
        "samples",
        "16 samples on a stored prefix of 4,096",
        16,
        4096,
        32,
        is_ours=True,
        is_quick=False,
        weight=20,
        variants=("", "unshared"),
    ),
    Work("prefill 4k", "prompts", "prompt of 4,096 tokens", 1, 4096, 1, figure="prompt_tokens_per_s", is_quick=False, rounds=2, weight=40),
)


@dataclass(frozen=True)
class Target:
    """ours / peer of a figure must be at least `ratio` (at most, where less is better). peer: an engine, "best peer" or our variant."""

    work: str
    peer: str
    ratio: float
    figure: str = ""  # another than the work's own
    is_most: bool = False


TARGETS = (
    Target("decode 1", LLAMA, 1.15),
    Target("decode 1", OPENVINO, 1.5),
    Target("decode 1", TRANSFORMERS, 4.0),
    Target("decode 16", OPENVINO, 1.1),
    Target("decode 16", LLAMA, 2.5),
    Target("decode 16", TRANSFORMERS, 2.5),
    Target("decode 64", "best peer", 1.1),
    Target("decode 64", LLAMA, 3.0),
    Target("prefill 1k", "best peer", 1.0),
    Target("samples 32", "best peer", 3.0),
    Target("arrivals", TRANSFORMERS, 3.0),
    Target("arrivals", f"{OURS} prefill_first", 0.3, figure="gap_p99_ms", is_most=True),
    Target("arrivals", f"{OURS} prefill_first", 0.95),
    Target("shared 4k", f"{OURS} unshared", 1.8),
    Target("start", LLAMA, 1.2, is_most=True),
)

LESS_IS_BETTER = ("peak_mb", "load_s", "first_s", "gap_p50_ms", "gap_p99_ms", "wait_p50_ms", "wait_p99_ms")
UNITS = {
    "tokens_per_s": "tokens/s", "decode_tokens_per_s": "tokens/s while all generate", "prompt_tokens_per_s": "prompt tokens/s",
    "peak_mb": "MB at most", "load_s": "s to load", "first_s": "s to the first token, loading included", "gap_p50_ms": "ms between tokens, median",
    "gap_p99_ms": "ms between tokens, 99 %", "wait_p50_ms": "ms to the first token, median", "wait_p99_ms": "ms to the first token, 99 %",
}  # fmt: skip


def sized(work: Work, share: float, is_tiny: bool = False) -> Work:
    """The work with `share` of its new tokens, or of its requests; tiny: only shows that everything runs."""
    if is_tiny:
        return replace(work, num=min(work.num, 4), prompt_len=min(work.prompt_len, 48), num_new=min(work.num_new, 6), rounds=min(work.rounds, 2))
    if work.kind == "arrivals":
        return replace(work, num=int(work.num * min(1.0, 2 * share)))
    if work.num <= 16:  # these are quick
        share = min(1.0, 2 * share)
    return replace(work, num_new=min(work.num_new, max(LEAST_NEW, int(work.num_new * share))))
