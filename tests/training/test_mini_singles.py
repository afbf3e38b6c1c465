"""The single tasks of the mini suite: data and functions fit, and what people type has the answer they expect."""

import json
from pathlib import Path
from random import Random

import pytest

from training.mini import singles
from training.mini.splits import split_of

DATA = json.loads(Path(singles.__file__).with_suffix(".json").read_text(encoding="utf-8"))

# input, answer: as plain text, with capitals, as one word, with an end mark
EXPECTED = {
    "words_to_number": ["forty-two", "42", "Seven hundred and five", "705", "NINE", "9", "Eleven.", "11"],
    "plural": ["dog", "dogs", "Window", "Windows", "BOX", "BOXES", "Child", "Children"],
    "singular": ["cities", "city", "Windows", "Window", "WIVES", "WIFE"],
    "past_tense": ["walk", "walked", "Walk", "Walked", "STOP", "STOPPED", "Try", "Tried"],
    "gerund": ["make", "making", "Stop", "Stopping", "WALK", "WALKING"],
    "agent": ["teach", "teacher", "Write", "Writer", "RUN", "RUNNER"],
    "third_person": ["carry", "carries", "Watch", "Watches", "WALK", "WALKS"],
    "comparative": ["happy", "happier", "Small", "Smaller", "BIG", "BIGGER"],
    "superlative": ["late", "latest", "Small", "Smallest", "BIG", "BIGGEST"],
    "adverb": ["quick", "quickly", "Happy", "Happily", "LOUD", "LOUDLY"],
    "article": ["apple", "an apple", "Window", "A window", "EGG", "AN EGG"],
    "negate": [
        "the dog is hungry", "the dog is not hungry", "He is here.", "He is not here.",
        "She Was Late", "She Was Not Late", "my sister was Happy!", "my sister was not Happy!",
        "THE KING IS OLD", "THE KING IS NOT OLD",
    ],
    "to_question": [
        "the dog is hungry", "is the dog hungry?", "The dog is hungry.", "Is the dog hungry?",
        "IT WAS LATE!", "WAS IT LATE?", "She Is Here", "Is She Here?", "the Dog is ready", "is the Dog ready?",
    ],
    "to_past": ["he is late", "he was late", "He is late.", "He was late.", "IT IS HERE", "IT WAS HERE"],
    "he_to_she": [
        "he saw his dog", "she saw her dog", "He saw him.", "She saw her.", "HE RUNS", "SHE RUNS",
        "he took His hat!", "she took Her hat!",
    ],
    "i_to_we": ["i like my dog", "we like our dog", "I run.", "We run.", "You and I", "You and we", "I RUN", "WE RUN"],
    "possessive": ["dog house", "the dog's house", "Dog house", "The dog's house", "Dog House", "The Dog's House"],
    "not_prefix": ["kind", "unkind", "Happy", "Unhappy", "CLEAR", "UNCLEAR"],
    "hello": ["anna", "hello anna!", "Anna", "hello Anna!", "BOB", "hello BOB!"],
    "too": ["we run", "we run too", "Go", "Go too", "I know.", "I know too."],
    "copy": ["we run", "we run", "Hi", "Hi", "NOT Now!", "NOT Now!"],
    "twice": ["we run", "we run we run", "Hi", "Hi Hi", "Go now.", "Go now. Go now."],
    "word_three_times": ["dog", "dog dog dog", "Hi", "Hi Hi Hi"],
    "exclaim": ["we run", "we run!", "Hi", "Hi!", "Go now.", "Go now!", "really?", "really!"],
    "question_mark": ["we run", "we run?", "Hi", "Hi?", "Go now.", "Go now?", "now!", "now?"],
    "capitalize_each": ["we run home", "We Run Home", "hi", "Hi", "Go now.", "Go Now."],
    "capitalize_first": ["we run", "We run", "hi", "Hi", "Go now.", "Go now.", "go to Rome", "Go to Rome"],
    "swap_case": ["we RUN", "WE run", "Hi", "hI", "Go now.", "gO NOW."],
    "remove_vowels": ["hello world", "hll wrld", "Apple", "ppl", "I agree.", "gr.", "OK", "K", "go Ai.", "g."],
    "only_vowels": ["window", "io", "Apple", "Ae", "shy", "none", "OUT", "OU"],
    "star_vowels": ["hello", "h*ll*", "Apple pie.", "*ppl* p**.", "OK", "*K"],
    "no_spaces": ["we run home", "werunhome", "Hi", "Hi", "Go now.", "Gonow."],
    "initials": ["we run home", "wrh", "Hello World.", "HW", "hi", "h"],
    "first_letter_last_word": ["we run", "r", "Hello", "H", "Go Now.", "N"],
    "last_letter_first_word": ["we run", "e", "Hello.", "o", "GO now!", "O"],
    "first_letters_dots": ["we run", "w. r.", "Anna", "A.", "John Smith.", "J. S."],
    "reverse_each_word": ["we run", "ew nur", "Hi", "iH", "Go now.", "oG won."],
    "a_to_e": ["a banana", "e benene", "Apple", "Epple", "WAR.", "WER."],
    "spaces_to_newline_words": ["salt pepper", "salt and pepper", "Hi", "Hi", "Cats dogs.", "Cats and dogs."],
    "double_letters": ["dog", "ddoogg", "Hi", "HHii"],
    "double_words": ["we run", "we we run run", "Hi", "Hi Hi", "Go now.", "Go Go now now."],
    "sentence_punctuation": ["we run", "We run.", "hi", "Hi.", "Go now.", "Go now.", "go to Rome!", "Go to Rome."],
    "hash_tag": ["good day", "#goodday", "Sun", "#Sun", "Good day!", "#Goodday"],
    "camel_case": ["good old day", "goodOldDay", "Sun", "sun", "Good Day.", "goodDay"],
    "and_list": ["a, b, c", "a, b and c", "Apple, Pear", "Apple and Pear"],
    "list_to_words": ["red, blue", "red blue", "Apple, pear", "Apple pear"],
    "words_to_list": ["red blue", "red, blue", "Hi", "Hi", "Red Blue", "Red, Blue"],
    "brackets_list": ["red, blue", "[red, blue]", "Apple, pear", "[Apple, pear]"],
    "longest_item": ["red, yellow, pink", "yellow", "Apple, fig", "Apple"],
    "shortest_item": ["red, yellow, pink", "red", "Fig, apple", "Fig"],
    "numbered_list": ["red, blue", "1. red 2. blue", "Apple, Pear", "1. Apple 2. Pear"],
    "starts_with_vowel": ["apple", "yes", "Egg", "yes", "Dog", "no"],
    "contains_a": ["bank", "yes", "Apple", "yes", "Dog", "no"],
    "word_or_number": ["dog", "word", "Dog", "word", "7", "number"],
    "same_words": ["dog dog", "yes", "Dog dog", "yes", "dog cat", "no"],
    "sort_letters": ["dog", "dgo", "Cab", "abC"],
    "next_letter": ["ab", "bc", "Az", "Ba", "ZOO", "APP"],
    "every_other_word": ["a b c d", "a c", "Go to my house now.", "Go my now"],
    "remove_duplicates": ["a, b, a", "a, b", "Fig, fig, pear", "Fig, pear"],
    "palindrome": ["level", "yes", "Anna", "yes", "Dog", "no"],
    "count_vowels": ["window", "2", "Apple", "2", "AUDIO", "4"],
    "words_with_a": ["a red car", "a car", "Apples", "Apples", "We run.", "none", "I saw Anna.", "saw Anna"],
}  # fmt: skip


