"""The sample store: what went in comes out exactly, and a broken file is one clear line."""

import os
import sqlite3
from dataclasses import replace

import pytest

from ponder.core.asks import Expand, Expansion, Extend, Extension, Judge, Judgement, Prefix, Prompt, Sampling, Score, Scores, Verdict
from ponder.core.budget import Cost
from ponder.core.errors import StoreError
from ponder.run.codec import answer_from_json, answer_json, ask_json, dumps
from ponder.run.store import SampleStore

PROMPT = Prompt(messages=(("user", 'wie geht\'s "dir"? \u2603'),), stop=("\n\n",))
PREFIX = Prefix(PROMPT, (1, 2), "a\ud7ff", -0.1 - 1e-17, -1 / 3, 0.25)
ASKS = [
    (Extend(prefix=PREFIX, seed=2**62, until=("\n",)), Extension(replace(PREFIX, tokens=(1, 2, 3), finish="stop"), "stop", Cost(generated_tokens=1))),
    (Expand(prefix=PREFIX, num=2), Expansion((replace(PREFIX, tokens=(1, 2, 9)),), Cost(prompt_tokens=3))),
    (Score(prefix=PREFIX, options=("x", "y")), Scores((-0.1, -2.5e-310), Cost(calls=1))),
]


@pytest.mark.parametrize("ask, answer", ASKS, ids=["extend", "expand", "score"])
def test_round_trip_is_exact(tmp_path, ask, answer):
    store = SampleStore(tmp_path / "s")
    assert store.get("m", ask) is None
    store.put("m", ask, replace(answer, cost=replace(answer.cost, seconds=0.5)))
    store.commit()
    store.close()
    again = SampleStore(tmp_path / "s").get("m", ask)
    assert again == replace(answer, cost=replace(answer.cost, seconds=0.5))
    assert SampleStore(tmp_path / "s").get("another model", ask) is None


def test_verdicts_round_trip():
    ask = Judge(verifier=object(), prompt=PROMPT, candidates=())
    answer = Judgement((Verdict(0.5, "probability", "why"), Verdict(None, "abstain")), Cost(verifier_tokens=3))
    assert answer_from_json(ask, answer_json(answer)) == answer


def test_every_setting_is_part_of_the_key():
    ask = ASKS[0][0]
    others = [
        replace(ask, seed=1), replace(ask, until=()), replace(ask, max_tokens=5), replace(ask, sampling=Sampling(temperature=0.5)),
        replace(ask, prefix=replace(PREFIX, tokens=(1,))), replace(ask, prefix=Prefix(replace(PROMPT, stop=()), (1, 2))),
        replace(ask, prefix=Prefix(replace(PROMPT, prefill="Sure"), (1, 2))), replace(ask, prefix=Prefix(replace(PROMPT, max_tokens=9), (1, 2))),
    ]  # fmt: skip
    keys = {dumps(ask_json(a)) for a in [ask, *others]}
    assert len(keys) == len(others) + 1


def test_repeated_samples_are_kept_apart():
    store = SampleStore(":memory:")
    for seed in range(5):
        store.put("m", replace(ASKS[0][0], seed=seed), ASKS[0][1])
    assert len(store) == 5


def test_foreign_and_damaged_files(tmp_path):
    (tmp_path / "text").write_text("this is not a database, but it is long enough to look at" * 50)
    with pytest.raises(StoreError, match="text"):
        SampleStore(tmp_path / "text")
    with pytest.raises(StoreError, match="missing"):
        SampleStore(tmp_path / "missing" / "s")
    store = SampleStore(tmp_path / "s")
    store.put("m", *ASKS[0])
    store.db.execute("UPDATE samples SET answer = '{]'")
    with pytest.raises(StoreError, match="not JSON"):
        store.get("m", ASKS[0][0])
    store.db.execute("UPDATE samples SET answer = '{}'")
    with pytest.raises(StoreError, match="does not fit"):
        store.get("m", ASKS[0][0])


def test_a_full_disk_is_one_clear_line_and_loses_nothing(tmp_path):
    store = SampleStore(tmp_path / "s")
    store.put("m", *ASKS[0])
    store.commit()
    pages = store.db.execute("PRAGMA page_count").fetchone()[0]
    store.db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StoreError, match=r"full.*--resume"):
        for seed in range(10_000):
            store.put("m", replace(ASKS[0][0], seed=seed), ASKS[0][1])
            store.commit()
    store.close()
    assert SampleStore(tmp_path / "s").get("m", ASKS[0][0]) == ASKS[0][1]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError):
        SampleStore(tmp_path / "s")


def test_the_file_is_plain_sqlite(tmp_path):
    store = SampleStore(tmp_path / "s")
    store.put("m", *ASKS[0])
    store.commit()
    with sqlite3.connect(tmp_path / "s") as db:
        assert db.execute("SELECT model, json_extract(ask, '$.kind') FROM samples").fetchall() == [("m", "extend")]
    db.close()
