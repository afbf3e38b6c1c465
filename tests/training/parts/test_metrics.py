import pytest

from training.parts.metrics import accepted, exact_match, rouge_l


def test_an_answer_is_right_where_it_is_any_accepted_output():
    example = {"input": "Name a vowel.", "output": "a", "outputs": ["a", "e "]}
    assert accepted(example) == ["a", "e "]
    assert accepted({"input": "", "output": "a"}) == ["a"]
    assert exact_match(" a\n", accepted(example)) and exact_match("e", accepted(example))
    assert not exact_match("A", accepted(example)) and not exact_match("", accepted(example))


def test_rouge_l_is_the_f1_of_the_longest_common_subsequence_of_stems():
    # "the cat sat" of 3 words in 6 and in 4: precision 3/4, recall 3/6
    assert rouge_l("the cat sat down", ["the old cat has not sat"]) == pytest.approx(2 * 0.75 * 0.5 / 1.25)
    assert rouge_l("Walking!", ["walked"]) == 1  # one stem
    assert rouge_l("no word in common", ["xyz"]) == 0
    assert rouge_l("", ["xyz"]) == 0
    assert rouge_l("blue", ["red", "blue"]) == 1  # the best of several
