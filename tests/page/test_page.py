"""The page in a real browser: stored traces, live runs of a scripted server, refusals, keys, sizes, and text that wants to be markup."""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from page.fake_server import PAGE, STRATEGIES, TRACES, Fake

playwright_api = pytest.importorskip("playwright.sync_api")
playwright_api.expect.set_options(timeout=30_000)  # a busy machine may take its time
BROWSER = Path("/usr/bin/chromium")
pytestmark = pytest.mark.skipif(not BROWSER.exists(), reason="no chromium here")
NAMES = sorted(path.stem for path in TRACES.glob("*.jsonl"))
GUARANTEED = {found["name"] for found in STRATEGIES["strategies"]}  # type: ignore[index]
QUESTION = "How many sheep does he have now?"
Json = dict[str, Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright_api.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=str(BROWSER), args=["--no-sandbox", "--disable-gpu"])
        yield found
        found.close()


@pytest.fixture
def fake() -> Iterator[Fake]:
    server = Fake()
    yield server
    server.close()


@pytest.fixture
def visit(browser: Any, fake: Fake) -> Iterator[Callable[..., Any]]:
    """Opens the page; at the end nothing may have gone wrong in its console but refused requests."""
    opened: list[tuple[Any, list[str]]] = []

    def go(path: str = "", *, width: int = 1280, height: int = 900, scheme: str = "light") -> Any:
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme, reduced_motion="reduce")
        page, wrong = context.new_page(), list[str]()
        page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        opened.append((context, wrong))
        page.goto(path if path.startswith("file:") else fake.url + path)
        if not path.startswith("file:"):
            playwright_api.expect(page.locator("#server")).not_to_have_text("connecting")
        return page

    yield go
    for context, wrong in opened:
        context.close()
        assert [text for text in wrong if "Failed to load resource" not in text] == []


