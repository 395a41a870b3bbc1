"""What can be said of the page's files without a browser."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from ponder.serve import share

SCRIPTS = sorted(share.PAGE.glob("*.js"))
TRACES = Path(__file__).parent / "traces"


def test_the_page_is_small() -> None:
    assert sum(path.stat().st_size for path in share.PAGE.rglob("*") if path.is_file()) < 155_000


@pytest.mark.parametrize("path", [*SCRIPTS, share.PAGE / "index.html"], ids=lambda path: path.name)
def test_no_file_makes_markup_of_text_or_reaches_out(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    found = re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|https?://(?!www\.w3\.org/)|\son\w+=\"", text)
    assert found == []
    assert "<style" not in text and not re.search(r"<script(?![^>]*src=)", text)
    assert len(text.splitlines()) < 500


def test_a_shared_page_joins_modules_whose_names_differ() -> None:
    names: Counter[str] = Counter()
    imported: set[str] = set()
    for position, name in enumerate(share.MODULES):
        text = (share.PAGE / name).read_text(encoding="utf-8")
        names.update(re.findall(r"^(?:export )?(?:async )?(?:function\*?|const|let|class) +(\w+)", text, re.MULTILINE))
        needs = set(share.IMPORT.findall(text))
        assert needs <= set(share.MODULES[:position]), name
        imported |= needs
    assert [name for name, count in names.items() if count > 1] == []
    assert not re.search(r"^(import|export)\b", share.bundled(), re.MULTILINE)


def test_a_shared_trace_is_inert_data() -> None:
    line = json.dumps({"text": '</script><!--<script>alert("\\u2028 &amp;")'})
    page = share.document(line + "\n")
    (data,) = re.findall(r'id="trace">(.*?)</script>', page, re.DOTALL)
    assert json.loads(data) == [line]
    assert "<" not in data


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert share.main([]) == 2
    assert "usage" in capsys.readouterr().err
    assert share.main([str(tmp_path / "none.jsonl")]) == 2
    assert "none.jsonl" in capsys.readouterr().err
    (tmp_path / "run.jsonl").write_text((TRACES / "mcts.jsonl").read_text(encoding="utf-8"), encoding="utf-8")
    assert share.main([str(tmp_path / "run.jsonl")]) == 0
    assert (tmp_path / "run.html").stat().st_size > 50_000
