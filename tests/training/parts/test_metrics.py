import pytest

from training.parts.metrics import accepted, contains, exact_match, loops, rouge_l, token_f1


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


def test_an_answer_may_be_in_what_is_said():
    assert contains("The capital of France is **Paris**.", ["Paris"]) and contains("PARIS", ["Lyon", "paris."])
    assert not contains("The Parisians", ["Paris"]) and not contains("", ["Paris"])
    assert contains("It is c++ (new)", ["C++"])


def test_token_f1_counts_words_and_signs():
    # 2 of 3 words of the answer, 2 of 4 of the output: 2 * 2 / 7
    assert token_f1("the cat sat", ["The cat is here"]) == pytest.approx(4 / 7)
    assert token_f1("a a b", ["a b b"]) == pytest.approx(4 / 6)  # each as often as it is there
    assert token_f1("ls -la", ["ls -l", "ls -la"]) == 1  # the best of several
    assert token_f1("", ["x"]) == 0 and token_f1("x", ["y"]) == 0
    assert token_f1("\U0001f600", ["\U0001f600"]) == 1


LIST = "1. Eat well.\n2. Sleep.\n3. Walk every day.\n"
CHORUS = "Oh, the road is long\nI sing my song\nOh, the road is long\nand I walk along"


@pytest.mark.parametrize(
    "text",
    [
        LIST + "4. Eat well.\n5. eat well.",
        "I am sorry.\n\nI am sorry.\n\nI am sorry.",
        "The cat sat, and then the cat ran and the cat ran and the cat ran and the",
        "no " * 8,
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
