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


LIST = "1. Eat well.\n2. Sleep.\n3. Walk every day.\n"
CHORUS = "Oh, the road is long\nI sing my song\nOh, the road is long\nand I walk along"


@pytest.mark.parametrize(
    "text",
    [
        LIST + "4. Eat well.\n5. eat well.",
        "I am sorry.\n\nI am sorry.\n\nI am sorry.",
        "The cat sat, and then the cat ran and the cat ran and the cat ran and the",
        "no " * 12,
        "Yes. " + "a b c d " * 3,
    ],
)
def test_an_answer_loops_where_a_line_is_there_three_times_or_its_end_is_the_same_words_again(text):
    assert loops(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        LIST,
        CHORUS,
        "Ho, ho, ho!",
        "row row row your boat, gently down the stream",
        "the cat ran and the cat ran and the cat ran away from the dog",
        "{\n  }\n}\n}\n}",
        "| a | b |\n| - | - |\n| 1 | 2 |\n| 1 | 3 |\n| 1 | 4 |",
    ],
)
def test_an_answer_that_says_something_twice_or_goes_on_from_it_does_not_loop(text):
    assert not loops(text)
