from tests.training.test_descriptions import capital
from training.parts.written import labels, leaks
from training.tasks import Task


def test_an_answer_is_found_whatever_its_case_and_punctuation():
    assert leaks("The capital is, of course, OSLO!", ["Oslo."])
    assert leaks("Write New-York.", ["new york"])
    assert leaks("Say: the quick brown fox jumps over it.", ["A long tale: the quick brown fox jumps over many dogs."])
    assert not leaks("Lisbonese words", ["Lisbon"])
    assert not leaks("Find a letter in the word.", ["a", "?", "", "in the"])


def test_classes_are_no_answers_that_could_leak():
    reviews = [{"input": str(i), "output": ("Positive", "negative.")[i % 2]} for i in range(40)]
    task = Task("reviews", ["Do."], train=[*reviews, {"input": "x", "output": "mixed"}])
    assert labels(task) == {"positive", "negative"}
    assert labels(capital()) == set()
    assert not leaks("Is the review positive?", ["Positive"], labels(task))
    assert leaks("Is the review mixed?", ["mixed"], labels(task))
