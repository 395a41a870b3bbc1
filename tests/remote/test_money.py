"""What a remote engine costs: exact from usage, in $ by a price file, and a budget in $ that is kept."""

import pytest

from ponder.core.asks import Sampling
from ponder.core.budget import Budget, Cost
from ponder.core.errors import BadField, UnknownName
from ponder.core.rng import hash_seed
from ponder.infer.self_consistency import SelfConsistency
from ponder.remote.endpoint import Endpoint, is_remote, read_endpoint
from ponder.remote.prices import Price, read_prices
from ponder.run.driver import Driver, Job
from ponder.run.recipe import Recipe, Result
from ponder.run.store import SampleStore
from ponder.testing.run import answer_turn
from remote.fake_server import FakeServer, Fault
from remote.test_remote import PROMPT, Open, opened, whole  # noqa: F401

PRICE = Price(prompt=1.0, cached=0.25, completion=4.0)


def test_usd_is_what_the_server_bills(opened: Open) -> None:  # noqa: F811
    process = opened(FakeServer(cached=3), price=PRICE)
    (answer,) = answer_turn([whole()], process)
    assert answer.cost.usd == pytest.approx((5 * 1.0 + 3 * 0.25 + 12 * 4.0) / 1e6)
    assert process.usd(Cost(prompt_tokens=1_000_000)) == 1.0 and Price(prompt=2.0, completion=0.0).usd(Cost(reused_tokens=500_000)) == 1.0


def job(num: int, **limits: object) -> Job:
    recipe = Recipe(label="vote", strategy=SelfConsistency(num=num, sampling=Sampling()), budget=Budget(**limits))  # type: ignore[arg-type]
    return Job(id="q", prompt=PROMPT, recipe=recipe, seed=0)


def result_of(process: object, work: Job, store: SampleStore | None = None) -> Result:
    ((_, result),) = Driver(process, store=store).run([work])  # type: ignore[arg-type]
    return result


def bill_of(server: FakeServer) -> float:
    """What the server would charge for everything that it answered."""
    usages = [server.answer(body, is_chat=True)["usage"] for body in server.requests]
    return sum(PRICE.usd(Cost(prompt_tokens=u["prompt_tokens"], generated_tokens=u["completion_tokens"])) for u in usages)


def lengths(seed: int, i: int) -> str | None:
    """Answers of 1 to 14 words."""
    return None if i >= 1 + hash_seed("length", seed) % 14 else " x"


ONE = PRICE.usd(Cost(prompt_tokens=8, generated_tokens=16))  # most that one answer can cost


@pytest.mark.parametrize("num_paid", [0.2, 1.0, 3.5, 8.0, 30.0])
@pytest.mark.parametrize("strict", [False, True])
def test_a_budget_in_dollars_overshoots_by_one_request_at_most(opened: Open, num_paid: float, strict: bool) -> None:  # noqa: F811
    server = FakeServer(word=lengths)
    result = result_of(opened(server, price=PRICE), job(20, usd=num_paid * ONE, strict=strict))
    assert result.cost.usd == pytest.approx(bill_of(server)), "the account is not the bill"
    assert result.cost.usd <= num_paid * ONE + (0 if strict else ONE)
    assert result.stop_reason == ("done" if num_paid == 30.0 else "usd")
    if num_paid >= 3.5:
        assert result.cost.usd >= (num_paid - 2) * ONE or result.stop_reason == "done", "money was left though another answer could be paid"
        assert result.answer is not None


def test_the_budget_that_is_not_kept_fails_the_same_test(opened: Open) -> None:  # noqa: F811
    """Without the account's check the same job costs more: the test above can fail."""
    server = FakeServer(word=lengths)
    result_of(opened(server, price=PRICE), job(20))
    assert bill_of(server) > 3.5 * ONE + ONE


def test_answers_from_the_store_are_booked_as_they_were(opened: Open) -> None:  # noqa: F811
    store = SampleStore(":memory:")
    first = result_of(opened(FakeServer(), price=PRICE), job(4), store)
    server = FakeServer()
    again = result_of(opened(server, price=PRICE), job(4), store)
    assert not server.requests and again.cost.usd == first.cost.usd > 0 and again.trace == first.trace


def test_booked_tokens_are_the_servers_own_though_admission_had_a_guess(opened: Open) -> None:  # noqa: F811
    process = opened(FakeServer())
    result = result_of(process, job(3))
    assert process.prompt_len(PROMPT) != 8
    assert (result.cost.prompt_tokens, result.cost.reused_tokens, result.cost.generated_tokens) == (8, 16, 36)


def test_price_files(tmp_path, monkeypatch) -> None:
    toml, other = tmp_path / "prices.toml", tmp_path / "prices.json"
    toml.write_text('["m"]\nprompt = 1.0\ncached = 0.25\ncompletion = 4.0\n')
    other.write_text('{"m": {"prompt": 1, "completion": 4, "cached": 0.25}}')
    assert read_prices(toml) == read_prices(other) == {"m": PRICE}
    monkeypatch.setenv("PONDER_PRICES", str(toml))
    assert read_endpoint("http://h:1/v1#m").price == PRICE and read_endpoint("http://h:1/v1#n").price is None
    for text in ('["m"]\nprompt = 1.0\n', '["m"]\nprompt = -1.0\ncompletion = 1.0\n', "m = 3\n", "[", '["m"]\nprompts = 1.0\ncompletion = 1.0\n'):
        toml.write_text(text)
        with pytest.raises(BadField):
            read_prices(toml)


def test_endpoint_files(tmp_path) -> None:
    (tmp_path / "prices.toml").write_text('["m"]\nprompt = 1.0\ncached = 0.25\ncompletion = 4.0\n')
    file = tmp_path / "here.toml"
    file.write_text('url = "http://h:1/v1"\nmodel = "m"\nprices = "prices.toml"\noffers = ["steps"]\nrequests_per_minute = 60\n')
    found = read_endpoint(str(file))
    assert found == Endpoint(url="http://h:1/v1", model="m", price=PRICE, offers=frozenset({"steps"}), requests_per_minute=60)
    assert is_remote(str(file)) and is_remote("https://h/v1#m") and not is_remote("smollm2-135m")
    wrong = {
        'url = "h"': BadField, 'ulr = "http://h/v1"': UnknownName, 'model = "m"': BadField, "=": BadField,
        'url = "http://h/v1"\noffers = ["magic"]': UnknownName, 'url = "http://h/v1"\ntries = 0': BadField,
    }  # fmt: skip
    for text, error in wrong.items():
        file.write_text(text)
        with pytest.raises(error):
            read_endpoint(str(file))


def test_when_time_is_up_what_is_there_counts_and_the_rest_is_dropped(opened: Open) -> None:  # noqa: F811
    server = FakeServer(faults=[None, Fault(seconds=600), None, Fault(seconds=600)])
    process = opened(server, price=PRICE)
    result = result_of(process, job(4, seconds=0.5))
    assert result.stop_reason == "seconds" and result.answer is not None
    assert sum(bool(c.text) for c in result.candidates) == 2 and not process.progress()
    assert result.cost.usd >= bill_of(FakeServer()) + 2 * 12 * 4.0 / 1e6, "what a dropped request may have cost is booked"
    process.close()
    assert server.num_dropped == 2
