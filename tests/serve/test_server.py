"""How a server behaves when it is full, left, threatened with keys, told to stop, or asked what it did."""

import asyncio
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ponder import catalogue
from ponder.core.budget import Budget
from ponder.core.errors import BadField
from ponder.run.events import Finished
from ponder.serve.admission import FairLines
from ponder.serve.app import Site
from ponder.serve.desk import Limits
from ponder.serve.menu import Menu
from serve.toy_server import ENDLESS, HTTP, Gated, Lettered, chat, events, get, post, serving

LONG = {"max_tokens": 2000}


def until(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.005)


@pytest.mark.parametrize(
    "fields", [{}, {"stream": True}, {"stream": True, "n": 3}, {"model": "toy@best_of_n"}, {"model": "toy@step_beam", "stream": True}]
)
def test_a_client_that_goes_frees_its_work_within_one_step(fields):
    process, left = Timed(ENDLESS, seconds=0.01), []
    with serving(process) as (url, app):
        leave, app.desk.leave = app.desk.leave, lambda visit: (leave(visit), left.append(len(process.begun)))
        with httpx.Client(timeout=0.3) as client, pytest.raises(httpx.TimeoutException):  # noqa: SIM117
            with client.stream("POST", url + "/v1/chat/completions", json=chat(**fields, **LONG)) as response:
                until(lambda: process.jobs)
                for _ in response.iter_lines():
                    if len(process.jobs) > 0 and not fields.get("stream"):
                        break
                    time.sleep(0.4)
                    raise httpx.ReadTimeout("enough")
        until(lambda: not process.jobs)
        assert len(process.begun) <= left[0] + 2
        assert not app.desk.running and not app.desk.visits
        (run, *_) = app.desk.runs.of(None)
        assert run.state == "refused"
        assert post(url, chat(max_tokens=3)).status_code == 200


@pytest.mark.parametrize("strategy", ["sample", "best_of_n", "self_consistency", "particle_filter", "mcts"])
def test_a_budget_in_seconds_counts_from_arrival_at_full_load(strategy):
    """Beyond its seconds the engine makes the few steps in which an end is told: none of them is waiting for others."""
    process, ends, deadlines = Timed(ENDLESS, seconds=0.01), {}, {}
    with serving(process, limits=Limits(max_jobs=4)) as (url, app), ThreadPoolExecutor(16) as pool:
        stepper, tell = app.desk.stepper, app.desk.stepper.tell

        def heard(news):  # in the engine's thread, where nothing steps meanwhile
            ends.update({event.job: len(process.begun) for event in news if isinstance(event, Finished)})
            tell(news)

        submit, stepper.tell = stepper.submit, heard
        stepper.submit = lambda job: (deadlines.update({job.id: job.deadline}), submit(job))
        full = [pool.submit(post, url, chat(str(i), max_tokens=150)) for i in range(8)]
        until(lambda: len(app.desk.running) == 4)
        hurried = [pool.submit(post, url, chat("x" * i, model=f"toy@{strategy}", ponder={"budget": "1 s"}, **LONG)) for i in range(4)]
        found = [f.result().json()["choices"][0] for f in hurried]
        assert all(c["message"]["content"] and c["ponder"]["stop_reason"] == "seconds" for c in found)
        runs = [c["ponder"]["run"] for c in found]
        assert all(sum(begun > deadlines[run] for begun in process.begun[: ends[run]]) <= 5 for run in runs)
        assert all(f.result().status_code == 200 for f in full)


class Timed(Lettered):
    """Knows when each step began."""

    def __init__(self, lm, **settings):
        super().__init__(lm, **settings)
        self.begun = []

    def step(self):
        self.begun.append(time.perf_counter())
        return super().step()


def test_beyond_the_queue_a_client_is_told_when_to_come_again():
    limits = Limits(max_jobs=1, max_queue=2)
    with serving(Lettered(ENDLESS, seconds=0.005), limits=limits) as (url, app), ThreadPoolExecutor(8) as pool:
        kept = [pool.submit(post, url, chat(max_tokens=100)) for _ in range(3)]
        until(lambda: len(app.desk.running) == 1 and len(app.desk.lines) == 2)
        refused = post(url, chat())
        assert refused.status_code == 429 and int(refused.headers["Retry-After"]) >= 1 and refused.json()["error"]["type"] == "rate_limit_error"
        assert all(k.result().status_code == 200 for k in kept)
        late = [pool.submit(post, url, chat(max_tokens=100)), pool.submit(post, url, chat(max_tokens=100))]
        until(lambda: len(app.desk.lines) == 1)
        app.desk.limits = Limits(max_jobs=1, max_queue=9)
        assert all(f.result().status_code == 200 for f in late)


