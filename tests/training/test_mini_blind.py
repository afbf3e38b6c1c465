"""What is only measured: the blind descriptions of the mini suite's tasks, and the everyday requests."""

from random import Random

from training.mini.blind import blind_descriptions, blind_tasks
from training.mini.suite import suite
from training.parts.requests import everyday_requests
from training.tasks import Task


def test_blind_descriptions_are_of_60_tasks_drawn_among_the_trained_ones():
    names = [task.name for task in suite() if task.group == "trained"]
    assert list(blind_descriptions()) == Random(0).sample(names, 60)
    assert all(len(set(texts)) == 3 for texts in blind_descriptions().values())


def test_what_is_only_measured_is_trained_nowhere():
    trained = {text.lower().rstrip(".!?") for task in suite() for text in task.descriptions}
    measured = [text for texts in blind_descriptions().values() for text in texts]
    measured += [request.description for request in everyday_requests()]
    assert not [text for text in measured if text.lower().rstrip(".!?") in trained]


def test_blind_tasks_keep_all_but_their_unseen_descriptions():
    names = list(blind_descriptions())[:2]
    tasks = [Task(name, ["Do."], ["Unseen."], test=[{"input": "a", "output": "b"}]) for name in [*names, "other"]]
    found = blind_tasks(tasks)
    assert [task.name for task in found] == names
    assert [task.eval_descriptions for task in found] == [blind_descriptions()[name] for name in names]
    assert all(task.descriptions == ["Do."] and task.test for task in found)


def test_a_hundred_requests_have_four_messages_each_and_answers_to_them():
    requests = everyday_requests()
    assert len(requests) == 100 == len({request.description for request in requests})
    assert all(len(request.examples) == 4 == len({e["input"] for e in request.examples}) for request in requests)
    assert all(e["output"] == e["outputs"][0] and all(e["outputs"]) for r in requests for e in r.examples)
    assert 50 <= sum(request.trained for request in requests) <= 70
