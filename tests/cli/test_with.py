"""`--with OTHER --way WAY`: what may be said, and answers that two models write together."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from engine.tiny_models import ByteTokenizer, tiny_decoder
from ponder.accelerate.schedule.sarathi import Sarathi
from ponder.accelerate.weights.dense import Bf16
from ponder.catalogue import BLENDS, COLLABORATIONS, check_partner, way
from ponder.cli import main
from ponder.collaborate.contrastive import Contrastive
from ponder.core.accelerations import Accelerations, Partner
from ponder.core.blend import Company
from ponder.core.draft import Twin
from ponder.core.errors import BadField, PonderError
from ponder.engine.open import open_process
from ponder.engine.process import Settings

QUESTION = "What is the capital of France?"


def asked(*options: str) -> str:
    """The answer to the question, as the command prints it."""
    found = CliRunner().invoke(main.app, ["ask", QUESTION, "--max-tokens", "12", "--threads", "1", *options])
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    assert found.exit_code == 0, found.output
    return " ".join(line.strip("│ ") for line in found.stdout.split("╰")[0].splitlines()[1:])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--with", "smollm2-135m"), "go together"),
        (("--way", "product"), "go together"),
        (("--with", "smollm2-135m", "--way", "prodact"), "did you mean product"),
        (("--with", "smollm2-135m", "--way", "product:weight=2"), "must be in [0, 1]"),
        (("--with", "smollm3-135m", "--way", "product"), "did you mean smollm2-135m"),
        (("--with", "smollm2-135m", "--way", "nudging", "--draft", "ngram"), "nothing to guess"),
        (("--with", "smollm2-135m", "--way", "product", "--cache", "snapkv:0.5"), "leave one of them out"),
        (("--with", "smollm2-135m", "--way", "product", "--attend", "s2"), "leave one of them out"),
        (("--with", "smollm2-135m", "--way", "product", "--model", "http://127.0.0.1:1/v1#x"), "of the engine"),
    ],
)
def test_mistakes_are_refused(options: tuple[str, ...], says: str, smollm2_path: Path):
    with pytest.raises(PonderError, match=says.replace("[", r"\[")):
        asked(*options)


@pytest.mark.parametrize("written", ["contrastive:alpha=0", "product"])
def test_a_model_with_itself_says_what_it_says(written: str, smollm2_path: Path):
    answer = asked()
    assert "Paris" in answer and asked("--with", "smollm2-135m", "--way", written) == answer


def test_a_model_nudged_by_itself_answers(smollm2_path: Path):
    assert "Paris" in asked("--with", "smollm2-135m", "--way", "nudging:least=0.5")


def test_every_way_has_a_name_of_its_own():
    assert not set(BLENDS) & set(COLLABORATIONS)
    assert all(way(name) is not None for name in (*BLENDS, *COLLABORATIONS))
    check_partner(Accelerations(draft="ngram", partner=Partner("x", "product")))


def test_other_tokens_are_refused(smollm2_path: Path):
    company = Company(twin=Twin(model="other"), blend=Contrastive())
    settings = Settings(company=company, twins=lambda twin: (tiny_decoder(), ByteTokenizer()))
    with pytest.raises(BadField, match="take one of its family, or --way nudging"):
        open_process(smollm2_path, weights=Bf16(), scheduler=Sarathi(), settings=settings)
