"""Text that no file and no tokenizer would take is refused where it comes in."""

import os

import pytest

from hyperlora.errors import UserError
from hyperlora.text import check_text


@pytest.mark.parametrize("text", ["", "Sort the list.", "na\u00efve \u4e2d \U0001f600 \x00 \u2028 \ufffd \ue000"])
def test_text_stays_as_it_is(text):
    assert check_text(text, "The description") == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\ud83d", r"'\\ud83d'"),  # JSON's "\ud83d", JavaScript's "😀"[0]
        ("a smile \ude00 b", r"'\\ude00'"),
        ("\ud83d\ude00", r"'\\ud83d'"),  # both halves, but two characters to Python
        (os.fsdecode(b"caf\xe9"), r"'\\udce9'"),  # Latin-1 on a command line
        (b"caf\xe9".decode(errors="surrogateescape"), r"'\\udce9'"),
    ],
    ids=ascii,
)
def test_half_characters_and_bytes_that_are_not_utf_8(text, shown):
    with pytest.raises(UserError, match=f"^The description holds {shown}, which is half a character or a byte that"):
        check_text(text, "The description")


@pytest.mark.parametrize("text", [None, 3, b"bytes", ["a"]], ids=repr)
def test_what_is_no_text(text):
    with pytest.raises(UserError, match=f"^The message must be text, not {type(text).__name__}"):
        check_text(text, "The message")
