"""The benchmark beside peers: figures from replies, rows from turns, verdicts from rows, workers that fail, runs that are cut off."""

import importlib
import json
import sys
from argparse import Namespace
from pathlib import Path
from typing import ClassVar

import gguf
import numpy as np
import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
figures, handle, page, prompts, run, widen, works = (
    importlib.import_module(f"peers.{name}") for name in ("figures", "handle", "page", "prompts", "run", "widen", "works")
)

# figures


def reply(times: list[list[float]], seconds: float) -> dict:
    return {"counts": [len(row) for row in times], "times": times, "seconds": seconds}


def test_decoding_is_counted_from_the_moment_at_which_all_have_begun():
    work = {"kind": "prompts", "new": [4, 4], "prompts": [{"ids": [1] * 8}] * 2}
    found = figures.turn_figures(work, reply([[1.0, 2.0, 3.0, 4.0], [2.0, 3.0, 4.0, 5.0]], 5.0))
    assert found == {"tokens_per_s": 8 / 5, "decode_tokens_per_s": 5 / 3}
    assert found["decode_tokens_per_s"] not in (8 / 5, 8 / 4, 6 / 3)  # with prompts, from the first first token, first tokens counted


def test_a_prompt_is_read_at_its_own_length_over_all_of_the_time():
    assert figures.turn_figures({"kind": "prompts", "new": [1], "prompts": [{"ids": [1] * 128}]}, reply([[0.5]], 0.5)) == {"prompt_tokens_per_s": 256}


def test_missing_tokens_are_an_error_and_no_figure():
    work = {"kind": "prompts", "new": [4, 4], "prompts": [{"ids": [1]}] * 2}
    with pytest.raises(ValueError, match="7 tokens in 2 sequences instead of 8"):
        figures.turn_figures(work, reply([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0, 4.0]], 4.0))


def test_arrivals_know_gaps_inside_a_request_and_waits_from_its_arrival():
    found = figures.arrival_figures([0.0, 10.0], [[1.0, 1.1, 1.2], [12.0, 12.5]], 5)
    assert found["tokens_per_s"] == 5 / 12.5
    assert found["gap_p50_ms"] == pytest.approx(100) and found["gap_p99_ms"] == pytest.approx(500)
    assert found["wait_p50_ms"] == pytest.approx(1000) and found["wait_p99_ms"] == pytest.approx(2000)


@pytest.mark.parametrize(("percent", "value"), [(50, 50), (99, 99), (100, 100), (0, 1)])
def test_percentile_is_a_value_that_so_many_do_not_exceed(percent, value):
    assert figures.percentile(list(range(100, 0, -1)), percent) == value


def test_agreement_is_the_share_up_to_the_first_difference():
    assert figures.agreement("abcd", "abXd") == 0.5
    assert figures.agreement("abcd", "abcdef") == 1.0
    assert figures.agreement("Xbcd", "abcd") == 0.0


# rows


def turn(engine: str, work: str, number: int, *, variant: str = "", error: str = "", **values: float) -> dict:
    place = {"model": "toy", "engine": engine, "variant": variant, "work": work, "round": number}
    if error:
        return {**place, "error": error}
    size = {"num": 1, "prompt_len": 8, "num_new": 4, "threads": 2, "setting": "s", "versions": {"v": "1"}, "file": "f", "sha256": "0" * 64}
    return {**place, **size, "figures": values, "head": "Once", "load": 0.5, "seconds": 1.0}


def rows_of(turns: list[dict], *, run_id: str = "2026-01-01T00:00:00", is_quick: bool = False) -> list[dict]:
    found = figures.rows_of(turns, {w.name: w.figure for w in works.WORKS})
    context = {"run": run_id, "is_quick": is_quick, "commit": "c", "machine": "m", "command": "make bench", "date": "d"}
    return [json.loads(json.dumps(row | context)) for row in found]


def test_a_row_has_median_and_spread_of_its_rounds():
    row = rows_of([turn("llama.cpp", "decode 1", i, decode_tokens_per_s=v, tokens_per_s=1.0) for i, v in enumerate((30.0, 10.0, 80.0))])[0]
    assert (row["n"], row["median"], row["min"], row["max"]) == (3, 30.0, 10.0, 80.0)
    assert row["rounds"] == {"0": 30.0, "1": 10.0, "2": 80.0}


