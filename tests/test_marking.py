"""An answer is right where a person would say so."""

import pytest

from hyperlora.marking import same_answer


@pytest.mark.parametrize(
    ("question", "output", "right", "wrong"),
    [
        ("France", "Paris", ["paris", "Paris.", ' "Paris" \n', "**Paris**"], ["Paris is it", "Pari", "", "."]),
        ("Is it?", "yes", ["Yes!", "YES"], ["yes, it is"]),
        ("two words", "red  or blue", ["red or\nblue"], ["redor blue"]),
        ("overcome", "Overcome", ["Overcome"], ["overcome", "OVERCOME", "Overcome."]),  # case is what was asked for
        ("the last word", "WORD", ["WORD "], ["word"]),
        ("i am here", "I am here.", ["I am here."], ["I am here", "i am here."]),  # so are end marks
        ("I fly to paris and rome", "paris", ["Paris"], []),  # as it stands there: nothing was asked of its case
        ("a question?", "?", ["?"], ["!", ""]),
        ("Nothing", "no", ["No"], []),
    ],
)
def test_an_answer_is_read_as_people_do(question, output, right, wrong):
    assert all(same_answer(answer, ["other", output], question) for answer in [output, *right])
    assert not any(same_answer(answer, ["other", output], question) for answer in wrong)
