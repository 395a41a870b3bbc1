"""Stop strings and separators that span tokens, overlap, or share a token; what is shown early; bytes that are no text."""

import codecs

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ponder.engine.text import CompletionText, first_match, open_end


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


def test_open_ends():
    assert open_end("one ST", ["STOP"]) == 4
    assert open_end("aab", ["abc", "b"]) == 1
    assert open_end("aba", ["abab"]) == 0
    assert open_end("STOP", ["STOP"]) == 4
    assert open_end("", ["a"]) == 0


ALPHABET = ["a", "b", "\n", "é", "€", "😀", "\ufffd"]
PIECES = st.lists(
    st.one_of(st.sampled_from([c.encode() for c in ALPHABET]), st.binary(max_size=3), st.sampled_from([b"\xc3", b"\xa9", b"\xe2\x82", b"\xac", b""])),
    max_size=12,
)
STOPS = st.lists(st.text(st.sampled_from(ALPHABET), min_size=1, max_size=4), max_size=3)


def streamed(pieces: list[bytes], stop: list[str], kind=CompletionText) -> tuple[list[str], str, str | None]:
    """(what was safe to show before the first piece and after each, the final text, finish)."""
    text = kind(b"", stop, ())
    shown, found = [text.safe], None
    for piece in pieces:
        found = text.push(piece)
        shown.append(text.safe)
        if found:
            break
    return shown, text.text, found


def require_stream_law(pieces: list[bytes], stop: list[str], kind=CompletionText) -> None:
    """Parts shown early join to the final text, which is the whole one up to the first stop string."""
    shown, text, found = streamed(pieces, stop, kind)
    for early, late in zip(shown, [*shown[1:], text]):
        assert late.startswith(early), "what was shown is taken back"
    parts = [late[len(early) :] for early, late in zip(["", *shown], [*shown, text])]
    assert "".join(parts) == text
    assert not any(s in text for s in stop), "a stop string leaks"
    whole = b"".join(pieces).decode(errors="replace")
    starts = [whole.find(s) for s in stop if s in whole]
    assert text == (whole[: min(starts)] if starts else whole), "the text is another"
    assert found != "stop" or starts
    assert stop or shown[-1] == codecs.getincrementaldecoder("utf-8")("replace").decode(b"".join(pieces)), "whole characters are held back"


@given(PIECES, STOPS)
@example([b"\xc3", b"\xa9x"], ["é"])
@example([b"a\xe2\x82"], ["\ufffd"])
@example([b"ab", b"a", b"b"], ["aba\n", "bab"])
@example([b"\xe2", b"\n\n"], ["\n\n"])
def test_what_is_shown_early_is_the_beginning_of_the_end(pieces, stop):
    require_stream_law(pieces, stop)


@given(PIECES, STOPS, st.integers(0, 12))
def test_going_on_from_the_tokens_is_no_difference(pieces, stop, cut):
    """An ask that resumes after `cut` pieces ends where the one ask would have ended."""
    text, found = CompletionText(b"", stop, ()), None
    for i, piece in enumerate(pieces):
        if i == cut:
            text = CompletionText(b"".join(pieces[:i]), stop, ())
        found = text.push(piece)
        if found:
            break
    assert (text.text, found) == streamed(pieces, stop)[1:]


class Hasty(CompletionText):
    """Shows all it has."""

    @property
    def safe(self) -> str:
        return self.text


class ByPiece(CompletionText):
    """Decodes each token alone."""

    def push(self, piece: bytes) -> str | None:
        return super().push(piece.decode(errors="replace").encode())


class LastPiece(CompletionText):
    """Looks for stop strings in the newest token only."""

    def _find_stop(self, since):
        if any(s in self.whole[since:] for s in self.stop):
            self.cut = since


@pytest.mark.parametrize(
    ("kind", "pieces", "stop"),
    [
        (Hasty, [b"one ST", b"OP"], ["STOP"]),
        (Hasty, [b"\xc3", b"\xa9"], []),
        (ByPiece, [b"\xc3", b"\xa9"], []),
        (LastPiece, [b"ST", b"OP"], ["STOP"]),
    ],
)
def test_wrong_ways_are_caught(kind, pieces, stop):
    require_stream_law(pieces, stop)
    with pytest.raises(AssertionError):
        require_stream_law(pieces, stop, kind)
