"""Two replicas of the server behind Ray Serve answer; one is killed, and the service goes on and grows back."""

import json
import os
import signal
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from cluster import problems as toy

pytest.importorskip("ray.serve", reason="Ray Serve is not installed", exc_type=ImportError)
pytest.importorskip("starlette", reason="the server is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

from ponder.cluster.address import joined  # noqa: E402
from ponder.cluster.serving import Service, start, stop  # noqa: E402
from ponder.run.driver import Driver  # noqa: E402
from ponder.serve.app import App, Site  # noqa: E402
from ponder.serve.desk import Limits  # noqa: E402
from ponder.serve.menu import Menu  # noqa: E402
from ponder.serve.server import bind  # noqa: E402


@dataclass(frozen=True)
class Build:
    """The server over a toy that writes down who answers."""

    diary: Path

    def __call__(self):
        process = toy.Opener(0.002, self.diary)()
        return App(lambda: Driver(process), Menu(model="toy"), Limits(), Site()).build()


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """(URL, diary) of two replicas."""
    diary = tmp_path_factory.mktemp("diary")
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
    with joined("local", cpus=2):
        start(Build(diary), Service(host="127.0.0.1", port=port, num=2))
        yield f"http://127.0.0.1:{port}", diary
        stop()


def asked(url, i):
    """The answer to a completion, or the status it failed with."""
    body = {"model": "toy@sample", "prompt": "ab" * (1 + i % 5), "max_tokens": 6, "seed": i}
    request = urllib.request.Request(f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["choices"][0]["text"]
    except (OSError, ValueError) as error:
        return error


def many(url, num=60):
    with ThreadPoolExecutor(8) as threads:
        return list(threads.map(lambda i: asked(url, i), range(num)))


def pids(diary):
    return {int(path.name) for path in diary.iterdir() if Path(f"/proc/{path.name}").exists()}


def test_two_replicas_answer_alike_and_one_killed_loses_no_service(service):
    url, diary = service
    first = many(url)
    assert all(isinstance(text, str) for text in first), [x for x in first if not isinstance(x, str)][:1]
    assert len(pids(diary)) == 2, "one replica answered everything"
    assert many(url) == first, "a seed decides the answer, wherever it is given"
    killed = min(pids(diary))
    os.kill(killed, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while not isinstance(asked(url, 0), str) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert many(url) == first, "requests fail although one replica is there"
    while len(pids(diary)) < 2 and time.monotonic() < deadline:
        many(url, 8)
    assert len(pids(diary)) == 2, "the lost replica was not replaced"
    assert urllib.request.urlopen(f"{url}/health", timeout=10).status == 200
