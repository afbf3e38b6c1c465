import pytest

from training.parts.loops import loops


@pytest.mark.parametrize(
    "text",
    [
        "Sure!\nStep one.\nStep one.\n\nstep one.",  # a line three times, wherever the others are
        "- eat\n- sleep\n- eat\n- run\n- eat",
        "I am sorry, I can not do that. " * 3,
        "It is so so so so so so so so so so good",
        "He said yes, and then he said yes, and then He said yes, and then he",
        "word " * 10,
    ],
)
def test_what_loops(text):
    assert loops(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "very, very, very good",  # few words
        "Row, row, row your boat\nGently down the stream\nMerrily, merrily, merrily, merrily",
        "one\n---\ntwo\n---\nthree\n---\nfour",  # no letters
        "I am sorry, I can not do that. " * 2,
        "a b c d e a b c d f a b c d g a b c d h",
        "ha " * 9,
    ],
)
def test_what_does_not(text):
    assert not loops(text)
