"""Stop strings and separators that span tokens, overlap, or share a token."""

import pytest

from ponder.engine.text import CompletionText, first_match


def grown(pieces: list[str], stop: tuple[str, ...] = (), until: tuple[str, ...] = (), before: str = "") -> tuple[str, str | None, int]:
    """(text, finish, number of pieces read) of a completion that goes on with `pieces`."""
    text = CompletionText(before.encode(), stop, until)
    for count, piece in enumerate(pieces, 1):
        found = text.push(piece.encode())
        if found:
            return text.text, found, count
    return text.text, None, len(pieces)


@pytest.mark.parametrize(
    ("pieces", "stop", "until", "before", "wanted"),
    [
        (["one ST", "O", "P two"], ("STOP",), (), "", ("one ", "stop", 3)),
        (["a STO", "RE"], ("STOP",), (), "", ("a STORE", None, 2)),
        (["P!"], ("STOP",), (), "x STO", ("x ", "stop", 1)),
        (["line\n", "\nnext"], (), ("\n\n",), "", ("line\n\nnext", "until", 2)),
        (["\n", "b"], (), ("\n",), "a\n", ("a\n\n", "until", 1)),
        (["b", "\n", "\n"], (), ("\n\n",), "a\n\n", ("a\n\nb\n\n", "until", 3)),
        (["x\n"], (), ("\n\n",), "a\n", ("a\nx\n", None, 1)),
        (["\n"], (), ("\n\n",), "a\n", ("a\n\n", "until", 1)),
        (["a\nEND"], ("END",), ("\n",), "", ("a\n", "until", 1)),
        (["aEND\n"], ("END",), ("\n",), "", ("a", "stop", 1)),
        (["b", "aab"], ("ab", "aab"), (), "", ("b", "stop", 2)),
        (["\n", "\n"], ("\n\n",), ("\n",), "a", ("a\n", "until", 1)),
        (["\n"], ("\n\n",), ("\n",), "a\n", ("a", "stop", 1)),
        (["é", "ü"], ("ü",), (), "", ("é", "stop", 2)),
    ],
)
def test_strings(pieces, stop, until, before, wanted):
    assert grown(pieces, stop, until, before) == wanted


def test_half_characters():
    text = CompletionText("é".encode()[:1], (), ())
    assert text.text == "�"
    text.push("é".encode()[1:])
    assert text.text == "é"


def test_a_stop_that_an_earlier_step_left_behind():
    text = CompletionText(b"a\nEND of", ("END",), ())
    assert (text.cut, text.text) == (2, "a\n")


def test_first_match_is_the_earliest():
    assert first_match("abcabc", ["ca", "bc"], 0) is not None
    assert first_match("abcabc", ["ca", "bc"], 0).start == 1
    assert first_match("abcabc", ["ca", "bc"], 3).start == 2
    assert first_match("abc", ["abc"], 3) is None