def lines_of(name: str) -> list[Json]:
    return [json.loads(line) for line in (TRACES / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def prefixes_of(lines: list[Json]) -> set[tuple[str, tuple[int, ...]]]:
    """Every prefix of a trace, by an account of its own."""
    found = set()
    for line in lines:
        ask = line.get("ask", {})
        if ask.get("kind") not in ("extend", "expand"):
            continue
        answer = line["answer"]
        grown = [answer["prefix"]] if ask["kind"] == "extend" else answer["children"]
        found |= {(ask["prompt"], ()), (ask["prompt"], tuple(ask["tokens"])), *((ask["prompt"], tuple(p["tokens"])) for p in grown)}
    return found


def spent(cost: Json) -> int:
    return int(sum(cost.get(f"{kind}_tokens", 0) for kind in ("prompt", "generated", "verifier")))


def number(page: Any, selector: str) -> int:
    return int(page.locator(selector).first.inner_text().replace(",", ""))


def open_files(page: Any, *paths: Path) -> None:
    page.set_input_files("#files", [str(path) for path in paths])


def ask(page: Any, *, strategy: str = "particle_filter") -> None:
    page.fill("#question", QUESTION)
    page.select_option("#strategy-strategy", strategy)
    page.click("#go")


def until_over(page: Any, num: int = 1) -> None:
    playwright_api.expect(page.locator(".status.over")).to_have_count(num, timeout=30_000)


def test_every_trace_is_drawn_whole(visit: Callable[..., Any]) -> None:
    page = visit("#runs")
    for name in NAMES:
        lines = lines_of(name)
        end, label = lines[-1], lines[0]["recipe"]["label"]
        open_files(page, TRACES / f"{name}.jsonl")
        playwright_api.expect(page.locator(".names h2").first).to_have_text(label)
        assert page.locator(".dots .node").count() == len(prefixes_of(lines)), name
        assert number(page, ".spent strong") == spent(end["cost"])
        votes = Counter(None if c["answer"] is None else c["answer"].lower() for c in end["candidates"])
        shown = [int(text.split()[0]) for text in page.locator(".vote .count").all_inner_texts()]
        assert sorted(shown) == sorted(votes.values()), name
        answer = end["candidates"][0]["answer"]
        assert page.locator(".answer output").inner_text() == ("none found in the text" if answer is None else answer)
        selected = {tuple(end["candidates"][0]["tokens"][:n]) for n in range(len(end["candidates"][0]["tokens"]) + 1)}

        assert page.locator(".names .badge:visible").count() == (label.split(":")[0] in GUARANTEED), name
        path = {tokens for prompt, tokens in prefixes_of(lines) if tokens in selected}
        assert page.locator(".dots .node.chosen").count() <= len(path)
        assert page.locator(".dots .node.chosen").count() >= 2


def test_verdicts_stand_at_the_prefixes_they_judge(visit: Callable[..., Any], fake: Fake) -> None:
    page = visit()
    for name in ("particle_filter", "particle_filter_cut", "mcts", "mcts_twice", "step_beam", "astar"):
        fake.extra[f"/{name}"] = (TRACES / f"{name}.jsonl").read_text(encoding="utf-8")
        rows = page.evaluate(
            """async (name) => {
              const { Run, parse, verdictAt } = await import("./trace.js");
              const run = new Run();
              for (const line of parse(await (await fetch(name)).text()).lines) run.add(line.value);
              const told = run.nodes.map((node) => [node.logP, node.tokens, verdictAt(node, run.last)?.value ?? null]);
              return { told, unmatched: run.unmatched };
            }""",
            name,
        )
        judged = [(log_p, tokens, value) for log_p, tokens, value in rows["told"] if value is not None]
        assert rows["unmatched"] == 0
        assert len(judged) > 5
        for log_p, tokens, value in judged:  # what mean_probability says of a prefix can be worked out from the prefix alone
            assert value == pytest.approx(math.exp(log_p / tokens), abs=1e-9)


def test_contradicted_verdicts_are_not_shown(visit: Callable[..., Any], fake: Fake) -> None:
    lines = lines_of("best_of_n")
    judge = next(line for line in lines if line.get("ask", {}).get("kind") == "judge")
    judge["answer"]["verdicts"].reverse()
    fake.extra["/wrong"] = "\n".join(map(json.dumps, lines))
    page = visit("?trace=wrong")
    playwright_api.expect(page.locator(".key").first).to_contain_text("could not be matched")


def test_the_scrubber_shows_the_run_as_of_any_line(visit: Callable[..., Any], fake: Fake) -> None:
    lines = lines_of("mcts")
    page = visit("?trace=examples/mcts.jsonl#runs")
    until_over(page)
    page.focus(".player input")
    page.keyboard.press("Home")
    assert page.locator(".dots .node").count() == 0
    for at in (1, 2, 3):
        page.keyboard.press("ArrowRight")
        assert number(page, ".spent strong") == sum(spent(line.get("answer", {}).get("cost", {})) for line in lines[: at + 1])
        assert page.locator(".dots .node").count() == len(prefixes_of(lines[: at + 1]))
    page.locator("#stage").focus()
    page.keyboard.press("ArrowLeft")
    assert page.locator(".place").first.inner_text() == f"2 / {len(lines) - 1}"
    page.select_option(".player select", "4")
    page.locator("#stage").focus()
    page.keyboard.press("Space")
    assert page.get_by_role("button", name="Pause").count() == 1
    until_over(page)


def test_what_is_left_behind_fades(visit: Callable[..., Any]) -> None:
    page = visit("?trace=examples/mcts.jsonl")
    until_over(page)
    candidates = {tuple(c["tokens"]) for c in lines_of("mcts")[-1]["candidates"]}
    returned = {p for p in prefixes_of(lines_of("mcts")) if any(c[: len(p[1])] == p[1] for c in candidates)}
    assert page.locator(".dots .node:not(.left)").count() == len(returned)
    assert page.locator(".dots .node.left").count() > 0


def test_the_tree_is_walked_by_keys(visit: Callable[..., Any]) -> None:
    page = visit("?trace=examples/mcts.jsonl")
    until_over(page)
    page.focus(".pane svg")
    page.keyboard.press("ArrowRight")
    first = page.locator(".pane svg").first.get_attribute("aria-activedescendant")
    assert "verdict 0." in page.locator(f"#{first}").get_attribute("aria-label")
    assert "verdict" in page.locator(".detail").first.inner_text()
    page.keyboard.press("ArrowDown")
    second = page.locator(".pane svg").first.get_attribute("aria-activedescendant")
    assert second != first
    page.keyboard.press("ArrowLeft")
    assert page.locator(".detail .before").first.inner_text() == lines_of("mcts")[0]["prompt"]["messages"][0][1]


def test_model_output_is_never_markup(visit: Callable[..., Any], fake: Fake, tmp_path: Path) -> None:
    bad = "<script>window.hacked=1</script><img src=x onerror='window.hacked=1'><svg onload=window.hacked=1>"
    lines = lines_of("best_of_n")
    lines[0]["prompt"]["messages"][0][1] = lines[0]["recipe"]["label"] = bad
    for line in lines[1:]:
        if "prefix" in line.get("answer", {}):
            line["answer"]["prefix"]["text"] = bad
        if line.get("ask", {}).get("kind") == "judge":
            line["ask"] |= {"candidates": [bad] * len(line["ask"]["candidates"]), "verifier": bad}
    for candidate in lines[-1]["candidates"]:
        candidate |= {"text": bad, "answer": bad}
    lines[-1]["diagnostics"] = {bad: bad, "error": bad}
    text = "\n".join(map(json.dumps, lines))
    fake.extra["/bad"] = text
    fake.runs["<img src=x onerror=window.hacked=1>"] = text.splitlines()
    shared = tmp_path / "shared.html"
    from ponder.serve.share import document

    shared.write_text(document(text), encoding="utf-8")
    for page in (visit("?trace=bad#runs"), visit(shared.as_uri())):
        until_over(page)
        page.focus(".pane svg")
        page.keyboard.press("ArrowRight")
        for details in page.locator("details:not([open]) > summary").all():
            if details.is_visible():
                details.click()
        assert page.evaluate("window.hacked") is None
        assert page.locator(".pane img, .pane script, .pane svg svg").count() == 0
        assert "<script>" in page.locator(".answer output").inner_text()
        assert "onerror" in page.locator(".detail").inner_text()


def test_a_live_run_grows_and_ends(visit: Callable[..., Any], fake: Fake) -> None:
    fake.pace = 0.02
    page = visit()
    page.select_option("#answer", "number")
    page.locator("#first summary").click()
    page.select_option("#strategy-strategy", "particle_filter")
    page.fill("#strategy-strategy-num", "6")
    page.fill("#strategy-strategy-ess_below", "")
    page.select_option("#strategy-strategy-resampler", "multinomial")
    page.check("#strategy-strategy-is_corrected")
    page.fill("#question", QUESTION)
    page.keyboard.press("Control+Enter")
    playwright_api.expect(page.locator(".status.on")).to_have_count(1)
    until_over(page)
    (body,) = fake.asked
    spec = "particle_filter:num=6,resampler=multinomial,ess_below=none,is_corrected=true"
    assert body["messages"] == [{"role": "user", "content": QUESTION}]
    assert (body["model"], body["stream"], body["max_tokens"]) == ("smollm2-135m", True, 256)
    assert body["ponder"] == {"strategy": spec, "budget": "2000 tokens, 60 s", "answer": "number", "stream": "live"}
    assert page.locator(".dots .node").count() == len(prefixes_of(lines_of("particle_filter")))
    assert page.locator(".cell.seconds dd").inner_text() == "4.2"  # the server's clock
    page.click("text=Replay")
    playwright_api.expect(page.locator("#runs .run")).to_have_count(1)
    with page.expect_download() as download:
        page.click("text=Save trace")
    saved = Path(download.value.path()).read_text(encoding="utf-8")
    assert saved == (TRACES / "particle_filter.jsonl").read_text(encoding="utf-8")


def test_the_best_answer_so_far_follows_revisions(visit: Callable[..., Any], fake: Fake) -> None:
    page = visit()
    fake.refusal = None
    said = page.evaluate(
        """async () => {
          const { ask } = await import("./api.js");
          const told = [];
          await ask({ model: "m", messages: [], ponder: { strategy: "mcts" } }, { onRun: () => {}, onText: (text) => told.push(text) });
          return told;
        }"""
    )
    text = lines_of("mcts")[-1]["candidates"][0]["text"]
    assert said[0] == "An answer that is given up."
    assert said[1] == text[:40]
    assert said[-1] == text


def test_stopping_ends_the_request(visit: Callable[..., Any], fake: Fake) -> None:
    fake.pace = 0.3
    page = visit()
    ask(page)
    playwright_api.expect(page.locator(".dots .node").nth(2)).to_be_attached(timeout=20_000)
    page.click("#stop")
    playwright_api.expect(page.locator(".pane .notice")).to_contain_text("Stopped")
    assert fake.cancelled.wait(20)
    assert page.locator("#go").is_enabled()


def test_two_strategies_have_one_scale(visit: Callable[..., Any], fake: Fake) -> None:
    fake.extra["/sc"] = (TRACES / "self_consistency.jsonl").read_text(encoding="utf-8")
    page = visit("?trace=sc", width=1600)
    until_over(page)
    alone = page.locator(".bar .generated").first.bounding_box()["width"]
    open_files(page, TRACES / "particle_filter.jsonl", TRACES / "self_consistency.jsonl")
    until_over(page, 2)
    page.wait_for_timeout(300)
    bars = [page.locator(".bar").nth(i).bounding_box()["width"] for i in (0, 1)]
    assert bars[0] == pytest.approx(bars[1], abs=1.5)
    parts = [page.locator(".bar .generated").nth(i).bounding_box()["width"] for i in (0, 1)]
    costs = [lines_of(name)[-1]["cost"]["generated_tokens"] for name in ("particle_filter", "self_consistency")]
    assert parts[0] / parts[1] == pytest.approx(costs[0] / costs[1], rel=0.05)
    assert alone > parts[1]
    page.get_by_role("button", name="Close Second run").click()
    playwright_api.expect(page.locator(".pane")).to_have_count(1)


def test_a_refused_field_is_marked(visit: Callable[..., Any], fake: Fake) -> None:
    page = visit()
    message = "budget 5 tokens cannot pay one step; allow at least 70 tokens"
    fake.refusal = (400, {}, {"error": {"message": message, "param": "ponder.budget", "code": None}})
    ask(page)
    playwright_api.expect(page.locator("#form-problem")).to_have_text(message)
    assert page.locator("#tokens").get_attribute("aria-invalid") == "true"
    assert page.evaluate("document.activeElement.id") == "tokens"
    assert message in page.locator(".problem").inner_text()
    ask(page)
    until_over(page)
    assert page.locator("#tokens").get_attribute("aria-invalid") is None


def test_a_busy_server_is_tried_again_when_it_says(visit: Callable[..., Any], fake: Fake) -> None:
    page = visit()
    fake.refusal = (429, {"Retry-After": "1"}, {"error": {"message": "64 wait already"}})
    ask(page)
    again = page.locator(".problem button")
    playwright_api.expect(again).to_be_disabled()
    assert "64 wait already" in page.locator(".problem").inner_text()
    playwright_api.expect(again).to_be_enabled(timeout=20_000)
    again.click()
    until_over(page)


def test_a_key_is_asked_for_and_kept_in_the_tab(visit: Callable[..., Any], fake: Fake) -> None:
    fake.key = "s3cret-key"
    page = visit()
    playwright_api.expect(page.locator("#key")).to_be_visible()
    page.fill("#key-input", "s3cret-key")
    page.keyboard.press("Enter")
    playwright_api.expect(page.locator("#server")).to_have_text("smollm2-135m")
    assert page.evaluate("[sessionStorage.getItem('ponder-key'), JSON.stringify(localStorage).includes('s3cret')]") == ["s3cret-key", False]
    ask(page)
    until_over(page)


def test_without_a_server_traces_replay(visit: Callable[..., Any], fake: Fake) -> None:
    fake.is_up = False
    page = visit()
    assert page.locator("#server").inner_text() == "no server, replay only"
    assert page.locator("#go").is_disabled()
    page.click("text=Show an example")
    until_over(page)
    fake.is_up = True
    page.click("#server")
    playwright_api.expect(page.locator("#go")).to_be_enabled()
    fake.is_up = False
    fake.extra["/none"] = "hello\n{}\n"
    page = visit("?trace=none")
    playwright_api.expect(page.locator(".problem")).to_contain_text("This is no trace.")


def test_a_damaged_line_is_left_out_and_said(visit: Callable[..., Any], fake: Fake) -> None:
    lines = (TRACES / "mcts.jsonl").read_text(encoding="utf-8").splitlines()
    fake.extra["/cut"] = "\n".join([*lines[:10], lines[10][:50]])
    page = visit("?trace=cut")
    playwright_api.expect(page.locator(".pane .notice")).to_contain_text("line 11")
    assert page.locator(".status").first.inner_text() == "unfinished"


def test_many_lines_are_drawn_in_part_and_it_says_so(visit: Callable[..., Any], fake: Fake) -> None:
    fake.extra["/many"] = "\n".join(map(json.dumps, many_lines(10_000)))
    page = visit("?trace=many")
    until_over(page)
    shown = page.locator(".dots .node").count()
    assert 100 < shown <= 420
    note = page.locator(".key").first.inner_text()
    assert re.search(rf"{shown} of [\d,]+ nodes drawn", note)
    page.focus(".player input")
    page.keyboard.press("Home")
    page.keyboard.press("PageUp")
    assert 0 < page.locator(".dots .node").count() <= shown
    assert page.locator(".dots .node.chosen").count() == 0


def many_lines(num: int) -> list[Json]:
    """A search of `num` lines: every node gets four children."""
    head, *_ = lines_of("mcts")
    lines, queue = [head], [()]
    for i in range(num - 2):
        parent = queue[i // 4]
        tokens = (*parent, i)
        queue.append(tokens)
        prefix = {"tokens": tokens, "text": "x" * len(tokens), "log_p": -1.0 * len(tokens), "finish": "stop" if i % 7 == 0 else None}
        ask = {"kind": "extend", "prompt": "p", "tokens": parent, "seed": i}
        lines.append(
            {
                "job": head["job"],
                "turn": 1 + i // 8,
                "slot": i % 8,
                "ask": ask,
                "answer": {"prefix": prefix, "finish": "until", "cost": {"generated_tokens": 1}},
            }
        )
    last = {"text": "x", "answer": "x", "tokens": queue[-1], "finish": "stop", "verdicts": []}
    return [
        *lines,
        {"job": head["job"], "stop_reason": "done", "cost": {"generated_tokens": num}, "confidence": None, "diagnostics": {}, "candidates": [last]},
    ]


def test_a_shared_page_needs_nothing_else(visit: Callable[..., Any], tmp_path: Path) -> None:
    from ponder.serve.share import main

    target = tmp_path / "run.html"
    assert main([str(TRACES / "particle_filter.jsonl"), str(target)]) == 0
    page = visit(target.as_uri())
    until_over(page)
    assert page.locator(".dots .node").count() == len(prefixes_of(lines_of("particle_filter")))
    page.keyboard.press("ArrowLeft")
    assert page.locator(".status.over").count() == 0
    assert page.evaluate("performance.getEntriesByType('resource').length") == 0
    with page.expect_download() as download:
        page.click("text=Save trace")
    assert Path(download.value.path()).read_bytes() == (TRACES / "particle_filter.jsonl").read_bytes()


@pytest.mark.parametrize("width", [380, 1600])
def test_it_fits(visit: Callable[..., Any], fake: Fake, width: int) -> None:
    fake.runs["one"] = (TRACES / "step_beam.jsonl").read_text(encoding="utf-8").splitlines()
    page = visit("?trace=examples/particle_filter.jsonl&beside=examples/mcts.jsonl", width=width, height=800)
    for view in ("Replay", "Ledger", "Ask"):
        page.get_by_role("link", name=view, exact=True).click()
        page.wait_for_timeout(100)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        for box in page.locator(".pane:visible .frame, .pane:visible .detail").all():
            inner, outer = box.bounding_box(), box.locator("xpath=ancestor::article").bounding_box()
            assert inner["x"] >= outer["x"]
            assert inner["x"] + inner["width"] <= outer["x"] + outer["width"]


def test_it_goes_by_keys_and_follows_the_theme(visit: Callable[..., Any]) -> None:
    page = visit(scheme="dark")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "stage"
    unnamed = page.evaluate(
        "[...document.querySelectorAll('input:not([type=file]), select, textarea, button')].filter((e) => !e.labels?.length "
        "&& !e.getAttribute('aria-label') && !e.textContent.trim()).map((e) => e.outerHTML)"
    )
    assert unnamed == []
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(ground)
    page.click("#theme")
    assert page.locator("#theme").inner_text() == "Theme: light"
    light = page.evaluate(ground)
    assert dark != light
    page.reload()
    assert page.evaluate(ground) == light


def test_nothing_moves_when_an_answer_comes(visit: Callable[..., Any], fake: Fake) -> None:
    fake.pace = 0.02
    page = visit()
    ask(page)
    playwright_api.expect(page.locator(".status.on")).to_have_count(1)
    places = [".frame", ".detail", ".player", ".cost"]
    before = [page.locator(place).first.bounding_box() for place in places]
    until_over(page)
    assert [page.locator(place).first.bounding_box() for place in places] == before


def test_the_ledger_is_told(visit: Callable[..., Any]) -> None:
    page = visit("#ledger")
    shown = page.locator("#ledger").inner_text()
    for part in ("prompt tokens", "1,840", "reused tokens", "20,480", "3.10 TFLOP", "mcts"):
        assert part in shown


def test_the_page_is_served_from_its_folder_alone() -> None:
    text = (PAGE / "index.html").read_text(encoding="utf-8")
    assert {name for name in re.findall(r'(?:src|href)="([^"#]+)"', text)} <= {path.name for path in PAGE.iterdir()}
