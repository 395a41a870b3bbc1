"""its_hub as a worker: a JSON line {"url", "model", "questions": [messages], "budget", "temperature", "max_tokens"} gives one
{"seconds", "tokens", "prompt_tokens", "answers"}. All questions of a line run at once, each a self-consistency of `budget` samples.

Votes are counted over numbers as ponder reads them: its own reader compares whole texts, which hardly ever agree.
"""

import asyncio
import json
import os
import sys
import time
import warnings

import aiohttp
import its_hub
from its_hub.api import ChatMessage
from its_hub.core.orchestrator import LMOrchestrator

from ponder.verify.answers import Number

READ = Number()


def number(text: str) -> str:
    return READ.read(text) or ""


class Patient(its_hub.OpenAICompatibleLanguageModel):
    """Waits as long as it takes: 64 answers of a busy server come later than aiohttp's five minutes, and its retries would ask again."""

    def _get_session(self, loop: asyncio.AbstractEventLoop) -> aiohttp.ClientSession:
        session = super()._get_session(loop)
        session._timeout = aiohttp.ClientTimeout(total=None)
        return session


async def run(order: dict) -> dict:
    model = Patient(
        endpoint=order["url"], api_key="none", model_name=order["model"], temperature=order["temperature"], max_completion_tokens=order["max_tokens"]
    )
    wide = LMOrchestrator(max_concurrency=-1)
    vote = its_hub.SelfConsistency(consistency_space_projection_func=number, orchestrator=wide)
    asked = [[ChatMessage(role=role, content=text) for role, text in messages] for messages in order["questions"]]
    start = time.perf_counter()
    found = await asyncio.gather(*(vote.ainfer(model, messages, order["budget"], return_response_only=False) for messages in asked))
    seconds = time.perf_counter() - start
    await model.close()
    return {
        "seconds": seconds, "tokens": sum(r.usage.completion_tokens for r in found), "prompt_tokens": sum(r.usage.prompt_tokens for r in found),
        "answers": [number(r.the_one["content"]) for r in found],
    }  # fmt: skip


def main() -> None:
    warnings.simplefilter("ignore")
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what its_hub prints, as of retries, must not look like a reply
    for line in sys.stdin:
        replies.write(json.dumps(asyncio.run(run(json.loads(line)))) + "\n")


if __name__ == "__main__":
    main()
