"""Probes on the toy process and on tiny engines: the laws, and processes and probes that each law must find out."""

from dataclasses import dataclass, replace

import pytest
import torch

from engine.tiny_models import tiny_decoder, tiny_process
from ponder.core.asks import Extend, Prompt, Read, chat
from ponder.engine.process import LocalProcess
from ponder.testing import laws_probe
from ponder.testing.laws_probe import LAWS, Whole
from ponder.testing.toy import ToyProcess, toy_lm

LM = toy_lm("abc", seed=3)
TOY_PROMPT, PROMPT = Prompt(messages=(("raw", "ab"),), max_tokens=8), chat("Say something.", max_tokens=20)
DECODER = tiny_decoder("llama")
MAKERS = {
    "toy": (lambda: ToyProcess(LM), TOY_PROMPT),
    "engine": (lambda: tiny_process(DECODER), PROMPT),
    "engine in small chunks": (lambda: tiny_process(DECODER, max_rows=3, chunk=7), PROMPT),
    "engine short of memory": (lambda: tiny_process(DECODER, kv_bytes=110_000, chunk=33), PROMPT),
}


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", MAKERS)
def test_law(name, law):
    make, prompt = MAKERS[name]
    law(make, prompt, Whole(num=5))


class Late(ToyProcess):
    """Reads the state after the token instead of the one that it was drawn from."""

    def _seen(self, prefix, probe, places=None):
        return super()._seen(prefix, probe, (max(0, len(prefix.tokens) - 1),) if places is None else places)


@dataclass(frozen=True, kw_only=True)
class Centred(Whole):
    """Wrong: subtracts the mean over its rows."""

    def read(self, hidden_ND):
        values = super().read(hidden_ND)
        return values - values.mean(0)


class Paying(ToyProcess):
    """Computes a token more for a reading."""

    def _seen(self, prefix, probe, places=None):
        for job in self.jobs.values():
            if isinstance(job.ask, Extend):
                job.cost = replace(job.cost, prompt_tokens=job.cost.prompt_tokens + 1)
        return super()._seen(prefix, probe, places)


class Cached(ToyProcess):
    """Says that a Read computed nothing."""

    def _read(self, job, tokens, num_drawn=0, first=None):
        super()._read(job, tokens, num_drawn, None)


class Trusting(ToyProcess):
    """Takes any probe."""

    def _check(self, ask):
        if not isinstance(ask, Extend | Read):
            super()._check(ask)


class Keeping(ToyProcess):
    """Keeps a parent's rows although the new token has none."""

    def _extend(self, job, ask):
        before = job.prefix.readings
        done = super()._extend(job, ask)
        if not ask.probes:
            job.prefix = replace(job.prefix, readings=before)
            done = done and replace(done, prefix=replace(done.prefix, readings=before))
        return done


@pytest.mark.parametrize(
    ("law", "process", "probe"),
    [
        (laws_probe.law_read_is_what_extend_read, Late, Whole()),
        (laws_probe.law_read_is_what_extend_read, ToyProcess, Centred()),
        (laws_probe.law_reading_changes_nothing, Paying, Whole()),
        (laws_probe.law_reading_costs, Cached, Whole()),
        (laws_probe.law_refuses_a_foreign_probe, Trusting, Whole()),
        (laws_probe.law_in_pieces, Keeping, Whole()),
    ],
    ids=range(6),
)
def test_a_wrong_one_fails(law, process, probe):
    with pytest.raises(AssertionError):
        law(lambda: process(LM), TOY_PROMPT, probe)


def test_a_probe_that_looks_at_its_neighbours_fails_in_a_crowd_and_by_itself():
    with pytest.raises(AssertionError, match="in a crowd"):
        laws_probe.law_alone_or_in_a_crowd(lambda: tiny_process(DECODER), PROMPT, Centred(num=3))
    hidden = torch.randn(64, 40, generator=torch.Generator().manual_seed(0))
    laws_probe.law_rows_stand_alone(Whole(), hidden)
    with pytest.raises(AssertionError, match="differ by"):
        laws_probe.law_rows_stand_alone(Centred(), hidden)


def test_readings_are_what_the_head_sees():
    """The row of a token gives, through the model's own head, the log-probability that the token was drawn with."""
    process: LocalProcess = tiny_process(DECODER)
    (answer,) = laws_probe.extended(process, [laws_probe.probed(PROMPT, Whole())])
    rows = torch.tensor(laws_probe.rows(answer.prefix, Whole())).to(DECODER.dtype)
    log_p = torch.stack([DECODER.logits(row[None])[0].double().log_softmax(-1) for row in rows])
    total = log_p[torch.arange(len(rows)), torch.tensor(answer.prefix.tokens)].sum()
    assert float(total) == pytest.approx(answer.prefix.log_p, abs=1e-4)
