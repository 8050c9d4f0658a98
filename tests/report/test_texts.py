"""Texts from elsewhere do nothing to what stands around them."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_bn.report import texts

ANY = st.text(st.characters(), max_size=40)  # halves of surrogate pairs too, as JSON may hold them


@pytest.mark.parametrize(
    "text, shown",
    [
        ("net-int8 (2).tflite", "net-int8 (2).tflite"),
        ("Größe_模型_🦜", "Größe_模型_🦜"),
        ("\u0645\u06cc\u200c\u062e", "\u0645\u06cc\u200c\u062e"),  # a joiner that words need
        ("two\nlines\tand\u2028more", "two lines and more"),
        ("\x1b[2J\x00\x7f\x9b", r"\u001b[2J\u0000\u007f\u009b"),
        ("a\u202eb\u2066c\u200fd\ufeff", r"a\u202eb\u2066c\u200fd\ufeff"),
        ("\ud800\uffff\U0001ffff", r"\ud800\uffff\u1ffff"),
    ],
    ids=["plain", "letters", "joiner", "spaces", "control", "direction", "no character"],
)
def test_only_what_acts_is_written_out(text, shown):
    assert texts.plain(text) == shown


@given(ANY)
def test_no_character_that_acts_is_left(text):
    shown = texts.plain(text)
    shown.encode("utf-8")  # half of a surrogate pair could not be written
    assert shown.splitlines() in ([], [shown])
    assert not {unicodedata.category(c) for c in shown if c not in texts.IN_WORDS} & {
        "Cc", "Cf", "Cs", "Zl", "Zp",
    }  # fmt: skip


def test_right_to_left_stays_within_the_name():
    """Digits after a Hebrew word would stand in front of it otherwise."""
    shown = texts.shown({"\u05e9\u05dc": ["\u05e9\u05dc", "plain", 3, None]})
    isolated = "\u2068\u05e9\u05dc\u2069"
    assert shown == {isolated: [isolated, "plain", 3, None]}


def test_long_texts_lose_their_middle():
    shown = texts.shown("a" * 9000 + "b" * 1000)
    assert len(shown) == texts.LONGEST
    assert (shown[0], shown[-1]) == ("a", "b")
    assert texts.shortened("abc", 3) == "abc"
