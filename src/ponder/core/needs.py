"""What an ask requires of the process that answers it, in words that a process can say it offers.

A process that answers everything says nothing. One that does not has an attribute `offers`, a frozenset of these words, and
raises NotOffered for an ask that needs more. A technique that reads more of an answer than its text and its tokens, where
the ask does not show it, says so in an attribute `needs`.
"""

from ponder.core.asks import Ask, Confer, Expand, Extend, Read, Score

WORDS = {  # need -> what it means, as a message says it
    "steps": "answers that pause at a separator and go on from there",
    "log_p": "log-probabilities of the tokens drawn",
    "log_q": "log-probabilities under the sampling distribution",
    "certainty": "how far each distribution was from uniform",
    "logprobs": "log-probabilities of the tokens not drawn",
    "expand": "the likeliest next tokens (Expand)",
    "score": "log-probabilities of given texts (Score)",
    "probes": "hidden states (Read, probes)",
    "form": "answers held to a form",
    "noise": "draws by a given noise (drift)",
    "confer": "answers that read each other while they are written (Confer)",
    "forced": "tokens that are given instead of drawn",
    "top_k": "sampling by top_k",
    "min_p": "sampling by min_p",
    "penalties": "sampling with penalties",
    "logit_bias": "biases on single tokens",
    "flops": "a count of FLOPs",
    "usd": "a price in $",
}

MENDS = {  # need -> what to do where it alone is missing
    "usd": "leave usd out of the budget, or give a remote engine a price file",
    "confer": "open a local model on the CPU, without a cache policy, attention plan, layer plan, prompt filter, tail or partner; or choose another "
    "strategy",
}


def needs_of(ask: Ask) -> frozenset[str]:
    """The words that answering `ask` needs; empty for a whole sampled answer and for a Judge, whose verifier asks by itself."""
    if isinstance(ask, Expand):
        return frozenset({"expand", *_of_prefix(ask)})
    if isinstance(ask, Score):
        return frozenset({"score", *_of_prefix(ask)})
    if isinstance(ask, Read):
        return frozenset({"probes"})
    if isinstance(ask, Confer):
        return frozenset({"confer"}).union(*map(_of_extend, ask.asks))
    return _of_extend(ask) if isinstance(ask, Extend) else frozenset()


def _of_prefix(ask: Expand | Score | Extend) -> set[str]:
    return {"steps"} if ask.prefix.tokens else set()


def _of_extend(ask: Extend) -> frozenset[str]:
    drawn = ask.sampling
    wanted = {
        "steps": bool(ask.until or ask.prefix.tokens or _is_begun(ask)), "form": ask.prefix.prompt.form is not None, "probes": bool(ask.probes),
        "noise": bool(ask.drift), "forced": bool(ask.forced), "log_p": ask.logprobs == 0, "logprobs": bool(ask.logprobs),
        "top_k": drawn.top_k is not None, "min_p": drawn.min_p > 0, "penalties": drawn.has_penalties, "logit_bias": bool(drawn.logit_bias),
    }  # fmt: skip
    return frozenset(need for need, is_wanted in wanted.items() if is_wanted)


def _is_begun(ask: Extend) -> bool:
    """Whether words are put into the mouth of a chat model: a reply that it must go on with."""
    prompt = ask.prefix.prompt
    return bool(prompt.prefill) and prompt.messages[0][0] != "raw"