class Waiter:
    def __init__(self, client, deadline=None):
        self.client, self.deadline = client, deadline


@given(st.lists(st.tuples(st.sampled_from("abc"), st.none() | st.floats(0, 9)), max_size=30))
def test_lines_are_fair_and_lose_nobody(waiting):
    lines, kept = FairLines(), [Waiter(*w) for w in waiting]
    for waiter in kept:
        lines.put(waiter)
    served = [lines.take() for _ in kept]
    assert sorted(map(id, served)) == sorted(map(id, kept)) and len(lines) == 0
    for i, waiter in enumerate(served):  # between two of a client, everybody else who waits is served at most once
        again = next((j for j in range(i + 1, len(served)) if served[j].client == waiter.client), None)
        if again is not None:
            others = [s.client for s in served[i + 1 : again]]
            assert len(others) == len(set(others)) == len({s.client for s in served[i:]} - {waiter.client})
    for client in "abc":
        own = [(w.deadline is None, w.deadline or 0) for w in served if w.client == client]
        assert own == sorted(own)


def test_a_key_that_asks_much_delays_another_by_one():
    process = Lettered(ENDLESS, seconds=0.002)
    site = Site(keys=("key-of-many", "key-of-one"))
    with serving(process, limits=Limits(max_jobs=1), site=site) as (url, app), ThreadPoolExecutor(16) as pool:
        many = [pool.submit(post, url, chat(max_tokens=40), headers={"Authorization": "Bearer key-of-many"}) for _ in range(8)]
        until(lambda: len(app.desk.lines) == 7)
        one = post(url, chat(max_tokens=40), headers={"Authorization": "Bearer key-of-one"})
        assert one.status_code == 200 and sum(not f.done() for f in many) >= 4
        assert all(f.result().status_code == 200 for f in many)


def test_keys():
    with serving(site=Site(keys=("first-key", "second-key")), limits=Limits(max_per_client=1)) as (url, app):
        auth = lambda key: {"Authorization": f"Bearer {key}"}
        for headers in ({}, auth("wrong"), {"Authorization": "Basic first-key"}, {"Authorization": "Bearer"}, {"Authorization": b"Bearer \xff\xfe"}):
            refused = post(url, chat(), headers=headers)
            assert refused.status_code == 401 and refused.json()["error"]["code"] == "invalid_api_key" and "WWW-Authenticate" in refused.headers
        reply = post(url, chat(), headers=auth("first-key")).json()
        seen = lambda key: [r["id"] for r in get(url + "/ponder/runs", headers=auth(key)).json()["data"]]
        assert seen("first-key") == [reply["id"]] and seen("second-key") == []
        assert get(f"{url}/ponder/runs/{reply['id']}", headers=auth("second-key")).status_code == 404
        app.desk.visits["key 1"] = 1
        assert post(url, chat(), headers=auth("first-key")).status_code == 429
        assert post(url, chat(), headers=auth("second-key")).status_code == 200
        assert get(url + "/health").status_code == 200
    with pytest.raises(BadField):
        Site(keys=("short",))


def test_bodies_have_a_size_and_pages_of_others_no_access():
    with serving(limits=Limits(max_body=2000)) as (url, _):
        assert post(url, chat("a" * 3000)).status_code == 413
        chunked = HTTP.post(url + "/v1/chat/completions", content=(b"x" * 1000 for _ in range(5)))
        assert chunked.status_code == 413 and chunked.json()["error"]["code"] == "body_too_large"
        for origin, status in (("https://elsewhere.example", 403), ("null", 403), (url, 200)):
            reply = post(url, chat(), headers={"Origin": origin})
            assert reply.status_code == status and not [name for name in reply.headers if name.startswith("access-control")]
    with serving(site=Site(origins=("https://here.example",))) as (url, _):
        assert post(url, chat(), headers={"Origin": "https://here.example"}).headers["access-control-allow-origin"] == "https://here.example"
        assert "access-control-allow-origin" not in post(url, chat(), headers={"Origin": "https://elsewhere.example"}).headers


