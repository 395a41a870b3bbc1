"""The line that says what an answer cost."""

from ponder.cli.show import cost_line
from ponder.core.budget import Cost


def test_drafts_are_told_by_rounds():
    """16 tokens of which 4 were accepted: 12 rounds."""
    assert "4 of 30 drafted accepted (0.33 a round)" in cost_line(Cost(generated_tokens=16, drafted_tokens=30, accepted_tokens=4))


def test_no_word_of_drafts_where_there_are_none():
    assert "drafted" not in cost_line(Cost(generated_tokens=16))