@pytest.mark.parametrize("name", EXPECTED)
def test_what_people_type_has_the_expected_answer(name: str):
    _, do = singles.TASKS[name]
    texts, answers = EXPECTED[name][::2], EXPECTED[name][1::2]
    assert {text: do(text) for text in texts} == dict(zip(texts, answers, strict=True))


def test_every_task_has_wordings_and_functions():
    assert list(DATA) == list(singles.TASKS)
    for name, said in DATA.items():
        assert list(said) == ["group", "plain", "varied", "more"], name
        assert said["group"] in ("trained", "operation"), name
        templates = said["plain"] + said["varied"] + said["more"]
        assert len(set(templates)) == len(templates), name
        assert all(t == t.strip() and t.isascii() and t.count("{") == t.count("}") for t in templates), name


@pytest.mark.parametrize(
    "name", ["plural", "copy", "exclaim", "remove_vowels", "negate", "and_list", "first_letters_dots"]
)
def test_inputs_are_as_people_type_them(name: str):
    make, _ = singles.TASKS[name]
    texts = [make(Random(seed)) for seed in range(600)]
    assert 150 < sum(text[0].isupper() for text in texts) < 300
    assert any(text.isupper() for text in texts)
    assert max(map(len, texts)) <= 50
    if name in ("copy", "exclaim", "remove_vowels", "negate", "first_letters_dots"):
        assert 80 < sum(text[-1] in ".!?" for text in texts) < 180
    if name in ("plural", "copy", "exclaim", "remove_vowels", "first_letters_dots"):
        assert sum(" " not in text for text in texts) > 60


@pytest.mark.parametrize("text", ["window", "go home", "the dog is hungry", "apple, pear"])
def test_how_a_text_is_typed_does_not_change_its_split(text: str):
    assert {split_of(t) for t in (text.upper(), text.title(), text + ".", text.capitalize() + "!")} == {split_of(text)}