def test_live_revisions_lead_to_the_answer_and_content_is_only_the_settled_one():
    fields = {"stream": True, "ponder": {"stream": "live"}}
    for strategy in ("step_beam", "best_of_n", "particle_filter", "self_refine", "mcts", "sample"):
        with (
            serving() as (url, _),
            HTTP.stream("POST", url + "/v1/chat/completions", json=chat("ab", model=f"toy@{strategy}", **fields)) as response,
        ):
            told = events(response)
        assert told[-1] == "[DONE]"
        choices = [c for e in told[:-1] for c in e["choices"]]
        content = "".join(c["delta"].get("content") or "" for c in choices)
        shown, revision = "", 0
        for change in (c["ponder"] for c in choices if "revision" in c.get("ponder", {})):
            assert change["revision"] == revision + ("text" in change)
            revision, shown = change["revision"], change.get("text", shown + change.get("append", ""))
        last = choices[-1]
        assert content == last["ponder"]["candidates"][0]["text"]
        assert strategy == "sample" or shown == content


def test_what_was_run_can_be_seen():
    with serving() as (url, _):
        reply = post(url, chat("ab", model="toy@best_of_n:num=2", user="me")).json()
        run = get(f"{url}/ponder/runs/{reply['id']}").json()
        assert run["state"] == "done" and run["user"] == "me" and run["question"] == "ab" and run["strategy"] == "best_of_n:num=2"
        assert run["trace"][0]["recipe"]["strategy"]["is"] == "BestOfN" and run["trace"][-1]["stop_reason"] == "done"
        assert run["text"] == reply["choices"][0]["message"]["content"]
        with HTTP.stream("GET", f"{url}/ponder/runs/{reply['id']}/events") as response:
            lines = list(response.iter_lines())
        assert [json.loads(line[6:]) for line in lines if line.startswith("data: ")][:-1] == run["trace"] and "event: end" in lines
        ledger = get(url + "/ponder/ledger").json()
        assert ledger["engine"]["generated_tokens"] == reply["usage"]["completion_tokens"] and ledger["steps"] > 0
        metrics = get(url + "/metrics").text
        assert f'ponder_tokens_total{{kind="generated"}} {reply["usage"]["completion_tokens"]:.1f}' in metrics
        assert 'ponder_requests_total{path="/v1/chat/completions",status="200"} 1.0' in metrics
        found = get(url + "/ponder/strategies").json()
        assert [s["name"] for s in found["strategies"]] == list(catalogue.STRATEGIES) and found["default"] == "sample"
        assert all(s["summary"].endswith(".") for s in found["strategies"])
        assert {"name": "num", "default": 8, "choices": False} in next(s for s in found["strategies"] if s["name"] == "best_of_n")["fields"]
        assert get(url + "/openapi.json").json()["paths"]["/v1/chat/completions"]


def test_trace_lines_come_while_a_run_is_under_way():
    process = Gated(ENDLESS, num=40)  # four of its fifteen steps of ten tokens
    with serving(process) as (url, app), ThreadPoolExecutor(1) as pool:
        asked = pool.submit(post, url, chat("ab", model="toy@particle_filter:num=2,step_tokens=10", max_tokens=150))
        until(lambda: app.desk.running)
        (name,) = app.desk.running
        with HTTP.stream("GET", f"{url}/ponder/runs/{name}/events") as response:
            lines = response.iter_lines()
            while json.loads(next(line for line in lines if line.startswith("data: "))[6:]).get("turn") != 1:
                pass
            assert not asked.done()
            process.gate.set()
        assert asked.result().status_code == 200


def test_paths_methods_and_the_page(tmp_path):
    (tmp_path / "index.html").write_text("<p>hello</p>")
    (tmp_path / "app.js").write_text("1")
    (tmp_path.parent / "secret.txt").write_text("secret")
    with serving(site=Site(page=tmp_path)) as (url, _):
        assert get(url).text == "<p>hello</p>" and get(url + "/app.js").text == "1"
        told = get(url).headers
        assert (told["content-security-policy"], told["x-content-type-options"]) == ("frame-ancestors 'none'", "nosniff")
        for path in ("/../secret.txt", "/%2e%2e/secret.txt", "/..%2fsecret.txt", "/nothing"):
            assert get(url + path).status_code == 404
    with serving(site=Site(page=tmp_path / "none")) as (url, _):
        for method, path, status in (
            ("GET", "/", 404),
            ("GET", "/v1/chat/completions", 405),
            ("POST", "/v1/models", 405),
            ("GET", "/v1/models/no", 404),
        ):
            refused = HTTP.request(method, url + path)
            assert refused.status_code == status and refused.json()["error"]["message"]
        assert get(url + "/ponder/runs/none").status_code == get(url + "/ponder/runs/none/events").status_code == 404


