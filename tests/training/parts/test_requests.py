import json

import pytest

from hyperlora.errors import UserError
from training.parts.requests import as_tasks, everyday_requests

GOOD = {"description": "Say it in French.", "messages": [{"input": "bread", "outputs": ["pain", "le pain"]}]}


def test_ours_are_a_hundred_with_four_messages_each():
    requests = everyday_requests()
    assert len(requests) == 100 and all(len(request.examples) == 4 for request in requests)
    assert {request.trained for request in requests} == {True, False}
    assert len({request.description for request in requests}) == 100


def test_others_requests_are_read_and_measured_as_tasks(tmp_path):
    path = tmp_path / "theirs.json"
    path.write_text(json.dumps([GOOD, GOOD | {"kind": "translation", "trained": True}]))
    first, second = everyday_requests(path)
    assert (first.kind, first.trained, second.kind, second.trained) == ("", False, "translation", True)
    task = as_tasks([first, second])[1]
    assert (task.name, task.descriptions, task.eval_descriptions) == ("request-002", [], ["Say it in French."])
    assert task.test == [{"input": "bread", "output": "pain", "outputs": ["pain", "le pain"]}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "must hold a list of requests"),
        ([], "must hold a list of requests"),
        ([GOOD, 3], "request 2, must be an object"),
        ([GOOD | {"description": " "}], 'request 1, must be an object with a "description"'),
        ([GOOD | {"messages": []}], 'request 1, must have "messages"'),
        ([GOOD | {"messages": [{"input": "a"}]}], 'must have "messages"'),
        ([GOOD | {"messages": [{"input": "a", "outputs": [""]}]}], 'must have "messages"'),
        ([GOOD | {"messages": [{"input": 1, "outputs": ["a"]}]}], 'must have "messages"'),
        ([GOOD | {"trained": "yes"}], '"trained" true or false'),
    ],
)
def test_a_file_of_another_form_is_refused_with_its_place(tmp_path, content, message):
    path = tmp_path / "theirs.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        everyday_requests(path)


def test_a_file_that_is_no_json_is_refused(tmp_path):
    (tmp_path / "theirs.json").write_text("[")
    with pytest.raises(UserError, match=r"theirs\.json"):
        everyday_requests(tmp_path / "theirs.json")
