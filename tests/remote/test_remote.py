"""A remote engine over a fake server: answers, faults, limits, order, cancellation, and what it costs."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from ponder import catalogue
from ponder.core.asks import GREEDY, Expand, Extend, Extension, Prefix, Prompt, Sampling, Score
from ponder.core.errors import BadField, EndpointError, NotOffered, PromptTooLong, UnknownName
from ponder.remote.endpoint import Endpoint
from ponder.remote.open import open_remote
from ponder.remote.process import RemoteProcess
from ponder.testing.run import answer_turn
from remote.fake_server import FakeServer, Fault

PROMPT = Prompt(messages=(("user", "What is two and two?"),), max_tokens=16)
Open = Callable[..., RemoteProcess]


@pytest.fixture
def opened() -> Iterator[Open]:
    """Opens a fake server as a process: opened(server, **fields of the endpoint)."""
    made: list[RemoteProcess] = []

    def make(server: FakeServer, **fields: object) -> RemoteProcess:
        endpoint = Endpoint(**{"url": "http://fake/v1", "wait": 0.0, **fields})  # type: ignore[arg-type]
        made.append(open_remote(endpoint, catalogue.DIALECTS, transport=server.transport))
        return made[-1]

    yield make
    for process in made:
        process.close()


def whole(seed: int = 0, **fields: object) -> Extend:
    return Extend(**{"prefix": Prefix(PROMPT), "seed": seed, **fields})  # type: ignore[arg-type]


def answers(process: RemoteProcess, *asks: Extend) -> list[Extension]:
    return [a for a in answer_turn(asks, process) if isinstance(a, Extension)]


def test_an_answer_has_the_servers_words_counts_and_probabilities(opened: Open) -> None:
    server = FakeServer(cached=4)
    (answer,) = answers(opened(server), whole())
    body = server.requests[-1]
    assert answer.prefix.text == "".join(w for i in range(12) if (w := server.word(body["seed"], i)) is not None)
    assert answer.finish == answer.prefix.finish == "stop" and len(answer.prefix.tokens) == 12 == answer.cost.generated_tokens
    assert answer.prefix.log_p == pytest.approx(sum(-0.1 * (1 + len(server.word(body["seed"], i) or "")) for i in range(12)))
    assert (answer.cost.prompt_tokens, answer.cost.reused_tokens, answer.cost.calls) == (4, 4, 1)
    assert body["messages"] == [{"role": "user", "content": "What is two and two?"}] and body["max_tokens"] == 16


def test_a_step_pauses_at_its_separator_and_goes_on_from_its_text(opened: Open) -> None:
    server = FakeServer(word=lambda seed, i: ["a", "\n", "b"][i] if i < 3 else None)
    process = opened(server)
    (step,) = answers(process, whole(until=("\n",)))
    assert (step.finish, step.prefix.text, step.prefix.is_final, len(step.prefix.tokens)) == ("until", "a\n", False, 2)
    (rest,) = answers(process, whole(prefix=step.prefix))
    assert server.requests[-1]["messages"][-1] == {"role": "assistant", "content": "a\n"}
    assert server.requests[-1]["continue_final_message"] is True
    assert rest.prefix.text == "a\na\nb" and rest.prefix.tokens[:2] == step.prefix.tokens
    assert server.requests[-1]["seed"] != server.requests[-2]["seed"], "a step must not draw with the numbers of the step before it"


def test_limits_end_an_answer_as_the_ask_says(opened: Open) -> None:
    process = opened(FakeServer())
    open_end, final = answers(process, whole(max_tokens=3), whole(prefix=Prefix(replace(PROMPT, max_tokens=3))))
    assert (open_end.finish, open_end.prefix.finish) == ("limit", None) and (final.finish, final.prefix.finish) == ("length", "length")
    ticket = process.add(whole(), max_tokens=2)
    (capped,) = [answer for done, answer in _until_done(process, 1) if done == ticket]
    assert isinstance(capped, Extension) and (capped.finish, capped.prefix.finish, len(capped.prefix.tokens)) == ("budget", "budget", 2)


def _until_done(process: RemoteProcess, num: int) -> list[tuple[int, object]]:
    done: list[tuple[int, object]] = []
    while len(done) < num:
        done += process.step()
    return done


FAULTS = {
    "too many": Fault(429, {"retry-after": "0.05"}, "slow down"),
    "server error": Fault(500, body="oops"),
    "cut in the body": Fault(cut=True),
    "garbage": Fault(body="<html>"),
    "not an object": Fault(body="[1]"),
    "an error as 200": Fault(body='{"error": {"message": "busy"}}'),
    "no usage": Fault(drop="usage"),
    "no choices": Fault(drop="choices"),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_a_passing_fault_changes_nothing(opened: Open, fault: Fault) -> None:
    (right,) = answers(opened(FakeServer()), whole())
    server = FakeServer(faults=[fault, None])
    process = opened(server)
    (answer,) = answers(process, whole())
    assert answer == right
    assert len(server.requests) == 2 and process.wire.counts["requests"] == 4  # two to open it, the fault, the answer


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_a_lasting_fault_is_an_error_after_its_tries(opened: Open, fault: Fault) -> None:
    server = FakeServer(faults=[replace(fault, headers={})] * 9)
    process = opened(server, tries=3)
    process.add(whole())
    with pytest.raises(EndpointError, match="3 times"):
        _until_done(process, 1)
    assert len(server.requests) == 3


def test_a_refusal_is_not_tried_again(opened: Open) -> None:
    server = FakeServer(faults=[Fault(401, body="no such key")])
    process = opened(server)
    process.add(whole())
    with pytest.raises(EndpointError, match="401: no such key"):
        _until_done(process, 1)
    assert len(server.requests) == 1


def test_what_was_answered_beside_a_failure_is_handed_out_first(opened: Open) -> None:
    server = FakeServer(faults=[None, Fault(401, body="no"), None])
    process = opened(server)
    tickets = [process.add(whole(seed)) for seed in range(3)]
    assert {ticket for ticket, _ in _until_done(process, 2)} == {tickets[0], tickets[2]}
    with pytest.raises(EndpointError):
        _until_done(process, 1)


def test_a_prompt_too_long_for_the_server_is_an_answer_without_tokens(opened: Open) -> None:
    process = opened(FakeServer(faults=[Fault(400, body="maximum context length is 10 tokens")]))
    (answer,) = answers(process, whole())
    assert (answer.finish, answer.prefix.tokens) == ("length", ())


def test_no_request_before_the_server_says_so(opened: Open) -> None:
    server = FakeServer(faults=[Fault(429, {"retry-after": "0.3"}, "slow down")])
    process = opened(server, concurrency=1)
    answers(process, whole(0), whole(1))
    assert all(at - server.at[0] >= 0.3 for at in server.at[1:]) and len(server.at) == 3


def test_as_many_requests_at_once_as_allowed(opened: Open) -> None:
    server = FakeServer(delay=lambda body: 0.02)
    process = opened(server, concurrency=3)
    answers(process, *(whole(seed) for seed in range(10)))
    assert server.most_under_way == 3


def test_answers_do_not_depend_on_the_order_in_which_they_come(opened: Open) -> None:
    asks = [whole(seed) for seed in range(6)]
    right = answers(opened(FakeServer()), *asks)
    turned = answers(opened(FakeServer(delay=lambda body: body["seed"] % 7 / 100)), *asks)
    backwards = answers(opened(FakeServer(delay=lambda body: 0.06 - body["seed"] % 7 / 100)), *asks[::-1])[::-1]
    assert right == turned == backwards and len({a.prefix.text for a in right}) > 1


def test_a_cancelled_ask_drops_its_request_and_disturbs_none(opened: Open) -> None:
    (right,) = answers(opened(FakeServer()), whole(1))
    server = FakeServer(faults=[Fault(seconds=60), None])
    process = opened(server)
    slow, other = process.add(whole(0)), process.add(whole(1))
    assert _until_done(process, 1) == [(other, right)]
    assert set(process.progress()) == {slow}
    cut = process.cancel(slow)
    assert isinstance(cut, Extension) and (cut.finish, cut.prefix.tokens) == ("budget", ()) and not process.progress()
    process.close()
    assert server.num_dropped == 1


@pytest.mark.parametrize(
    ("ask", "word"),
    [
        (Expand(prefix=Prefix(PROMPT), num=2), "Expand"), (Score(prefix=Prefix(PROMPT), options=("a",)), "Score"),
        (whole(drift=((1, 0.5),)), "noise"), (whole(forced=(1,)), "given instead of drawn"), (whole(until=("\n",)), "separator"),
        (whole(sampling=Sampling(top_k=3)), "top_k"), (whole(logprobs=2), "not drawn"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_what_is_not_offered_is_refused_before_any_request(opened: Open, ask: Extend, word: str) -> None:
    server = FakeServer(owner="somebody")
    process = opened(server, offers=frozenset())
    with pytest.raises(NotOffered, match=word):
        process.add(ask)
    assert not server.requests and not process.progress()


def test_a_plain_server_is_asked_once_whether_it_tells_log_p(opened: Open) -> None:
    telling, silent = (opened(FakeServer(owner="somebody", tells_log_p=tells, word=lambda s, i: "x")) for tells in (True, False))
    assert telling.offers == {"log_p"} and silent.offers == frozenset()


def test_tokens_without_probabilities_are_as_many_as_usage_counts(opened: Open) -> None:
    process = opened(FakeServer(owner="somebody", tells_log_p=False))
    first, again, other = answers(process, whole(0), whole(0), whole(1))
    assert len(first.prefix.tokens) == first.cost.generated_tokens == 12 and first.prefix.log_p == 0.0
    assert first.prefix.tokens == again.prefix.tokens != other.prefix.tokens


def test_names_are_checked_before_any_work(opened: Open) -> None:
    with pytest.raises(UnknownName, match="model of"):
        opened(FakeServer(), model="mm")
    with pytest.raises(UnknownName, match="kind of endpoint"):
        opened(FakeServer(), kind="vlm")
    with pytest.raises(BadField, match="http"):
        Endpoint(url="localhost:80")
    with pytest.raises(PromptTooLong):
        opened(FakeServer(), context_len=3).add(whole(sampling=GREEDY))


def test_an_endpoint_that_offers_less_is_asked_for_less(opened: Open) -> None:
    server = FakeServer()
    process = opened(server, offers=frozenset())
    (answer,) = answers(process, whole(max_tokens=3))
    assert "logprobs" not in server.requests[-1] and answer.prefix.log_p == 0.0
    assert answer.finish == answer.prefix.finish == "budget", "nobody can go on with it"


def test_a_raw_prompt_is_completed_as_it_stands(opened: Open) -> None:
    server = FakeServer()
    raw = Prompt(messages=(("raw", "two and two is"),), max_tokens=5, prefill=" now")
    (answer,) = answers(opened(server), whole(prefix=Prefix(raw)))
    assert server.requests[-1]["prompt"] == "two and two is now" and "messages" not in server.requests[-1]
    assert answer.finish == "length" and len(answer.prefix.tokens) == 5