@pytest.mark.parametrize(("seconds", "stop_reason"), [(10.0, "done"), (0.0, "interrupted")])
def test_draining_refuses_the_new_and_ends_the_old(seconds, stop_reason):
    with serving(Lettered(ENDLESS, seconds=0.01)) as (url, app), ThreadPoolExecutor(3) as pool:
        old = pool.submit(post, url, chat(max_tokens=60))
        streamed = pool.submit(post, url, chat(max_tokens=60, stream=True, model="toy@self_consistency:num=2"))
        until(lambda: len(app.desk.running) == 2 and app.desk.driver.ledger.steps > 8)
        drained = asyncio.run_coroutine_threadsafe(app.desk.drain(seconds), app.desk.loop)
        until(lambda: app.desk.is_draining)
        refused = post(url, chat())
        assert refused.status_code == 503 and "Retry-After" in refused.headers and get(url + "/health").status_code == 503
        drained.result(15)
        reply = old.result().json()
        assert reply["choices"][0]["ponder"]["stop_reason"] == stop_reason and reply["choices"][0]["message"]["content"]
        told = events(streamed.result())
        assert told[-1] == "[DONE]" and told[-2]["choices"][0]["ponder"]["stop_reason"] == stop_reason


class Failing(Lettered):
    fails = False

    def step(self):
        if self.fails and self.jobs:
            Failing.fails = False
            raise RuntimeError("a bug")
        return super().step()


def test_a_bug_in_the_engine_costs_those_under_way_and_nobody_else(caplog):
    with serving(Failing(ENDLESS)) as (url, app):
        Failing.fails = True
        broken = post(url, chat())
        assert broken.status_code == 500 and "RuntimeError" in broken.json()["error"]["message"] and "a bug" in caplog.text
        assert post(url, chat()).status_code == 200 and not app.desk.running


KEYS = ["model", "messages", "prompt", "n", "stream", "max_tokens", "ponder", "stop", "seed", "logprobs", "stream_options", "temperature"]
VALUES = [
    None, True, 0, 1, -5, 10**30, 0.5, "toy", "toy@beam", "", [], {}, ["b"], [{"role": "user", "content": "a"}], {"budget": "30 tokens"},
    {"strategy": "mcts"},    {"strategy": "plangen", "budget": "60 tokens"}, {"include_usage": True}, "\ud83d",
]  # fmt: skip
BODIES = st.dictionaries(st.sampled_from(KEYS), st.sampled_from(VALUES), max_size=6)


@pytest.fixture(scope="module")
def small():
    menu = Menu(model="toy", most=Budget(tokens=500, seconds=5), max_tokens=20)
    with serving(menu=menu) as (url, app), httpx.Client(base_url=url, timeout=20) as client:
        yield client, app


@given(body=BODIES | st.text(max_size=30), path=st.sampled_from(["/v1/chat/completions", "/v1/completions"]))
@settings(deadline=None, max_examples=150)
def test_no_body_breaks_or_hangs_the_server(small, body, path):
    client, app = small
    text = json.dumps({"model": "toy", "messages": [{"role": "user", "content": "a"}]} | body) if isinstance(body, dict) else body
    response = client.post(path, content=text.encode(errors="surrogatepass"))
    assert response.status_code < 500, response.text
    if response.status_code >= 400:
        assert response.json()["error"]["message"]
    assert not app.desk.running and not len(app.desk.lines) and not app.desk.driver.process.jobs


def test_many_threads_at_once_all_get_their_own_answer():
    with serving() as (url, _), ThreadPoolExecutor(12) as pool:
        alone = {i: post(url, chat("ab"[i % 2] * (1 + i // 2), seed=i)).json()["choices"][0]["message"]["content"] for i in range(24)}
        barrier = threading.Barrier(12)

        def one(i):
            if i < 12:
                barrier.wait()
            return post(url, chat("ab"[i % 2] * (1 + i // 2), seed=i)).json()["choices"][0]["message"]["content"]

        assert list(pool.map(one, range(24))) == list(alone.values())