def test_an_engine_that_never_ran_has_a_row_that_says_why():
    row = rows_of([turn("openvino", "decode 1", 0, error="no module named openvino")])[0]
    assert row["missing"] == "no module named openvino" and "median" not in row


# the page


def speeds(work: str, figure: str, **median: float) -> list[dict]:
    names = {"ours": works.OURS, "llama": works.LLAMA, "openvino": works.OPENVINO, "transformers": works.TRANSFORMERS}
    return [turn(names[k], work, i, **{figure: v * f}) for k, v in median.items() for i, f in enumerate((0.9, 1.0, 1.1))]


def verdicts(rows: list[dict]) -> dict[tuple[str, str, str], str]:
    shown = page.shown_runs(rows)["toy"]
    return {(t.work, t.peer, t.figure): page.judged(shown, t)["verdict"] for t in works.TARGETS}


def toy_rows() -> list[dict]:
    turns = [
        *speeds("prefill 1k", "prompt_tokens_per_s", ours=90.0, llama=50.0, openvino=100.0),
        *speeds("samples 32", "tokens_per_s", ours=310.0, llama=100.0, openvino=50.0),
        *speeds("start", "peak_mb", ours=119.0, llama=100.0),
    ]
    for variant, gap, speed in (("sarathi", 29.0, 94.0), ("prefill_first", 100.0, 100.0)):
        turns += [turn(works.OURS, "arrivals", i, variant=variant, tokens_per_s=speed, gap_p99_ms=gap) for i in range(3)]
    turns.append(turn(works.TRANSFORMERS, "arrivals", 0, error="killed"))
    return rows_of(turns)


EXPECTED = {
    ("prefill 1k", "best peer", ""): "miss",  # better than llama.cpp, not than the best
    ("samples 32", "best peer", ""): "pass",
    ("start", "llama.cpp", ""): "pass",  # less is better
    ("arrivals", "ponder prefill_first", "gap_p99_ms"): "pass",
    ("arrivals", "ponder prefill_first", ""): "miss",
    ("arrivals", "transformers", ""): "not measured: transformers: killed",
    ("decode 64", "best peer", ""): "not measured: ponder: not in this run",
}


def law_of_verdicts() -> None:
    found = verdicts(toy_rows())
    assert {key: found[key] for key in EXPECTED} == EXPECTED


def test_verdicts_follow_from_the_rows():
    law_of_verdicts()


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("ratio", lambda ours, peer, figure: peer["figures"][figure]["median"] / ours["figures"][figure]["median"]),
        ("ratio", lambda ours, peer, figure: ours["figures"][figure]["max"] / peer["figures"][figure]["min"]),
        ("best_peer", lambda rows, work, figure: works.LLAMA),
        ("name_of", lambda row: row["engine"]),
    ],
    ids=["upside down", "our best, their worst", "the weakest peer", "variants mixed up"],
)
def test_a_wrong_page_is_caught(monkeypatch, name, wrong):
    monkeypatch.setattr(page, name, wrong)
    with pytest.raises((AssertionError, KeyError)):
        law_of_verdicts()


def test_the_newest_full_run_is_shown_whatever_short_runs_follow():
    def one(value: float, **context) -> list[dict]:
        return rows_of(speeds("prefill 1k", "prompt_tokens_per_s", ours=value), **context)

    rows = one(1.0, run_id="2026-01-01") + one(2.0, run_id="2026-01-02") + one(3.0, run_id="2026-01-03", is_quick=True)
    assert page.shown_runs(rows)["toy"][works.OURS, "prefill 1k"]["median"] == 2.0
    assert page.shown_runs(rows[-1:])["toy"][works.OURS, "prefill 1k"]["median"] == 3.0


def test_the_page_says_numbers_rounds_and_reasons():
    text = page.page(page.shown_runs(toy_rows()))
    assert "| prompt of 1,024 tokens | prompt tokens/s | best peer (openvino) | >= 1 x | 0.90 x | 0.90 to 0.90 |  | **miss** |" in text
    assert "90 (81 to 99)" in text and "- Not measured: transformers, arrivals: killed" in text
    assert page.page({}).endswith("run `make bench`.\n")


