"""A server as a program: killed, told to stop, and met by clients in other languages."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ponder.run.store import SampleStore
from serve.toy_server import HTTP, chat, get, post

HERE = Path(__file__).parent
MODULES = Path(os.environ.get("NODE_MODULES", "node_modules"))  # where npm put `openai`


@contextlib.contextmanager
def program(folder, *args):
    """(process, base URL) of a server of its own."""
    port_file = folder / "port"
    port_file.unlink(missing_ok=True)
    paths = [str(HERE.parent), str(HERE.parent.parent / "src"), os.environ.get("PYTHONPATH", "")]
    running = subprocess.Popen(
        [sys.executable, "-m", "serve.toy_main", str(port_file), *map(str, args)], env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    )
    try:
        end = time.monotonic() + 200
        while not (port_file.exists() and port_file.read_text()):
            assert running.poll() is None and time.monotonic() < end, "the server did not start"
            time.sleep(0.02)
        yield running, f"http://127.0.0.1:{port_file.read_text()}"
    finally:
        running.kill()
        running.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with program(tmp_path_factory.mktemp("server"), "", 0.02) as (running, url):
        yield running, url


def test_kill_9_in_the_middle_loses_no_finished_sample(tmp_path, server):
    body = chat("ab", model="toy@best_of_n:num=24", max_tokens=25)
    store = tmp_path / "samples.sqlite"
    with (
        program(tmp_path, store, 0.03) as (running, url),
        HTTP.stream("POST", url + "/v1/chat/completions", json=body | {"stream": True}) as response,
    ):
        lines = response.iter_lines()  # kept: without it the response closes
        next(lines)
        end = time.monotonic() + 120
        while not (store.exists() and len(SampleStore(store)) >= 5):
            assert time.monotonic() < end, "no five samples in two minutes"
            time.sleep(0.01)
        running.kill()
        running.wait()
    kept = len(SampleStore(store))
    assert 5 <= kept < 24
    with program(tmp_path, store) as (_, url):
        again = post(url, body).json()
        assert get(url + "/ponder/ledger").json()["stored_answers"] >= kept
    fresh = post(server[1], body).json()
    texts = lambda reply: [c["text"] for c in reply["choices"][0]["ponder"]["candidates"]]
    assert texts(again) == texts(fresh) and again["usage"]["completion_tokens"] == fresh["usage"]["completion_tokens"]


@pytest.mark.skipif(shutil.which("node") is None or not (MODULES / "openai").exists(), reason="needs node and its package openai (NODE_MODULES)")
def test_openai_for_javascript(server):
    script = MODULES.parent / "ponder-client.mjs"
    shutil.copy(HERE / "client.mjs", script)
    try:
        found = subprocess.run(["node", script, server[1].rpartition(":")[2], "toy"], capture_output=True, text=True, timeout=60, check=True)
    finally:
        script.unlink()
    told = json.loads(found.stdout)
    assert (
        told == {"same": True, "total": True, "refused": {"status": 400, "param": "tools"}, "names": told["names"], "final": True}
        and told["names"] > 30
    )


def test_sigterm_lets_what_is_under_way_come_to_its_end(server):
    """The last test: its server stops."""
    running, url = server
    with HTTP.stream("POST", url + "/v1/chat/completions", json=chat("ab", stream=True, max_tokens=90, logit_bias={"9": -100})) as response:
        lines = response.iter_lines()
        next(lines)
        running.send_signal(signal.SIGTERM)
        refused = None
        while refused is None or refused.status_code == 200:
            refused = get(url + "/health")
        assert refused.status_code == 503 and "Retry-After" in refused.headers
        told = [line for line in lines if line.startswith("data: ")]
    assert told[-1] == "data: [DONE]" and json.loads(told[-2][6:])["choices"][0]["ponder"]["stop_reason"] == "done"
    assert running.wait(30) == 0
