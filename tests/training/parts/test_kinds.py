from training.parts.kinds import OTHER, RANDOM, SEEN, UNSEEN, pick_descriptions
from training.tasks import Task


def test_descriptions_of_each_kind(tasks):
    import random

    held_out = Task("third", ["Do third."], ["Now third."], test=[{"input": "abc", "output": "c"}])
    trained, draw = tasks, random.Random(0)
    assert set(pick_descriptions(tasks[0], SEEN, trained, 5, draw)) == {"Do first.", "Please first."}
    assert pick_descriptions(tasks[0], UNSEEN, trained, 5, draw) == ["Now first."]
    assert not any("first" in text for text in pick_descriptions(tasks[0], OTHER, trained, 20, draw))
    assert pick_descriptions(held_out, SEEN, trained, 5, draw) == []  # nothing of it was trained on
    assert set(pick_descriptions(held_out, UNSEEN, trained, 5, draw)) == {"Do third.", "Now third."}
    assert all(text.isalnum() for text in pick_descriptions(held_out, RANDOM, trained, 3, draw))
