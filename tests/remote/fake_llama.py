"""llama.cpp's own routes over a small model whose probabilities are known: token i is letter i, the end is token V, any other
character of a prompt is 1000 + its code point."""

import json
import math
from dataclasses import dataclass, field
from typing import Any

import httpx

from ponder.core.asks import Sampling
from ponder.core.rng import hash_seed
from ponder.testing.toy import ToyLM, transformed

Json = dict[str, Any]


@dataclass
class FakeLlama:
    lm: ToyLM
    context_len: int = 200
    seen: set[tuple[int, ...]] = field(default_factory=set)  # prefixes whose keys it holds

    def __post_init__(self) -> None:
        self.bodies: list[tuple[str, Json]] = []

    async def handle(self, request: httpx.Request) -> httpx.Response:
        route = request.url.path.rpartition("/")[2]
        if route == "models":
            row = {"id": "toy.gguf", "owned_by": "llamacpp", "meta": {"n_ctx": self.context_len, "n_params": 1000}}
            return httpx.Response(200, json={"data": [row]})
        body = json.loads(request.content)
        self.bodies.append((route, body))
        if route == "completion" and len(body["prompt"]) >= self.context_len:
            return httpx.Response(400, json={"error": {"message": "request exceeds the available context size"}})
        replies = {"apply-template": self.template, "tokenize": self.tokenize, "detokenize": self.detokenize, "completion": self.completion}
        return httpx.Response(200, json=replies[route](body))

    @property
    def transport(self) -> httpx.MockTransport:
        return httpx.MockTransport(self.handle)

    def template(self, body: Json) -> Json:
        return {"prompt": "".join(message["content"] for message in body["messages"])}

    def tokenize(self, body: Json) -> Json:
        ids = [self.lm.alphabet.index(c) if c in self.lm.alphabet else 1000 + ord(c) for c in body["content"]]
        return {"tokens": ([2000] if body.get("add_special") else []) + ids}

    def piece(self, token: int) -> str:
        return "" if token == self.lm.end else self.lm.alphabet[token] if token < self.lm.end else chr(token - 1000)

    def detokenize(self, body: Json) -> Json:
        return {"content": "".join(map(self.piece, body["tokens"]))}

    def completion(self, body: Json) -> Json:
        ids, made, rows, kind, word = list(body["prompt"]), [], [], "limit", ""
        num_cached = max((len(s) for s in self.seen if tuple(ids[: len(s)]) == s), default=0)
        num_cached = min(num_cached, len(ids) - 1)
        while len(made) < body["n_predict"] and kind == "limit":
            last = (ids + made)[-1]
            log_p = self.lm.row(last if last < self.lm.end else None)
            token = self.drawn(body, log_p, len(made))
            made.append(token)
            ranked = sorted(range(len(log_p)), key=lambda v: -log_p[v])[: body["n_probs"]]
            tops = [{"id": v, "token": self.piece(v), "logprob": log_p[v]} for v in ranked]
            rows.append({"id": token, "token": self.piece(token), "logprob": log_p[token], "top_logprobs": tops})
            text = "".join(map(self.piece, made))
            word = next((s for s in body.get("stop", ()) if s in text), "")
            kind = "eos" if token == self.lm.end else "word" if word else kind
        text = "".join(map(self.piece, made))
        self.seen.add((*ids, *made[:-1]))
        if word:  # as llama.cpp: no text and no probabilities of the stop string's tokens
            text, rows = text[: text.index(word)], rows[: len(rows) - len(word)]
        timings = {"cache_n": num_cached, "prompt_n": len(ids) - num_cached}
        return {"content": text, "tokens": made, "stop_type": kind, "stopping_word": word, "timings": timings, "completion_probabilities": rows}

    def drawn(self, body: Json, log_p: tuple[float, ...], at: int) -> int:
        for token, bias in body.get("logit_bias", ()):
            if bias >= 100:
                return int(token)
        chances = [math.exp(x) for x in transformed(log_p, Sampling(temperature=body["temperature"]))]
        left = hash_seed("fake llama w", body.get("seed"), at) / 2**63 * sum(chances)
        for token, chance in enumerate(chances):
            left -= chance
            if left < 0:
                return token
        return max(range(len(chances)), key=chances.__getitem__)
