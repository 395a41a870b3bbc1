"""A scripted server for the page: its files, and an API that tells stored traces. Only what a test sets is not so."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

PAGE = Path(__file__).resolve().parents[2] / "src/ponder/serve/page"
TRACES = Path(__file__).parent / "traces"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'"
)
TYPES = {".html": "text/html; charset=utf-8", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".jsonl": "application/jsonl"}


def fields(**values: object) -> list[dict[str, object]]:
    return [{"name": name, "default": value, "choices": name in CHOICES} for name, value in values.items()]


CHOICES = {"resampler": ["multinomial", "systematic"], "verifier": ["mean_log_p", "mean_probability"]}
STRATEGIES = {
    "default": "sample",
    "strategies": [
        {"name": "greedy", "guarantee": "exact", "fields": []},
        {"name": "best_of_n", "guarantee": "biased", "fields": fields(num=8, verifier="mean_log_p")},
        {"name": "self_consistency", "guarantee": "biased", "fields": fields(num=8, temperature=0.8)},
        {
            "name": "particle_filter",
            "guarantee": "biased",
            "fields": fields(
                num=8,
                resampler="systematic",
                ess_below=0.5,
                until=["\n\n"],
                again="{question}\n\nFirst, think.",
                note=" in ",
                step_tokens=None,
                is_corrected=False,
            ),
        },
        {"name": "mcts", "guarantee": "biased", "fields": fields(num=32, branch=4, is_rolled_out=False)},
    ],
    "choices": CHOICES,
    "answers": ["text", "number", "math"],
}
LEDGER = {
    "seconds": 81.25,
    "requests": 12,
    "cost": {"prompt_tokens": 1840, "generated_tokens": 9120, "verifier_tokens": 310, "reused_tokens": 20480, "wasted_tokens": 4100, "flops": 3.1e12},
    "strategies": [{"strategy": "mcts", "runs": 3, "tokens": 4100}, {"strategy": "self_consistency", "runs": 9, "tokens": 7170}],
}


class Fake:
    """`refusal`: (status, headers, body) of the next question; `key`: what Authorization must hold; `pace`: seconds between lines."""

    def __init__(self) -> None:
        self.refusal: tuple[int, dict[str, str], dict[str, Any]] | None = None
        self.key = ""
        self.pace = 0.0
        self.is_up = True  # whether there is an API
        self.asked: list[dict[str, Any]] = []
        self.runs: dict[str, list[str]] = {}
        self.extra: dict[str, str] = {}  # path -> text of files that are only here
        self.cancelled = threading.Event()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                fake.get(self)

            def do_POST(self) -> None:
                fake.post(self)

            def log_message(self, *args: object) -> None:
                pass

        ThreadingHTTPServer.request_queue_size = 64
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def get(self, handler: BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(handler.path).path)
        if path.startswith(("/v1/", "/ponder/")):
            self.api(handler, path)
            return
        if path in self.extra:
            send(handler, 200, self.extra[path].encode(), "application/jsonl")
            return
        file = (PAGE / (path.strip("/") or "index.html")).resolve()
        if not file.is_relative_to(PAGE) or not file.is_file():
            send(handler, 404, b"{}")
            return
        send(handler, 200, file.read_bytes(), TYPES.get(file.suffix, "application/octet-stream"))

    def api(self, handler: BaseHTTPRequestHandler, path: str) -> None:
        if not self.is_up:
            send(handler, 404, b"{}")
            return
        if self.key and handler.headers.get("Authorization") != f"Bearer {self.key}":
            send(handler, 401, dumped({"error": {"message": "Give a valid API key.", "code": "invalid_api_key"}}))
            return
        parts = path.strip("/").split("/")
        if path == "/v1/models":
            names = ["smollm2-135m", *(f"smollm2-135m@{s['name']}" for s in STRATEGIES["strategies"])]  # type: ignore[index]
            send(handler, 200, dumped({"object": "list", "data": [{"id": name, "object": "model"} for name in names]}))
        elif path == "/ponder/strategies":
            send(handler, 200, dumped(STRATEGIES))
        elif path == "/ponder/ledger":
            send(handler, 200, dumped(LEDGER))
        elif path == "/ponder/runs":
            send(handler, 200, dumped({"object": "list", "data": [summary(k, v) for k, v in self.runs.items()]}))
        elif len(parts) == 4 and parts[3] == "events" and parts[2] in self.runs:
            lines = self.runs[parts[2]]
            end = f"event: end\ndata: {json.dumps(summary(parts[2], lines))}\n\n"
            self.stream(handler, (f"event: line\ndata: {line}\n\n" for line in lines), end=end)
        else:
            send(handler, 404, dumped({"error": {"message": f"There is no {path}."}}))

    def post(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        self.asked.append(body)
        if self.refusal is not None:
            (status, headers, told), self.refusal = self.refusal, None
            send(handler, status, dumped(told), headers=headers)
            return
        name = body["ponder"]["strategy"].split(":")[0]
        run = f"chatcmpl-{len(self.asked)}"
        self.runs[run] = (TRACES / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        text = json.loads(self.runs[run][-1])["candidates"][0]["text"]
        pieces = [text[i : i + 40] for i in range(0, len(text), 40)]
        told: list[dict[str, object]] = [{"delta": {"role": "assistant", "content": ""}}]
        told += [{"delta": {}, "ponder": {"revision": 0, "text": "An answer that is given up."}}]
        told += [{"delta": {}, "ponder": {"revision": 1, **({"append": p} if i else {"text": p})}} for i, p in enumerate(pieces)]
        told += [{"delta": {"content": text}}, {"delta": {}, "finish_reason": "stop", "ponder": {"run": run}}]
        chunks = [{"id": run, "choices": [{"index": 0, **choice}]} for choice in told]
        wait = self.pace * len(self.runs[run]) / len(chunks)
        self.stream(handler, (f"data: {json.dumps(chunk)}\n\n" for chunk in chunks), pace=wait, end="data: [DONE]\n\n")

    def stream(self, handler: BaseHTTPRequestHandler, events: Any, *, pace: float | None = None, end: str = "") -> None:
        """Sends events one by one; notes when the other side has gone."""
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.send_header("Connection", "close")
        handler.end_headers()
        try:
            for event in events:
                handler.wfile.write(event.encode())
                handler.wfile.flush()
                time.sleep(self.pace if pace is None else pace)
            handler.wfile.write(end.encode())
        except OSError:
            self.cancelled.set()
        handler.close_connection = True


def summary(run: str, lines: list[str]) -> dict[str, object]:
    head, end = json.loads(lines[0]), json.loads(lines[-1])
    told = {"id": run, "strategy": head["recipe"]["label"], "question": head["prompt"]["messages"][-1][1], "state": "done", "seconds": 4.2}
    return told | {"stop_reason": end["stop_reason"], "answer": end["candidates"][0]["answer"], "usage": {"tokens": 501}}


def send(handler: BaseHTTPRequestHandler, status: int, body: bytes, kind: str = "application/json", headers: dict[str, str] | None = None) -> None:
    handler.send_response(status)
    for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), "Content-Security-Policy": POLICY, **(headers or {})}.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body)


def dumped(value: object) -> bytes:
    return json.dumps(value).encode()