def test_rows_with_fewer_rounds_say_so():
    turns = speeds("prefill 1k", "prompt_tokens_per_s", ours=90.0)[:1]
    assert "81 (81 to 81, n=1)" in page.page(page.shown_runs(rows_of(turns)))


# files and prompts


def test_widened_blocks_hold_the_same_values():
    weights = np.random.default_rng(0).standard_normal((5, 96)).astype(np.float32)
    narrow = gguf.quantize(weights, gguf.GGMLQuantizationType.Q5_0)

    def same(widened: np.ndarray) -> bool:
        return np.array_equal(gguf.dequantize(widened, gguf.GGMLQuantizationType.Q8_0), gguf.dequantize(narrow, gguf.GGMLQuantizationType.Q5_0))

    wrong = widen.widened(narrow).copy()
    wrong[0, 2] += 1
    assert same(widen.widened(narrow)) and not same(wrong)


class Letters:
    """A tokenizer of one letter a token."""

    def render(self, messages):
        return [ord(c) for c in messages[0][1]]

    def decode(self, ids):
        return "".join(map(chr, ids))


def test_prompts_have_exact_lengths_and_differ():
    made = [prompts.exact_prompt(Letters(), seed, 20) for seed in range(1, 9)]
    assert all(len(p["ids"]) == 20 and Letters().decode(p["ids"]) == p["text"] for p in made)
    assert len({p["text"] for p in made}) == len(made)


def test_arrivals_begin_at_once_and_come_at_their_rate():
    times = prompts.poisson(1, 2000, 4.0)
    assert times[0] == 0.0 and times == sorted(times)
    assert times[-1] / 2000 == pytest.approx(0.25, rel=0.1)


# workers


def shim(tmp_path: Path, body: str) -> str:
    """An "interpreter" that runs `body` as a worker, whatever it is asked to run."""
    script, program = tmp_path / "worker.py", tmp_path / "python"
    script.write_text("import json, os, sys, time\nprint(json.dumps({'ok': True}), flush=True)\n" + body)
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -u "{script}"\n')
    program.chmod(0o755)
    return str(program)


ECHO = "for line in sys.stdin:\n    print(json.dumps({'pid': os.getpid()}), flush=True)\n"


def worker(tmp_path: Path, body: str):
    found = handle.Worker("toy", shim(tmp_path, body), tmp_path / "log.txt", {})
    found.begin(30)
    return found


def test_a_worker_answers_and_is_halted_between_its_turns(tmp_path):
    found = worker(tmp_path, ECHO)
    pid = found.ask({"do": "run"}, 30)["pid"]
    stat = Path(f"/proc/{pid}/stat")
    states = [stat.read_text().rpartition(")")[2].split()[0]] if stat.exists() else ["T"]
    again = found.ask({"do": "run"}, 30)["pid"]
    found.kill()
    assert states == ["T"] and again == pid and not found.is_alive


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("time.sleep(60)\n", "no answer within 0 s; killed"),
        ("sys.stdin.readline()\nos._exit(3)\n", "ended without an answer"),
        ("sys.stdin.readline()\nprint(json.dumps({'error': 'MemoryError: 7 GB'}), flush=True)\ntime.sleep(60)\n", "MemoryError: 7 GB"),
    ],
    ids=["hangs", "crashes", "says an error"],
)
def test_a_worker_that_fails_says_how(tmp_path, body, words):
    found = worker(tmp_path, body)
    with pytest.raises(handle.WorkerFailed, match=words):
        found.ask({"do": "run"}, 0.3 if "killed" in words else 30)
    found.quit()
    assert not found.is_alive


# runs


class ToySeats:
    """Engines that take no time; `broken` ones fail, and `cut` ends the run after so many turns."""

    broken: frozenset[str] = frozenset()
    cut = 10**6
    asked: ClassVar[list[tuple[str, str]]] = []

    def __init__(self, plan, out):
        pass

    def take(self, path):
        pass

    def close(self):
        pass

    def turn(self, engine, work, order):
        if len(self.asked) >= self.cut:
            raise KeyboardInterrupt
        self.asked.append((engine, work.name))
        if engine in self.broken:
            return {"error": "killed"}
        return {k: v for k, v in turn(engine, work.name, 0, **{work.figure: 1.0}).items() if k in ("figures", "seconds", "head", "load", "setting",
                "versions", "file", "sha256")}  # fmt: skip


class ToyOrders:
    rate = 1.0

    def __init__(self, path, *, is_tiny):
        pass

    def order(self, work, number, variant):
        return {}


@pytest.fixture
def toy_run(monkeypatch, tmp_path):
    monkeypatch.setattr(run, "Seats", ToySeats)
    monkeypatch.setattr(run, "OrderBook", ToyOrders)
    for name, value in (("broken", frozenset()), ("cut", 10**6), ("asked", [])):
        monkeypatch.setattr(ToySeats, name, value)
    names = {"models": "toy.gguf", "works": "decode 1,prefill 1k", "engines": "ponder,llama.cpp,openvino", "ours": "", "minutes": 9.0}
    plan = run.Plan.of(Namespace(**names, quick=False, long=False, tiny=False, threads=1, python="python"))
    return lambda **options: run.Run(plan, tmp_path, **options)


def test_engines_take_turns(toy_run):
    toy_run().measure()
    assert ToySeats.asked[:6] == [(e, "decode 1") for e in ("ponder", "llama.cpp", "openvino")] * 2
    assert len(ToySeats.asked) == 3 * 2 * works.ROUNDS


def test_a_run_that_was_cut_off_goes_on_where_it_ended(toy_run):
    ToySeats.cut = 7
    with pytest.raises(KeyboardInterrupt):
        toy_run().measure()
    first, ToySeats.cut = toy_run(), 10**6
    first.measure()
    assert len(ToySeats.asked) == 18 and len(first.turns) == 18  # nothing twice, nothing left out
    toy_run().measure()
    assert len(ToySeats.asked) == 36  # a run that came to its end is not taken up
    toy_run(more=True).measure()
    assert len(ToySeats.asked) == 36  # unless it is asked to; then there is nothing left to do


def test_an_engine_that_fails_does_not_hold_up_the_others(toy_run):
    ToySeats.broken = frozenset({"llama.cpp"})
    found = toy_run()
    found.measure()
    rows = {(row["engine"], row["work"]): row for row in found.rows({"commit": "c", "machine": "m", "command": "x"})}
    assert rows["llama.cpp", "decode 1"]["missing"] == "killed"
    assert rows["openvino", "prefill 1k"]["n"] == works.ROUNDS
    assert ToySeats.asked.count(("llama.cpp", "decode 1")) == 1


def test_rows_of_a_run_are_written_once(toy_run, tmp_path):
    found = toy_run()
    found.measure()
    rows = found.rows({"commit": "c", "machine": "m", "command": "x"})
    for _ in range(2):
        found.write(rows, tmp_path / "peers.jsonl")
    assert len((tmp_path / "peers.jsonl").read_text().splitlines()) == len(rows) == 6


def test_a_work_that_is_late_has_one_round_and_a_run_that_is_late_says_so(toy_run, monkeypatch):
    found = toy_run()
    monkeypatch.setattr(run.Plan, "span", lambda plan, model: 60.0)
    now = iter([0.0, *[0.0] * 3, *[50.0] * 6, *[70.0] * 100])  # start; a first round in time; later rounds late; then too late for anything
    monkeypatch.setattr(run.time, "monotonic", lambda: next(now))
    found.measure()
    assert [t["round"] for t in found.turns if t["work"] == "decode 1"] == [0, 0, 0]
    assert all("out of time (1 minutes for a model)" in t["error"] for t in found.turns if t["work"] == "prefill 1k")


def test_names_that_do_not_exist_are_refused(toy_run):
    with pytest.raises(SystemExit, match="no work is called decode 3; there are: start"):
        run.Plan.of(
            Namespace(models="", works="decode 3", engines="ponder", ours="", minutes=1.0, quick=True, long=False, tiny=False, threads=1, python="")
        )
